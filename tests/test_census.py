"""plumberd.wiring.census: a user has as many live connections as the limit says, and none is refused for a dead one."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import struct
import tracemalloc
from pathlib import Path
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from plumberd.effects import sockdiag
from plumberd.effects.poll import Poll
from plumberd.effects.sockdiag import SocketGoneError, socket_cookie
from plumberd.pure.inetdiag import TcpSocket
from plumberd.pure.limits import Limits
from plumberd.pure.living import HandedOver
from plumberd.pure.refusals import Refusal, Refused
from plumberd.wiring.census import CHECK_SECONDS, REST_SECONDS, RESTS, Census, Ended, Found
from tests.children import needs_root
from tests.support import CleanTestCase, Readers, is_reset, real_reactor, until
from tests.tables import PROPERTY

ALICE, BOB = 1000, 1001
BYTES_EACH = 400
"""What one that lives may cost, on a 64-bit machine, with its numbers and its places in the dicts."""

LIMITS = Limits(handed_over_per_uid=3, handed_over=5)


def body(cookie: int) -> bytes:
    """Return the kernel's words for a socket, as far as a count reads them."""
    return bytes(44) + struct.pack("=II", cookie & 0xFFFFFFFF, cookie >> 32) + bytes(20)


class FakeDump:
    """A look at the sockets, which a test takes to its end."""

    def __init__(self, kernel: FakeKernel, found: Found, ended: Ended) -> None:
        self.kernel = kernel
        self.found = found
        self.ended = ended
        self.cancelled = False

    def start(self) -> None:
        if self.kernel.refuses:
            raise OSError(self.kernel.refuses, "")
        self.kernel.dumps.append(self)

    def cancel(self) -> None:
        self.cancelled = True

    def end(self, *also: int, error: int = 0) -> None:
        """Tell of every socket that lives now, and of *also*; end."""
        self.kernel.dumps.remove(self)
        for cookie in (*self.kernel.alive, *also):
            if self.found(body(cookie)):
                break
        self.ended(OSError(error, "") if error else None)


class FakeSocket(socket.socket):
    """A socket of which nothing but the cookie matters; it has no descriptor."""

    def __init__(self, cookie: int) -> None:
        self.cookie = cookie

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        if not self.cookie:
            raise OSError(errno.ENOPROTOOPT, "")
        return struct.pack("=Q", self.cookie)


class FakeKernel:
    """Knows which sockets live.

    :ivar dumps: those under way.
    :ivar refuses: the number of an error with which none begins.
    """

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.dumps: list[FakeDump] = []
        self.refuses = 0
        self.cookie = 2**33

    def make(self) -> int:
        """Return the cookie of a new socket."""
        self.cookie += 1
        self.alive.add(self.cookie)
        return self.cookie


class CensusTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.begin()

    def begin(self, limits: Limits = LIMITS) -> None:
        """Make a census, whose kernel and clock are the test's."""
        self.clock = Clock()
        self.kernel = FakeKernel()
        self.told: list[tuple[object, Refused | None]] = []
        dump = lambda found, ended: FakeDump(self.kernel, found, ended)  # noqa: E731
        self.census = Census(cast(Poll, None), self.clock, limits, dump=dump)

    def tearDown(self) -> None:
        self.census.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def admit(self, owner: object, uid: int = ALICE) -> bool:
        return self.census.admit(owner, uid, lambda refused: self.told.append((owner, refused)))

    def hand_over(self, owner: object, uid: int = ALICE) -> int:
        """Give *owner*, who was let in, its socket; return the cookie."""
        cookie = self.kernel.make()
        self.census.add(owner, FakeSocket(cookie), uid, "pong", "locked", 1, 2)
        return cookie

    def fill(self, count: int = 3, uid: int = ALICE) -> list[int]:
        """Hand so many over; return their cookies."""
        cookies = []
        for _ in range(count):
            owner = object()
            self.assertTrue(self.admit(owner, uid))
            cookies.append(self.hand_over(owner, uid))
        return cookies

    def look(self, *also: int, seconds: float = 0.0, error: int = 0) -> None:
        """Let the kernel be asked, and answer after *seconds*."""
        self.clock.advance(REST_SECONDS)
        (dump,) = self.kernel.dumps
        self.clock.advance(seconds)
        dump.end(*also, error=error)

    def refusal(self, owner: object, uid: int = ALICE) -> str:
        """Return the reason why *owner* is refused at once."""
        with self.assertRaises(Refused) as caught:
            self.admit(owner, uid)
        self.assertIs(caught.exception.word, Refusal.BUSY)
        return str(caught.exception.reason)


class Admits(CensusTestCase):
    def test_up_to_the_limit_everybody_goes_on_and_the_kernel_is_not_asked(self) -> None:
        self.fill(2)
        self.assertTrue(self.admit("third"))
        self.clock.advance(CHECK_SECONDS / 2)
        self.assertEqual((self.kernel.dumps, self.census.used_of(ALICE), self.census.used), ([], 3, 3))

    def test_who_finds_the_limit_reached_waits_for_the_kernels_answer(self) -> None:
        self.fill()
        self.assertFalse(self.admit("fourth"))
        self.assertEqual(self.told, [])
        self.look()
        ((owner, refused),) = self.told
        assert refused is not None
        self.assertEqual((owner, refused.word), ("fourth", Refusal.BUSY))
        self.assertIn("handed_over_per_uid=3", refused.reason)
        self.assertIn(f"uid {ALICE}", refused.reason)

    def test_who_waits_goes_on_where_the_dead_make_room(self) -> None:
        cookies = self.fill()
        self.kernel.alive.discard(cookies[1])
        self.admit("fourth")
        self.admit("fifth")
        self.look()
        self.assertEqual([owner for owner, refused in self.told if refused is None], ["fourth"])
        self.assertEqual([owner for owner, refused in self.told if refused is not None], ["fifth"])
        self.assertEqual((self.census.living.count_of(ALICE), self.census.used_of(ALICE)), (2, 3))

    def test_connections_that_are_being_made_count_so_that_none_is_one_too_many(self) -> None:
        for owner in "abc":
            self.assertTrue(self.admit(owner))
        self.assertFalse(self.admit("d"))
        self.clock.advance(0)
        ((_, refused),) = self.told
        assert refused is not None
        self.assertIn("handed_over_per_uid=3", refused.reason)
        self.assertEqual(self.kernel.dumps, [])  # there is nothing to ask about

    def test_one_that_comes_to_nothing_makes_room(self) -> None:
        for owner in "abc":
            self.admit(owner)
        self.census.withdraw("b")
        self.census.withdraw("b")
        self.assertTrue(self.admit("d"))
        self.assertEqual(self.census.used_of(ALICE), 3)

    def test_one_that_is_withdrawn_while_it_waits_is_told_nothing(self) -> None:
        self.fill()
        self.admit("fourth")
        self.assertTrue(self.census.is_waiting("fourth"))
        self.census.withdraw("fourth")
        self.assertFalse(self.census.is_waiting("fourth"))
        self.look()
        self.assertEqual((self.told, self.census.used), ([], 3))

    def test_one_that_asks_again_asks_for_one(self) -> None:
        self.fill(2)
        self.assertTrue(self.admit("third"))
        self.assertTrue(self.admit("third"))
        self.assertEqual(self.census.used_of(ALICE), 3)
        self.hand_over("third")
        self.assertFalse(self.admit("fourth"))
        self.assertFalse(self.admit("fourth"))
        self.look()
        self.assertEqual(len(self.told), 1)

    def test_another_user_is_not_concerned(self) -> None:
        self.fill()
        self.admit("fourth")
        self.assertTrue(self.admit("other", BOB))

    def test_for_all_users_together_there_is_a_limit_too(self) -> None:
        self.fill(3, ALICE)
        self.fill(2, BOB)
        self.assertFalse(self.admit("sixth", BOB))
        self.look()
        ((_, refused),) = self.told
        assert refused is not None
        self.assertIn("handed_over=5", refused.reason)
        self.assertNotIn("uid", refused.reason)

    def test_one_whose_resuming_fails_harms_no_other(self) -> None:
        def fail(refused: Refused | None) -> None:
            raise ZeroDivisionError

        self.fill()
        self.census.admit("fails", ALICE, fail)
        self.admit("fifth")
        self.look()
        self.assertEqual(
            ([owner for owner, _ in self.told], len(self.flushLoggedErrors(ZeroDivisionError))), (["fifth"], 1)
        )


class Entries(CensusTestCase):
    def test_each_tells_what_was_handed_over_when_and_to_whom(self) -> None:
        self.clock.advance(7)
        self.admit("one", BOB)
        self.census.add("one", FakeSocket(2**40), BOB, "pong", "direct", 11, 12)
        self.assertEqual(list(self.census.living.of(BOB)), [HandedOver(2**40, BOB, "pong", "direct", 11, 7.0, 12)])

    def test_twenty_thousand_cost_few_bytes_each_and_nothing_once_their_sockets_are_gone(self) -> None:
        count = 20_000
        self.begin(Limits(handed_over=count, handed_over_per_uid=count))
        sock = FakeSocket(1)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        for number in range(count):
            sock.cookie = 10_000_000 + number
            self.admit(number)
            # A name from the wire is another object each time.
            name = f"a-service-of-some-length-{number % 5}"
            self.census.add(number, sock, ALICE + number % 3, name, "locked", 100_000 + number, 200_000 + number)
        full, _ = tracemalloc.get_traced_memory()
        self.assertEqual(self.census.used, count)
        self.assertLess((full - before) / count, BYTES_EACH)
        self.clock.advance(CHECK_SECONDS)
        self.look()
        after, _ = tracemalloc.get_traced_memory()
        self.assertEqual(self.census.used, 0)
        self.assertLess(after - before, (full - before) / 20)  # but for what Python itself keeps in reserve


class Rests(CensusTestCase):
    def test_behind_an_answer_the_kernel_rests_and_who_is_at_the_limit_is_refused_at_once(self) -> None:
        self.fill()
        self.admit("fourth")
        self.look(seconds=0.1)
        self.assertIn("handed_over_per_uid=3", self.refusal("fifth"))
        self.assertEqual(self.census.used, 3)
        self.clock.advance(RESTS * 0.1)
        self.assertFalse(self.admit("sixth"))
        self.look()
        self.assertEqual([owner for owner, _ in self.told], ["fourth", "sixth"])

    def test_it_rests_no_longer_than_so_many_seconds(self) -> None:
        self.fill()
        self.admit("fourth")
        self.look(seconds=30)
        self.refusal("fifth")
        self.clock.advance(REST_SECONDS)
        self.assertFalse(self.admit("sixth"))

    def test_who_came_to_the_limit_since_waits_and_is_not_refused_for_what_is_not_looked_at(self) -> None:
        self.fill(2)
        self.census.refresh(lambda: None)
        self.look(seconds=0.1)
        cookies = self.fill(1)
        self.kernel.alive.discard(cookies[0])
        self.assertFalse(self.admit("fourth"))
        self.look()
        self.assertEqual(self.told, [("fourth", None)])

    def test_what_was_handed_over_during_a_look_is_looked_at_again_before_anybody_is_refused(self) -> None:
        self.fill(2)
        self.census.refresh(lambda: None)
        self.clock.advance(0)
        (cookie,) = self.fill(1)
        self.admit("fourth")
        self.kernel.alive.discard(cookie)
        self.look()
        self.assertEqual((self.told, self.census.used), ([], 3))
        self.look()
        self.assertEqual(self.told, [("fourth", None)])

    def test_one_answer_is_for_all_who_wait(self) -> None:
        self.fill(3, ALICE)
        self.fill(2, BOB)
        for owner in range(100):
            self.admit(owner, (ALICE, BOB)[owner % 2])
        self.clock.advance(0)
        self.assertEqual(len(self.kernel.dumps), 1)
        self.look()
        self.assertEqual(len(self.told), 100)


class Forgets(CensusTestCase):
    def test_every_so_often_what_is_closed_is_forgotten_without_anybody_asking(self) -> None:
        cookies = self.fill()
        self.kernel.alive.difference_update(cookies[:2])
        self.clock.advance(CHECK_SECONDS)
        self.look()
        self.assertEqual([entry.cookie for entry in self.census.living], [cookies[2]])
        self.kernel.alive.clear()
        self.clock.advance(CHECK_SECONDS)
        self.look()
        self.assertEqual(len(self.census.living), 0)

    def test_when_nothing_lives_any_more_nothing_is_asked(self) -> None:
        self.fill()
        self.kernel.alive.clear()
        self.clock.advance(CHECK_SECONDS)
        self.look()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_where_all_live_no_more_is_read_than_tells_so(self) -> None:
        self.fill()
        self.clock.advance(CHECK_SECONDS)
        (dump,) = self.kernel.dumps
        self.assertEqual([bool(dump.found(body(cookie))) for cookie in sorted(self.kernel.alive)], [False, False, True])

    def test_a_refresh_is_told_when_it_is_done(self) -> None:
        done: list[int] = []
        self.fill()
        self.kernel.alive.clear()
        self.census.refresh(lambda: done.append(len(self.census.living)))
        self.assertEqual(done, [])
        self.look()
        self.assertEqual(done, [0])

    def test_with_nothing_to_ask_about_too_but_later(self) -> None:
        done: list[str] = []
        self.census.refresh(lambda: done.append("done"))
        self.assertEqual(done, [])
        self.clock.advance(0)
        self.assertEqual(done, ["done"])

    def test_closed_it_asks_and_tells_nothing_any_more(self) -> None:
        self.fill()
        self.admit("fourth")
        self.clock.advance(0)
        (dump,) = self.kernel.dumps
        self.census.close()
        self.assertTrue(dump.cancelled)
        self.assertEqual((self.told, self.clock.getDelayedCalls()), ([], []))


class Changes(CensusTestCase):
    """Other limits, at a reload."""

    def test_with_a_greater_one_who_waits_goes_on(self) -> None:
        self.fill()
        self.admit("fourth")
        self.admit("fifth")
        self.census.change(dataclasses.replace(LIMITS, handed_over_per_uid=4))
        self.assertEqual(self.told, [("fourth", None)])
        self.assertEqual(self.census.used_of(ALICE), 4)

    def test_with_a_smaller_one_what_lives_goes_on_living(self) -> None:
        self.fill()
        self.census.change(Limits(handed_over_per_uid=1))
        self.assertEqual(self.census.used_of(ALICE), 3)
        self.assertFalse(self.admit("fourth"))
        self.look()
        ((_, refused),) = self.told
        assert refused is not None
        self.assertIn("handed_over_per_uid=1", refused.reason)


class Uncounted(CensusTestCase):
    """The kernel does not tell."""

    def setUp(self) -> None:
        super().setUp()
        self.lines: list[str] = []
        self.patch(Census, "_log", self)

    def warn(self, text: str, **members: Any) -> None:
        self.lines.append(text.format(**members))

    def test_a_kernel_without_it_is_told_once_and_nobody_is_refused(self) -> None:
        self.kernel.refuses = errno.ENOENT
        self.fill()
        self.assertFalse(self.admit("fourth"))
        self.clock.advance(0)
        self.assertEqual(self.told, [("fourth", None)])
        self.fill(20)
        (line,) = self.lines
        self.assertIn(os.strerror(errno.ENOENT), line)
        self.assertIn("handed_over_per_uid", line)
        self.assertEqual((self.census.why_not, len(self.census.living)), (os.strerror(errno.ENOENT), 0))
        self.clock.advance(10 * CHECK_SECONDS)
        self.assertEqual(len(self.lines), 1)

    def test_so_it_is_when_it_refuses_later(self) -> None:
        self.fill()
        self.admit("fourth")
        self.look(error=errno.EPERM)
        self.assertEqual((self.told, len(self.census.living)), ([("fourth", None)], 0))

    def test_a_look_that_fails_begins_the_count_anew_and_is_told_once_until_one_succeeds(self) -> None:
        for _ in range(2):
            self.fill()
            self.assertFalse(self.admit("fourth"))
            self.look(error=errno.ENOBUFS)
            self.census.withdraw("fourth")
        self.assertEqual(self.told, [("fourth", None)] * 2)
        self.assertEqual(len(self.lines), 1)
        self.fill()
        self.admit("fourth")
        self.look()
        self.assertIsNotNone(self.told[-1][1])
        self.census.living.clear()
        self.fill()
        self.admit("fourth")
        self.look(error=errno.ENOBUFS)
        self.assertEqual((len(self.lines), self.census.why_not), (2, ""))

    def test_a_kernel_that_knows_no_cookies_is_told_once_too(self) -> None:
        for owner in range(20):
            self.assertTrue(self.admit(owner))
            self.census.add(owner, FakeSocket(0), ALICE, "pong", "locked", 1, 2)
        self.assertEqual((self.census.why_not, len(self.lines)), (os.strerror(errno.ENOPROTOOPT), 1))

    def test_a_refresh_is_told_all_the_same(self) -> None:
        done: list[str] = []
        self.kernel.refuses = errno.ENOENT
        self.fill()
        for _ in range(2):
            self.census.refresh(lambda: done.append("done"))
            self.clock.advance(0)
        self.assertEqual(done, ["done"] * 2)

    def test_the_trial_at_the_start_says_so(self) -> None:
        self.patch(sockdiag, "try_sock_diag", lambda: "no such thing")
        census = Census(Poll(Readers(), self.clock), self.clock, LIMITS)  # type: ignore[arg-type]
        self.addCleanup(census._poll.close)
        self.assertEqual((census.why_not, len(self.lines)), ("no such thing", 1))
        for owner in range(10):
            self.assertTrue(census.admit(owner, ALICE, lambda refused: None))
            census.add(owner, FakeSocket(owner), ALICE, "pong", "locked", 1, 2)
        self.assertEqual(census.used, 0)


class Properties(CensusTestCase):
    steps = st.lists(
        st.tuples(
            st.sampled_from(("ask", "ask", "ask", "hand over", "close", "give up", "look", "rest")), st.integers(0, 9)
        ),
        max_size=50,
    )

    @PROPERTY
    @given(steps)
    def test_there_are_never_more_than_the_limits_and_who_is_refused_found_them_reached(
        self, steps: list[tuple[str, int]]
    ) -> None:
        self.begin()
        owners: dict[int, int] = {}
        """Who may go on, and whose it is."""
        sockets: dict[int, int] = {}

        def lives(uid: int) -> int:
            return sum(u == uid for u in (*owners.values(), *sockets.values()))

        def told(owner: int, uid: int, refused: Refused | None) -> None:
            if refused is None:
                owners[owner] = uid
            else:
                self.assertTrue(lives(uid) >= 3 or len(owners) + len(sockets) >= 5, refused.reason)

        number = 0
        for what, choice in steps:
            uid = choice % 3
            if what == "ask":
                number += 1
                try:
                    if self.census.admit(number, uid, lambda r, n=number, u=uid: told(n, u, r)):  # type: ignore[misc]
                        owners[number] = uid
                except Refused as e:
                    # Closed since the kernel was asked: within its rest one may still count.
                    self.assertLess(self.clock.seconds(), self.census._rested, e.reason)
            elif what == "hand over" and owners:
                owner = list(owners)[choice % len(owners)]
                uid = owners.pop(owner)
                sockets[self.hand_over(owner, uid)] = uid
            elif what == "give up" and owners:
                owner = list(owners)[choice % len(owners)]
                del owners[owner]
                self.census.withdraw(owner)
            elif what == "close" and sockets:
                cookie = list(sockets)[choice % len(sockets)]
                del sockets[cookie]
                self.kernel.alive.discard(cookie)
            elif what == "look" and self.kernel.dumps:
                self.kernel.dumps[0].end()
            else:
                self.clock.advance(choice / 2)
            for u in range(3):
                self.assertLessEqual(lives(u), 3)
                self.assertLessEqual(lives(u), self.census.used_of(u))
            self.assertLessEqual(len(owners) + len(sockets), 5)
        self.census.close()


class Documented(CensusTestCase):
    def test_how_often_the_kernel_is_asked_and_how_long_it_rests_stand_with_the_limits(self) -> None:
        document = Path(__file__).resolve().parent.parent / "docs" / "protocol.md"
        _, _, text = document.read_text(encoding="utf-8").partition("### Live connections")
        self.assertIn(f" every {CHECK_SECONDS:g} s", text)
        self.assertIn(f" {REST_SECONDS:g} s at most", text)
        self.assertEqual(RESTS, 10)
        self.assertIn(" ten times as long", text)


class RealSockets(CleanTestCase):
    """Sockets over loopback, and the kernel's own answers."""

    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.census = Census(self.poll, real_reactor, Limits(handed_over_per_uid=3))
        self.addCleanup(self.census.close)
        self.told: list[Refused | None] = []

    def hand_over(self) -> tuple[socket.socket, socket.socket]:
        """Count a connection; return both of its ends, the counted one first."""
        ours, far = self.tcp_pair()
        owner = object()
        self.assertTrue(self.census.admit(owner, ALICE, self.told.append))
        self.census.add(owner, ours, ALICE, "pong", "locked", 1, 2)
        return ours, far

    async def ask(self) -> Refused | None:
        """Ask for one more at the limit, and return what is told."""
        self.assertFalse(self.census.admit("more", ALICE, self.told.append))
        await until(lambda: self.told)
        self.census.withdraw("more")
        return self.told.pop()

    async def test_as_long_as_they_live_they_count_whoever_holds_them_and_then_no_more(self) -> None:
        pairs = [self.hand_over() for _ in range(3)]
        held = pairs[0][0].dup()
        self.addCleanup(held.close)
        pairs[0][0].close()
        refused = await self.ask()
        assert refused is not None
        self.assertIn("handed_over_per_uid=3", refused.reason)
        self.assertEqual(self.census.living.count_of(ALICE), 3)
        held.close()
        pairs[0][1].close()
        await until(lambda: real_reactor.seconds() > self.census._rested)
        self.assertIsNone(await self.ask())
        self.assertEqual(self.census.living.count_of(ALICE), 2)

    async def test_what_the_kernel_knows_of_each_is_told(self) -> None:
        ours, far = self.hand_over()
        far.sendall(b"hello")
        await until(lambda: socket_has(ours, 5))
        told: list[dict[int, TcpSocket] | OSError] = []
        self.census.look(told.append)
        await until(lambda: told)
        (found,) = told
        assert isinstance(found, dict)
        self.assertEqual(found[socket_cookie(ours)].remote[1], far.getsockname()[1])
        self.assertEqual(found[socket_cookie(ours)].unread_bytes, 5)

    @needs_root
    async def test_one_is_closed_at_both_ends_and_counts_no_more(self) -> None:
        ours, far = self.hand_over()
        told: list[Exception | None] = []
        self.census.destroy(socket_cookie(ours), told.append)
        await until(lambda: told)
        self.assertEqual((told, len(self.census.living)), ([None], 0))
        for sock in (ours, far):
            with self.assertRaises(ConnectionError):
                sock.recv(1)

    async def test_one_that_is_closed_meanwhile_is_told_so_and_counts_no_more(self) -> None:
        ours, far = self.hand_over()
        cookie = socket_cookie(ours)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        self.assertTrue(is_reset(ours))
        ours.close()
        told: list[Exception | None] = []
        self.census.destroy(cookie, told.append)
        await until(lambda: told)
        self.assertIsInstance(told[0], SocketGoneError)
        self.assertEqual(len(self.census.living), 0)

    def test_one_that_was_never_handed_over_is_none_of_them(self) -> None:
        ours, _ = self.tcp_pair()
        with self.assertRaises(SocketGoneError):
            self.census.destroy(socket_cookie(ours), lambda error: None)

    async def test_closed_in_the_middle_of_everything_it_leaves_nothing(self) -> None:
        ours, _ = self.hand_over()
        told: list[object] = []
        self.census.refresh(lambda: told.append("refreshed"))
        self.census.look(told.append)
        self.census.destroy(socket_cookie(ours), told.append)
        self.census.close()
        self.assertEqual(told, [])


def socket_has(sock: socket.socket, count: int) -> bool:
    """Tell whether so many bytes can be read."""
    sock.settimeout(20)
    return len(sock.recv(count, socket.MSG_PEEK)) == count
