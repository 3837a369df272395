"""plumberd.commands.cage_ports: ports bound in another network namespace, served from here.

tests/process/test_datagrams.py has whole cages.
"""

from __future__ import annotations

import os
import subprocess
import sys

from plumberd.commands import cage_ports
from plumberd.commands.cage import CageError
from plumberd.commands.forward import Forwarding
from tests.children import ChildTestCase, needs_root
from tests.support import DEADLINE_SECONDS

INSIDE = """
import socket, subprocess
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
print("up", flush=True)
port = int(input())
sock = socket.socket(type=socket.SOCK_DGRAM)
sock.settimeout(20)
sock.sendto(b"hello", ("127.0.0.1", port))
print(sock.recv(100).decode(), flush=True)
"""


@needs_root
class Inside(ChildTestCase):
    def setUp(self) -> None:
        super().setUp()
        command = ["unshare", "--net", sys.executable, "-c", INSIDE]
        self.inside = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.end)
        assert self.inside.stdout is not None
        self.assertEqual(self.inside.stdout.readline(), "up\n")

    def end(self) -> None:
        self.inside.kill()
        self.inside.communicate(timeout=DEADLINE_SECONDS)

    def test_a_port_in_there_is_a_socket_here(self) -> None:
        ours = os.readlink("/proc/self/ns/net")
        (port,) = cage_ports._bound_inside(self.inside.pid, [Forwarding("127.0.0.1", 0, "x")])
        self.owned(port)
        self.assertEqual(os.readlink("/proc/self/ns/net"), ours)
        assert self.inside.stdin is not None and self.inside.stdout is not None
        self.inside.stdin.write(f"{port.getsockname()[1]}\n")
        self.inside.stdin.flush()
        port.settimeout(DEADLINE_SECONDS)
        data, source = port.recvfrom(100)
        port.sendto(data.upper(), source)
        self.assertEqual(self.inside.stdout.readline(), "HELLO\n")

    def test_what_cannot_be_bound_is_told(self) -> None:
        with self.assertRaises(CageError) as caught:
            cage_ports._bound_inside(self.inside.pid, [Forwarding("192.0.2.1", 53, "x")])
        self.assertIn("udp port 53: Cannot assign", str(caught.exception))

    def test_so_is_a_process_that_is_none(self) -> None:
        with self.assertRaises(CageError) as caught:
            cage_ports._bound_inside(2**22 + 1, [Forwarding("127.0.0.1", 53, "x")])
        self.assertIn("No such file", str(caught.exception))


class Words(ChildTestCase):
    def test_a_program_that_makes_no_cage_leaves_nothing(self) -> None:
        """Who serves the ports ends where nobody tells of a cage, and with who has started it."""
        code = (
            "import os; from plumberd.commands.cage_ports import with_ports; "
            "from plumberd.commands.forward import Forwarding\n"
            "print(*with_ports([Forwarding('127.0.0.1', 53, 'x')], 99))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True
        )
        words = done.stdout.split()
        self.assertEqual((words[0], words[2], done.stderr), ("--info-fd", "--block-fd", ""))
