"""What the benchmark of WebSockets measures: one relay of each contender, to the same UNIX socket."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from stage import HERE, SERVICE, BenchError, Contender, Stage, found, free_port, memory_of, with_children

WS_LOAD = HERE / "ws_load"
RELAY = HERE / "relay.mjs"
PACKAGES = HERE.parent / "tests" / "node" / "node_modules"

HOST = "127.0.0.1"

RAW = "webipcd, raw"
IPC = "webipcd, ipc"
WEBSOCKIFY = "websockify"
NODE = "Node's ws"


@dataclass(frozen=True)
class WsContender(Contender):
    """One relay.

    :ivar pid: its process, whose memory counts together with that of its children.
    """

    pid: int = 0

    def memory_bytes(self) -> int:
        """Return the memory that it has at this moment."""
        return memory_of(with_children(self.pid))


class WsStage(Stage):
    """Owns the processes and their directory, like :class:`Stage`."""

    def start(self) -> tuple[Contender, ...]:
        """Start everything and return the contenders, plumberd first.

        :raises BenchError: where something does not come up.
        """
        if not (PACKAGES / "ws").is_dir() or not (PACKAGES / "bufferutil").is_dir():
            raise BenchError("npm's packages ws and bufferutil are not installed: npm ci in tests/node")
        rundir = self._make_directory("far")
        service = rundir / SERVICE
        self._start_server(service)
        port = free_port()
        allowed = ("--allow", "in", SERVICE, "ws:any")
        self._start_plumberd(rundir, "--webipcd", f"{HOST}:{port}", *allowed)
        self._wait_for(socket.AF_INET, (HOST, port))
        _, webipcd = self._processes[-1]
        return (
            self._contender(RAW, port, f"/{SERVICE}", "raw", webipcd.pid),
            self._contender(IPC, port, f"/{SERVICE}", "ipc", webipcd.pid),
            self._websockify(service),
            self._node(service),
        )

    def _contender(self, name: str, port: int, path: str, protocol: str, pid: int) -> WsContender:
        return WsContender(name, (HOST, str(port), path, protocol), WS_LOAD, pid)

    def _websockify(self, service: Path) -> WsContender:
        port = free_port()
        words = [found("websockify"), f"--unix-target={service}", f"{HOST}:{port}"]
        return self._run("websockify", WEBSOCKIFY, words, port)

    def _node(self, service: Path) -> WsContender:
        port = free_port()
        return self._run("node", NODE, [found("node", "nodejs"), str(RELAY), str(port), str(service)], port)

    def _run(self, name: str, title: str, words: list[str], port: int) -> WsContender:
        process = self._spawn(name, words)
        self._wait_for(socket.AF_INET, (HOST, port))
        return self._contender(title, port, "/", "binary", process.pid)
