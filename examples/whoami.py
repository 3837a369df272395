"""A service that tells each caller who it is, as far as the broker knows: it listens on ``<run directory>/whoami``.

    python3 examples/whoami.py RUNDIR

It has no networking code, no passwords and no keys. Who calls from outside has
proved to the broker who it is, by a certificate, a key or a login, and the
service asks the broker. A program on this machine is told by the kernel.
"""

import os
import socket
import struct
import sys
import threading

from plumberd import client


def name_of(sock: socket.socket, rundir: str) -> str:
    """Return who is at the other end of an accepted connection."""
    try:
        told = client.whois(sock, rundir=rundir)
    except client.Refused:
        return "somebody whom the broker does not know"
    except client.Error:
        _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"uid {uid} of this machine"
    proved = " ".join(told["identities"]) or "nobody in particular"
    return f"{proved}, by {told['peer']['scheme']} from {told['peer']['address']}; {told['rule']} let you in"


def serve(sock: socket.socket, rundir: str) -> None:
    """Say it, and hang up."""
    with sock:
        sock.sendall(f"you are {name_of(sock, rundir)}\n".encode())


def main() -> None:
    """Listen for ever."""
    (rundir,) = sys.argv[1:]
    path = os.path.join(rundir, "whoami")
    if os.path.exists(path):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print(f"whoami: listening on {path}", flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock, rundir), daemon=True).start()


if __name__ == "__main__":
    main()
