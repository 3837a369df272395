"""A service of the current generation of libipc: it sends every message back.

It has no networking code at all: it listens on ``<run directory>/pong`` and
nothing else. A message is a 4-byte big-endian length and a payload.
"""

import os
import socket
import struct
import sys
import threading


def serve(client: socket.socket) -> None:
    """Bounce messages until the client closes."""
    with client, client.makefile("rb") as stream:
        while header := stream.read(4):
            (length,) = struct.unpack(">I", header)
            client.sendall(header + stream.read(length))


def main() -> None:
    """Listen for ever."""
    rundir, name = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "pong"
    path = os.path.join(rundir, name)
    if os.path.exists(path):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print(f"pongd: listening on {path}", flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client,), daemon=True).start()


if __name__ == "__main__":
    main()
