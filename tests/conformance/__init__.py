"""Does a client speak the native protocol? Any client, in any language, is run against a scripted broker.

    python -m tests.conformance CLIENT [ARG…]

CLIENT is a program that is called as ``CLIENT [ARG…] SERVICE`` and

- looks for a broker in $IPC_RUNDIR, $RUNDIR, $XDG_RUNTIME_DIR/ipc and /run/ipc, and asks the first that is live;
  a variable that is empty counts as one that is not set. It asks in no directory that others can write and whose
  sticky bit is not set;
- asks once for SERVICE, with the value of $IPC_NETWORKD (else $IPC_NETWORK) as the routes, and sends nothing
  else to the broker;
- takes the descriptor that comes with the answer's first byte, and copies its standard input to it and it to its
  standard output; the end of one direction is passed on and leaves the other open;
- ends with status 0 when both directions have ended; after a refusal with another, and the word and the reason on
  standard error; when anything else is wrong with another, and one to three lines on standard error. Nothing
  but the service's bytes goes to standard output.

The broker's side is docs/protocol.md, "The native protocol". Nothing but Python's standard library is needed.
"""
