"""A lookup's text: the wanted service, ``;``, and the whole value of the client's variable.

``pong;audio tls://a.example/audio ;pong tcp://b.example:9000/pong``. The last
pair whose name is exactly the service counts. The other pairs are not our
business, not even their syntax: they may hold other services' passwords, so the
text is never logged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from plumberd.pure.names import check_service
from plumberd.pure.refusals import Refusal, Refused

VARIABLES = ("IPC_NETWORKD", "IPC_NETWORK")
"""Where clients find their pairs: this project's name for the variable, and the existing programs'."""

_BLANKS = b" \t\r\n\0"
"""Allowed around a pair; C programs of the older generations may send the string's NUL."""


@dataclass(frozen=True)
class Pairs:
    """The variable's value, kept as bytes and never shown."""

    value: bytes = field(default=b"", repr=False)

    def uri_of(self, service: str) -> str | None:
        """Return the URI text of the last pair named *service*, or ``None``.

        :raises Refused: ``bad-request`` where that one URI is not UTF-8.
        """
        wanted = service.encode()
        found: bytes | None = None
        for pair in self.value.split(b";"):
            words = pair.strip(_BLANKS).split(None, 1)
            if len(words) == 2 and words[0] == wanted:
                found = words[1]
        if found is None:
            return None
        try:
            return found.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(Refusal.BAD_REQUEST, f"the URI given for {service} is not UTF-8") from None


def parse_lookup(text: bytes) -> tuple[str, Pairs]:
    """Split a lookup's text into the checked name of the service and the pairs.

    :raises Refused: ``bad-request`` or ``denied`` for the name.
    """
    name, _, value = text.partition(b";")
    return check_service(name.strip(_BLANKS).decode("utf-8", "replace")), Pairs(value)
