"""A service with Twisted: it sends every message back, and has no networking code at all.

    python3 examples/pongd_twisted.py /run/ipc [NAME]

It listens on `<run directory>/pong` and nothing else; a broker in that directory
lets local programs reach it, and those of other machines that its rules name. In
a program that takes endpoint strings already, `ipc:pong` is all that there is to it.
"""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.task import react
from twisted.protocols.basic import Int32StringReceiver


class Pong(Int32StringReceiver):
    """Bounces messages; LibIPC's are Twisted's int32 strings."""

    def stringReceived(self, data: bytes) -> None:
        """Send it back."""
        self.sendString(data)


async def main(reactor: Any, rundir: str, name: str = "pong") -> None:
    """Listen for ever."""
    endpoint = serverFromString(reactor, f"ipc:{name}:rundir={quoteStringArgument(rundir)}")
    port = await endpoint.listen(Factory.forProtocol(Pong))
    print(f"pongd: listening on {port.getHost().name}", flush=True)
    await Deferred()


if __name__ == "__main__":
    react(main, sys.argv[1:])
