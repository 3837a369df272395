"""plumberd.wiring.ops.accounting: what was handed over and still lives can be listed, and one of it ended."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.sockdiag import DestroyDeniedError, DestroyUnknownError, SocketGoneError, socket_cookie
from plumberd.pure.dialects.native import MESSAGE_BYTES, answer
from plumberd.pure.inetdiag import TcpInfo, TcpSocket
from plumberd.pure.living import HandedOver, Living
from plumberd.pure.refusals import Refusal, Refused
from plumberd.wiring.census import Census
from plumberd.wiring.ops import accounting
from plumberd.wiring.ops.accounting import A_PAGE, Looks, page_of, rows, tell
from tests.children import ChildTestCase, needs_root
from tests.holders import answered
from tests.serving_case import ALLOW, PLAIN, ServingTestCase
from tests.support import dial, in_thread, is_reset, native_ask, native_frame, native_lookup, native_read, until
from tests.tables import each

ALICE, BOB = 1000, 1001
MY_UID = os.geteuid()
ROW = (
    "id",
    "attempt",
    "service",
    "uid",
    "pid",
    "mode",
    "handed_over",
    "age_seconds",
    "state",
    "local",
    "remote",
    "bytes_sent",
    "bytes_received",
    "rtt_ms",
    "held",
)


def entry(cookie: int, uid: int = ALICE, at: float = 1000.0) -> HandedOver:
    return HandedOver(cookie, uid, "pong", "locked", 77, at, 5)


def tcp(cookie: int, info: TcpInfo | None = None, **members: Any) -> TcpSocket:
    """Return what the kernel may know of a socket."""
    local, remote = ((ipaddress.ip_address(host), port) for host, port in (("192.0.2.1", 1), ("2001:db8::1", 2)))
    known: dict[str, Any] = {"state": "established", "inode": 7, **members}
    return TcpSocket(cookie, known["state"], local, remote, ALICE, known["inode"], 0, 0, info, socket.AF_INET, b"ident")


class FakeCensus:
    """Counts what a test says, and looks when it is told to."""

    def __init__(self, *entries: HandedOver) -> None:
        self.living = Living()
        for one in entries:
            self.living.add(one)
        self.why_not = ""
        self.looks: list[Any] = []
        self.fails = 0
        self.destroyed: list[Any] = []

    def look(self, done: Any) -> None:
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))
        self.looks.append(done)

    def destroy(self, cookie: int, done: Any) -> None:
        if self.living.find(cookie) is None:
            raise SocketGoneError
        self.destroyed.append(done)


def census_of(*entries: HandedOver) -> Any:
    return cast(Census, FakeCensus(*entries))


class Pages(SynchronousTestCase):
    def test_they_follow_each_other_and_hold_everything_once(self) -> None:
        cookies = [(number * 7919) % 100_003 for number in range(1, 2 * A_PAGE + 11)]
        census = census_of(*map(entry, cookies))
        seen: list[int] = []
        after, left = None, []
        while True:
            page, more = page_of(census, None, after)
            seen += [one.cookie for one in page]
            left.append(more)
            if not more:
                break
            after = str(page[-1].cookie)
        self.assertEqual(seen, sorted(cookies))
        self.assertEqual(left, [A_PAGE + 10, 10, 0])

    def test_what_was_closed_between_two_pages_is_no_gap(self) -> None:
        census = census_of(*map(entry, range(1, A_PAGE + 4)))
        page, _ = page_of(census, None, None)
        for one in (page[-1].cookie, A_PAGE + 1):
            census.living.remove(ALICE, one)
        self.assertEqual([e.cookie for e in page_of(census, None, str(page[-1].cookie))[0]], [A_PAGE + 2, A_PAGE + 3])

    def test_of_one_user_they_hold_nobody_else_s(self) -> None:
        census = census_of(entry(1), entry(2, BOB), entry(3))
        self.assertEqual([e.cookie for e in page_of(census, ALICE, None)[0]], [1, 3])
        self.assertEqual([e.cookie for e in page_of(census, BOB, "1")[0]], [2])
        self.assertEqual(page_of(census, 5, None), ([], 0))

    @each(
        ("text", "x"),
        ("empty", ""),
        ("negative", "-1"),
        ("blank", " 1"),
        ("too_long", "1" * 21),
        ("other_digits", "\u0661"),
    )
    def test_what_is_no_id_makes_no_sense(self, _: str, after: str) -> None:
        with self.assertRaises(Refused) as caught:
            page_of(census_of(entry(1)), None, after)
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)

    def test_the_longest_page_fits_into_a_message(self) -> None:
        longest = HandedOver(2**64 - 1, 2**32 - 1, "x" * 64, "locked", 2**22, 1e9, 2**53)
        address = ipaddress.ip_address("fd00:1111:2222:3333:4444:5555:6666:7777")
        found = TcpSocket(
            2**64 - 1, "established", (address, 65535), (address, 65535), 0, 1, 0, 0,
            TcpInfo(0.123456, 1.0, 2**64 - 1, 2**64 - 1), socket.AF_INET6, b"",
        )  # fmt: skip
        members = {
            "ok": True,
            "connections": rows([longest] * A_PAGE, {longest.cookie: found}, 2e9),
            "more": 2**31,
            "after": str(2**64 - 1),
        }
        self.assertLess(len(answer("x" * 128, members)), MESSAGE_BYTES)


class Rows(SynchronousTestCase):
    def test_each_has_every_member(self) -> None:
        known = {1: tcp(1, TcpInfo(0.0123456, 1.0, 300, 200))}
        (row,) = rows([entry(1)], known, 1012.34)
        self.assertEqual(tuple(row), ROW)
        self.assertEqual(
            row,
            {
                "id": "1",
                "attempt": 5,
                "service": "pong",
                "uid": ALICE,
                "pid": 77,
                "mode": "locked",
                "handed_over": "1970-01-01T00:16:40.000Z",
                "age_seconds": 12.3,
                "state": "established",
                "local": "192.0.2.1:1",
                "remote": "[2001:db8::1]:2",
                "bytes_sent": 300,
                "bytes_received": 200,
                "rtt_ms": 12.346,
                "held": True,
            },
        )

    def test_what_the_kernel_does_not_tell_is_null(self) -> None:
        for info in (None, TcpInfo()):
            (row,) = rows([entry(1)], {1: tcp(1, info)}, 0.0)
            self.assertEqual((row["bytes_sent"], row["bytes_received"], row["rtt_ms"]), (None, None, None))

    def test_what_nobody_holds_any_more_says_so(self) -> None:
        (row,) = rows([entry(1)], {1: tcp(1, state="fin-wait-1", inode=0)}, 0.0)
        self.assertEqual((row["state"], row["held"]), ("fin-wait-1", False))

    def test_a_clock_that_was_set_back_makes_no_negative_age(self) -> None:
        (row,) = rows([entry(1, at=5000.0)], {1: tcp(1)}, 4000.0)
        self.assertEqual(row["age_seconds"], 0.0)

    def test_what_the_kernel_does_not_know_any_more_is_not_told(self) -> None:
        self.assertEqual([row["id"] for row in rows([entry(1), entry(2)], {2: tcp(2)}, 0.0)], ["2"])


class SharedLooks(SynchronousTestCase):
    def setUp(self) -> None:
        self.census = census_of(entry(1))
        self.looks = Looks(self.census)
        self.told: list[tuple[str, Any]] = []

    def ask(self, owner: str) -> None:
        self.looks.ask(owner, lambda result: self.told.append((owner, result)))

    def end(self, result: Any = None) -> None:
        self.census.looks.pop(0)({} if result is None else result)

    def test_who_asks_meanwhile_shares_the_next_one(self) -> None:
        for owner in "abc":
            self.ask(owner)
        self.assertEqual(len(self.census.looks), 1)
        self.end({1: "first"})
        self.assertEqual(self.told, [("a", {1: "first"})])
        self.assertEqual(len(self.census.looks), 1)
        self.end({1: "second"})
        self.assertEqual(self.told[1:], [("b", {1: "second"}), ("c", {1: "second"})])
        self.assertEqual(self.census.looks, [])
        self.ask("a")
        self.assertEqual(len(self.census.looks), 1)

    def test_who_asks_again_when_it_is_told_waits_for_the_next(self) -> None:
        self.looks.ask("a", lambda result: self.ask("a"))
        self.ask("b")
        self.end()
        self.assertEqual((self.told, len(self.census.looks)), ([], 1))
        self.end()
        self.assertEqual(([owner for owner, _ in self.told], len(self.census.looks)), (["b"], 1))
        self.end()
        self.assertEqual([owner for owner, _ in self.told], ["b", "a"])

    def test_who_has_gone_is_told_nothing(self) -> None:
        for owner in "abc":
            self.ask(owner)
        for owner in "abx":
            self.looks.forget(owner)
        self.end()
        self.end()
        self.assertEqual([owner for owner, _ in self.told], ["c"])

    def test_where_all_have_gone_there_is_no_next_one(self) -> None:
        self.ask("a")
        self.ask("b")
        self.looks.forget("b")
        self.end()
        self.assertEqual(self.census.looks, [])

    def test_a_look_that_cannot_begin_is_the_asker_s_own_error(self) -> None:
        self.census.fails = errno.EMFILE
        self.assertRaises(OSError, self.ask, "a")
        self.census.fails = 0
        self.ask("b")
        self.end()
        self.assertEqual([owner for owner, _ in self.told], ["b"])

    def test_one_that_cannot_follow_is_everybody_s(self) -> None:
        for owner in "abc":
            self.ask(owner)
        self.census.fails = errno.EMFILE
        self.end()
        self.assertEqual({owner: type(result) for owner, result in self.told}["b"], OSError)
        self.assertEqual(sorted(owner for owner, _ in self.told), ["a", "b", "c"])
        self.census.fails = 0
        self.ask("d")
        self.assertEqual(len(self.census.looks), 1)

    def test_one_who_fails_takes_nobody_along(self) -> None:
        self.ask("first")

        def fail(result: Any) -> None:
            raise ValueError("no")

        self.looks.ask("a", fail)
        self.ask("b")
        self.end()
        self.end()
        self.assertEqual([owner for owner, _ in self.told], ["first", "b"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class Telling(SynchronousTestCase):
    def tell(self, census: Any, **members: Any) -> list[Any]:
        told: list[Any] = []
        tell(census, Looks(census), "somebody", members.get("uid"), members.get("after"), told.append)
        return told

    def test_where_nothing_is_counted_it_says_why(self) -> None:
        census = census_of()
        census.why_not = "Operation not permitted"
        with self.assertRaises(Refused) as caught:
            self.tell(census)
        self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)
        self.assertIn("not counted here: Operation not permitted", caught.exception.reason)

    def test_the_last_page_has_no_next_one(self) -> None:
        census = census_of(entry(1), entry(2))
        told = self.tell(census)
        census.looks[0]({1: tcp(1), 2: tcp(2)})
        self.assertEqual([row["id"] for row in told[0]["connections"]], ["1", "2"])
        self.assertEqual((told[0]["ok"], told[0]["more"], told[0]["after"]), (True, 0, None))

    def test_another_page_says_where_the_next_begins(self) -> None:
        census = census_of(*map(entry, range(1, A_PAGE + 6)))
        told = self.tell(census)
        census.looks[0]({n: tcp(n) for n in range(1, A_PAGE + 6)})
        self.assertEqual((len(told[0]["connections"]), told[0]["more"], told[0]["after"]), (A_PAGE, 5, str(A_PAGE)))

    def test_a_page_of_which_all_are_closed_still_leads_on(self) -> None:
        census = census_of(*map(entry, range(1, A_PAGE + 6)))
        told = self.tell(census)
        census.looks[0]({})
        self.assertEqual((told[0]["connections"], told[0]["more"], told[0]["after"]), ([], 5, str(A_PAGE)))

    def test_a_kernel_that_does_not_answer_makes_it_busy(self) -> None:
        census = census_of(entry(1))
        told = self.tell(census)
        census.looks[0](OSError(errno.ETIMEDOUT, "a dump without end"))
        self.assertEqual(
            (told[0].word, told[0].reason),
            (Refusal.BUSY, "the kernel does not tell of its sockets: a dump without end"),
        )
        census.fails = errno.EMFILE
        with self.assertRaises(Refused) as caught:
            self.tell(census)
        self.assertEqual(caught.exception.word, Refusal.BUSY)


class Ending(SynchronousTestCase):
    def end(self, census: Any, connection: str) -> list[Any]:
        told: list[Any] = []
        accounting.end(census, connection, told.append)
        return told

    def test_it_is_told_when_it_is_over(self) -> None:
        census = census_of(entry(1))
        told = self.end(census, "1")
        self.assertEqual(told, [])
        census.destroyed[0](None)
        self.assertEqual(told, [{"ok": True, "connection": "1"}])

    @each(
        ("gone", SocketGoneError(), "it was not ended: the connection is closed already"),
        ("denied", DestroyDeniedError("wants CAP_NET_ADMIN"), "it was not ended: wants CAP_NET_ADMIN"),
        ("unknown", DestroyUnknownError("this kernel does not"), "it was not ended: this kernel does not"),
        ("no_answer", OSError(errno.ETIMEDOUT, "a dump without end"), "it was not ended: a dump without end"),
    )
    def test_what_was_not_ended_says_why(self, _: str, error: Exception, reason: str) -> None:
        census = census_of(entry(1))
        told = self.end(census, "1")
        census.destroyed[0](error)
        self.assertEqual((told[0].word, told[0].reason), (Refusal.NOT_POSSIBLE, reason))

    def test_none_that_was_handed_over_here_is_not_ended(self) -> None:
        with self.assertRaises(Refused) as caught:
            self.end(census_of(entry(1)), "2")
        self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)

    @each(("nothing", ""), ("text", "all"), ("many", "1,2"))
    def test_what_is_no_id_makes_no_sense(self, _: str, connection: str) -> None:
        with self.assertRaises(Refused) as caught:
            self.end(census_of(entry(1)), connection)
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)


class OverTheSocket(ServingTestCase, ChildTestCase):
    """A whole broker and the real kernel."""

    async def connect(self, service: str = "pong") -> tuple[socket.socket, socket.socket]:
        """Have a connection to a server of nobody's handed over; return both ends."""
        listener, port = self.listener()
        answer, sock = await in_thread(native_lookup, self.rundir, service, f"{service} tcp://127.0.0.1:{port}")
        assert sock is not None, answer
        accepted, _ = listener.accept()
        listener.close()
        return self.owned(sock), self.owned(accepted)

    async def ss(self, **members: Any) -> dict[str, Any]:
        answer, _ = await in_thread(native_ask, self.rundir, op="ss", **members)
        return answer

    async def test_a_connection_is_told_with_what_went_over_it(self) -> None:
        self.start()
        sock, far = await self.connect()
        sock.sendall(b"a question")
        self.assertEqual(await in_thread(far.recv, 100), b"a question")
        far.sendall(b"an answer, longer")
        self.assertEqual(await in_thread(sock.recv, 100), b"an answer, longer")
        answer = await self.ss()
        self.assertEqual((answer["ok"], answer["more"], answer["after"]), (True, 0, None))
        (row,) = answer["connections"]
        self.assertEqual(tuple(row), ROW)
        self.assertEqual(row["id"], str(socket_cookie(sock)))
        wanted = ("pong", MY_UID, os.getpid(), self.outcomes[0].mode, "established", True)
        self.assertEqual(tuple(row[name] for name in ("service", "uid", "pid", "mode", "state", "held")), wanted)
        self.assertEqual(row["attempt"], self.outcomes[0].ident)
        host, port = far.getsockname()
        self.assertEqual(row["remote"], f"{host}:{port}")
        self.assertLessEqual(abs(row["bytes_received"] - 17), 1)
        self.assertLess(row["age_seconds"], 20)

    async def test_a_closed_one_is_not_told(self) -> None:
        self.start()
        (sock, far), (other, _) = await self.connect(), await self.connect("other")
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        self.assertTrue(await in_thread(is_reset, sock))
        sock.close()
        self.assertEqual([row["id"] for row in (await self.ss())["connections"]], [str(socket_cookie(other))])

    async def test_a_served_caller_is_told_as_its_claimant_s(self) -> None:
        self.start(ALLOW, "allow in pong any", tcpd=(PLAIN,))
        assert self.service.tcpd is not None
        claim = await self.claim()
        sock = self.owned(socket.create_connection(("127.0.0.1", self.tcpd_port(self.service))))
        sock.sendall(b"pong")
        _, theirs = await self.take(claim)
        (row,) = (await self.ss())["connections"]
        self.assertEqual((row["id"], row["service"], row["uid"]), (str(socket_cookie(theirs)), "pong", MY_UID))
        host, port = sock.getsockname()
        self.assertEqual(row["remote"], f"{host}:{port}")

    async def test_nothing_at_all_is_an_empty_page(self) -> None:
        self.start()
        self.assertEqual(await self.ss(), {"ok": True, "connections": [], "more": 0, "after": None})

    async def test_after_the_last_one_there_is_nothing(self) -> None:
        self.start()
        sock, _ = await self.connect()
        self.assertEqual((await self.ss(after=str(socket_cookie(sock))))["connections"], [])
        self.assertEqual(len((await self.ss(after="0"))["connections"]), 1)

    async def test_many_at_once_share_the_looks(self) -> None:
        self.start()
        await self.connect()
        looks: list[int] = []
        look = self.core.census.look
        self.core.census.look = lambda done: (looks.append(1), look(done))[1]  # type: ignore[method-assign,func-returns-value]
        socks = [self.owned(dial(self.rundir, "plumberd")) for _ in range(50)]
        await until(lambda: self.broker.conversations == 50)
        for sock in socks:
            sock.sendall(native_frame({"op": "ss"}))
        for sock in socks:
            answer, _ = await in_thread(native_read, sock)
            self.assertEqual(len(answer["connections"]), 1)
        self.assertLess(len(looks), 50)

    async def test_who_hangs_up_meanwhile_costs_nothing(self) -> None:
        self.start()
        await self.connect()
        for _ in range(20):
            sock = dial(self.rundir, "plumberd")
            sock.sendall(native_frame({"op": "ss"}))
            sock.close()
        answer = await self.ss()
        self.assertEqual(len(answer["connections"]), 1)
        await until(lambda: self.broker.conversations == 0)

    async def test_a_broker_that_stops_meanwhile_hangs_up(self) -> None:
        self.start()
        await self.connect()
        sock = self.owned(dial(self.rundir, "plumberd"))
        sock.sendall(native_frame({"op": "ss"}))
        await until(lambda: self.broker.conversations == 1)
        await self.service.stopService()
        with self.assertRaises((EOFError, ConnectionResetError)):
            while True:
                await in_thread(native_read, sock)

    @needs_root
    async def test_another_user_sees_its_own_alone_and_ends_nothing(self) -> None:
        self.start()
        await self.connect()
        os.chmod(os.path.dirname(self.rundir), 0o755)
        os.chmod(self.rundir, 0o1777)
        os.chmod(os.path.join(self.rundir, "plumberd"), 0o666)
        listener, port = self.listener()
        code = (
            "import sys\n"
            "from tests.inside import become\n"
            "from tests.support import native_ask,native_lookup\n"
            "become(12345)\n"
            "answer,sock=native_lookup(sys.argv[1],'mine','mine tcp://127.0.0.1:'+sys.argv[2])\n"
            "answer,_=native_ask(sys.argv[1],op='ss')\n"
            "print([(row['service'],row['uid']) for row in answer['connections']])\n"
            "(row,)=answer['connections']\n"
            "print(native_ask(sys.argv[1],op='kill',connection=row['id'])[0]['error'])\n"
        )
        told = await self.run_child(code, self.rundir, port)
        self.assertEqual(told, "[('mine', 12345)]\ndenied\n")
        listener.close()

    @needs_root
    async def test_an_ended_connection_is_reset_at_both_ends_and_logged(self) -> None:
        self.start()
        sock, far = await self.connect()
        answer, _ = await in_thread(native_ask, self.rundir, op="kill", connection=str(socket_cookie(sock)))
        if not answer["ok"]:
            self.assertEqual(answer["error"], "not-possible")
            self.assertIn("this kernel closes no others' connections", answer["reason"])
            return
        self.assertEqual(answer, {"ok": True, "connection": str(socket_cookie(sock))})
        with self.assertRaises(ConnectionAbortedError):
            sock.recv(1)
        self.assertTrue(await in_thread(is_reset, far))
        self.assertEqual((await self.ss())["connections"], [])

    async def test_one_that_is_not_there_is_not_ended_and_the_log_says_so(self) -> None:
        self.start()
        answer, _ = await in_thread(native_ask, self.rundir, op="kill", connection="123456789")
        self.assertEqual((answer["ok"], answer["error"]), (False, "not-possible"))
        self.assertEqual([o.verdict for o in self.outcomes], ["not-possible"])
        answer, _ = await in_thread(native_ask, self.rundir, op="kill")
        self.assertEqual(answer["error"], "bad-request")

    async def test_the_next_request_waits_for_the_kernel_s_answer(self) -> None:
        self.start()
        sock = self.owned(dial(self.rundir, "plumberd"))
        requests = ({"op": "ss", "id": 1}, {"op": "kill", "connection": "1", "id": 2}, {"op": "ss", "id": 3})
        sock.sendall(b"".join(map(native_frame, requests)))
        self.assertEqual([(await in_thread(native_read, sock))[0]["id"] for _ in requests], [1, 2, 3])
        answer, _ = await in_thread(answered, sock, op="status")
        self.assertTrue(answer["ok"])
