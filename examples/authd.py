"""An authentication service with no network code: it listens on ``<run directory>/authd`` and nothing else.

    python3 examples/authd.py RUNDIR FILE

FILE has a line ``name:password`` for each user, and is readable by its owner alone.
A request is one message, ``name:password``; the answer is ``welcome NAME`` or
``no``. A message is a 4-byte big-endian length and a payload.
"""

import hmac
import os
import socket
import stat
import sys
import threading

from plumberd.framing import Decoder, Framing, Message, encode


def serve(client: socket.socket, known: dict[bytes, bytes]) -> None:
    """Answer until the client closes."""
    decoder = Decoder(Framing.LIBIPC_ZIG)
    with client:
        while data := client.recv(65536):
            for message in decoder.feed(data):
                name, _, password = message.payload.partition(b":")
                right = hmac.compare_digest(known.get(name, b""), password) and name in known
                answer = b"welcome " + name if right else b"no"
                client.sendall(encode(Framing.LIBIPC_ZIG, Message(answer)))


def main() -> None:
    """Listen for ever."""
    rundir, file = sys.argv[1:]
    if os.stat(file).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SystemExit(f"authd: {file} holds passwords, and others can read it")
    with open(file, "rb") as lines:
        known = dict(line.strip().split(b":", 1) for line in lines if b":" in line)
    path = os.path.join(rundir, "authd")
    if os.path.exists(path):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print(f"authd: listening on {path}", flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client, known), daemon=True).start()


if __name__ == "__main__":
    main()
