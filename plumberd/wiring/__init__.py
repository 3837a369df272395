"""The wiring ring: what a user sees.

``service``   start, stop, and everything together
``core``      what all parts of one process share
``config``    the command line and the configuration, and the one value that both come to
``clients``   local programs that ask, and what they are handed
``inbound``   remote callers, a module for each way in
``dialing``   from a way to a connection, for both
``ops``       what a running broker tells and is told
"""
