"""Tests, run by trial."""

import signal

# A shell without job control lets what runs in its background ignore SIGINT, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
