"""A service for programs of any generation of libipc: it sends every message back in capitals.

    python3 examples/framing_service.py FRAMING /run/ipc NAME

FRAMING is `libipc-2019`, `libipc-2020`, `libipc-2023`, `libipc-zig` or `raw`. The
two oldest ones' sockets carry packets, of which each is one message.
"""

import contextlib
import dataclasses
import os
import socket
import sys
import threading

from plumberd.framing import LIMIT_BYTES, Decoder, Framing, encode


def serve(client: socket.socket, framing: Framing) -> None:
    """Answer until the client closes."""
    decoder = Decoder(framing)
    with client:
        while data := client.recv(LIMIT_BYTES):  # a piece of a stream, or a whole packet
            for message in decoder.feed(data):
                client.sendall(encode(framing, dataclasses.replace(message, payload=message.payload.upper())))


def main() -> None:
    """Listen for ever."""
    framing, rundir, name = Framing(sys.argv[1]), sys.argv[2], sys.argv[3]
    path = os.path.join(rundir, framing.socket_name(name))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if framing.packets else socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        print(f"{name}: listening on {path}", flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client, framing), daemon=True).start()


if __name__ == "__main__":
    main()
