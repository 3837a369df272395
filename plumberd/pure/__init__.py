"""The pure ring: bytes and values in, values out.

Nothing here opens a socket, reads a clock or knows Twisted. Everything here can
be tested with a table.
"""
