"""Who is asking: a local client by its peer credentials, a remote one by its address."""

from __future__ import annotations

from dataclasses import dataclass

from plumberd.pure.uri import IPAddress, show_host


@dataclass(frozen=True)
class LocalWho:
    """A local client.

    :ivar uid, gid, groups: effective ids and all supplementary groups, as the kernel tells them.
    :ivar pid: of the process that sent the request.
    :ivar confined: why it counts as confined, or ``""`` where it is proved not to be.
    :ivar same_cgroup: whether its cgroup is proved to be the broker's.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    pid: int
    confined: str = ""
    same_cgroup: bool = False

    def __str__(self) -> str:
        cage = f" confined ({self.confined})" if self.confined else ""
        return f"uid={self.uid} gid={self.gid} pid={self.pid}{cage}"


@dataclass(frozen=True)
class RemoteWho:
    """A remote caller.

    :ivar scheme: how it came in.
    :ivar address: ``None`` where the transport has none (a UNIX listener).
    :ivar name: what the scheme proved; plain tcp proves nothing.
    """

    scheme: str
    address: IPAddress | None
    port: int = 0
    name: str | None = None

    def __str__(self) -> str:
        if self.address is None:
            return f"{self.scheme} peer without address"
        return f"{self.scheme}:{show_host(str(self.address))}:{self.port}"
