"""plumberd.wiring.clients.asker: a restricted connection looks up what was named with it, and does nothing else."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.credentials import Inspector
from plumberd.pure.dialects import Request
from plumberd.pure.dialects.native import OPS
from plumberd.pure.modes import Mode
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.route import Routes
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho
from plumberd.wiring.clients.asker import Asker, Permit, restrict
from tests.children import ChildTestCase, needs_root
from tests.holders import Answered, Control, answered, control_of
from tests.running import leading
from tests.serving_case import ALLOW, ServingTestCase
from tests.support import dial, in_thread, native_frame, native_read, read_all, until
from tests.tables import each

ALICE = LocalWho(1000, 1001, (1002,), 77, same_cgroup=True, cgroup="/a.slice")
ROUTES = Pairs(b"pong tcp://192.0.2.1:1/pong")

MEMBERS: dict[str, dict[str, Any]] = {
    "status": {},
    "explain": {"service": "pong"},
    "why": {},
    "reload": {},
    "confine": {"services": ["pong"]},
    "serve": {"service": "pong"},
    "ss": {},
    "kill": {"connection": "1"},
    "whois": {"token": "plumberd-0"},
}
"""What makes sense for each operation but the lookup."""


class Permits(SynchronousTestCase):
    def test_whoever_gives_one_away_gives_no_more_than_it_has_and_nothing_direct(self) -> None:
        permit = restrict(ALICE, frozenset({"pong"}), ROUTES)
        self.assertEqual(permit.who, LocalWho(1000, 1001, (1002,), 77, restricted=True, cgroup="/a.slice"))
        self.assertEqual(permit.who.subject, ALICE.subject)

    def test_who_asks_by_one_is_who_gave_it_with_the_sender_s_pid(self) -> None:
        permit = restrict(ALICE, frozenset({"pong"}), ROUTES)
        asker = Asker((77, 1000, 1001), permit)
        left, right = socket.socketpair()
        with left, right:
            for sender, pid in (((5, 1, 2), 5), (None, 77)):
                who = asker.who(Inspector(), left, sender)
                self.assertEqual((who.pid, who.uid, who.gid, who.groups), (pid, 1000, 1001, (1002,)))

    def test_the_routes_are_those_that_were_given_with_it(self) -> None:
        asker = Asker((1, 2, 3), Permit(ALICE, frozenset({"pong"}), ROUTES))
        self.assertIs(asker.pairs_for(Request("lookup", "pong", Pairs(b"pong tcp://203.0.113.1:1"))), ROUTES)

    def test_without_one_they_are_the_lookup_s_own(self) -> None:
        pairs = Pairs(b"pong tcp://203.0.113.1:1")
        self.assertIs(Asker((1, 2, 3)).pairs_for(Request("lookup", "pong", pairs)), pairs)

    @each(
        ("another_service", Request("lookup", "ping")),
        ("a_uri", Request("lookup", uri="tcp://192.0.2.1:1/pong")),
        ("its_own_uri", Request("lookup", uri="unix:///pong")),
        ("its_bare_name", Request("lookup", uri="pong")),
    )
    def test_it_is_for_services_by_their_names_alone(self, _: str, request: Request) -> None:
        asker = Asker((1, 2, 3), Permit(ALICE, frozenset({"pong", "audio"}), ROUTES))
        with self.assertRaises(Refused) as caught:
            asker.pairs_for(request)
        self.assertEqual(caught.exception.word, Refusal.DENIED)
        self.assertIn("to looking up audio, pong", caught.exception.reason)


class RestrictedTestCase(ServingTestCase):
    """The same for a connection that was confined and for a control socket: *ask* asks on one of them."""

    Ask = Callable[..., Answered]

    async def ask_on(self, kind: str, *services: str, routes: str | None = None) -> Ask:
        """Make one that is restricted; return what asks on it."""
        members = {"routes": routes} if routes is not None else {}
        if kind == "control":
            control = await in_thread(control_of, self.rundir, *services, routes=routes)
            self.owned(control.sock)
            return control.ask
        sock = self.owned(dial(self.rundir, "plumberd"))
        answer, _ = await in_thread(answered, sock, op="confine", services=list(services), **members)
        self.assertEqual(answer, {"ok": True, "services": sorted(services)})
        return lambda **members: answered(sock, **members)

    async def granted(self, ask: Ask, service: str, **members: Any) -> tuple[dict[str, Any], socket.socket]:
        answer, sock = await in_thread(ask, op="lookup", service=service, **members)
        assert sock is not None, answer
        return answer, self.owned(sock)


BOTH = each(("connection",), ("control",))


class Restricted(RestrictedTestCase):
    @BOTH
    async def test_it_looks_up_what_was_named(self, kind: str) -> None:
        self.start()
        for name in ("pong", "ping"):
            self.serve(self.rundir, name, lambda sock, name=name: sock.sendall(name.encode()))
        ask = await self.ask_on(kind, "pong", "ping")
        for name in ("pong", "ping", "pong"):
            answer, sock = await self.granted(ask, name)
            self.assertEqual((answer["mode"], await in_thread(read_all, sock)), ("local", name.encode()))

    @BOTH
    async def test_nothing_else_is_looked_up(self, kind: str) -> None:
        self.start("allow out any any")
        port = self.serve_tcp()
        self.serve(self.rundir, "secret")
        self.serve(self.rundir, "pong")
        ask = await self.ask_on(kind, "pong")
        for members in (
            {"service": "secret"},
            {"service": "x", "routes": f"x tcp://127.0.0.1:{port}"},
            {"uri": f"tcp://127.0.0.1:{port}"},
            {"uri": f"tcp://127.0.0.1:{port}/pong"},
            {"uri": "unix:///secret"},
            {"uri": "secret"},
            {"uri": "unix:///pong"},
            {"uri": "pong"},
        ):
            answer, sock = await in_thread(ask, op="lookup", **members)
            self.assertEqual((answer["ok"], answer.get("error"), sock), (False, "denied", None), members)
            self.assertEqual(answer["reason"], "this connection is restricted, for ever, to looking up pong")
        self.assertEqual({o.verdict for o in self.outcomes}, {"denied"})

    @BOTH
    async def test_its_routes_count_and_those_of_later_lookups_do_not(self, kind: str) -> None:
        self.start()
        right, wrong = (self.serve_tcp(lambda sock, word=word: sock.sendall(word)) for word in (b"right", b"wrong"))
        ask = await self.ask_on(kind, "pong", routes=f"pong tcp://127.0.0.1:{right}")
        for members in ({}, {"routes": f"pong tcp://127.0.0.1:{wrong}"}):
            _, sock = await self.granted(ask, "pong", **members)
            self.assertEqual(await in_thread(read_all, sock), b"right")

    @BOTH
    async def test_without_routes_a_later_one_does_not_count_either(self, kind: str) -> None:
        self.start()
        port = self.serve_tcp()
        self.serve(self.rundir, "pong", lambda sock: sock.sendall(b"local"))
        ask = await self.ask_on(kind, "pong")
        _, sock = await self.granted(ask, "pong", routes=f"pong tcp://127.0.0.1:{port}")
        self.assertEqual(await in_thread(read_all, sock), b"local")

    @BOTH
    async def test_the_administrator_s_redirects_hold(self, kind: str) -> None:
        self.start(routes=Routes(leading(pong="next")))
        self.serve(self.rundir, "next", lambda sock: sock.sendall(b"next"))
        ask = await self.ask_on(kind, "pong", routes="pong tcp://192.0.2.1:1")
        _, sock = await self.granted(ask, "pong")
        self.assertEqual(await in_thread(read_all, sock), b"next")

    @BOTH
    async def test_the_rules_hold_as_they_do_for_who_confined(self, kind: str) -> None:
        self.start(f"deny out pong any for uid:{os.geteuid()}", "allow out any any")
        self.serve(self.rundir, "pong")
        ask = await self.ask_on(kind, "pong")
        answer, _ = await in_thread(ask, op="lookup", service="pong")
        self.assertEqual(answer["error"], "denied")
        self.assertIn("rule 1", answer["reason"])

    @BOTH
    async def test_other_rules_hold_at_once(self, kind: str) -> None:
        self.start()
        self.serve(self.rundir, "pong")
        ask = await self.ask_on(kind, "pong")
        await self.granted(ask, "pong")
        self.put_in_force(self.service, "deny out pong any")
        answer, _ = await in_thread(ask, op="lookup", service="pong")
        self.assertEqual(answer["error"], "denied")

    @BOTH
    async def test_no_socket_is_direct(self, kind: str) -> None:
        self.start("allow out pong any handover=direct", "allow out ping any")
        port = self.serve_tcp()
        ask = await self.ask_on(kind, "pong", "ping", routes=f"pong tcp://127.0.0.1:{port};ping tcp://127.0.0.1:{port}")
        answer, _ = await in_thread(ask, op="lookup", service="pong")
        self.assertEqual(answer["error"], "not-possible")
        self.assertIn("the connection that asks is restricted", answer["reason"])
        answer, _ = await self.granted(ask, "ping")
        self.assertIn(answer["mode"], ("locked", "relayed"))

    @BOTH
    async def test_no_socket_is_direct_where_the_broker_was_told_so_either(self, kind: str) -> None:
        self.start(handover=Mode.DIRECT)
        port = self.serve_tcp()
        ask = await self.ask_on(kind, "pong", routes=f"pong tcp://127.0.0.1:{port}")
        answer, _ = await in_thread(ask, op="lookup", service="pong")
        self.assertEqual(answer["error"], "not-possible")

    @BOTH
    async def test_every_other_operation_is_denied_and_changes_nothing(self, kind: str) -> None:
        self.start(ALLOW)
        self.serve(self.rundir, "other")
        ask = await self.ask_on(kind, "pong")
        self.assertEqual({"lookup", *MEMBERS}, set(OPS))
        for op, members in MEMBERS.items():
            answer, sock = await in_thread(ask, op=op, **members)
            self.assertEqual((answer["ok"], answer.get("error"), sock), (False, "denied", None), op)
            self.assertEqual(answer["reason"], "a restricted connection may look up, no more")
        answer, _ = await in_thread(ask, op="confine", services=["other"], control=True)
        self.assertEqual(answer["error"], "denied")
        answer, _ = await in_thread(ask, op="lookup", service="other")
        self.assertEqual(answer["error"], "denied")
        self.assertEqual(list(self.core.registrations), [])

    @BOTH
    async def test_the_log_tells_that_it_was_restricted(self, kind: str) -> None:
        self.start()
        self.serve(self.rundir, "pong")
        await self.granted(await self.ask_on(kind, "pong"), "pong")
        (outcome,) = self.outcomes
        self.assertEqual(str(outcome.who), f"uid={os.geteuid()} gid={os.getegid()} pid={os.getpid()} restricted")

    @each(
        ("none", {}, "bad-request", "services: wanted the names of some"),
        ("empty", {"services": []}, "bad-request", "services: wanted the names of some"),
        ("reserved", {"services": ["pong", "plumberd"]}, "denied", "reserved"),
        ("no_name", {"services": ["../x"]}, "bad-request", "no name of a service"),
        ("glob", {"services": ["*"]}, "bad-request", "no name of a service"),
        ("text", {"services": "pong"}, "bad-request", "services: wanted a list"),
        ("numbers", {"services": [1]}, "bad-request", "services: wanted a list"),
        ("too_many", {"services": ["pong"] * 65}, "bad-request", "at most 64"),
        ("no_truth", {"services": ["pong"], "control": "yes"}, "bad-request", "control: wanted true or false"),
        ("a_uri", {"services": ["pong"], "uri": "pong"}, "bad-request", "does not know"),
    )
    async def test_what_makes_no_sense_restricts_nothing(
        self, _label: str, members: Any, word: str, reason: str
    ) -> None:
        self.start()
        self.serve(self.rundir, "pong")
        for control in ({}, {"control": True}):
            sock = self.owned(dial(self.rundir, "plumberd"))
            answer, _ = await in_thread(answered, sock, op="confine", **{**control, **members})
            self.assertEqual((answer["ok"], answer["error"]), (False, word))
            self.assertIn(reason, answer["reason"])
            answer, _ = await in_thread(answered, sock, op="status")
            self.assertTrue(answer["ok"])
        self.assertEqual(self.broker.controls, 0)

    async def test_control_false_is_the_connection_itself(self) -> None:
        self.start()
        sock = self.owned(dial(self.rundir, "plumberd"))
        answer, _ = await in_thread(answered, sock, op="confine", services=["pong"], control=False)
        self.assertEqual(answer, {"ok": True, "services": ["pong"]})
        answer, _ = await in_thread(answered, sock, op="status")
        self.assertEqual(answer["error"], "denied")

    async def test_what_gives_a_control_socket_away_stays_free(self) -> None:
        self.start()
        self.serve(self.rundir, "other")
        sock = self.owned(dial(self.rundir, "plumberd"))
        answer, control = await in_thread(answered, sock, op="confine", services=["pong"], control=True, id=7)
        assert control is not None
        with control:
            self.assertEqual(answer, {"id": 7, "ok": True, "fd": True, "mode": "control", "rule": ""})
            self.assertEqual((control.family, control.type), (socket.AF_UNIX, socket.SOCK_SEQPACKET))
        answer, other = await in_thread(answered, sock, op="lookup", service="other")
        assert other is not None
        self.owned(other)


class Connection(RestrictedTestCase, ChildTestCase):
    async def test_requests_that_were_sent_behind_it_are_restricted_already(self) -> None:
        self.start()
        self.serve(self.rundir, "other")
        sock = self.owned(dial(self.rundir, "plumberd"))
        requests = (
            {"op": "confine", "services": ["pong"]},
            {"op": "status", "id": 1},
            {"op": "confine", "services": ["other"], "id": 2},
            {"op": "lookup", "service": "other", "id": 3},
        )
        sock.sendall(b"".join(map(native_frame, requests)))
        words = [(await in_thread(native_read, sock))[0].get("error", "") for _ in requests]
        self.assertEqual(words, ["", "denied", "denied", "denied"])

    async def test_a_child_that_inherits_it_asks_as_who_confined(self) -> None:
        self.start()
        self.serve(self.rundir, "pong", lambda sock: sock.sendall(b"hello"))
        sock = self.owned(dial(self.rundir, "plumberd"))
        await in_thread(answered, sock, op="confine", services=["pong"])
        sock.setblocking(True)  # the child's is the same description
        code = (
            "import socket,sys\n"
            "from tests.holders import answered\n"
            "sock=socket.socket(fileno=int(sys.argv[1]))\n"
            "answer,got=answered(sock,op='lookup',service='pong')\n"
            "print(answer['ok'],got.recv(5))\n"
            "print(answered(sock,op='lookup',service='secret')[0]['error'],answered(sock,op='status')[0]['error'])\n"
        )
        child = self.child(code, sock.fileno(), pass_fds=[sock.fileno()])
        self.assertEqual(await in_thread(child.finish), (0, "True b'hello'\ndenied denied\n", ""))
        granted = next(o for o in self.outcomes if o.verdict == "granted")
        self.assertEqual((getattr(granted.who, "pid", 0), getattr(granted.who, "confined", None)), (child.pid, ""))

    @needs_root
    async def test_a_child_of_another_user_in_a_cage_asks_as_who_confined(self) -> None:
        self.start(f"allow out pong any for uid:{os.geteuid()}", "deny out any any")
        port = self.serve_tcp(lambda sock: sock.sendall(b"hello"))
        sock = self.owned(dial(self.rundir, "plumberd"))
        await in_thread(answered, sock, op="confine", services=["pong"], routes=f"pong tcp://127.0.0.1:{port}")
        sock.setblocking(True)
        code = (
            "import os,socket,sys\n"
            "from tests.holders import answered\n"
            "from tests.inside import become\n"
            "become(12345)\n"
            "sock=socket.socket(fileno=int(sys.argv[1]))\n"
            "answer,got=answered(sock,op='lookup',service='pong')\n"
            "print(answer['mode'],got.recv(5),os.fstat(got.fileno()).st_uid)\n"
        )
        child = self.child(code, sock.fileno(), pass_fds=[sock.fileno()], within=("unshare", "-n"))
        self.assertEqual(await in_thread(child.finish), (0, f"locked b'hello' {os.geteuid()}\n", ""))

    async def test_who_has_claimed_a_service_is_not_restricted_on_that_connection(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        answer, _ = await in_thread(answered, claim.sock, op="confine", services=["pong"])
        self.assertEqual((answer["ok"], answer["error"]), (False, "not-possible"))
        answer, control = await in_thread(answered, claim.sock, op="confine", services=["pong"], control=True)
        assert control is not None, answer
        control.close()
        answer, _ = await in_thread(answered, claim.sock, op="status")
        self.assertTrue(answer["ok"])

    @needs_root
    async def test_who_is_confined_itself_confines_nobody(self) -> None:
        self.start("allow out pong any")
        code = (
            "import sys\n"
            "from tests.support import native_ask\n"
            "for control in (False,True):\n"
            "    answer,sock=native_ask(sys.argv[1],op='confine',services=['pong'],control=control)\n"
            "    print(answer['error'],sock)\n"
        )
        told = await self.run_child(code, self.rundir, within=("unshare", "-n"))
        self.assertEqual(told, "denied None\n" * 2)
        self.assertIn("a confined client may look up, no more", self.outcomes[0].reason)


class ControlSocket(RestrictedTestCase, ChildTestCase):
    async def test_a_control_socket_in_a_cage_asks_as_who_asked_for_it(self) -> None:
        self.start()
        self.serve(self.rundir, "pong", lambda sock: sock.sendall(b"hello"))
        control = await in_thread(control_of, self.rundir, "pong")
        self.owned(control.sock)
        code = (
            "import socket,sys\n"
            "from tests.holders import Control\n"
            "control=Control(socket.socket(fileno=int(sys.argv[1])))\n"
            "answer,got=control.lookup('pong')\n"
            "print(answer['mode'],got.recv(5))\n"
            "print(control.lookup('secret')[0]['error'],control.ask(op='reload')[0]['error'])\n"
        )
        fd = control.sock.fileno()
        child = self.child(code, fd, pass_fds=[fd], within=("unshare", "-n") if os.geteuid() == 0 else ())
        self.assertEqual(await in_thread(child.finish), (0, "local b'hello'\ndenied denied\n", ""))
        self.assertEqual({getattr(o.who, "pid", None) for o in self.outcomes if o.verdict == "granted"}, {child.pid})

    async def test_what_makes_no_sense_is_told_to_its_sender_in_the_log(self) -> None:
        self.start()
        control = await in_thread(control_of, self.rundir, "pong")
        self.owned(control.sock)
        code = (
            "import socket,sys\n"
            "from tests.holders import Control\n"
            "print(Control(socket.socket(fileno=int(sys.argv[1]))).ask(op='destroy')[0]['error'])\n"
        )
        child = self.child(code, control.sock.fileno(), pass_fds=[control.sock.fileno()])
        self.assertEqual(await in_thread(child.finish), (0, "bad-request\n", ""))
        self.assertEqual(str(self.outcomes[-1].who), f"uid={os.geteuid()} pid={child.pid}")

    async def test_two_are_restricted_each_to_its_own(self) -> None:
        self.start()
        for name in ("a", "b"):
            self.serve(self.rundir, name, lambda sock, name=name: sock.sendall(name.encode()))
        controls: dict[str, Control] = {}
        for name in ("a", "b"):
            controls[name] = await in_thread(control_of, self.rundir, name)
            self.owned(controls[name].sock)
        for name, other in (("a", "b"), ("b", "a")):
            _, sock = await in_thread(controls[name].lookup, name)
            assert sock is not None
            self.assertEqual(await in_thread(read_all, self.owned(sock)), name.encode())
            answer, _ = await in_thread(controls[name].lookup, other)
            self.assertEqual(answer["error"], "denied")

    async def test_a_claim_by_its_permit_s_user_is_reached(self) -> None:
        self.start(ALLOW)
        claim = await self.claim()
        control = await in_thread(control_of, self.rundir, "pong")
        self.owned(control.sock)
        _, sock = await in_thread(control.lookup, "pong")
        assert sock is not None
        told, theirs = await self.take(claim)
        self.assertEqual(told["peer"], {"scheme": "unix", "uid": os.geteuid(), "gid": os.getegid(), "pid": os.getpid()})
        await self.check_talks(self.owned(sock), theirs)

    async def test_its_request_may_have_no_length_in_front(self) -> None:
        self.start()
        control = await in_thread(control_of, self.rundir, "pong")
        self.owned(control.sock)
        with control.begin_with(json.dumps({"op": "lookup", "service": "pong", "id": "x"}).encode()) as sock:
            answer, _ = await in_thread(native_read, sock)
        self.assertEqual((answer["id"], answer["error"]), ("x", "unknown-service"))
        await until(lambda: self.broker.conversations == 0)
