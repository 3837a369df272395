"""UDP ports on a cage's own loopback: bound in there by a child for a moment, and served from outside.

Bubblewrap tells the process that will be the cage, and waits until its ports are
there. The descriptors of a network namespace's sockets work anywhere.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import json
import os
import signal
import socket
import time
from collections.abc import Sequence

from plumberd.commands.cage import CageError
from plumberd.commands.forward import Forwarder, ForwardError, Forwarding, bind, connect_to
from plumberd.commands.output import complain
from plumberd.inherited import VARIABLE

LOOPBACK_SECONDS = 5.0
"""How long a cage's loopback interface may take until it is up: without it nothing can be bound to its addresses."""

_PR_SET_PDEATHSIG = 1
_NS_GET_USERNS = 0xB701  # ioctl_ns(2)
_INFO_BYTES = 65536


def with_ports(forwardings: Sequence[Forwarding], control: int) -> list[str]:
    """Begin to wait for a cage, to give it these ports; return bubblewrap's words for it.

    This process becomes bubblewrap. Its child serves the ports, by lookups over the control socket whose
    descriptor is *control*, and ends with it.
    """
    info_reader, info_writer = os.pipe()
    block_reader, block_writer = os.pipe()
    parent = os.getpid()
    if os.fork():
        os.close(info_reader)
        os.close(block_writer)
        for fd in (info_writer, block_reader):
            os.set_inheritable(fd, True)
        return ["--info-fd", str(info_writer), "--block-fd", str(block_reader)]
    status = 1
    try:
        os.close(info_writer)
        os.close(block_reader)
        _end_with(parent)
        os.environ[VARIABLE] = str(control)
        _serve(forwardings, info_reader, block_writer)
    except (CageError, ForwardError, OSError) as e:
        complain(e)
        os.kill(parent, signal.SIGTERM)
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


def _serve(forwardings: Sequence[Forwarding], info: int, block: int) -> None:
    told = b""
    while len(told) < _INFO_BYTES and (part := os.read(info, 4096)):
        told += part
    os.close(info)
    try:
        pid = int(json.loads(told)["child-pid"])
    except (ValueError, KeyError, TypeError):
        return  # there is no cage: bubblewrap has said why
    ports = _bound_inside(pid, forwardings)
    os.close(block)  # the cage begins
    Forwarder(connect_to(None)).serve(list(zip(ports, (one.target for one in forwardings), strict=True)))


def _bound_inside(pid: int, forwardings: Sequence[Forwarding]) -> list[socket.socket]:
    """Return sockets that are bound within the namespaces of *pid*.

    :raises CageError: why they can't be.
    """
    ours, theirs = socket.socketpair()
    with ours:
        child = os.fork()
        if not child:
            _bind_inside(pid, forwardings, theirs)
        theirs.close()
        said, fds, _, _ = socket.recv_fds(ours, 1024, len(forwardings))
        os.waitpid(child, 0)
    if said != b"ok":
        raise CageError(said.decode("utf-8", "replace") or "its ports cannot be had")
    return [socket.socket(fileno=fd) for fd in fds]


def _bind_inside(pid: int, forwardings: Sequence[Forwarding], out: socket.socket) -> None:
    """Go in, bind, send what is bound, and end: in a process of its own, for nobody comes back out."""
    try:
        network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        # Not the one that the cage is in by now: it may have made another inside the one that the network is of.
        owner = fcntl.ioctl(network, _NS_GET_USERNS)
        if os.fstat(owner).st_ino != os.stat("/proc/self/ns/user").st_ino:
            _enter(owner)
        _enter(network)
        ends = time.monotonic() + LOOPBACK_SECONDS
        ports = [_bind(one, ends) for one in forwardings]
        socket.send_fds(out, [b"ok"], [sock.fileno() for sock in ports])
    except (ForwardError, OSError) as e:
        out.sendall(str(e).encode()[:1024])
    finally:
        os._exit(0)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _bind(forwarding: Forwarding, ends: float) -> socket.socket:
    while True:
        try:
            return bind(forwarding)
        except ForwardError as e:
            loopback = ipaddress.ip_address(forwarding.host).is_loopback
            if e.code != errno.EADDRNOTAVAIL or not loopback or time.monotonic() > ends:
                raise
        time.sleep(0.005)


def _end_with(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), *[ctypes.c_ulong(0)] * 3)
    if os.getppid() != parent:
        os._exit(1)
