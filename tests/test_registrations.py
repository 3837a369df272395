"""plumberd.wiring.clients.registrations: who claimed a service is handed each of its connections, and nobody else."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
from typing import Any

from plumberd.effects.credentials import maker_of
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.route import Routes
from plumberd.pure.who import LocalWho, RemoteWho
from plumberd.wiring.clients import registrations
from plumberd.wiring.clients.registrations import WAITING, told_of
from tests.children import ChildTestCase, needs_root
from tests.holders import Claim, answered
from tests.running import leading
from tests.serving_case import ALLOW, ServingTestCase
from tests.support import (
    in_thread,
    native_ask,
    native_frame,
    native_lookup,
    native_read,
    read_all,
    until,
)
from tests.tables import each

MY_UID = os.geteuid()


class Claims(ServingTestCase, ChildTestCase):
    """Who may have a service's connections."""

    async def test_a_rule_allows_it_and_is_told(self) -> None:
        self.start(ALLOW)
        answer = await in_thread(self.claimant().serve, "pong")
        self.assertEqual(answer, {"ok": True, "service": "pong", "rule": "1: allow serve pong"})

    async def test_without_a_rule_nobody_may(self) -> None:
        self.start("allow out pong any", "allow in pong any")
        answer = await in_thread(self.claimant().serve, "pong")
        self.assertEqual((answer["ok"], answer["error"]), (False, "denied"))
        self.assertIn("allow serve pong", answer["reason"])

    @each(
        ("another_service", "denied", "allow serve ping"),
        ("another_user", "denied", "allow serve pong for uid:12345"),
        ("a_deny_in_front", "denied", "deny serve pong", "allow serve any"),
        ("its_user", "", f"allow serve pong for uid:{MY_UID}"),
        ("a_glob", "", "allow serve p*"),
        ("any", "", "allow serve any"),
    )
    async def test_the_rules_decide(self, _label: str, word: str, *rules: str) -> None:
        self.start(*rules)
        answer = await in_thread(self.claimant().serve, "pong")
        self.assertEqual((answer["ok"], answer.get("error", "")), (not word, word))

    async def test_trying_rules_out_lets_nobody_claim(self) -> None:
        self.start(audit_only_seconds=60.0)
        self.assertEqual((await in_thread(self.claimant().serve, "pong"))["error"], "denied")

    @each(
        ("reserved", "plumberd", "denied", "reserved"),
        ("scheme", "tcp", "denied", "reserved"),
        ("oldest_generation", "pong-0-0", "denied", "reserved"),
        ("path", "../pong", "bad-request", "no name of a service"),
        ("empty", "", "bad-request", "no name of a service"),
        ("glob", "p*", "bad-request", "no name of a service"),
    )
    async def test_what_is_no_service_s_name_is_not_claimed(self, _: str, name: str, word: str, reason: str) -> None:
        self.start("allow serve any")
        answer = await in_thread(self.claimant().serve, name)
        self.assertEqual((answer["ok"], answer["error"]), (False, word))
        self.assertIn(reason, answer["reason"])

    async def test_without_a_name_it_is_no_claim(self) -> None:
        self.start("allow serve any")
        answer, _ = await in_thread(native_ask, self.rundir, op="serve")
        self.assertEqual(answer["error"], "bad-request")

    async def test_a_second_claim_is_refused_and_the_first_stays(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        answer = await in_thread(self.claimant().serve, "pong")
        self.assertEqual((answer["ok"], answer["error"]), (False, "denied"))
        self.assertIn(f"claimed already, by uid {MY_UID} pid {os.getpid()}", answer["reason"])
        self.assertEqual((await in_thread(claim.serve, "pong"))["error"], "denied")
        await self.check_is_served_by(claim)

    async def test_one_whose_claimant_has_gone_is_free(self) -> None:
        self.start(ALLOW)
        for _ in range(3):
            claim = await self.claim()
            claim.close()
            await until(lambda: not list(self.core.registrations))

    async def test_a_claimant_that_shuts_its_writing_side_down_gives_up(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        claim.sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, claim.sock), b"")
        self.assertEqual(list(self.core.registrations), [])

    async def test_where_somebody_listens_already_nobody_claims(self) -> None:
        self.start(ALLOW)
        listener = self.unix_listener(os.path.join(self.rundir, "pong"))
        answer = await in_thread(self.claimant().serve, "pong")
        self.assertEqual(
            (answer["error"], answer["reason"]), ("denied", "pong cannot be claimed: somebody listens on its socket")
        )
        listener.close()

    async def test_one_with_a_full_backlog_listens_too(self) -> None:
        self.start(ALLOW)
        path = os.path.join(self.rundir, "pong")
        self.unix_listener(path, backlog=0)
        waiting = self.owned(socket.socket(socket.AF_UNIX))
        waiting.connect(path)
        answer = await in_thread(self.claimant().serve, "pong")
        self.assertEqual(
            (answer["error"], answer["reason"]), ("denied", "pong cannot be claimed: somebody listens on its socket")
        )

    @each(("its_own", "pong"), ("the_oldest_generation_s", "pong-0-0"))
    async def test_one_with_packets_listens_too(self, _: str, name: str) -> None:
        self.start(ALLOW)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.path.join(self.rundir, name))
            listener.listen()
            self.assertEqual((await in_thread(self.claimant().serve, "pong"))["error"], "denied")

    @needs_root
    async def test_one_of_somebody_who_is_not_trusted_keeps_a_claim_away(self) -> None:
        self.start(ALLOW)
        path = os.path.join(self.rundir, "pong")
        code = (
            "import os,socket,sys\n"
            "sock=socket.socket(socket.AF_UNIX);sock.bind(sys.argv[1]);os.setuid(12345);sock.listen()\n"
            "print('listens',flush=True);sys.stdin.read()\n"
        )
        child = self.child(code, path)
        self.assertEqual(await in_thread(child.line), "listens")
        answer = await in_thread(self.claimant().serve, "pong")
        self.assertEqual(answer["error"], "denied")
        self.assertIn("uid 12345", answer["reason"])

    async def test_a_stale_socket_keeps_nobody_away(self) -> None:
        self.start(ALLOW)
        self.unix_listener(os.path.join(self.rundir, "pong")).close()
        await self.check_is_served_by(await self.claim())

    async def test_what_is_no_socket_keeps_nobody_away(self) -> None:
        self.start(ALLOW)
        with open(os.path.join(self.rundir, "pong"), "w", encoding="ascii"):
            await self.check_is_served_by(await self.claim())

    async def test_a_socket_that_comes_later_gets_nothing(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        self.serve(self.rundir, "pong", lambda sock: sock.sendall(b"an impostor"))
        await self.check_is_served_by(claim)

    async def test_when_its_claimant_has_gone_the_socket_is_the_service_again(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        self.serve(self.rundir, "pong", lambda sock: sock.sendall(b"the socket"))
        claim.close()
        await until(lambda: not list(self.core.registrations))
        _, sock = await in_thread(native_lookup, self.rundir, "pong")
        assert sock is not None
        self.assertEqual(await in_thread(read_all, self.owned(sock)), b"the socket")

    async def test_no_user_has_more_claims_than_the_limit(self) -> None:
        self.patch(registrations, "CLAIMS_PER_UID", 3)
        self.start("allow serve any")
        first, second = await self.claim("a", "b"), await self.claim("c")
        answer = await in_thread(second.serve, "d")
        self.assertEqual((answer["error"], answer["reason"]), ("busy", f"uid {MY_UID} has claimed 3 services already"))
        first.close()
        await until(lambda: len(list(self.core.registrations)) == 1)
        self.assertTrue((await in_thread(second.serve, "d"))["ok"])

    async def check_is_listened_on(self) -> None:
        answer = await in_thread(self.claimant().serve, "pong")
        self.assertEqual(answer["error"], "denied")
        self.assertEqual(answer["reason"], "pong cannot be claimed: somebody listens on its socket")

    async def check_is_served_by(self, claim: Claim) -> None:
        _, sock = await in_thread(native_lookup, self.rundir, "pong")
        assert sock is not None
        told, theirs = await self.take(claim)
        self.assertEqual(told["service"], "pong")
        await self.check_talks(self.owned(sock), theirs)


class Status(ServingTestCase):
    async def test_an_administrator_is_told_of_every_claim_and_of_what_waits(self) -> None:
        self.start("allow serve any")
        await self.claim("pong", "ping")
        for _ in range(3):
            _, sock = await in_thread(native_lookup, self.rundir, "pong")
            assert sock is not None
            self.owned(sock)
        answer, _ = await in_thread(native_ask, self.rundir, op="status")
        me = {"uid": MY_UID, "pid": os.getpid()}
        self.assertEqual(
            answer["serving"], [{"service": "pong", **me, "waiting": 2}, {"service": "ping", **me, "waiting": 0}]
        )
        self.assertEqual(answer["now"]["control_sockets"], 0)

    async def test_many_of_them_are_cut_with_their_number(self) -> None:
        self.start("allow serve any")
        names = [f"{number:064}" for number in range(registrations.CLAIMS_PER_UID)]
        claim = await self.claim(*names)
        policy = [f"allow out {'x' * 60}{number} any" for number in range(600)]
        self.put_in_force(self.service, "allow serve any", *policy)
        answer, _ = await in_thread(native_ask, self.rundir, op="status")
        self.assertTrue(answer["ok"])
        self.assertGreater(answer["left_out"].get("serving", 0) + answer["left_out"]["rules"], 0)
        claim.close()


class Explained(ServingTestCase):
    """What is explained of a caller is what would become of it."""

    async def mode(self, **members: Any) -> str:
        answer, _ = await in_thread(native_ask, self.rundir, op="explain", direction="in", service="pong", **members)
        self.assertTrue(answer["granted"], answer)
        (told,) = [step["text"] for step in answer["steps"] if step["step"] == "mode"]
        self.assertEqual(told, answer["mode"])
        return str(told)

    async def test_a_caller_of_a_claimed_service_is_handed_over(self) -> None:
        self.start(ALLOW, "allow in pong any")
        self.assertEqual(await self.mode(), "relayed")
        claim = await self.claim()
        self.assertEqual(await self.mode(), "locked")
        self.assertEqual(await self.mode(peer="tcp:192.0.2.1"), "locked")
        self.assertEqual(await self.mode(peer="tls:caller.example"), "relayed")
        claim.close()
        await until(lambda: not list(self.core.registrations))
        self.assertEqual(await self.mode(), "relayed")

    async def test_one_for_whom_no_mode_is_possible_is_refused(self) -> None:
        self.start(ALLOW, "allow in pong any", handover=Mode.DIRECT)
        await self.claim()
        (registration,) = self.core.registrations
        caged = dataclasses.replace(registration.who, confined="a cage")
        registration.who_now = lambda inspector: caged  # type: ignore[method-assign]
        answer, _ = await in_thread(native_ask, self.rundir, op="explain", direction="in", service="pong")
        self.assertEqual((answer["granted"], answer["word"]), (False, "not-possible"))
        self.assertIn("confined (a cage)", answer["reason"])


class Log(ServingTestCase):
    async def test_claims_and_their_ends_are_outcomes(self) -> None:
        self.start("allow serve pong")
        claim = await self.claim()
        self.assertEqual([(o.verdict, o.direction, o.service) for o in self.outcomes], [("granted", "serve", "pong")])
        self.assertIn(f"uid={MY_UID}", str(self.outcomes[0].who))
        self.assertEqual(self.outcomes[0].ruling, "1: allow serve pong")
        claim.close()
        await until(lambda: len(self.outcomes) == 2)
        self.assertEqual((self.outcomes[1].verdict, self.outcomes[1].direction), ("ended", "serve"))
        self.assertEqual(self.outcomes[1].ident, self.outcomes[0].ident)

    async def test_one_that_is_refused_says_why(self) -> None:
        self.start()
        await in_thread(self.claimant().serve, "pong")
        self.assertEqual([(o.verdict, o.direction, o.service) for o in self.outcomes], [("denied", "serve", "pong")])
        self.assertIn("allow serve pong", self.outcomes[0].reason)


class Local(ServingTestCase):
    """Clients of this machine."""

    async def look_up(self, service: str = "pong", routes: str | None = None) -> tuple[dict[str, Any], socket.socket]:
        answer, sock = await in_thread(native_lookup, self.rundir, service, routes)
        assert sock is not None, answer
        return answer, self.owned(sock)

    async def test_a_client_and_the_claimant_each_have_an_end(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        answer, sock = await self.look_up()
        self.assertEqual((answer["mode"], answer["rule"]), ("local", "default for local services"))
        told, theirs = await self.take(claim)
        me = {"scheme": "unix", "uid": MY_UID, "gid": os.getegid(), "pid": os.getpid()}
        self.assertEqual(
            told,
            {
                "ok": True,
                "op": "accepted",
                "fd": True,
                "service": "pong",
                "mode": "local",
                "peer": me,
                "identities": [],
                "rule": "default for local services",
            },
        )
        self.assertTrue(sock.getblocking() and theirs.gettimeout() is not None)
        await self.check_talks(sock, theirs)
        await self.check_ends(sock, theirs)
        await until(lambda: self.broker.unread.active == 0)

    async def check_ends(self, sock: socket.socket, theirs: socket.socket) -> None:
        """Each direction ends by itself."""
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, theirs), b"")
        theirs.sendall(b"afterwards")
        theirs.close()
        self.assertEqual(await in_thread(read_all, sock), b"afterwards")

    async def test_the_rule_is_the_one_that_let_the_client_out(self) -> None:
        self.start(ALLOW, "allow out pong unix:pong")
        claim = await self.claim()
        await self.look_up()
        told, _ = await self.take(claim)
        self.assertEqual(told["rule"], "2: allow out pong unix:pong")

    async def test_a_redirect_leads_to_it(self) -> None:
        self.start(ALLOW, routes=Routes(leading(other="pong")))
        claim = await self.claim()
        await self.look_up("other")
        told, _ = await self.take(claim)
        self.assertEqual(told["service"], "pong")

    async def test_a_uri_leads_to_it(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        await self.look_up("other", "other unix:///pong")
        told, _ = await self.take(claim)
        self.assertEqual(told["service"], "pong")

    async def test_a_rule_keeps_clients_away(self) -> None:
        self.start(ALLOW, "deny out pong unix:pong")
        await self.claim()
        answer, _ = await in_thread(native_lookup, self.rundir, "pong")
        self.assertEqual(answer["error"], "denied")

    @each(("relayed", ""), ("framed", "?framing=libipc-zig"))
    async def test_a_wish_of_the_client_s_rule_holds(self, mode: str, options: str) -> None:
        self.start(ALLOW, f"allow out any any handover={mode}")
        claim = await self.claim()
        answer, sock = await self.look_up("pong", f"pong unix:///pong{options}")
        self.assertEqual(answer["mode"], mode)
        told, theirs = await self.take(claim)
        self.assertEqual(told["mode"], "local")
        if mode == "framed":
            await in_thread(theirs.sendall, b"\0\0\0\2hi\0\0\0\3you")
            self.assertEqual(await in_thread(sock.recv, 100), b"\0\0\0\2hi")
            self.assertEqual(await in_thread(sock.recv, 100), b"\0\0\0\3you")
        else:
            await self.check_talks(sock, theirs)
        sock.close()
        self.assertEqual(await in_thread(read_all, theirs), b"")
        theirs.close()
        await self.wait_until_unheld()

    async def test_descriptors_pass_both_ways(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        _, sock = await self.look_up()
        _, theirs = await self.take(claim)
        for one, other in ((sock, theirs), (theirs, sock)):
            socket.send_fds(one, [b"x"], [one.fileno()])
            _, fds, _, _ = socket.recv_fds(other, 1, 1)
            self.assertEqual(len(fds), 1)
            os.close(fds[0])

    async def test_none_pass_where_it_is_relayed(self) -> None:
        self.start(ALLOW, "allow out any any handover=relayed")
        claim = await self.claim()
        _, sock = await self.look_up()
        _, theirs = await self.take(claim)
        for end in (sock, theirs):
            self.assertRaises(PermissionError, socket.send_fds, end, [b"x"], [end.fileno()])

    async def wait_until_unheld(self) -> None:
        await until(lambda: not self.core.relays and not self.broker.unread.active)

    async def test_a_client_with_packets_is_translated(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.settimeout(10)
            asking.connect(os.path.join(self.rundir, "network-0-0"))
            asking.send(b"\3\0\0\0\5\3pong;")
            _, fds, _, _ = await in_thread(socket.recv_fds, asking, 1, 1)
        with socket.socket(fileno=fds[0]) as sock:
            self.assertEqual(sock.type, socket.SOCK_SEQPACKET)
            _, theirs = await self.take(claim)
            self.assertEqual(theirs.type, socket.SOCK_STREAM)
            sock.send(b"\1\0\0\0\2\1hi")
            self.assertEqual(await in_thread(theirs.recv, 100), b"\1\0\0\0\2\1hi")
            theirs.sendall(b"\1\0\0\0\3\1you\1\0\0\0\1\1!")
            self.assertEqual(await in_thread(sock.recv, 100), b"\1\0\0\0\3\1you")
            self.assertEqual(await in_thread(sock.recv, 100), b"\1\0\0\0\1\1!")
        theirs.close()
        await self.wait_until_unheld()

    async def test_both_ends_see_the_client_s_user(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        _, sock = await self.look_up()
        _, theirs = await self.take(claim)
        for end in (sock, theirs):
            self.assertEqual(maker_of(end)[1:], (MY_UID, os.getegid()))

    async def test_the_claimant_may_look_its_own_service_up(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        answer, sock = await in_thread(answered, claim.sock, op="lookup", service="pong")
        assert sock is not None, answer
        _, theirs = await self.take(claim)
        await self.check_talks(self.owned(sock), theirs)

    async def test_on_the_same_connection_it_may_still_ask(self) -> None:
        self.start(ALLOW, "allow serve ping")
        claim = await self.claim()
        claim.sock.sendall(
            native_frame({"op": "status", "id": 1}) + native_frame({"op": "serve", "service": "ping", "id": 2})
        )
        self.assertEqual((await in_thread(native_read, claim.sock))[0]["id"], 1)
        answer, _ = await in_thread(native_read, claim.sock)
        self.assertEqual((answer["id"], answer["ok"]), (2, True))
        await self.look_up("ping")
        self.assertEqual((await self.take(claim))[0]["service"], "ping")

    async def test_a_client_that_gives_up_at_once_is_still_a_connection(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        _, sock = await self.look_up()
        sock.close()
        _, theirs = await self.take(claim)
        self.assertEqual(await in_thread(read_all, theirs), b"")


@needs_root
class OtherUsers(ServingTestCase, ChildTestCase):
    def open_to_all(self) -> None:
        os.chmod(os.path.dirname(self.rundir), 0o755)
        os.chmod(self.rundir, 0o1777)
        os.chmod(os.path.join(self.rundir, "plumberd"), 0o666)

    async def test_the_service_is_told_and_both_ends_see_the_client_s_user(self) -> None:
        self.start(ALLOW)
        self.open_to_all()
        claim = await self.claim()
        code = (
            "import socket,struct,sys\n"
            "from tests.inside import become\n"
            "from tests.support import native_lookup\n"
            "become(12345,23456)\n"
            "answer,sock=native_lookup(sys.argv[1],'pong')\n"
            "print(answer['ok'],*struct.unpack('iII',sock.getsockopt(socket.SOL_SOCKET,socket.SO_PEERCRED,12))[1:])\n"
        )
        child = self.child(code, self.rundir)
        self.assertEqual(await in_thread(child.finish), (0, "True 12345 23456\n", ""))
        told, theirs = await self.take(claim)
        self.assertEqual(told["peer"], {"scheme": "unix", "uid": 12345, "gid": 23456, "pid": child.pid})
        self.assertEqual(maker_of(theirs)[1:], (12345, 23456))

    async def test_a_claimant_of_another_user_is_handed_connections(self) -> None:
        self.start("allow serve pong for uid:12345")
        self.open_to_all()
        code = (
            "import sys\n"
            "from tests.inside import become\n"
            "from tests.holders import Claim\n"
            "become(12345)\n"
            "claim=Claim(sys.argv[1])\n"
            "print(claim.serve('pong')['ok'],flush=True)\n"
            "told,sock=claim.take()\n"
            "sock.sendall(b'hello');sock.close()\n"
        )
        child = self.child(code, self.rundir)
        self.assertEqual(await in_thread(child.line), "True")
        _, sock = await in_thread(native_lookup, self.rundir, "pong")
        assert sock is not None
        self.assertEqual(await in_thread(read_all, self.owned(sock)), b"hello")
        self.assertEqual((await in_thread(child.finish))[0], 0)
        (registration,) = [o for o in self.outcomes if o.direction == "serve" and o.verdict == "granted"]
        self.assertIn("uid=12345", str(registration.who))


class Queue(ServingTestCase):
    """Each connection waits for its turn; who does not take them harms itself alone."""

    async def fill(self, count: int) -> list[socket.socket]:
        """Make so many connections that nobody takes."""
        socks = []
        for _ in range(count):
            answer, sock = await in_thread(native_lookup, self.rundir, "pong")
            assert sock is not None, answer
            socks.append(self.owned(sock))
        return socks

    def registration(self) -> registrations.Registration:
        (registration,) = self.core.registrations
        return registration

    async def test_they_come_in_their_order_and_one_at_a_time(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        socks = await self.fill(5)
        await until(lambda: self.broker.unread.active == 1)
        self.assertEqual(self.registration().waiting, 4)
        for number, sock in enumerate(socks):
            sock.sendall(b"%d" % number)
        for number in range(5):
            _, theirs = await self.take(claim)
            self.assertEqual(await in_thread(theirs.recv, 10), b"%d" % number)
        await until(lambda: self.broker.unread.active == 0)
        self.assertEqual((self.registration().waiting, dict(self.core.registrations.waiting_of)), (0, {}))

    async def test_services_of_one_claimant_take_turns(self) -> None:
        self.start("allow serve any")
        claim = await self.claim("a", "b", "c")
        for name in ("a", "a", "a", "b", "b", "c"):
            _, sock = await in_thread(native_lookup, self.rundir, name)
            assert sock is not None
            self.owned(sock)
        names = [(await self.take(claim))[0]["service"] for _ in range(6)]
        self.assertEqual((names[0], sorted(names)), ("a", list("aaabbc")))
        self.assertIn("c", names[:4])

    async def test_one_too_many_is_told_so(self) -> None:
        self.start(ALLOW)
        await self.claim()
        await self.fill(WAITING + 1)  # one of them is on its way
        answer, _ = await in_thread(native_lookup, self.rundir, "pong")
        self.assertEqual(answer["error"], "busy")
        self.assertEqual(
            answer["reason"], f"{WAITING} connections wait for pong already: uid {MY_UID} does not take them"
        )

    async def test_all_claims_of_one_user_have_a_limit_together(self) -> None:
        self.start("allow serve any")
        self.core.registrations.most_waiting = 3
        claims = [await self.claim("a"), await self.claim("b")]
        for name in ("a", "b", "a", "b", "a"):
            _, sock = await in_thread(native_lookup, self.rundir, name)
            assert sock is not None
            self.owned(sock)
        answer, _ = await in_thread(native_lookup, self.rundir, "b")
        self.assertEqual(answer["error"], "busy")
        self.assertIn(f"3 connections wait for the services of uid {MY_UID} already", answer["reason"])
        await self.take(claims[0])
        await until(lambda: self.core.registrations.waiting_of[MY_UID] == 2)
        _, sock = await in_thread(native_lookup, self.rundir, "b")
        assert sock is not None
        self.owned(sock)

    async def test_a_claimant_that_does_not_take_them_loses_its_claim_and_nobody_waits(self) -> None:
        self.start(ALLOW, limits=Limits(handshake_seconds=1.0))
        claim = await self.claim()
        socks = await self.fill(3)
        self.serve(self.rundir, "other")
        answer, other = await in_thread(native_lookup, self.rundir, "other")
        assert other is not None, answer
        self.owned(other)
        await until(lambda: not list(self.core.registrations))
        for sock in socks[1:]:
            self.assertEqual(await in_thread(read_all, sock), b"")
        self.assertEqual(dict(self.core.registrations.waiting_of), {})
        answer, _ = await in_thread(native_lookup, self.rundir, "pong")
        self.assertEqual(answer["error"], "unknown-service")
        claim.close()
        self.assertEqual(await in_thread(read_all, socks[0]), b"")

    async def test_what_waits_when_the_claimant_goes_is_hung_up_on(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        socks = await self.fill(3)
        claim.close()
        for sock in socks:
            self.assertEqual(await in_thread(read_all, sock), b"")
        await self.wait_until_idle(self.service)

    async def test_a_rest_without_connections_has_no_deadline(self) -> None:
        self.start(ALLOW, limits=Limits(handshake_seconds=0.5))
        claim = await self.claim()
        idle = self.claimant()  # the same time passes for who has claimed nothing
        self.assertEqual(await in_thread(read_all, idle.sock), b"")
        await self.fill(1)
        await self.take(claim)

    async def test_untaken_descriptors_count_for_the_claimant_s_user(self) -> None:
        self.start(ALLOW, "allow serve ping", limits=Limits(unread_descriptors_per_uid=3))
        first, second = await self.claim("pong"), await self.claim("ping")
        await self.fill(1)
        await until(lambda: self.broker.unread.active == 1)
        first.sock.shutdown(socket.SHUT_RDWR)  # what was sent lies in a queue that lives on
        await until(lambda: len(list(self.core.registrations)) == 1)
        self.assertEqual(self.broker.unread.active, 1)
        _, sock = await in_thread(native_lookup, self.rundir, "ping")
        assert sock is not None
        self.owned(sock)
        told, _ = await self.take(second)
        self.assertEqual(told["service"], "ping")

    async def without_room(self) -> tuple[Claim, socket.socket, socket.socket]:
        """Return a claim, who has not read the one descriptor that there is room for, and who asks for the claimed."""
        self.start(ALLOW, limits=Limits(unread_descriptors_per_uid=1))
        claim = await self.claim()
        unread = self.claimant().sock
        self.serve(self.rundir, "other")
        unread.sendall(native_frame({"op": "lookup", "service": "other"}))
        await until(lambda: self.broker.unread.active == 1)
        asking = self.claimant().sock
        asking.sendall(native_frame({"op": "lookup", "service": "pong"}))
        return claim, unread, asking

    async def test_a_push_waits_until_its_user_has_room(self) -> None:
        claim, unread, asking = await self.without_room()
        await until(lambda: self.registration().waiting == 1)
        self.assertEqual(self.broker.unread.waiting, 2)  # the lookup itself, and the claim
        for sock in (unread, asking):
            answer, fds = await in_thread(native_read, sock)
            self.assertTrue(answer["ok"])
            for fd in fds:
                os.close(fd)
        await self.take(claim)
        await until(lambda: self.broker.unread.active == 0)

    async def test_who_waits_for_room_and_goes_leaves_it_to_others(self) -> None:
        claim, unread, asking = await self.without_room()
        await until(lambda: self.broker.unread.waiting == 2)
        claim.close()
        await until(lambda: self.broker.unread.waiting == 1)
        unread.close()
        answer, fds = await in_thread(native_read, asking)
        self.assertTrue(answer["ok"])
        for fd in fds:
            os.close(fd)
        asking.close()
        await self.wait_until_idle(self.service)


class Reload(ServingTestCase):
    async def test_claims_that_are_still_allowed_stay(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        self.put_in_force(self.service, "allow serve any")
        _, sock = await in_thread(native_lookup, self.rundir, "pong")
        assert sock is not None
        _, theirs = await self.take(claim)
        await self.check_talks(self.owned(sock), theirs)

    async def test_those_that_are_not_end_and_what_was_handed_over_goes_on(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        _, sock = await in_thread(native_lookup, self.rundir, "pong")
        assert sock is not None
        _, theirs = await self.take(claim)
        self.put_in_force(self.service, "deny serve pong", "allow serve any")
        self.assertEqual(await in_thread(read_all, claim.sock), b"")
        await self.check_talks(self.owned(sock), theirs)
        answer, _ = await in_thread(native_lookup, self.rundir, "pong")
        self.assertEqual(answer["error"], "unknown-service")

    async def test_one_that_lost_one_of_its_services_loses_its_connection(self) -> None:
        self.start("allow serve any")
        claim, other = await self.claim("a", "b"), await self.claim("c")
        self.put_in_force(self.service, "deny serve b", "allow serve any")
        self.assertEqual(await in_thread(read_all, claim.sock), b"")
        self.assertEqual([r.service for r in self.core.registrations], ["c"])
        self.assertTrue((await in_thread(other.serve, "a"))["ok"])


class Stopping(ServingTestCase):
    async def test_a_broker_that_stops_hangs_up_on_claimants_and_on_who_waits(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        socks = []
        for _ in range(3):
            _, sock = await in_thread(native_lookup, self.rundir, "pong")
            assert sock is not None
            socks.append(self.owned(sock))
        await self.service.stopService()
        for sock in socks[1:]:
            self.assertEqual(await in_thread(read_all, sock), b"")
        _, theirs = await self.take(claim)  # it was on its way
        await self.check_talks(socks[0], theirs)
        self.assertEqual(await in_thread(read_all, claim.sock), b"")


class Cages(ServingTestCase, ChildTestCase):
    async def test_a_claimant_that_goes_into_a_cage_is_confined_from_then_on(self) -> None:
        self.start(ALLOW)
        code = (
            "import ctypes,sys\n"
            "from tests.holders import Claim\n"
            "claim=Claim(sys.argv[1])\n"
            "print(claim.serve('pong')['ok'],flush=True)\n"
            "sys.stdin.readline()\n"
            "assert ctypes.CDLL(None).unshare(0x40000000)==0\n"
            "print('caged',flush=True);sys.stdin.read()\n"
        )
        child = self.child(code, self.rundir)
        self.assertEqual(await in_thread(child.line), "True")
        (registration,) = self.core.registrations
        before = registration.who_now(self.core.inspector)
        assert child.process.stdin is not None
        child.process.stdin.write(b"go\n")
        self.assertEqual(await in_thread(child.line), "caged")
        after = registration.who_now(self.core.inspector)
        self.assertEqual((registration.who.confined, before.confined), ("", ""))
        self.assertEqual((after.confined, after.same_cgroup), ("another network namespace", False))

    test_a_claimant_that_goes_into_a_cage_is_confined_from_then_on = needs_root(
        test_a_claimant_that_goes_into_a_cage_is_confined_from_then_on
    )

    async def test_one_whose_claimant_has_died_and_a_child_holds_it_is_confined(self) -> None:
        self.start(ALLOW)
        code = (
            "import os,sys\n"
            "from tests.holders import Claim\n"
            "claim=Claim(sys.argv[1])\n"
            "print(claim.serve('pong')['ok'],flush=True)\n"
            "if os.fork(): os._exit(0)\n"
            "sys.stdin.read()\n"
        )
        child = self.child(code, self.rundir)
        self.assertEqual(await in_thread(child.line), "True")
        await in_thread(child.process.wait)
        (registration,) = self.core.registrations
        who = registration.who_now(self.core.inspector)
        self.assertEqual((bool(who.confined), who.same_cgroup), (True, False))


class Told(ServingTestCase):
    @each(
        ("nobody", None, {"scheme": "unix"}, []),
        ("a_user", LocalWho(1, 2, (3,), 4), {"scheme": "unix", "uid": 1, "gid": 2, "pid": 4}, []),
        ("no_address", RemoteWho("tcp", None), {"scheme": "tcp", "address": None, "port": 0}, []),
    )
    def test_of_the_other_end(self, _: str, who: Any, peer: dict[str, Any], identities: list[str]) -> None:
        self.assertEqual(told_of(who, "a rule"), {"peer": peer, "identities": identities, "rule": "a rule"})

    def test_of_a_caller_s_identities_in_order(self) -> None:
        who = RemoteWho("tls", ipaddress.ip_address("2001:db8::1"), 5, frozenset(("psk:b", "cert:a")))
        told = told_of(who, "")
        self.assertEqual(told["peer"], {"scheme": "tls", "address": "2001:db8::1", "port": 5})
        self.assertEqual(told["identities"], ["cert:a", "psk:b"])
