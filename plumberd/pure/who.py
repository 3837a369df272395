"""Who is asking: a local client by its peer credentials, a remote one by its address."""

from __future__ import annotations

from dataclasses import dataclass

from plumberd.pure.policy.subject import Standing, Subject
from plumberd.pure.uri import IPAddress, show_host


@dataclass(frozen=True)
class LocalWho:
    """A local client.

    :ivar uid, gid, groups: effective ids and all supplementary groups, as the kernel tells them.
    :ivar pid: of the process that sent the request.
    :ivar confined: why it counts as confined, or ``""`` where it is proved not to be.
    :ivar same_cgroup: whether its cgroup is proved to be the broker's.
    :ivar restricted: whether it asks on a connection that was restricted, and may have been inherited.
    :ivar cgroup: the whole path of its cgroup, or ``None`` where it was not asked for or can't be told.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    pid: int
    confined: str = ""
    same_cgroup: bool = False
    cgroup: str | None = None
    restricted: bool = False

    @property
    def subject(self) -> Subject:
        """This client as rules see it."""
        standing = Standing.CONFINED if self.confined else Standing.LOCAL
        return Subject(standing, self.uid, frozenset((self.gid, *self.groups)), self.cgroup)

    def __str__(self) -> str:
        cage = f" confined ({self.confined})" if self.confined else ""
        bound = " restricted" if self.restricted else ""
        return f"uid={self.uid} gid={self.gid} pid={self.pid}{cage}{bound}"


@dataclass(frozen=True)
class RemoteWho:
    """A remote caller.

    :ivar scheme: how it came in.
    :ivar address: ``None`` where the transport has none (a UNIX listener).
    :ivar identities: what the scheme proved, as conditions of rules are written (``cert:example.com``);
        plain tcp proves nothing.
    :ivar via: the identities of the trusted gateway that tells all this, or ``""`` where nobody is in between.
    """

    scheme: str
    address: IPAddress | None
    port: int = 0
    identities: frozenset[str] = frozenset()
    via: str = ""

    @property
    def subject(self) -> Subject:
        """This caller as rules see it."""
        return Subject(Standing.REMOTE, words=self.identities)

    def __str__(self) -> str:
        proved = f" {' '.join(sorted(self.identities))}" if self.identities else ""
        proved += f" via {self.via}" if self.via else ""
        if self.address is None:
            return f"{self.scheme} peer without address{proved}"
        return f"{self.scheme}:{show_host(str(self.address))}:{self.port}{proved}"
