"""The main job, shown: two run directories stand for two machines.

A service that knows no networking answers a client that knows none either, over
two brokers that leave the path. Then the near broker is killed, and the
connection goes on. Ends with status 0 if everything happened as it says.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

from plumberd import client

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.dirname(sys.executable)
PATIENCE_SECONDS = 15

SETUP = """
  machine A                                    machine B
  client ──lookup──▶ plumberd ────tcp────▶ plumberd ────▶ pongd      while it is being set up
"""
AFTER = """
  client ════════════════tcp═════════════▶ plumberd ────▶ pongd      from then on
         the socket itself: the near broker is out of the path
"""


def main() -> int:
    """Run the demonstration; return the exit status."""
    children: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(prefix="plumb") as folder:
        try:
            return show(folder, children)
        finally:
            for child in children:
                if child.poll() is None:
                    child.terminate()
                child.wait()


def show(folder: str, children: list[subprocess.Popen[str]]) -> int:
    """Show everything, step by step."""
    near, far = f"{folder}/A", f"{folder}/B"

    def start(*argv: str) -> subprocess.Popen[str]:
        log = open(f"{folder}/{len(children)}.log", "w")  # noqa: SIM115 - the child's from now on
        children.append(subprocess.Popen(argv, stdout=log, stderr=log, text=True, cwd=folder))
        log.close()
        return children[-1]

    def broker(rundir: str, *options: str) -> subprocess.Popen[str]:
        say("$ twistd -n plumberd", *(word.replace(folder, "") for word in ("--rundir", rundir, *options)))
        program = start(f"{BIN}/twistd", "-n", "--pidfile=", "plumberd", "--rundir", rundir, *options)
        wait_for(f"{rundir}/plumberd", program)
        return program

    print("Machine B has two services that listen on nothing but a UNIX socket, and lets machine A in:")
    port = free_port()
    broker(
        far, "--tcpd", str(port), "--allow", "in", "pong", "tcp:127.0.0.1", "--allow", "in", "authd", "tcp:127.0.0.1"
    )
    for name in ("pong", "authd"):
        start(sys.executable, f"{HERE}/pongd.py", far, name)
        wait_for(f"{far}/{name}", children[-1])

    print("\nMachine A has no service at all, and one redirection:")
    near_broker = broker(near, "--redirect", "authd", f"tcp://127.0.0.1:{port}/authd")

    print(f"\nA client on machine A asks for `pong`:\n{SETUP}")
    routes = f"pong tcp://127.0.0.1:{port}/pong"
    sock, answer = client.lookup("pong", routes, rundir=near)
    say(f'IPC_NETWORKD="{routes}"')
    say(
        f"granted, mode {answer['mode']}, by {answer['rule']};",
        f"the client holds {sock.getsockname()} → {sock.getpeername()}",
    )
    print(AFTER)
    if not bounce(sock, b"hello from A"):
        return 1

    print("Kill the near broker, kill -9, while the connection goes on:")
    near_broker.send_signal(signal.SIGKILL)
    near_broker.wait()
    say(f"$ kill -9 {near_broker.pid}")
    if not bounce(sock, b"still here, and nobody noticed"):
        return 1
    sock.close()

    print("\nA new broker takes the stale sockets over, and a local client of `authd` is served by the distant one:")
    broker(near, "--redirect", "authd", f"tcp://127.0.0.1:{port}/authd")
    with client.connect("authd", rundir=near) as sock:
        if not bounce(sock, b"who am I?"):
            return 1

    print("\nWhat no rule lets in stays out:")
    try:
        client.connect(uri=f"tcp://127.0.0.1:{port}/secrets", rundir=near)
    except client.Refused as e:
        say(f"refused: {e}")
    else:
        print("it was let in: that is a bug", file=sys.stderr)
        return 1
    print("\nDone.")
    return 0


def bounce(sock: socket.socket, text: bytes) -> bool:
    """Send one message and show what comes back."""
    sock.settimeout(PATIENCE_SECONDS)
    sock.sendall(len(text).to_bytes(4, "big") + text)
    back = b""
    while len(back) < len(text) + 4:
        part = sock.recv(4096)
        if not part:
            break
        back += part
    say(f"→ {text.decode()}    ← {back[4:].decode()}")
    if back[4:] != text:
        print("the answer is not what was sent", file=sys.stderr)
    return back[4:] == text


def say(*words: str) -> None:
    """Print one indented line."""
    print("   ", *words, flush=True)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(path: str, program: subprocess.Popen[str]) -> None:
    """Wait until somebody listens on the UNIX socket at *path*."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < ends and program.poll() is None:
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(path) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on {path}")


if __name__ == "__main__":
    sys.exit(main())
