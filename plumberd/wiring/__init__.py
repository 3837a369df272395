"""The wiring ring: what a user sees.

``options``   the command line        ``settings``  what it comes to
``broker``    local clients           ``lookup``    the life of one lookup
``tcpd``      remote callers          ``service``   start, stop, and everything together
"""
