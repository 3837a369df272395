"""Clients of a running broker in processes of their own: other users, caged ones, and heirs of a connection."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plumberd.wiring.service import PlumberdService
from tests.children import ChildTestCase
from tests.running import RunningTestCase
from tests.support import in_thread

_ASK = """
import json, os, socket, struct, sys
{before}
def exactly(sock, count):
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data
for requests in json.loads(sys.argv[2]):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(sys.argv[1])
    if {forks} and os.fork():
        sock.close()
        os.wait()
        continue
    {between}
    for request in requests:
        payload = json.dumps(request).encode()
        sock.sendall(struct.pack(">I", len(payload)) + payload)
        head, fds, _, _ = socket.recv_fds(sock, 4, 8)
        head += exactly(sock, 4 - len(head))
        answer = json.loads(exactly(sock, struct.unpack(">I", head)[0]))
        for fd in fds:
            os.close(fd)
    print(json.dumps(answer), flush=True)
    sock.close()
    if {forks}:
        os._exit(0)
"""


@dataclass(frozen=True)
class Client:
    """A kind of client.

    :ivar before: what its process does first: becomes another user, say.
    :ivar forks: whether a child of it asks, over the connection that it has made.
    :ivar between: what is done then: by the child, if there is one, on the connection.
    :ivar within: a command that runs it.
    """

    before: str = ""
    forks: bool = False
    between: str = "pass"
    within: tuple[str, ...] = ()


def user(uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> str:
    """Return the code by which a process becomes another user."""
    return f"from tests.inside import become; become({uid}, {gid if gid is not None else uid}, {list(groups)})"


SECCOMP = "from tests.inside import add_seccomp_filter; add_seccomp_filter()"
"""The code by which a process comes under one more seccomp filter."""

NO_NETWORK = ("unshare", "-n")
"""What runs a process in a network namespace of its own."""


class ClientTestCase(RunningTestCase, ChildTestCase):
    """A broker that everybody may ask, and clients in processes of their own."""

    def open_to_all(self, service: PlumberdService) -> PlumberdService:
        """Let every user reach the sockets of a broker."""
        rundir = service.settings.rundir
        os.chmod(os.path.dirname(rundir), 0o755)
        os.chmod(rundir, 0o1777)
        for name in os.listdir(rundir):
            if not name.endswith(".lock"):
                os.chmod(os.path.join(rundir, name), 0o666)
        return service

    async def answers(
        self, service: PlumberdService, client: Client, *requests: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Ask as *client*, each of *requests* on a connection of its own; return the last answer on each."""
        code = _ASK.format(before=client.before, forks=client.forks, between=client.between)
        path = os.path.join(service.settings.rundir, "plumberd")
        child = self.child(code, path, json.dumps(requests), within=client.within)
        status, out, err = await in_thread(child.finish)
        self.assertEqual((status, err), (0, ""))
        return [json.loads(line) for line in out.splitlines()]

    async def answer(self, service: PlumberdService, client: Client, /, **members: Any) -> dict[str, Any]:
        """Ask once as *client*."""
        (answer,) = await self.answers(service, client, [members])
        return answer


def word(answer: dict[str, Any]) -> str:
    """Return ``ok``, or the word of the refusal."""
    return "ok" if answer["ok"] else str(answer["error"])
