"""What a broker would answer, out of its configuration and without a broker.

Reading a configuration is the broker's own business, and so is who a user is.
So this module alone, among the commands, uses the wiring; it imports it where
it is called, for Twisted takes its time.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from typing import Any

from plumberd.client import Refused
from plumberd.pure import refusals
from plumberd.pure.modes import Powers
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.decide import Question, decide, judge
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.explain import Answer
from plumberd.pure.policy.route import destination, find_way, parse_target_uri
from plumberd.pure.uri import IPAddress, Uri

ABLE = Powers(lock=True, give=True, uid=0)
"""The broker is taken for one of root's, which can lock sockets and give them away."""

STAND_IN = ipaddress.IPv4Address("192.0.2.1")  # RFC 5737
"""The address of a name where the rules have decided by the name alone."""


class UnreadableError(Exception):
    """The configuration has mistakes.

    :ivar mistakes: all of them, a line each.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


class AddressesError(Exception):
    """The addresses of a name decide, and nobody has told them. The argument is the name."""


class Configured:
    """A configuration that can be asked."""

    def __init__(self, path: str) -> None:
        """Read the file at *path*, and what it includes. Users, groups, certificates and keys need not be here.

        :raises UnreadableError: with all mistakes.
        """
        from plumberd.effects.accounts import StrangersToo
        from plumberd.wiring.config.assemble import read_settings
        from plumberd.wiring.config.mistakes import ConfigurationError
        from plumberd.wiring.config.settings import CommandLine

        try:
            line = CommandLine(config=path, folder=os.getcwd())
            self._settings = read_settings(line, accounts=StrangersToo(), reads_keys=False)
        except ConfigurationError as e:
            raise UnreadableError([str(mistake) for mistake in e.mistakes]) from None

    def explain(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request of the op ``explain``. A name is resolved as a lookup would.

        :raises Refused: it makes no sense.
        """
        from plumberd.effects.resolve import look_up

        return self._explain(request, look_up)

    def prove(self, request: dict[str, Any], addresses: Sequence[IPAddress] = ()) -> dict[str, Any]:
        """Return the same, and ask no name server: every name has *addresses*.

        :raises Refused: it makes no sense.
        :raises AddressesError: there are none, and the rules decide by them.
        """

        def resolve(name: str) -> Answer:
            if addresses:
                return tuple(addresses)
            if self._addresses_decide(request):
                raise AddressesError(name)
            return (STAND_IN,)

        return self._explain(request, resolve)

    def _explain(self, request: dict[str, Any], resolve: Callable[[str], Answer]) -> dict[str, Any]:
        from plumberd.wiring.ops.explaining import explain_offline

        try:
            return explain_offline(self._settings, request, ABLE, resolve)
        except refusals.Refused as e:
            raise Refused(e.word.value, e.reason) from None

    def _addresses_decide(self, request: dict[str, Any]) -> bool:
        """Tell whether the rules can't decide by the name alone."""
        from plumberd.wiring.ops.explaining import asked_of, subject_as

        asked = asked_of(request)
        subject, _ = subject_as(request.get("as", ()), asked)
        if asked.service is None:
            target: object = parse_target_uri(asked.uri or "")
        else:
            inward = asked.direction is Direction.IN
            pairs = Pairs() if inward else asked.pairs
            target = find_way(asked.service, pairs, self._settings.routes, subject, for_caller=inward).target
        if not isinstance(target, Uri):
            return False
        question = Question(Direction.OUT, asked.service, destination(target), subject)
        return judge(lambda one: decide(self._settings.whole_policy, one), question, target.service).granted is None
