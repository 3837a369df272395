"""A client with plain sockets: it sends words to the service `pong` and prints what comes back.

    export IPC_RUNDIR=/run/ipc                                # where the broker is
    export IPC_NETWORKD="pong tcp://192.0.2.1:9000/pong"      # or nothing, for the local one
    python3 examples/pong.py hello "bounce me"

The service may be any of the three beside this file, here or on another machine.
"""

import socket
import sys

from plumberd import client
from plumberd.framing import Decoder, Message, encode

FRAMING = "libipc-zig"


def receive(sock: socket.socket, decoder: Decoder) -> Message:
    """Return the next message, however many reads it takes."""
    while data := sock.recv(65536):
        for message in decoder.feed(data):
            return message
    raise EOFError("the service hung up")


def main() -> None:
    """Send every argument as one message, and wait for its answer before the next."""
    try:
        sock = client.connect("pong")
    except client.Error as e:
        sys.exit(f"pong: {e.strerror or e}")
    decoder = Decoder(FRAMING)
    with sock:
        for word in sys.argv[1:] or ["hello"]:
            sock.sendall(encode(FRAMING, Message(word.encode())))
            print(receive(sock, decoder).payload.decode(), flush=True)


if __name__ == "__main__":
    main()
