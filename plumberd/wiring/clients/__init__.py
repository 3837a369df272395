"""Local programs that ask.

``broker``         listens, and holds who came       ``asker``     who asks on a connection
``lookup``         the steps of one lookup           ``delivery``  what a client is handed
``registrations``  services that are handed their callers
"""
