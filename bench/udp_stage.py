"""What the benchmark of datagrams measures: the server, plumberds and socats, on loopback."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path

from stage import HERE, RULES, SERVICE, STOP_SECONDS, BenchError, Contender, Stage, found

UDP_LOAD = HERE / "udp_load"
HERE_ADDRESS = "127.0.0.1"

DIRECT = "direct UDP"
PLUMBERD = "plumberd"
SOCAT = "socat"
TWO_PLUMBERDS = "two plumberds"
TWO_SOCATS = "two socats"


class UdpStage(Stage):
    """See :class:`stage.Stage`."""

    def start(self) -> tuple[Contender, ...]:
        """Start everything and return the contenders, the direct socket first.

        :raises BenchError: where something does not come up.
        """
        far = self._make_directory("far")
        port = self._start_udp_server(far / SERVICE)
        udpd = free_udp_port()
        config = self._directory / "far.toml"
        config.write_text(f'[services.{SERVICE}]\nframing = "raw"\n')
        config.chmod(0o600)
        listening = ("--udpd", str(udpd), "--allow", "in", SERVICE, "udp:any", "--config", str(config))
        self._start_plumberd(far, *listening)
        broker = self._start_plumberd(self._make_directory("near"), *(w for rule in RULES for w in ("--rule", rule)))
        one, second = self._socat("one", port), self._socat("second", port)
        first = self._socat("first", second)
        return (
            self._contender(DIRECT, "direct", HERE_ADDRESS, str(port)),
            self._contender(PLUMBERD, "broker", broker, f"udp://{HERE_ADDRESS}:{port}"),
            self._contender(SOCAT, "direct", HERE_ADDRESS, str(one)),
            self._contender(TWO_PLUMBERDS, "broker", broker, f"udp://{HERE_ADDRESS}:{udpd}/{SERVICE}"),
            self._contender(TWO_SOCATS, "direct", HERE_ADDRESS, str(first)),
        )

    @staticmethod
    def _contender(name: str, *how: str) -> Contender:
        return Contender(name, how, UDP_LOAD)

    def _start_udp_server(self, path: Path) -> int:
        server = self._spawn("server", [str(UDP_LOAD), "serve", str(path)], stdout=subprocess.PIPE)
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            server.wait(STOP_SECONDS)
            self.check()
            raise BenchError("the server has ended")
        return int(line)

    def _socat(self, name: str, to_port: int) -> int:
        """Start one that has a process of its own for each caller, as socat's manual has it for UDP."""
        port = free_udp_port()
        listen = f"UDP4-LISTEN:{port},bind={HERE_ADDRESS},fork,reuseaddr,rcvbuf=8388608"
        self._spawn(f"socat-{name}", [found("socat"), "-T", "60", listen, f"UDP4:{HERE_ADDRESS}:{to_port}"])
        self._wait_until_bound(port)
        return port

    def _wait_until_bound(self, port: int) -> None:
        while True:
            self.check()
            with socket.socket(type=socket.SOCK_DGRAM) as probe:
                try:
                    probe.bind((HERE_ADDRESS, port))
                except OSError:
                    return


def free_udp_port() -> int:
    """Return a port that is free at this moment."""
    with contextlib.closing(socket.socket(type=socket.SOCK_DGRAM)) as probe:
        probe.bind((HERE_ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port
