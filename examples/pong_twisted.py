"""A client with Twisted: it sends words to the service `pong` and prints what comes back.

    export IPC_RUNDIR=/run/ipc                                # where the broker is
    export IPC_NETWORKD="pong tcp://192.0.2.1:9000/pong"      # or nothing, for the local one
    python3 examples/pong_twisted.py hello "bounce me"

The service may be any of the three beside this file, here or on another machine.
"""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import react
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure


class Pong(Int32StringReceiver):
    """Sends one word after the other; LibIPC's messages are Twisted's int32 strings."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.done: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Send the next word, or end."""
        if self.words:
            self.sendString(self.words.pop(0).encode())
        else:
            self.transport.loseConnection()

    def stringReceived(self, data: bytes) -> None:
        """Show an answer, and go on."""
        print(data.decode(), flush=True)
        self.connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell that it is over."""
        self.done.callback(None)


async def main(reactor: Any, *words: str) -> None:
    """Connect, and talk to the end."""
    try:
        pong = await clientFromString(reactor, "ipc:pong").connect(Factory.forProtocol(lambda: Pong([*words])))
    except ConnectError as e:
        sys.exit(f"pong: {e}")
    await pong.done


if __name__ == "__main__":
    react(main, sys.argv[1:] or ["hello"])
