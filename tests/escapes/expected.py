"""What has to come of every escape. docs/security.md has the same tables, and a test compares them."""

from __future__ import annotations

from tests.escapes.attempts import POSSIBLE, REFUSED, SILENT

NONE = "—"
"""It is not tried: there is nothing that it could be tried on."""

MODES = ("locked", "direct", "relayed", "framed", "local")

_TCP_ALONE = (REFUSED, REFUSED, REFUSED)
"""What no UNIX connection can be made to do."""

_ANOTHER = (SILENT, POSSIBLE, *_TCP_ALONE)
"""What makes another connection out of a TCP socket, and what the lock is for."""

_TCP_TELLS = (POSSIBLE, POSSIBLE, *_TCP_ALONE)
"""What the lock lets through."""

_NOBODY = (REFUSED, REFUSED, REFUSED, REFUSED, REFUSED)
_FILTER = (REFUSED, NONE, NONE, NONE, NONE)

BY_MODE: dict[str, tuple[str, ...]] = {
    "connect it to another server": _ANOTHER,
    "connect it to the same server again, and name another service": _ANOTHER,
    "listen on it as it is": _NOBODY,
    "listen on a port, and be connected to": _ANOTHER,
    "connect it to itself (simultaneous open)": _ANOTHER,
    "pass it to a process outside of the cage, to be connected elsewhere there": _ANOTHER,
    "let a child inherit it, and connect it elsewhere": _ANOTHER,
    "take the filter off": _FILTER,
    "put another filter in its place (SO_ATTACH_FILTER, _BPF, _REUSEPORT_CBPF, _REUSEPORT_EBPF)": _FILTER,
    "unlock the filter": _FILTER,
    "listen on tcpd's port beside it (SO_REUSEADDR, SO_REUSEPORT)": _NOBODY,
    "keep a free port from others": _TCP_TELLS,
    "keep callers from a server of its own user that shares its port (SO_REUSEPORT)": _TCP_TELLS,
    "bind it to a port below 1024": _NOBODY,
    "take an abstract UNIX name of the broker's namespace": (REFUSED, REFUSED, POSSIBLE, POSSIBLE, POSSIBLE),
    "send a SYN to another server, whose answer never comes": _TCP_TELLS,
    "send a SYN from an address that the machine does not have (IP_FREEBIND)": _NOBODY,
    "send a SYN from an address that the machine does not have (IPV6_FREEBIND)": _TCP_TELLS,
    "send data in a SYN (Fast Open) to another server": _TCP_TELLS,
    "the same, where net.ipv4.tcp_fastopen is 0": _NOBODY,
    "send its data by way of another host (IPv4 source route)": _NOBODY,
    "send its data by way of another host (IPv6 routing header)": _TCP_TELLS,
    "sendto() with another server's address": (SILENT, SILENT, *_TCP_ALONE),
    "bind it to another interface (SO_BINDTODEVICE)": (POSSIBLE,) * 5,
    "be transparent (IP_TRANSPARENT)": _NOBODY,
    "mark its packets for other rules and routes (SO_MARK)": _NOBODY,
    "write its TCP state by hand (TCP_REPAIR)": _NOBODY,
    "make it an MPTCP subflow (TCP_ULP)": _NOBODY,
    "configure interfaces, addresses and routes (SIOCSIFADDR, SIOCSIFFLAGS, SIOCADDRT)": _NOBODY,
    "have the namespace that it belongs to (SIOCGSKNS)": _NOBODY,
    "have the broker's namespace by way of its process (SO_PEERPIDFD)": _NOBODY,
    "list the interfaces of the broker's namespace (SIOCGIFCONF)": (POSSIBLE,) * 5,
    "find out which ports are taken (bind)": _TCP_TELLS,
    "find out which networks are reachable (connect's errors)": _TCP_TELLS,
    "pass descriptors over it to the service": (SILENT, SILENT, REFUSED, REFUSED, POSSIBLE),
}
"""What a program without capabilities gets out of a descriptor, by the mode in which it has it."""

CAPABILITIES = ("none", "all, in a user namespace of its own", "CAP_NET_RAW, CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN")
"""Which a program in a cage has; the last two over the broker's network namespace, as root of a container may."""

_RAW = (REFUSED, REFUSED, POSSIBLE, REFUSED)
_ADMIN = (REFUSED, REFUSED, REFUSED, POSSIBLE)
_EITHER = (REFUSED, REFUSED, POSSIBLE, POSSIBLE)

BY_CAPABILITY: dict[str, tuple[str, ...]] = {
    "connect it to another server": (SILENT,) * 4,
    "connect it to the same server again, and name another service": (SILENT,) * 4,
    "listen on a port, and be connected to": (SILENT,) * 4,
    "take the filter off": (REFUSED,) * 4,
    "put another filter in its place (SO_ATTACH_FILTER, _BPF, _REUSEPORT_CBPF, _REUSEPORT_EBPF)": (REFUSED,) * 4,
    "unlock the filter": (REFUSED,) * 4,
    "listen on tcpd's port beside it (SO_REUSEADDR, SO_REUSEPORT)": (REFUSED,) * 4,
    "bind it to a port below 1024": _RAW,
    "send its data by way of another host (IPv4 source route)": _RAW,
    "be transparent (IP_TRANSPARENT)": _EITHER,
    "mark its packets for other rules and routes (SO_MARK)": _EITHER,
    "write its TCP state by hand (TCP_REPAIR)": _ADMIN,
    "configure interfaces, addresses and routes (SIOCSIFADDR, SIOCSIFFLAGS, SIOCADDRT)": _ADMIN,
    "have the namespace that it belongs to (SIOCGSKNS)": _ADMIN,
}
"""What a capability adds to a `locked` socket."""

_NEEDS_A_RULE, _SOMEBODY_ELSE, _DENIED = "needs a rule", "somebody else", "denied"

BY_ASKER: dict[str, str] = {
    "a program in no cage": "locked",
    "a program in a cage": _NEEDS_A_RULE,
    "one that is root in a user namespace of its own, in no cage": "locked",
    "connects, goes into a cage, asks": _NEEDS_A_RULE,
    "connects, asks, goes into a cage before it is looked at": _NEEDS_A_RULE,
    "connects in a cage, leaves it, asks": _NEEDS_A_RULE,
    "a thread that has gone into a cage by itself asks for a process that has not": "locked",
    "a caged child asks on its parent's connection": _NEEDS_A_RULE,
    "a parent asks on a connection that its caged child has made": _NEEDS_A_RULE,
    "a process of another user asks on a connection that it was passed": _SOMEBODY_ELSE,
    "connects, becomes another user, asks": _SOMEBODY_ELSE,
    "connects, becomes a set-uid program, which asks": _SOMEBODY_ELSE,
    "a second user of a user namespace asks for itself": "locked, as uid 104242",
    "the second user of a user namespace asks on the first one's connection": _SOMEBODY_ELSE,
    "asks under a seccomp filter and dies; its pid is an unfiltered process's when it is looked at": _NEEDS_A_RULE,
    "a caged child asks on a control socket for its service": "locked",
    "… for another service": _DENIED,
    "… for its service by a way of its own": "locked",
    "… by a URI": _DENIED,
    "… for its service, where a rule wants `direct`": "not-possible",
    "… for anything but a lookup (status, explain, why, confine, serve, ss, kill, reload)": _DENIED,
    "a caged child asks on a connection that was restricted before it inherited it, for its service": "locked",
    "who has restricted it asks on it for another service": _DENIED,
    "one in a cage wants a control socket": _NEEDS_A_RULE,
    "one in a cage that sees the run directory connects to a service's own socket": "connected",
    "a claimant goes into a cage behind its claim, where only `direct` is handed over": "refused",
    "a child of a claimant claims a service on the inherited connection, in a cage": _SOMEBODY_ELSE,
}
"""What comes of who asks, without a rule that names it; by its words in :mod:`tests.escapes.askers`."""

WITHOUT_DAEMON: dict[str, str] = {
    "dialled: be connected to there": SILENT,
    "dialled: tcpd listens there meanwhile": REFUSED,
    "accepted: be connected to there": SILENT,
    "accepted: tcpd listens there meanwhile": REFUSED,
    "dialled: where somebody else keeps tcpd's socket": REFUSED,
    "accepted: where somebody else keeps tcpd's socket": REFUSED,
}
"""What comes of listening on tcpd's port with a `locked` socket while no broker runs."""

COUNTERED: dict[str, str] = {
    "send its data by way of another host (IPv6 routing header)": SILENT,
    "send a SYN from an address that the machine does not have (IPV6_FREEBIND)": SILENT,
    "send a SYN to another server, whose answer never comes": POSSIBLE,
}
"""What is left of what a `locked` IPv6 socket can send, behind the packet filter of docs/security.md."""
