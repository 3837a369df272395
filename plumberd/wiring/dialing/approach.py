"""From a way to a connection: for each of its alternatives the rules, the addresses, and the reaching.

Rules on names; resolve; rules on addresses; is the scheme served; connect;
handshake. Local lookups and callers whose service leads away from here go the
same way. An alternative that cannot be reached makes room for the next, and
rests for a while; one that the rules refuse is the answer.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from plumberd.pure.handshake import SaidNo
from plumberd.pure.policy.decide import Question, Verdict, judge
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.explain import not_known_here
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import Endpoint, Way, destination
from plumberd.pure.policy.subject import Standing, Subject
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, Uri
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.reach import Reach, Reached, Traveller
from plumberd.wiring.dialing.served import carrier_of

GOES_ON = (Refusal.UNREACHABLE, Refusal.TIMEOUT, Refusal.UNKNOWN_SERVICE)
"""What makes room for the next alternative; everything else is an answer, and so is a far side's own no.

(What a scheme daemon of another process passes on of a far side's no cannot be told from its own.)
"""

Done = Callable[["Reached | Refused"], None]

_LET_IN = Verdict(True, "", "a local service: the rules about callers have decided")

_NOBODY = Traveller("")

_log = Logger("plumberd.attempt")


def _hear_nothing(*told: object) -> None:
    """What there was to hear has been heard."""


class _Step(Protocol):
    def cancel(self) -> None: ...


class Approach:
    """One connection being decided and made.

    :ivar target: the alternative that is being tried, or was reached.
    :ivar to: the same as rules see it.
    :ivar verdict: what the rules say of it.
    :ivar carrier: what else carries the bytes, for people; nothing where a socket of ours does.
    :ivar addresses: those that its name has.
    :ivar traveller: for whom it is made; *about_to* may put another in its place.
    """

    def __init__(
        self,
        core: Core,
        service: str | None,
        way: Way,
        subject: Subject,
        traveller: Traveller,
        done: Done,
        *,
        about_to: Callable[[Approach, Callable[[], None]], None],
        mark: Callable[[str], None],
    ) -> None:
        """Prepare.

        :param service: what was asked for, before redirects.
        :param about_to: called before anything is dialled, when all else is known, with what goes on,
            now or later; it may raise Refused.
        :param mark: told the name of each step that is over.
        """
        self._core = core
        self._service = service
        self._subject = subject
        self.traveller = traveller
        self._done = done
        self._about_to = about_to
        self._mark = mark
        self._began = core.reactor.seconds()
        self._left = list(core.backoff.order(way.targets, self._began))
        self._are_alternatives = len(self._left) > 1
        self._failures: list[str] = []
        self._step: _Step | None = None
        self._timer: IDelayedCall | None = None
        self._attempt = 0
        self.target: Uri | Endpoint = self._left[0]
        self.to: Destination | None = None
        self.verdict: Verdict | None = None
        self.carrier = ""
        self.addresses: tuple[IPAddress, ...] = ()

    @property
    def uri(self) -> Uri | None:
        """The target, where it is a URI."""
        return self.target if isinstance(self.target, Uri) else None

    def start(self) -> None:
        """Begin with the first alternative; *done* may be called before this returns.

        :raises Refused: what the rules refuse, or cannot be done; not what cannot be reached. Nothing is
            under way then.
        """
        self.target = self._left.pop(0)
        if self._left:
            self._timer = self._core.reactor.callLater(self._share(), self._too_slow)
        try:
            self._decide_names()
        except BaseException:
            self._stop()  # else its time would run on, and the next alternative have its turn
            raise

    def cancel(self) -> None:
        """Give up and close what was made; *done* will not be called."""
        self._stop()
        self._let_go()

    def _stop(self) -> None:
        """End the alternative that is under way."""
        self._attempt += 1  # what goes on later goes on with nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        step, self._step = self._step, None
        if step is not None:
            step.cancel()

    def _finish(self, result: Reached | Refused) -> None:
        """Stop, and tell whose it is."""
        self._stop()
        done = self._done
        self._let_go()
        done(result)

    def _let_go(self) -> None:
        """Forget whose it is; what was found stays.

        Who asked keeps what was found: each of them would keep the other until the collector of cycles finds
        them, which costs a sixth of a set-up.
        """
        self._done = self._about_to = self._mark = _hear_nothing
        self.traveller = _NOBODY

    # -- the steps, in their order

    def _decide_names(self) -> None:
        target = self.target
        if isinstance(target, Endpoint):
            self.to = target.destination()
            self.verdict = self._judge(None)
        else:
            self.to = destination(target)
            self.verdict = self._judge(target.service)
        if self.verdict.granted is False:
            raise _denied(self.verdict)
        if isinstance(target, Uri) and self.to.addresses is None and target.scheme != "unix":
            self._step = self._core.resolver.resolve(target.host, self.traveller.account, self._resolved)
        else:
            self._reach()

    def _resolved(self, answer: tuple[IPAddress, ...] | Refused) -> None:
        self._step = None
        self._mark("resolve")
        if isinstance(answer, Refused):
            self._failed(answer)
            return
        assert self.to is not None and isinstance(self.target, Uri)
        self.to = dataclasses.replace(self.to, addresses=answer)
        guard(self._finish, self._decide_addresses, self.target.service)

    def _decide_addresses(self, far_service: str | None) -> None:
        self.verdict = self._judge(far_service)
        if self.verdict.granted is False:
            raise _denied(self.verdict)
        self._reach()

    def _reach(self) -> None:
        assert self.verdict is not None and self.to is not None
        self.addresses = self.to.addresses or ()
        if self.verdict.granted is None:
            # An endpoint resolves its name by itself, so nothing can be judged but the name.
            raise not_known_here(self.to)
        self.carrier = carrier_of(self._core, self.target, self.verdict.addresses)
        self._about_to(self, functools.partial(self._dial, self._attempt))

    def _dial(self, attempt: int) -> None:
        if attempt != self._attempt:
            return
        assert self.verdict is not None
        reach = Reach(
            self._core,
            self.target,
            self.verdict.addresses,
            self.traveller,
            self._reached,
            self._mark,
            rule=self.verdict.rule,
            ruled=self.verdict.number is not None,
        )
        self._step = reach
        try:
            reach.start()
        except Refused as e:
            self._step = None
            reach.cancel()
            self._failed(e)

    def _reached(self, result: Reached | Refused) -> None:
        self._step = None
        if isinstance(result, Refused):
            self._failed(result)
            return
        if self._are_alternatives:
            self._core.backoff.worked(self.target)
        self._finish(result)

    # -- the alternatives

    def _failed(self, refused: Refused) -> None:
        self._stop()
        if self._are_alternatives and refused.word in GOES_ON and not isinstance(refused, SaidNo):
            self._core.backoff.failed(self.target, self._core.reactor.seconds())
            self._failures.append(refused.reason)
            if self._left:
                guard(self._finish, self.start)
                return
            refused = Refused(refused.word, "; ".join(self._failures))
        self._finish(refused)

    def _too_slow(self) -> None:
        self._timer = None
        self._failed(Refused(Refusal.TIMEOUT, f"{self.to or self.target} did not answer in time"))

    def _share(self) -> float:
        """Return how long this alternative may take, so that the others have their turn within the deadline."""
        whole: float = self._core.connect_deadline.seconds - (self._core.reactor.seconds() - self._began)
        return max(whole, 0.0) / (len(self._left) + 1)

    # -- small parts of the steps

    def _judge(self, far_service: str | None) -> Verdict:
        assert self.to is not None
        if self._subject.standing is Standing.REMOTE and self.to.scheme == "unix" and not self.to.special:
            return _LET_IN
        question = Question(Direction.OUT, self._service, self.to, self._subject)
        return judge(self._core.decide, question, far_service)


def guard(refuse: Callable[[Refused], None], work: Callable[..., None], *args: object) -> None:
    """Run a step; whatever goes wrong in it becomes the one attempt's refusal, and nobody else's."""
    try:
        work(*args)
    except Refused as e:
        refuse(e)
    except OSError as e:
        refuse(Refused(Refusal.BUSY, f"the broker could not do it: {os.strerror(e.errno or 0)}"))
    except Exception:
        _log.failure("an attempt failed")
        refuse(Refused(Refusal.UNREACHABLE, "the broker failed; its log says how"))


def _denied(verdict: Verdict) -> Refused:
    return Refused(Refusal.DENIED, verdict.reason)
