"""plumberd.wiring.ops.operations: who may do what on the native socket, op by op, for every kind of connection."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from types import SimpleNamespace
from typing import Any
from unittest import mock

from plumberd.effects import kernel
from plumberd.pure.dialects.native import MESSAGE_BYTES, OPS, answer
from plumberd.pure.limits import Limits
from plumberd.pure.policy.subject import UNMAPPED
from plumberd.pure.refusals import REASON_BYTES, Refusal, Refused
from plumberd.wiring.ops import operations
from plumberd.wiring.ops.operations import RIGHTS, Operations, Right
from tests.children import needs_root
from tests.clients import NO_NETWORK, SECCOMP, Client, ClientTestCase, user, word
from tests.running import RunningTestCase
from tests.support import (
    dial,
    dialled,
    in_thread,
    native_ask,
    native_frame,
    native_read,
    read_all,
    until,
)

OWN, ADMINS = 4321, 7777
"""The broker's own user, and the group of administrators."""

RESTRICTED = {"op": "confine", "services": ["pong"]}

KINDS = {
    "root": Client(),
    "own": Client(user(OWN)),
    "primary": Client(user(5001, ADMINS)),
    "supplementary": Client(user(5002, groups=[1, 2, ADMINS, 3])),
    "ordinary": Client(user(5003, groups=[1, 2, 3])),
    "nobody": Client(user(UNMAPPED)),
    "netns": Client(within=NO_NETWORK),
    "netns_admin": Client(user(5001, ADMINS), within=NO_NETWORK),
    "seccomp": Client(SECCOMP),
    "inherited": Client(forks=True),
    "inherited_ordinary": Client(user(5003), forks=True),
    "another": Client(forks=True, between=user(5003)),
}
"""Every kind of client; what the last one has is root's connection."""

REQUESTS: dict[str, dict[str, Any]] = {
    "lookup": {"op": "lookup", "service": "pong"},
    "status": {"op": "status"},
    "explain": {"op": "explain", "direction": "out", "service": "pong"},
    "explain as": {"op": "explain", "direction": "out", "service": "pong", "as": ["uid:5"]},
    "explain in": {"op": "explain", "direction": "in", "service": "pong"},
    "why": {"op": "why"},
    "reload": {"op": "reload"},
    "confine": RESTRICTED,
    "confine control": {**RESTRICTED, "control": True},
    "serve": {"op": "serve", "service": "mine"},
    "ss": {"op": "ss"},
    "kill": {"op": "kill", "connection": "1"},
    "whois": {"op": "whois", "token": "plumberd-" + "0" * 32},
}
"""Every operation, as somebody asks who may."""

YES, NO, NOTHING, NOBODY = "ok", "denied", "not-possible", "unknown-service"
"""``kill`` finds nothing to end, and ``whois`` nobody: whoever is told that may ask about what there is."""

ADMITTED = {"root", "own", "primary", "supplementary", "ordinary", "nobody"}
ADMINISTRATORS = {"root", "own", "primary", "supplementary"}
CONFINED = {"netns", "netns_admin", "seccomp", "inherited", "inherited_ordinary"}

MAY = {
    "lookup": ADMITTED | CONFINED,
    "status": ADMITTED,
    "explain": ADMITTED,
    "explain as": ADMINISTRATORS,
    "explain in": ADMINISTRATORS,
    "why": ADMITTED,
    "reload": ADMINISTRATORS,
    "confine": ADMITTED,
    "confine control": ADMITTED,
    "serve": ADMITTED | CONFINED,
    "ss": ADMITTED,
    "kill": ADMINISTRATORS,
    "whois": ADMITTED,
}
"""Who may ask for what; who has come by another user's connection may nothing at all."""

RULES = ("allow out pong unix:pong", "allow serve mine")


class Tables(RunningTestCase):
    """A new operation cannot be forgotten."""

    def test_every_operation_has_its_right_its_method_and_its_place_in_these_tests(self) -> None:
        self.assertEqual(set(RIGHTS), set(OPS))
        self.assertEqual({name.split()[0] for name in REQUESTS}, set(OPS))
        self.assertEqual(set(MAY), set(REQUESTS))
        service = self.run_broker()
        assert service.broker is not None
        self.assertEqual(set(service.broker._operations._run), set(OPS) - {"lookup"})

    def test_the_rights_are_those_that_are_tried(self) -> None:
        who = {Right.EVERYBODY: ADMITTED | CONFINED, Right.ADMITTED: ADMITTED, Right.ADMIN: ADMINISTRATORS}
        for op, right in RIGHTS.items():
            self.assertEqual(MAY[op], who[right], op)


@needs_root
class WhoMay(ClientTestCase):
    """One method a kind of client; each asks for everything."""

    def setUp(self) -> None:
        super().setUp()
        # The tests run as root; the broker's own user is to be another one.
        self.patch(operations, "os", SimpleNamespace(geteuid=lambda: OWN))
        self.service = self.run_broker(*RULES, admin_gid=ADMINS)
        self.serve(self.service.settings.rundir, "pong")
        self.open_to_all(self.service)
        assert self.service.core is not None
        self.service.core.reload = lambda done: done({"ok": True, "changes": []})

    async def check(self, kind: str) -> list[dict[str, Any]]:
        found = await self.answers(self.service, KINDS[kind], *([request] for request in REQUESTS.values()))
        wanted = {name: YES if kind in MAY[name] else NO for name in REQUESTS}
        if wanted["kill"] == YES:
            wanted["kill"] = NOTHING
        if wanted["whois"] == YES:
            wanted["whois"] = NOBODY
        self.assertEqual(dict(zip(REQUESTS, map(word, found), strict=True)), wanted)
        await self.wait_until_idle(self.service)
        return found

    async def check_confined(self, kind: str, why: str) -> None:
        found = dict(zip(REQUESTS, await self.check(kind), strict=True))
        for op in ("status", "explain", "explain as", "why", "reload", "confine", "ss", "kill", "whois"):
            self.assertIn(f"a confined client may look up, no more ({why})", found[op]["reason"])

    async def test_root(self) -> None:
        found = dict(zip(REQUESTS, await self.check("root"), strict=True))
        self.assertEqual(found["status"]["rules"], list(RULES))

    async def test_the_broker_s_own_user(self) -> None:
        found = dict(zip(REQUESTS, await self.check("own"), strict=True))
        self.assertEqual(found["status"]["rules"], list(RULES))

    async def test_a_member_of_the_admin_group_by_its_primary_group(self) -> None:
        found = dict(zip(REQUESTS, await self.check("primary"), strict=True))
        self.assertEqual(found["status"]["rules"], list(RULES))

    async def test_a_member_of_the_admin_group_by_a_supplementary_group(self) -> None:
        found = dict(zip(REQUESTS, await self.check("supplementary"), strict=True))
        self.assertEqual(found["status"]["rules"], list(RULES))

    async def test_an_ordinary_user(self) -> None:
        found = dict(zip(REQUESTS, await self.check("ordinary"), strict=True))
        self.assertNotIn("rules", found["status"])
        self.assertEqual(found["status"]["you"]["uid"], 5003)
        self.assertEqual({row["key"] for row in found["status"]["limits"] if "key" in row} - {5003, None}, set())
        for op in ("explain as", "explain in", "reload", "kill"):
            self.assertIn("is for root, the broker's own user, and the admin group", found[op]["reason"])

    async def test_a_user_that_the_kernel_may_not_be_able_to_name(self) -> None:
        await self.check("nobody")

    async def test_root_in_a_network_namespace_of_its_own(self) -> None:
        await self.check_confined("netns", "another network namespace")

    async def test_a_member_of_the_admin_group_in_a_network_namespace_of_its_own(self) -> None:
        await self.check_confined("netns_admin", "another network namespace")

    async def test_root_under_a_seccomp_filter(self) -> None:
        await self.check_confined("seccomp", "more seccomp filters than its system's first process")

    async def test_a_child_of_root_that_has_inherited_the_connection(self) -> None:
        await self.check_confined("inherited", "not sent by the process that connected")

    async def test_a_child_of_an_ordinary_user_that_has_inherited_the_connection(self) -> None:
        await self.check_confined("inherited_ordinary", "not sent by the process that connected")

    async def test_another_user_that_has_inherited_root_s_connection(self) -> None:
        for found in await self.check("another"):
            self.assertIn("make a connection of your own", found["reason"])

    async def test_a_restricted_connection_of_root(self) -> None:
        chains = [[RESTRICTED, request] for request in REQUESTS.values()]
        found = await self.answers(self.service, Client(), *chains)
        wanted = {name: YES if name == "lookup" else NO for name in REQUESTS}
        self.assertEqual(dict(zip(REQUESTS, map(word, found), strict=True)), wanted)

    async def test_a_restricted_connection_s_child_may_look_up_what_was_named_alone(self) -> None:
        """The parent restricts it, and then gives it away."""
        between = (
            "payload = json.dumps({'op': 'confine', 'services': ['pong']}).encode(); "
            "sock.sendall(struct.pack('>I', len(payload)) + payload); sock.recv(4096); "
            "child = os.fork(); child and (os.wait(), os._exit(0))"
        )
        inherited = Client(forks=True, between=between)
        lookups = [[{"op": "lookup", "service": name}] for name in ("pong", "mine")]
        found = await self.answers(self.service, inherited, *lookups, [REQUESTS["status"]])
        self.assertEqual([word(one) for one in found], [YES, NO, NO])

    async def test_whoever_the_kernel_cannot_name_is_no_administrator_even_as_the_broker_s_own_user(self) -> None:
        self.patch(operations, "os", SimpleNamespace(geteuid=lambda: UNMAPPED))
        found = await self.answer(self.service, KINDS["nobody"], op="reload")
        self.assertEqual(word(found), NO)

    async def test_nor_by_a_group_that_it_cannot_name(self) -> None:
        service = self.open_to_all(self.run_broker(admin_gid=UNMAPPED))
        found = await self.answer(service, Client(user(5003, UNMAPPED)), op="reload")
        self.assertEqual(word(found), NO)

    async def test_without_an_admin_group_no_group_is_one(self) -> None:
        service = self.open_to_all(self.run_broker())
        for client in (KINDS["primary"], Client(user(5003, 0))):
            self.assertEqual(word(await self.answer(service, client, op="reload")), NO)

    async def test_who_may_serve_is_for_the_rules_to_say(self) -> None:
        service = self.open_to_all(self.run_broker("allow serve mine for uid:5003"))
        for client, wanted in ((KINDS["ordinary"], YES), (KINDS["primary"], NO), (KINDS["root"], NO)):
            self.assertEqual(word(await self.answer(service, client, op="serve", service="mine")), wanted)
            await self.wait_until_idle(service)


class Descriptors(RunningTestCase):
    """What a client sends along is closed, whatever it asks for."""

    async def test_those_that_come_with_any_operation_are_closed(self) -> None:
        service = self.run_broker(*RULES)
        self.serve(service.settings.rundir, "pong")
        assert service.broker is not None and service.core is not None
        service.core.reload = lambda done: done({"ok": True, "changes": []})
        for bound in service.broker._bound:
            with contextlib.suppress(OSError):  # a kernel that lets them all through
                bound.sock.setsockopt(socket.SOL_SOCKET, kernel.SO_PASSRIGHTS, 1)
        for name, request in REQUESTS.items():
            kept, given = self.pair()

            def ask(kept: socket.socket = kept, given: socket.socket = given, request: Any = request) -> bytes:
                with dialled(service.settings.rundir, "plumberd") as sock:
                    socket.send_fds(sock, [native_frame(request)], [given.fileno()] * 3)
                    given.close()
                    for fd in native_read(sock)[1]:
                        os.close(fd)
                    return read_all(kept)  # to the end: nobody has the other one any more

            self.assertEqual(await in_thread(ask), b"", name)
        await self.wait_until_idle(service)


class Failing(RunningTestCase):
    """Whatever goes wrong in an operation is that operation's refusal, and the connection goes on."""

    async def asked_twice(self, service: Any, /, **members: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        def ask() -> tuple[dict[str, Any], dict[str, Any]]:
            with dialled(service.settings.rundir, "plumberd") as sock:
                sock.sendall(native_frame({**members, "id": 1}) + native_frame({"op": "status", "id": 2}))
                return native_read(sock)[0], native_read(sock)[0]

        return await in_thread(ask)

    async def test_an_error_of_the_program(self) -> None:
        service = self.run_broker()
        assert service.core is not None

        def fail(done: Any) -> None:
            raise RuntimeError("on purpose")

        service.core.reload = fail
        first, second = await self.asked_twice(service, op="reload")
        self.assertEqual((first["error"], first["id"], second["ok"]), ("unreachable", 1, True))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        await self.wait_until_idle(service)

    async def test_who_asks_that_cannot_be_told(self) -> None:
        service = self.run_broker()
        assert service.core is not None
        inspector, who = service.core.inspector, service.core.inspector.who
        calls: list[int] = []

        def once(*args: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise OSError(24, "Too many open files")
            return who(*args)

        self.patch(inspector, "who", once)
        first, second = await self.asked_twice(service, op="why")
        self.assertEqual((first["error"], second["ok"]), ("busy", True))
        self.assertIn("Too many open files", first["reason"])

    async def test_an_error_when_the_name_is_resolved(self) -> None:
        service = self.run_broker()
        self.resolve_with(service, lambda name: Refused(Refusal.UNREACHABLE, "gone"))

        def fail(*args: Any) -> None:
            raise RuntimeError("on purpose")

        with mock.patch.object(operations, "fitted", fail):
            first, second = await self.asked_twice(
                service, op="explain", direction="out", service="x", routes="x tcp://h.example"
            )
        self.assertEqual((first["error"], second["ok"]), ("unreachable", True))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_a_refusal_is_noted_and_its_reason_is_short(self) -> None:
        service = self.run_broker()
        first, second = await self.asked_twice(service, op="explain", direction="in", service="x", peer="y" * 60000)
        self.assertEqual((first["error"], second["ok"]), ("bad-request", True))
        self.assertLessEqual(len(first["reason"]), REASON_BYTES)
        (outcome,) = self.outcomes
        self.assertEqual(outcome.verdict, "bad-request")
        self.assertLessEqual(len(outcome.reason), REASON_BYTES + 10)


SLOW = {"op": "explain", "direction": "out", "service": "web", "routes": "web tcp://slow.example:80"}


class Explained(RunningTestCase):
    """The op as a whole; what it says is in tests/test_explaining.py."""

    def slow(self, service: Any) -> tuple[list[str], threading.Event]:
        resolving: list[str] = []
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def look_up(name: str) -> Refused:
            resolving.append(name)
            go_on.wait(20)
            return Refused(Refusal.UNREACHABLE, "it has no address")

        self.resolve_with(service, look_up)
        return resolving, go_on

    async def test_who_hangs_up_while_a_name_is_resolved_leaves_nothing(self) -> None:
        service = self.run_broker()
        resolving, go_on = self.slow(service)
        core = service.core
        assert core is not None and service.broker is not None
        with dialled(service.settings.rundir, "plumberd") as sock:
            sock.sendall(native_frame(SLOW))
            await until(lambda: resolving)
        await self.wait_until_idle(service)
        self.assertEqual(service.broker._operations._resolving, {})
        go_on.set()
        await until(lambda: not core.resolver.places.active)

    async def test_it_has_the_time_of_a_lookup(self) -> None:
        service = self.run_broker(limits=Limits(connect_seconds=0.2))
        resolving, go_on = self.slow(service)
        answer, _ = await in_thread(native_ask, service.settings.rundir, **SLOW)
        self.assertEqual(answer["error"], "timeout")
        self.assertIn("slow.example was not resolved", answer["reason"])
        go_on.set()
        await until(lambda: service.core is not None and not service.core.resolver.places.active)
        self.assertEqual((await in_thread(native_ask, service.settings.rundir, op="status"))[0]["ok"], True)

    async def test_what_is_asked_behind_it_waits_for_its_answer(self) -> None:
        service = self.run_broker()
        resolving, go_on = self.slow(service)
        sock = self.owned(dial(service.settings.rundir, "plumberd"))
        sock.sendall(native_frame({**SLOW, "id": 1}) + native_frame({"op": "status", "id": 2}))
        await until(lambda: resolving)
        go_on.set()
        first, second = await in_thread(lambda: (native_read(sock)[0], native_read(sock)[0]))
        self.assertEqual((first["id"], first["word"], second["id"]), (1, "unreachable", 2))

    async def test_names_for_it_count_like_those_of_lookups(self) -> None:
        service = self.run_broker(limits=Limits(resolving_per_uid=1, waiting_per_uid=1))
        resolving, go_on = self.slow(service)
        socks = [self.owned(dial(service.settings.rundir, "plumberd")) for _ in range(3)]
        for sock in socks:
            sock.sendall(native_frame(SLOW))
        refused = await in_thread(native_read, socks[2])
        self.assertEqual(refused[0]["word"], "busy")
        await until(lambda: resolving)
        go_on.set()
        for sock in socks[:2]:
            self.assertEqual((await in_thread(native_read, sock))[0]["word"], "unreachable")

    async def test_its_answer_is_one_message_with_thousands_of_rules_and_addresses(self) -> None:
        from ipaddress import IPv4Address

        rules = [f"deny out service{n} tcp:192.0.2.0/24:{n + 1}" for n in range(2500)]
        rules += [f"deny out any tcp:10.{n // 250}.{n % 250}.0/24:443 for user:daemon" for n in range(2500)]
        service = self.run_broker(*rules)
        addresses = tuple(IPv4Address(f"10.{n // 250}.{n % 250}.7") for n in range(500))
        self.resolve_with(service, lambda name: addresses)
        request = {**SLOW, "routes": "web tcp://many.example:443", "id": "\U0001f600" * 128}
        answer_, _ = await in_thread(native_ask, service.settings.rundir, **request)
        self.assertTrue(answer_["granted"], answer_["reason"])
        self.assertLessEqual(len(answer(None, answer_)) - 4, MESSAGE_BYTES)
        told = [step["text"] for step in answer_["steps"] if step["step"] == "rules"]
        self.assertTrue(all("more were tried, and do not match" in text for text in told), told)
        self.assertTrue(told)


class Why(RunningTestCase):
    async def test_it_tells_the_last_refusals_of_who_asks_the_newest_first(self) -> None:
        service = self.run_broker("deny out x any")
        rundir = service.settings.rundir
        await in_thread(native_ask, rundir, op="lookup", service="nope")
        await in_thread(native_ask, rundir, op="lookup", service="x", routes="x tcp://u.example/x")
        found, _ = await in_thread(native_ask, rundir, op="why")
        self.assertEqual([r["word"] for r in found["refusals"]], ["denied", "unknown-service"])
        self.assertEqual(found["refusals"][0]["rule"], "1: deny out x any")
        self.assertIn("allow out x tcp:u.example:9000", found["refusals"][0]["reason"])
        found, _ = await in_thread(native_ask, rundir, op="why", service="nope")
        self.assertEqual([r["service"] for r in found["refusals"]], ["nope"])

    async def test_it_is_one_message_however_long_what_was_asked_for(self) -> None:
        service = self.run_broker()
        assert service.core is not None
        long = [{"reason": "é" * 4000, "service": str(n)} for n in range(16)]
        self.patch(service.core.audit, "refusals_of", lambda uid, service: long)
        found, _ = await in_thread(native_ask, service.settings.rundir, op="why")
        self.assertEqual(len(found["refusals"]) + found["left_out"]["refusals"], 16)
        self.assertEqual(found["refusals"][0]["service"], "0")


class Status(RunningTestCase):
    async def test_it_is_one_message_with_thousands_of_rules(self) -> None:
        service = self.run_broker(*(f"deny out service{n} tcp:192.0.2.0/24:{n + 1}" for n in range(5000)))
        found, _ = await in_thread(native_ask, service.settings.rundir, op="status")
        self.assertEqual(len(found["rules"]) + found["left_out"]["rules"], 5000)
        self.assertEqual(found["rules"][0], "deny out service0 tcp:192.0.2.0/24:1")


class AdminAlone(RunningTestCase):
    """The test of who is one, without processes."""

    def test_nobody_confined_is_one(self) -> None:
        service = self.run_broker(admin_gid=ADMINS)
        assert service.broker is not None
        operations_: Operations = service.broker._operations
        who = mock.Mock(uid=0, gid=0, groups=(ADMINS,), confined="")
        self.assertTrue(operations_.is_admin(who))
        who.confined = "in a test"
        self.assertFalse(operations_.is_admin(who))

    async def test_two_reloads_at_once_are_both_answered(self) -> None:
        service = self.run_broker()
        asked: list[Any] = []
        assert service.core is not None
        service.core.reload = asked.append
        both = [in_thread(native_ask, service.settings.rundir, op="reload") for _ in range(2)]
        await until(lambda: len(asked) == 2)
        for done in asked:
            done({"ok": True})
        for one in both:
            self.assertTrue((await one)[0]["ok"])

    async def test_who_hangs_up_during_a_reload_leaves_nothing(self) -> None:
        service = self.run_broker()
        asked: list[Any] = []
        assert service.core is not None
        service.core.reload = asked.append
        with dialled(service.settings.rundir, "plumberd") as sock:
            sock.sendall(native_frame({"op": "reload"}))
            await until(lambda: asked)
        await self.wait_until_idle(service)
        asked[0]({"ok": True})
        answer_, _ = await in_thread(native_ask, service.settings.rundir, op="status")
        self.assertTrue(answer_["ok"])
