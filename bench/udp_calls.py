"""What each way to read and write datagrams costs, in one process over loopback: figures for docs/udp.md.

Plain calls, UDP_SEGMENT and UDP_GRO (udp(7), Linux 4.18 and 5.0), and sendmmsg and
recvmmsg through ctypes, which Python's socket module has not. Each is given the
same datagrams; what is counted is microseconds of CPU a datagram, this process's.
"""

from __future__ import annotations

import ctypes
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable

DATAGRAMS = 64 * 600
BATCH = 32
ROUNDS = 5
UDP_SEGMENT, UDP_GRO = 103, 104


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(IoVec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class MMsgHdr(ctypes.Structure):
    _fields_ = (("header", MsgHdr), ("length", ctypes.c_uint))


libc = ctypes.CDLL(None, use_errno=True)


class Batch:
    """Room for BATCH datagrams, for sendmmsg and recvmmsg."""

    def __init__(self, size: int) -> None:
        self.buffers = [ctypes.create_string_buffer(size) for _ in range(BATCH)]
        self.views = [memoryview(buffer).cast("B") for buffer in self.buffers]
        self.iovs = (IoVec * BATCH)()
        self.messages = (MMsgHdr * BATCH)()
        for at in range(BATCH):
            self.iovs[at] = IoVec(ctypes.addressof(self.buffers[at]), size)
            self.messages[at].header.iov = ctypes.pointer(self.iovs[at])
            self.messages[at].header.iovlen = 1


def pair() -> tuple[socket.socket, socket.socket]:
    near, far = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (near, far):
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    near.connect(far.getsockname())
    far.connect(near.getsockname())
    near.setblocking(False)
    far.setblocking(False)
    return near, far


def send_plain(sock: socket.socket, size: int) -> None:
    data = bytes(size)
    for _ in range(BATCH):
        sock.send(data)


def receive_plain(sock: socket.socket, size: int) -> None:
    try:
        while True:
            sock.recv(2048)
    except BlockingIOError:
        return


def receive_into(sock: socket.socket, size: int) -> None:
    buffer = bytearray(2048)
    view = memoryview(buffer)
    try:
        while True:
            bytes(view[: sock.recv_into(buffer)])
    except BlockingIOError:
        return


def send_gso(sock: socket.socket, size: int) -> None:
    sock.sendmsg([bytes(size)] * BATCH, [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", size))])


def receive_gro(sock: socket.socket, size: int) -> None:
    try:
        while True:
            data, ancillary, _, _ = sock.recvmsg(65536, 64)
            step = struct.unpack("i", ancillary[0][2])[0] if ancillary else len(data)
            [data[at : at + step] for at in range(0, len(data), step)]
    except BlockingIOError:
        return


def sendmmsg(batch: Batch) -> Callable[[socket.socket, int], None]:
    def send(sock: socket.socket, size: int) -> None:
        data = bytes(size)
        for at in range(BATCH):
            batch.views[at][:size] = data
            batch.iovs[at].length = size
        libc.sendmmsg(sock.fileno(), batch.messages, BATCH, 0)

    return send


def recvmmsg(batch: Batch) -> Callable[[socket.socket, int], None]:
    def receive(sock: socket.socket, size: int) -> None:
        while (count := libc.recvmmsg(sock.fileno(), batch.messages, BATCH, socket.MSG_DONTWAIT, None)) > 0:
            for at in range(count):
                bytes(batch.views[at][: batch.messages[at].length])
            if count < BATCH:
                return

    return receive


def timed(work: Callable[[socket.socket, int], None], sock: socket.socket, size: int) -> float:
    before = time.thread_time()
    work(sock, size)
    return time.thread_time() - before


def main() -> None:
    for size in (64, 512, 1200):
        big = Batch(2048)
        ways = {
            "plain send": (send_plain, receive_plain),
            "recv_into": (send_plain, receive_into),
            "GSO + GRO": (send_gso, receive_gro),
            "GSO + plain": (send_gso, receive_plain),
            "plain + GRO": (send_plain, receive_gro),
            "sendmmsg + recvmmsg (ctypes)": (sendmmsg(Batch(2048)), recvmmsg(big)),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (send, receive) in ways.items():
                near, far = pair()
                with near, far:
                    if "GRO" in name:
                        far.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
                    sent = got = 0.0
                    for _ in range(DATAGRAMS // BATCH):
                        sent += timed(send, near, size)
                        got += timed(receive, far, size)
                    found[name].append((sent / DATAGRAMS * 1e6, got / DATAGRAMS * 1e6))
        for name, figures in found.items():
            sends, reads = (statistics.median(column) for column in zip(*figures, strict=True))
            print(f"{size:5} bytes  {name:30} send {sends:5.2f} µs  receive {reads:5.2f} µs")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
