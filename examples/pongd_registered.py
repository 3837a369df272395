"""A service that listens on nothing: it sends every message back, and may run where there is no network.

    twistd -n plumberd --rule "allow serve pong" --rule "allow in pong tcp:192.0.2.7" --tcpd tcp:9000
    python3 examples/pongd_registered.py [NAME]

It claims `pong` from the broker, which then hands it each connection itself: the very
TCP socket of a remote caller, and a UNIX socket for a local one. A message is a 4-byte
big-endian length and a payload.
"""

import socket
import sys
import threading

from plumberd import client


def serve(sock: socket.socket) -> None:
    """Bounce messages until the client closes."""
    with sock, sock.makefile("rb") as stream:
        while len(header := stream.read(4)) == 4:
            sock.sendall(header + stream.read(int.from_bytes(header, "big")))


def main(name: str = "pong") -> None:
    """Serve for ever; a broker that starts anew is found again."""
    try:
        serving = client.serve(name, log=lambda line: print(f"pongd: {line}", file=sys.stderr, flush=True))
    except client.Error as e:
        sys.exit(f"pongd: {e.strerror or e}")
    print(f"pongd: serves {name}, by rule {serving.rule}", flush=True)
    for sock, told in serving:
        print(f"pongd: {told['mode']}, {told['peer']}", flush=True)
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
