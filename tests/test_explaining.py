"""plumberd.wiring.ops.explaining: what is asked and as whom, and that a lookup then does just what was explained."""

from __future__ import annotations

import ipaddress
import json
import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.dialects.native import MESSAGE_BYTES
from plumberd.pure.modes import Mode, Powers
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.explain import Asked
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import Choice, Routes, parse_redirect, parse_route
from plumberd.pure.policy.subject import Standing, Subject
from plumberd.pure.refusals import REASON_BYTES, Refusal, Refused
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.dialing import served
from plumberd.wiring.ops import explaining as module
from plumberd.wiring.ops.explaining import asked_of, explain_offline, subject_as
from plumberd.wiring.service import PlumberdService
from tests.children import needs_root
from tests.clients import NO_NETWORK, Client, ClientTestCase, user
from tests.running import RunningTestCase, leading, leading_first, noting, rules_of
from tests.support import dial, in_thread, native_ask, native_frame, native_read, read_exactly
from tests.tables import PROPERTY, each
from tests.test_inbound import PLAIN, TcpdTestCase


class AskedOf(SynchronousTestCase):
    @each(
        ("service", {"direction": "out", "service": "web"}, Asked(Direction.OUT, "web")),
        (
            "routes",
            {"direction": "out", "service": "web", "routes": "web tcp://h"},
            Asked(Direction.OUT, "web", Pairs(b"web tcp://h")),
        ),
        ("uri", {"direction": "out", "uri": "tcp://h"}, Asked(Direction.OUT, None, uri="tcp://h")),
        ("uri_of_any", {"direction": "out", "service": "any", "uri": "tcp://h"}, Asked(Direction.OUT, None, uri="tcp://h")),
        ("serve", {"direction": "serve", "service": "web"}, Asked(Direction.SERVE, "web")),
        (
            "caller",
            {"direction": "in", "service": "web", "peer": "tcp:192.0.2.1"},
            Asked(
                Direction.IN,
                "web",
                peer=Destination("tcp", None, (ipaddress.ip_address("192.0.2.1"),), None),
            ),
        ),
        (
            "mapped_caller",
            {"direction": "in", "service": "web", "peer": "tcp:[::ffff:192.0.2.1]"},
            Asked(
                Direction.IN,
                "web",
                peer=Destination("tcp", None, (ipaddress.ip_address("192.0.2.1"),), None),
            ),
        ),
        (
            "caller_without_address",
            {"direction": "in", "service": "web"},
            Asked(Direction.IN, "web", peer=Destination("tcp", None, None, None)),
        ),
    )  # fmt: skip
    def test_what_makes_sense_is_read(self, _: str, members: dict[str, Any], asked: Asked) -> None:
        self.assertEqual(asked_of(members), asked)

    @each(
        ("nothing", {}, "direction: wanted one of in, out, serve"),
        ("another_direction", {"direction": "up", "service": "web"}, "direction: wanted"),
        ("no_service", {"direction": "out"}, "wanted a service (with routes), or a uri"),
        ("both", {"direction": "out", "service": "web", "uri": "tcp://h"}, "wanted a service (with routes), or a uri"),
        ("any_caller", {"direction": "in", "service": "any"}, "service: wanted the name of one"),
        ("serve_nothing", {"direction": "serve"}, "service: wanted the name of one"),
        ("peer_out", {"direction": "out", "service": "web", "peer": "tcp:192.0.2.1"}, "only a caller has one"),
        ("uri_in", {"direction": "in", "service": "web", "uri": "tcp://h"}, "are for out alone"),
        ("routes_in", {"direction": "in", "service": "web", "routes": "web tcp://h"}, "are for out alone"),
        ("name", {"direction": "out", "service": "../x"}, "no name of a service"),
        ("peer_is_a_network", {"direction": "in", "service": "web", "peer": "tcp:192.0.2.0/24"}, "is not one caller"),
        ("peer_is_any", {"direction": "in", "service": "web", "peer": "any"}, "is not one caller"),
        ("peer_is_a_pattern", {"direction": "in", "service": "web", "peer": "tls:*.example"}, "is not one caller"),
        ("peer_is_local", {"direction": "in", "service": "web", "peer": "unix:x"}, "no local name"),
        ("peer_proves_no_name", {"direction": "in", "service": "web", "peer": "tcp:a.example"}, "proves no name"),
        ("peer_is_nothing", {"direction": "in", "service": "web", "peer": ""}, "is no peer"),
        ("peer_with_a_line_break", {"direction": "in", "service": "web", "peer": "tcp:1.2.3.4\n"}, "peer: "),
        ("service_with_a_nul", {"direction": "out", "service": "web\0"}, "no name of a service"),
    )
    def test_what_makes_none_is_told(self, _: str, members: dict[str, Any], said: str) -> None:
        with self.assertRaises(Refused) as caught:
            asked_of(members)
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)
        self.assertIn(said, caught.exception.reason)

    def test_a_reserved_name_is_denied(self) -> None:
        with self.assertRaises(Refused) as caught:
            asked_of({"direction": "out", "service": "plumberd"})
        self.assertEqual(caught.exception.word, Refusal.DENIED)

    texts = st.text(max_size=40) | st.sampled_from(("web", "tcp:192.0.2.1", "tcp://h/x", "any", "tls:a.example"))

    @PROPERTY
    @given(
        st.fixed_dictionaries(
            {"direction": st.sampled_from(("in", "out", "serve")) | texts},
            optional=dict.fromkeys(("service", "routes", "uri", "peer"), texts),
        )
    )
    def test_any_text_is_read_or_refused(self, members: dict[str, str]) -> None:
        try:
            self.assertIsInstance(asked_of(members), Asked)
        except Refused as e:
            self.assertIn(e.word, (Refusal.BAD_REQUEST, Refusal.DENIED))


OUT = Asked(Direction.OUT, "web")
IN = Asked(Direction.IN, "web", peer=Destination("tcp", None, None, None))


class SubjectAs(SynchronousTestCase):
    @each(
        ("nobody", [], OUT, Standing.LOCAL, None, "a local client"),
        ("a_number", ["uid:5"], OUT, Standing.LOCAL, 5, "uid:5"),
        ("a_user", ["user:root"], OUT, Standing.LOCAL, 0, "user:root"),
        ("confined", ["confined"], OUT, Standing.CONFINED, None, "confined"),
        ("a_confined_user", ["uid:5", "confined"], OUT, Standing.CONFINED, 5, "uid:5 confined"),
        ("who_has_proved_something", ["cert:a.example"], OUT, Standing.REMOTE, None, "cert:a.example"),
        ("a_caller", [], IN, Standing.REMOTE, None, "a caller that has proved nothing"),
        ("a_caller_with_a_proof", ["psk:laptop"], IN, Standing.REMOTE, None, "psk:laptop"),
        ("a_stranger", ["user:nobody-at-all"], OUT, Standing.LOCAL, None, "user:nobody-at-all"),
    )
    def test_somebody_is_described(
        self, _: str, words: list[str], asked: Asked, standing: Standing, uid: int | None, text: str
    ) -> None:
        subject, said = subject_as(words, asked)
        self.assertEqual((subject.standing, subject.uid, said), (standing, uid, text))

    def test_a_user_of_this_machine_comes_with_its_groups(self) -> None:
        self.assertEqual(subject_as(["user:daemon"], OUT)[0].gids, frozenset(os.getgrouplist("daemon", 1)))
        self.assertEqual(subject_as(["group:daemon"], OUT)[0].gids, frozenset((1,)))

    def test_a_unit_is_a_whole_path(self) -> None:
        self.assertEqual(subject_as(["unit:ci.service"], OUT)[0].cgroup, "/system.slice/ci.service")

    def test_a_caller_whose_peer_is_a_name_has_proved_it(self) -> None:
        asked = asked_of({"direction": "in", "service": "web", "peer": "tls:a.example"})
        subject, text = subject_as([], asked)
        self.assertEqual((subject.words, text), (frozenset(("cert:a.example",)), "cert:a.example"))

    def test_what_is_described_by_words_fulfils_the_very_words(self) -> None:
        subject, _ = subject_as(["user:nobody-at-all"], OUT)
        self.assertEqual(subject.words, frozenset(("user:nobody-at-all",)))

    @each(
        ("nothing",), ("uid:",), ("uid:x",), ("uid:65534",), ("uid:-1",), ("name:a",), ("user:a b",), ("cert:1.2.3.4",),
        ("unit:x",), ("spiffe:x",), ("psk:\n",), ("login:" + "x" * 300,), ("\0",), ("\ud800",), ("Confined",), ("",),
    )  # fmt: skip
    def test_what_is_no_condition_is_told(self, word: str) -> None:
        with self.assertRaises(Refused) as caught:
            subject_as([word], OUT)
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)
        self.assertTrue(caught.exception.reason.startswith("as: "))


def routes_of(texts: dict[str, str], redirects: dict[str, str] | None = None) -> Routes:
    """Return routes and redirects."""
    found = {name: (Choice((parse_route(name, text),)),) for name, text in texts.items()}
    return Routes(leading(**{name: parse_redirect(name, text) for name, text in (redirects or {}).items()}), found)


WEB = {"web": "tcp://127.0.0.1:PORT"}
ASK = {"service": "web"}

AGREE: tuple[tuple[str, tuple[str, ...], dict[str, str], dict[str, str], dict[str, str]], ...] = (
    ("local_by_default", (), {}, {}, {"service": "pong"}),
    ("local_by_a_rule", ("allow out pong unix:pong",), {}, {}, {"service": "pong"}),
    ("local_relayed", ("allow out pong any handover=relayed",), {}, {}, {"service": "pong"}),
    ("local_framed", ("allow out pong any handover=framed",), {}, {}, {"service": "pong"}),
    ("local_denied", ("allow out other any", "deny out pong any"), {}, {}, {"service": "pong"}),
    ("local_by_its_bare_name", ("allow out pong unix:pong", "deny out any any"), {}, {}, {"uri": "unix:///pong"}),
    ("local_by_its_bare_name_denied", ("deny out pong any",), {}, {}, {"uri": "pong"}),
    ("server_by_default", (), {}, {}, {"service": "web", "routes": "web tcp://127.0.0.1:PORT"}),
    ("server_without_a_name", (), {}, {}, {"uri": "tcp://127.0.0.1:PORT"}),
    ("server_without_a_name_by_any", ("allow out any tcp:127.0.0.1:PORT",), {}, {}, {"uri": "tcp://127.0.0.1:PORT"}),
    ("server_without_a_name_denied", ("deny out any tcp:127.0.0.0/8",), {}, {}, {"uri": "tcp://127.0.0.1:PORT"}),
    ("server_relayed", ("allow out web any handover=relayed",), WEB, {}, ASK),
    ("server_locked", ("allow out web any handover=locked",), WEB, {}, ASK),
    ("server_direct", ("allow out web any handover=direct",), WEB, {}, ASK),
    ("server_framed", ("allow out web any handover=framed",), WEB, {}, ASK),
    ("by_a_network", ("allow out web tcp:127.0.0.0/8:PORT",), WEB, {}, ASK),
    ("another_port", ("deny out web tcp:127.0.0.1:1-9",), WEB, {}, ASK),
    ("metadata", (), {"web": "tcp://169.254.169.254"}, {}, ASK),
    ("by_a_name", ("allow out web tcp:web.example",), {"web": "tcp://web.example:PORT"}, {}, ASK),
    ("a_name_denied", ("deny out web tcp:*.example",), {"web": "tcp://web.example:PORT"}, {}, ASK),
    ("its_address_denied", ("deny out web tcp:127.0.0.1",), {"web": "tcp://web.example:PORT"}, {}, ASK),
    ("a_name_without_address", (), {"web": "tcp://gone.example:PORT"}, {}, ASK),
    ("several_addresses", ("deny out web tcp:192.0.2.0/24",), {"web": "tcp://two.example:PORT"}, {}, ASK),
    ("redirected", ("allow out web any",), {}, {"web": "pong"}, ASK),
    ("redirected_twice", (), {}, {"web": "next", "next": "pong"}, ASK),
    ("redirected_and_denied", ("deny out web any",), {}, {"web": "pong"}, ASK),
    ("redirected_to_a_server", (), {}, WEB, ASK),
    ("the_route_for_every_name", (), {"*": "tcp://127.0.0.1:PORT"}, {}, ASK),
    ("an_endpoint", (), {"web": "tcp:host=127.0.0.1:port=PORT"}, {}, ASK),
    ("an_endpoint_locked", ("allow out web any handover=locked",), {"web": "tcp:host=127.0.0.1:port=PORT"}, {}, ASK),
    ("an_endpoint_of_the_machine_s", (), {"web": "unix:/nowhere"}, {}, ASK),
    ("an_endpoint_by_name", ("deny out web tcp:192.0.2.0/24",), {"web": "tcp:host=a.example:port=PORT"}, {}, ASK),
    ("only_logged", ("log out web any",), WEB, {}, ASK),
    ("not_served", (), {"web": "wss://127.0.0.1:PORT"}, {}, ASK),
    ("no_uri", (), {}, {}, {"service": "web", "routes": "web tcp://h:99999"}),
    ("a_secret_in_the_clear", (), {}, {}, {"service": "web", "routes": "web tcp://u:p@h"}),
    ("a_reserved_name", (), {}, {}, {"service": "web", "routes": "web tcp://h/ipc"}),
    ("two_services", ("allow out web any", "deny out secret any"), {"web": "tcp://127.0.0.1:PORT/secret"}, {}, ASK),
    ("nobody_s_name", (), {"*": "tls:{service}.example:443"}, {}, {"service": "a..b"}),
)  # fmt: skip
"""Rules, routes, redirects and what is asked."""


class ExplainingTestCase(RunningTestCase):
    """A broker, a server that counts who connects, and a service."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(served, "SERVED", ("tcp", "tls", "unix"))
        self.asked: list[int] = []
        self.port = self.serve_tcp(noting(self.asked, 1))

    def filled(self, texts: dict[str, str]) -> dict[str, str]:
        return {key: text.replace("PORT", str(self.port)) for key, text in texts.items()}

    def start(
        self, rules: tuple[str, ...], routes: dict[str, str], redirects: dict[str, str], **settings: Any
    ) -> PlumberdService:
        leads = routes_of(self.filled(routes), self.filled(redirects))
        service = self.run_broker(*(rule.replace("PORT", str(self.port)) for rule in rules), routes=leads, **settings)
        self.serve(service.settings.rundir, "pong", noting(self.asked, 1))
        self.resolve_with(service, look_up)
        return service

    async def explain(self, service: PlumberdService, /, **members: Any) -> dict[str, Any]:
        found, _ = await in_thread(native_ask, service.settings.rundir, op="explain", **members)
        return found


def look_up(name: str) -> Any:
    """Stand in for name servers."""
    if name == "gone.example":
        return Refused(Refusal.UNREACHABLE, f"{name} has no address")
    if name == "two.example":
        return ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("127.0.0.1")
    return (ipaddress.ip_address("127.0.0.1"),)


class Agreement(ExplainingTestCase):
    """The same rule, the same word, the same mode: first explained, then done."""

    @each(*AGREE)
    async def test_a_lookup_does_what_was_explained(
        self, _: str, rules: tuple[str, ...], routes: dict[str, str], redirects: dict[str, str], asked: dict[str, str]
    ) -> None:
        service = self.start(rules, routes, redirects)
        request = self.filled(asked)
        explained = await self.explain(service, direction="out", **request)
        self.assertTrue(explained["ok"], explained)
        self.assertEqual(self.asked, [])  # nobody was connected to
        answer, sock = await in_thread(native_ask, service.settings.rundir, op="lookup", **request)
        if sock is not None:
            sock.close()
        self.assertEqual(explained["granted"], answer["ok"], (explained, answer))
        rule = explained["rule"]
        if answer["ok"]:
            number = "" if rule["number"] is None else f"{rule['number']}: "
            self.assertEqual((explained["mode"], number + rule["text"]), (answer["mode"], answer["rule"]))
        else:
            self.assertEqual((explained["word"], explained["reason"]), (answer["error"], answer["reason"]))
        outcome = self.outcomes[0]
        if outcome.decided is not None:
            self.assertEqual((outcome.decided.number, outcome.decided.would), (rule["number"], explained["would"]))
        await self.wait_until_idle(service)

    def test_the_table_has_grants_and_refusals_of_every_mode(self) -> None:
        self.assertGreater(len(AGREE), 35)


@needs_root
class AgreementOfConfined(ClientTestCase, ExplainingTestCase):
    """A confined client may not ask; who administers asks as one."""

    @each(
        ("local", (), {"service": "pong"}),
        ("local_by_a_rule", ("allow out pong unix:pong",), {"service": "pong"}),
        ("loopback_without_a_port", ("allow out web tcp:127.0.0.1",), {"service": "web"}),
        ("loopback", ("allow out web tcp:127.0.0.1:PORT",), {"service": "web"}),
        ("direct", ("allow out web tcp:127.0.0.1:PORT handover=direct",), {"service": "web"}),
        ("a_user", ("allow out web tcp:127.0.0.1:PORT for uid:5003",), {"service": "web"}),
        ("another_user", ("allow out web tcp:127.0.0.1:PORT for uid:5004",), {"service": "web"}),
    )
    async def test_it_does_what_was_explained(self, _: str, rules: tuple[str, ...], asked: dict[str, str]) -> None:
        service = self.open_to_all(self.start(rules, {"web": "tcp://127.0.0.1:PORT"}, {}))
        explained = await self.explain(service, direction="out", **asked, **{"as": ["uid:5003", "confined"]})
        client = Client(user(5003), within=NO_NETWORK)
        answer = await self.answer(service, client, op="lookup", **asked)
        self.assertEqual(explained["granted"], answer["ok"], (explained, answer))
        if answer["ok"]:
            self.assertEqual(explained["mode"], answer["mode"])
        else:
            self.assertEqual(explained["word"], answer["error"])


class AgreementOfCallers(TcpdTestCase, ExplainingTestCase):
    @each(
        ("denied_by_default", (), {}),
        ("allowed", ("allow in web tcp:127.0.0.1",), {"web": "unix:///pong"}),
        ("another_address", ("allow in web tcp:192.0.2.1",), {"web": "unix:///pong"}),
        ("denied", ("deny in web any", "allow in web any"), {"web": "unix:///pong"}),
        ("onward", ("allow in web any", "allow out web tcp:127.0.0.1:PORT"), {"web": "tcp://127.0.0.1:PORT"}),
        ("onward_denied", ("allow in web any",), {"web": "tcp://127.0.0.1:PORT"}),
        ("onward_without_a_port", ("allow in web any", "allow out web tcp:127.0.0.1"), {"web": "tcp://127.0.0.1:PORT"}),
        ("onward_by_name", ("allow in web any", "allow out web tcp:127.0.0.1:PORT"), {"web": "tcp://a.example:PORT"}),
        ("not_served", ("allow in web any", "allow out web wss:192.0.2.1"), {"web": "wss://192.0.2.1"}),
        ("the_route_for_every_name", ("allow in web any", "allow out any any"), {"*": "tcp://192.0.2.1"}),
        ("here", ("allow in web any", "allow out web tcp:127.0.0.1:OWN"), {"web": "tcp://127.0.0.1:OWN"}),
        ("only_logged", ("log in web any",), {"web": "unix:///pong"}),
    )
    async def test_one_is_let_in_as_was_explained(self, _: str, rules: tuple[str, ...], routes: dict[str, str]) -> None:
        service = self.start((), {}, {}, tcpd=(PLAIN,))
        own = str(self.tcpd_port(service))

        def fill(text: str) -> str:
            return text.replace("PORT", str(self.port)).replace("OWN", own)

        leads = routes_of({name: fill(text) for name, text in routes.items()})
        self.put_in_force(service, *map(fill, rules), routes=leads)
        explained = await self.explain(service, direction="in", service="web", peer="tcp:127.0.0.1")
        self.assertEqual(self.asked, [])
        with self.call(service) as sock:
            sock.sendall(b"web")
            first = await in_thread(sock.recv, 1)
        outcome = self.outcomes[0]
        if routes.get("*"):  # a local service that is not there shows only in earnest
            self.assertEqual((explained["granted"], outcome.verdict), (True, "unknown-service"))
            return
        self.assertEqual(
            (explained["granted"], first), (outcome.verdict == "granted", b"o" if explained["granted"] else b"n")
        )
        if explained["granted"]:
            self.assertEqual(
                (explained["mode"], explained["would"]), ("relayed", outcome.decided.would if outcome.decided else "")
            )
        else:
            self.assertEqual((explained["word"], explained["reason"]), (outcome.verdict, outcome.reason))


class AgreementOfServed(TcpdTestCase, ExplainingTestCase):
    """Who has claimed a service is handed its callers' own sockets."""

    @each(("auto", Mode.AUTO), ("relayed", Mode.RELAYED), ("direct", Mode.DIRECT))
    async def test_a_caller_is_handed_over_as_was_explained(self, _: str, handover: Mode) -> None:
        service = self.start(("allow serve mine", "allow in mine any"), {}, {}, tcpd=(PLAIN,), handover=handover)
        claimant = self.owned(dial(service.settings.rundir, "plumberd"))
        claimant.sendall(native_frame({"op": "serve", "service": "mine"}))
        self.assertTrue((await in_thread(native_read, claimant))[0]["ok"])
        explained = await self.explain(service, direction="in", service="mine", peer="tcp:127.0.0.1")
        with self.call(service) as sock:
            sock.sendall(b"mine")
            self.assertEqual(await in_thread(read_exactly, sock, 2), b"ok")
            accepted, fds = await in_thread(native_read, claimant)
            for fd in fds:
                os.close(fd)
        self.assertEqual((explained["granted"], explained["mode"]), (True, accepted["mode"]))
        claimant.close()
        await self.wait_until_idle(service)


class Asking(ExplainingTestCase):
    async def test_it_connects_nowhere(self) -> None:
        service = self.start(("allow out web any", "allow in web any"), {"web": "tcp://127.0.0.1:PORT"}, {})
        listener, port = self.listener()
        for request in (
            {"direction": "out", "service": "web"},
            {"direction": "out", "uri": f"tcp://127.0.0.1:{port}"},
            {"direction": "out", "service": "pong"},
            {"direction": "in", "service": "web", "peer": "tcp:192.0.2.1"},
            {"direction": "serve", "service": "web"},
        ):
            self.assertTrue((await self.explain(service, **request))["ok"])
        listener.setblocking(False)
        with self.assertRaises(BlockingIOError):
            listener.accept()
        self.assertEqual((self.asked, self.outcomes), ([], []))

    async def test_names_are_resolved_only_where_a_lookup_would(self) -> None:
        service = self.start(("deny out web tcp:a.example", "deny out mail any"), {"web": "tcp://a.example"}, {})
        resolved: list[str] = []

        def note(name: str) -> Any:
            resolved.append(name)
            return look_up(name)

        self.resolve_with(service, note)
        for request in (
            {"direction": "out", "service": "web"},
            {"direction": "out", "service": "mail", "routes": "mail tcp://b.example"},
            {"direction": "out", "service": "pong"},
            {"direction": "in", "service": "web", "peer": "tcp:192.0.2.1"},
            {"direction": "serve", "service": "web"},
        ):
            await self.explain(service, **request)
        self.assertEqual(resolved, [])
        await self.explain(service, direction="out", service="x", routes="x tcp://c.example")
        self.assertEqual(resolved, ["c.example"])

    async def test_who_asks_is_told_who_it_is(self) -> None:
        service = self.start((), {}, {})
        found = await self.explain(service, direction="out", service="pong")
        self.assertEqual(found["steps"][0]["step"], "who")
        self.assertIn(f"uid={os.geteuid()} gid={os.getegid()} pid={os.getpid()}", found["steps"][0]["text"])

    @each(
        ("a_user", ["user:daemon"], "allow out web any for user:daemon", True),
        ("another_user", ["user:bin"], "allow out web any for user:daemon", False),
        ("a_user_with_its_groups", ["user:daemon"], "allow out web any for group:daemon", True),
        ("a_group", ["group:daemon"], "allow out web any for group:daemon", True),
        ("a_unit", ["unit:ci.service"], "allow out web any for unit:/system.slice/ci.service", True),
        ("a_unit_of_another_slice", ["unit:/user.slice/ci.service"], "allow out web any for unit:ci.service", False),
        ("a_number", ["uid:77"], "allow out web any for uid:77", True),
        ("a_proof", ["cert:a.example"], "allow out web any for cert:*.example", True),
        ("a_proof_is_not_local", ["cert:a.example"], "allow out web any for uid:0", False),
        ("nobody_in_particular", ["confined"], "allow out web any for uid:0", False),
    )
    async def test_it_is_explained_as_who_is_described(
        self, _: str, words: list[str], rule: str, granted: bool
    ) -> None:
        service = self.start((rule, "deny out any any"), {"web": "tcp://192.0.2.1"}, {})
        found = await self.explain(service, direction="out", service="web", **{"as": words})
        self.assertEqual((found["granted"], found["steps"][0]["text"]), (granted, " ".join(words)))

    async def test_who_serves_is_explained(self) -> None:
        service = self.start(("allow serve web for user:daemon",), {}, {})
        self.assertFalse((await self.explain(service, direction="serve", service="web"))["granted"])
        found = await self.explain(service, direction="serve", service="web", **{"as": ["user:daemon"]})
        self.assertEqual((found["granted"], found["rule"]["number"]), (True, 1))

    async def test_the_answer_holds_the_generation_s_rules(self) -> None:
        service = self.start(("deny out pong any",), {}, {})
        self.assertFalse((await self.explain(service, direction="out", service="pong"))["granted"])
        self.put_in_force(service)
        self.assertTrue((await self.explain(service, direction="out", service="pong"))["granted"])

    async def test_a_conditional_route_is_that_of_who_is_described(self) -> None:
        some = rules_of("allow out x any for uid:77")[0].conditions
        service = self.start((), {}, {})
        routes = Routes({"web": (Choice(("pong",), some), Choice(("other",)))})
        self.put_in_force(service, routes=routes)
        for words, wanted in ((["uid:77"], "web to pong for uid:77"), (["uid:78"], "web to other")):
            found = await self.explain(service, direction="out", service="web", **{"as": words})
            self.assertIn(wanted, [step["text"] for step in found["steps"]])

    async def test_alternatives_are_told_with_their_order(self) -> None:
        service = self.start((), {}, {})
        self.put_in_force(service, routes=Routes({}, leading_first("web", "unix:///pong", "tcp://192.0.2.1:9")))
        found = await self.explain(service, direction="out", service="web")
        self.assertIn("web = unix:///pong or tcp://192.0.2.1:9", [step["text"] for step in found["steps"]])


class Hostile(ExplainingTestCase):
    """What clients may write into it."""

    @each(
        ("number", {"direction": 5, "service": "web"}),
        ("list", {"direction": ["out"], "service": "web"}),
        ("object", {"direction": "out", "service": {"a": 1}}),
        ("true", {"direction": "out", "service": True}),
        ("words_as_text", {"direction": "out", "service": "web", "as": "uid:5"}),
        ("words_of_numbers", {"direction": "out", "service": "web", "as": [5]}),
        ("too_many_words", {"direction": "out", "service": "web", "as": ["uid:5"] * 65}),
        ("unknown", {"direction": "out", "service": "web", "user": "root"}),
        ("uri_object", {"direction": "out", "uri": {}}),
        ("peer_list", {"direction": "in", "service": "web", "peer": ["tcp:192.0.2.1"]}),
        ("huge_peer", {"direction": "in", "service": "web", "peer": "\x01" * 10000}),
        ("huge_service", {"direction": "out", "service": "\u00e9" * 10000}),
        ("huge_word", {"direction": "out", "service": "web", "as": ["user:" + "\x1b" * 10000]}),
        ("half_a_character", {"direction": "out", "service": "web", "as": ["\ud800"]}),
        ("control_characters", {"direction": "in", "service": "web", "peer": "tcp:\x1b[31m"}),
        ("a_line_break", {"direction": "out", "service": "web\n"}),
    )
    async def test_it_is_a_mistake_that_is_told_shortly(self, _: str, members: dict[str, Any]) -> None:
        service = self.start((), {}, {})
        found = await self.explain(service, **members)
        self.assertEqual(found["error"], "bad-request")
        self.assertLessEqual(len(found["reason"]), REASON_BYTES)
        for text in (found["reason"], *(str(o) for o in self.outcomes)):
            self.assertEqual([c for c in text if not c.isprintable()], [])
        self.assertTrue((await self.explain(service, direction="out", service="pong"))["granted"])

    async def test_sixty_four_words_of_the_longest_are_one_message(self) -> None:
        service = self.start((), {}, {})
        found = await self.explain(service, direction="out", service="pong", **{"as": ["psk:" + "x" * 256] * 64})
        self.assertTrue(found["ok"], found)
        self.assertLessEqual(len(json.dumps(found)), MESSAGE_BYTES)

    async def test_a_uri_with_a_password_shows_it_nowhere(self) -> None:
        service = self.start((), {}, {})
        for request in ({"service": "x", "routes": "x tls://u:hunter2@h.example"}, {"uri": "tls://u:hunter2@h:99999"}):
            found = await self.explain(service, direction="out", **request)
            self.assertNotIn("hunter2", json.dumps(found))


class Offline(SynchronousTestCase):
    """For a configuration that nobody runs with yet."""

    powers = Powers(lock=True, give=True, uid=0)

    def explained(self, members: dict[str, Any], *rules: str, **settings: Any) -> dict[str, Any]:
        from plumberd.pure.policy.decide import Policy

        whole = Settings("/r", policy=Policy(rules_of(*rules)), **settings)
        return explain_offline(whole, members, self.powers, look_up)

    @each(
        ("local", {"service": "web"}, {}, "local"),
        ("tcp", {"service": "web", "routes": "web tcp://192.0.2.1"}, {}, "locked"),
        ("tls", {"service": "web", "routes": "web tls://192.0.2.1"}, {}, "relayed"),
        ("udp", {"service": "web", "routes": "web udp://192.0.2.1/web"}, {}, "relayed"),
        ("endpoint", {"service": "web"}, {"routes": routes_of({"web": "tls:web.example:443"})}, "relayed"),
        ("all_relayed", {"uri": "tcp://192.0.2.1"}, {"handover": Mode.RELAYED}, "relayed"),
    )
    def test_it_tells_the_mode(self, _: str, members: dict[str, Any], settings: dict[str, Any], mode: str) -> None:
        found = self.explained({"direction": "out", **members}, **settings)
        self.assertEqual((found["granted"], found["mode"]), (True, mode), found)

    def test_what_carries_messages_can_be_framed_and_is_never_locked(self) -> None:
        asked = {"direction": "out", "service": "web", "routes": "web udp://192.0.2.1/web"}
        self.assertEqual(self.explained(asked, "allow out web udp:any handover=framed")["mode"], "framed")
        refused = self.explained(asked, "allow out web udp:any handover=locked")
        self.assertEqual((refused["granted"], refused["word"]), (False, "not-possible"), refused)

    def test_it_tells_callers(self) -> None:
        members = {"direction": "in", "service": "web", "peer": "tcp:192.0.2.1"}
        self.assertFalse(self.explained(members)["granted"])
        self.assertEqual(self.explained(members, "allow in web any")["mode"], "relayed")

    def test_what_makes_no_sense_is_raised(self) -> None:
        with self.assertRaises(Refused):
            self.explained({"direction": "up"})

    def test_without_the_power_to_lock_the_mode_is_another(self) -> None:
        members = {"direction": "out", "uri": "tcp://192.0.2.1", "as": ["uid:5"]}
        weak = Powers(lock=False, give=False, uid=0)
        found = explain_offline(Settings("/r"), members, weak, look_up)
        self.assertEqual(found["mode"], "relayed")


class Described(SynchronousTestCase):
    def test_somebody_without_a_uid_is_taken_for_the_broker_s_own(self) -> None:
        who = module._described(Subject(), Powers(lock=False, give=False, uid=7))
        self.assertEqual((who.uid, who.confined), (7, ""))
        who = module._described(Subject(Standing.CONFINED, 5), Powers(lock=False, give=False, uid=7))
        self.assertEqual((who.uid, bool(who.confined)), (5, True))
