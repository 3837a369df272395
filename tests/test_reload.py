"""plumberd.wiring.ops.reload: a running broker takes another configuration, whole or not at all."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any

from twisted.internet import defer
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import implementer

from plumberd.pure.dialects.native import MESSAGE_BYTES
from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.settings import CommandLine, Settings
from plumberd.wiring.inbound import tcpd as tcpd_module
from plumberd.wiring.inbound.listening import server_from_string
from plumberd.wiring.ops.reload import Reload
from plumberd.wiring.service import PlumberdService
from tests.ports import free_port
from tests.running import RunningTestCase
from tests.support import (
    dial,
    dialled,
    in_thread,
    native_ask,
    native_frame,
    native_lookup,
    native_read,
    read_all,
    read_exactly,
    until,
)
from tests.tables import each

PORT = 'tcpd = ["tcp:0:interface=127.0.0.1"]'


class ReloadTestCase(RunningTestCase):
    """A configuration in a file, a broker that runs with it, and the op."""

    def setUp(self) -> None:
        super().setUp()
        self.home = self.folder()
        self.rundir = os.path.join(self.home, "r")
        self.config = os.path.join(self.home, "plumberd.toml")

    def write(self, text: str) -> None:
        """Write the configuration anew, as an editor does: another file in its place."""
        with open(self.config + "~", "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.config + "~", 0o600)
        os.replace(self.config + "~", self.config)

    def run_configured(self, text: str = "") -> PlumberdService:
        """Start a broker with a configuration."""
        self.write(text)
        return self.run_with_settings(read_settings(CommandLine(self.config, rundir=self.rundir)))

    async def reload(self, text: str | None = None) -> dict[str, Any]:
        """Write another configuration, ask for it, and return the answer."""
        if text is not None:
            self.write(text)
        answer, _ = await in_thread(native_ask, self.rundir, op="reload")
        return answer

    async def reloaded(self, text: str) -> list[str]:
        """Put another configuration in force; return what it has changed."""
        answer = await self.reload(text)
        self.assertTrue(answer["ok"], answer)
        return list(answer["changes"])

    async def mistakes(self, text: str) -> list[str]:
        """Fail to put another configuration in force; return where its mistakes are."""
        answer = await self.reload(text)
        self.assertEqual((answer["ok"], answer["error"]), (False, "bad-request"))
        self.assertIn("the configuration in force stays", answer["reason"])
        return [mistake["key"] for mistake in answer["mistakes"]]

    async def word(self, service: str = "x", uri: str = "tcp://127.0.0.1:1") -> str:
        """Look *service* up at *uri*; return the word of the refusal, or the mode."""
        answer, sock = await in_thread(native_lookup, self.rundir, service, f"{service} {uri}")
        if sock is not None:
            sock.close()
        return str(answer.get("mode") or answer["error"])

    def ports(self, service: PlumberdService) -> list[int]:
        """Return the tcp ports that are listened on."""
        assert service.tcpd is not None
        hosts: list[Any] = [port.getHost() for port in service.tcpd.ports]
        return [host.port for host in hosts if hasattr(host, "port")]


class Whole(ReloadTestCase):
    async def test_what_is_new_holds_from_then_on_and_the_answer_says_what_that_is(self) -> None:
        service = self.run_configured()
        assert service.core is not None
        generation = service.core.generation
        self.assertEqual(await self.word(), "unreachable")
        answer = await self.reload('rules = ["deny out x any"]\n[limits]\nrelays = 7\n')
        self.assertEqual(
            (answer["ok"], answer["changes"], answer["generation"]),
            (True, ["limits.relays: 10000 → 7", "rules: + deny out x any"], generation + 1),
        )
        self.assertEqual(await self.word(), "denied")
        self.assertEqual(service.core.relay_places.total, 7)

    async def test_the_same_again_changes_nothing(self) -> None:
        self.run_configured('rules = ["deny out x any"]')
        answer = await self.reload()
        self.assertEqual((answer["ok"], answer["changes"]), (True, []))
        self.assertEqual(await self.word(), "denied")

    async def test_doubts_are_told(self) -> None:
        service = self.run_configured()
        answer = await self.reload(f"[listen]\n{PORT}\n")
        self.assertTrue([line for line in answer["warnings"] if "no rule lets anyone in" in line], answer)
        self.assertEqual(len(self.ports(service)), 1)

    async def test_the_command_line_s_rules_stay_in_front(self) -> None:
        from plumberd.pure.policy.rule import parse_rule

        self.write("")
        line = CommandLine(self.config, rundir=self.rundir, rules=(parse_rule("deny out x any", "--rule"),))
        self.run_with_settings(read_settings(line))
        self.assertEqual(await self.reloaded('rules = ["allow out x any"]'), ["rules: + allow out x any"])
        self.assertEqual(await self.word(), "denied")

    async def test_routes_and_redirects_lead_elsewhere(self) -> None:
        self.run_configured('[routes]\nweb = "tcp://127.0.0.1:1"\n')
        self.serve(self.rundir, "pong", lambda sock: sock.sendall(b"pong"))
        await self.reloaded('[routes]\nweb = "unix:///pong"\n')
        answer, sock = await in_thread(native_lookup, self.rundir, "web")
        self.assertEqual(answer["mode"], "local")
        assert sock is not None
        self.assertEqual(await in_thread(read_all, self.owned(sock)), b"pong")

    async def test_administrators_are_who_the_new_one_names(self) -> None:
        service = self.run_configured()
        assert service.core is not None
        await self.reloaded('admin_group = "daemon"')
        self.assertIsNotNone(service.core.settings.admin_gid)

    async def test_trying_rules_out_begins_and_ends(self) -> None:
        self.run_configured('rules = ["deny out any tcp:127.0.0.1"]')
        self.assertEqual(await self.word(), "denied")
        self.assertEqual(
            await self.reloaded('audit_only = "1h"\nrules = ["deny out any tcp:127.0.0.1"]'), ["audit_only: none → 1h"]
        )
        self.assertEqual(await self.word(), "unreachable")
        await self.reloaded('rules = ["deny out any tcp:127.0.0.1"]')
        self.assertEqual(await self.word(), "denied")

    async def test_a_file_that_was_made_by_hand_in_the_code_is_no_file(self) -> None:
        self.rundir = self.run_broker().settings.rundir
        answer = await self.reload()
        self.assertEqual(answer["error"], "bad-request")

    async def test_very_many_changes_are_cut_so_that_the_answer_is_one_message(self) -> None:
        self.run_configured()
        rules = [f"deny out service{n} tcp:192.0.2.1:{n + 1}" for n in range(3000)]
        answer = await self.reload(f"rules = {json.dumps(rules)}")
        self.assertTrue(answer["ok"])
        self.assertGreater(len(answer["changes"]), 500)
        self.assertEqual(len(answer["changes"]) + answer["left_out"]["changes"], 3000)
        self.assertLessEqual(len(json.dumps(answer)), MESSAGE_BYTES)

    async def test_one_that_comes_while_another_is_read_is_read_afterwards(self) -> None:
        """What is written while it is read may not be in what is read."""
        service = self.run_configured()
        assert service.core is not None and service.broker is not None and service.tcpd is not None
        go_on, begun = threading.Event(), []

        def read(old: Settings) -> Settings:
            settings = read_settings(CommandLine(self.config, rundir=self.rundir), old.generation + 1)
            begun.append(old.generation)  # what is written from here on is not in it
            go_on.wait(20)
            return settings

        self.addCleanup(go_on.set)
        service.core.reload = reload = Reload(service.core, service.broker, service.tcpd, read)
        first = defer.ensureDeferred(self.reload('rules = ["deny out a any"]'))
        await until(lambda: begun)
        others = [defer.ensureDeferred(self.reload('rules = ["deny out b any"]')) for _ in range(3)]
        await until(lambda: len(reload._asked) == 3)
        go_on.set()
        self.assertEqual((await first)["changes"], ["rules: + deny out a any"])
        for other in others:
            self.assertEqual((await other)["changes"], ["rules: - deny out a any", "rules: + deny out b any"])
        self.assertEqual(begun, [1, 2])

    async def test_everybody_is_served_while_it_is_read(self) -> None:
        service = self.run_configured()
        assert service.core is not None and service.broker is not None and service.tcpd is not None
        go_on, begun = threading.Event(), []
        self.addCleanup(go_on.set)

        def read(old: Settings) -> Settings:
            begun.append(old)
            go_on.wait(20)
            return old

        service.core.reload = Reload(service.core, service.broker, service.tcpd, read)
        reload = defer.ensureDeferred(self.reload())
        await until(lambda: begun)
        self.assertEqual(await self.word(), "unreachable")
        go_on.set()
        self.assertTrue((await reload)["ok"])


class NotAtAll(ReloadTestCase):
    """Where something is in the way, everything is as it was."""

    before = f'rules = ["deny out x any", "allow in pong any"]\n[listen]\n{PORT}\n'

    def setUp(self) -> None:
        super().setUp()
        self.service = self.run_configured(self.before)
        self.serve(self.rundir, "pong")
        assert self.service.core is not None
        self.settings = self.service.core.settings
        self.generation = self.service.core.generation
        self.listening = self.ports(self.service)

    async def check_as_before(self) -> None:
        core = self.service.core
        assert core is not None
        self.assertIs(core.settings, self.settings)
        self.assertEqual((core.generation, self.ports(self.service)), (self.generation, self.listening))
        self.assertEqual(await self.word(), "denied")
        sock = self.owned(socket.create_connection(("127.0.0.1", self.listening[0])))
        sock.sendall(b"pong")
        self.assertEqual(await in_thread(read_exactly, sock, 2), b"ok")
        self.assertTrue((await self.reload(self.before))["ok"])

    @each(
        ("no_toml", "rules = [", [""]),
        ("a_rule", 'rules = ["allow out y any", "allow out"]', ["rules[1]"]),
        ("an_unknown_key", "rulez = []", ["rulez"]),
        ("a_type", "[limits]\nrelays = '5'", ["limits.relays"]),
        ("many", 'handover = "no"\n[limits]\nrelays = 0\nrealys = 5', ["handover", "limits.realys", "limits.relays"]),
        ("a_user_that_is_not_there", 'rules = ["allow out y any for user:nobody-at-all"]', ["rules[0]"]),
        ("a_loop_of_redirects", '[redirect]\na = "b"\nb = "a"', ["redirect"]),
        ("a_listener", '[listen]\ntcpd = ["70000"]', ["listen.tcpd[0]"]),
    )  # fmt: skip
    async def test_a_mistake(self, _: str, text: str, keys: list[str]) -> None:
        self.assertEqual(sorted(await self.mistakes(text)), keys)
        await self.check_as_before()

    @each(
        ("dialects", 'dialects = ["native"]'),
        ("group", 'group = "daemon"'),
        ("parts", 'parts = ["broker"]'),
    )
    async def test_a_key_that_takes_a_new_start(self, key: str, text: str) -> None:
        keys = await self.mistakes(f'{text}\nrules = ["allow out any any"]\n[listen]\n{PORT}\n')
        self.assertEqual(keys, [key])
        await self.check_as_before()

    async def test_a_file_that_is_gone(self) -> None:
        os.unlink(self.config)
        answer = await self.reload()
        self.assertEqual([m["key"] for m in answer["mistakes"]], [""])
        await self.check_as_before()

    async def test_a_file_that_others_can_write(self) -> None:
        os.chmod(self.config, 0o666)
        self.assertIn("write", (await self.reload())["mistakes"][0]["text"])
        await self.check_as_before()

    async def test_a_listener_whose_port_is_taken(self) -> None:
        _, taken = self.listener()
        free = free_port()
        listen = ", ".join(f'"tcp:{port}:interface=127.0.0.1"' for port in (free, taken))
        answer = await self.reload(f'rules = ["allow out x any"]\n[listen]\ntcpd = [{listen}]\n')
        (mistake,) = answer["mistakes"]
        self.assertEqual(mistake["key"], "listen")
        self.assertIn(f"--tcpd tcp:{taken}:interface=127.0.0.1", mistake["text"])
        await in_thread(lambda: None)  # what had begun to listen has stopped a turn later
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", free))
        await self.check_as_before()

    async def test_an_endpoint_that_cannot_be_made_any_more(self) -> None:
        """One whose string names a file that has gone between the reading and the listening."""
        free = free_port()
        make = server_from_string

        def make_one(reactor: Any, description: str) -> Any:
            if "published" in description:
                raise FileNotFoundError(2, "No such file or directory", "cert.pem")
            return make(reactor, description)

        self.patch(tcpd_module, "server_from_string", make_one)
        listen = f'tcpd = ["tcp:{free}:interface=127.0.0.1"]\npublish = {{ pong = ["unix:{self.home}/published"] }}'
        answer = await self.reload(f"[listen]\n{listen}\n")
        self.assertIn("cert.pem", answer["mistakes"][0]["text"])
        await in_thread(lambda: None)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", free))
        await self.check_as_before()

    async def test_an_audit_file_that_cannot_be_opened(self) -> None:
        free = free_port()
        listen = f'[listen]\ntcpd = ["tcp:{free}:interface=127.0.0.1"]\n'
        self.assertEqual(await self.mistakes(f'[audit]\nfile = "{self.home}"\n{listen}'), ["audit"])
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", free))
        await self.check_as_before()

    async def test_a_new_audit_file_is_let_go_where_a_listener_cannot_be(self) -> None:
        _, taken = self.listener()
        path = os.path.join(self.home, "audit")
        listen = f'[listen]\ntcpd = ["tcp:{taken}:interface=127.0.0.1"]\n'
        self.assertEqual(await self.mistakes(f'[audit]\nfile = "{path}"\n{listen}'), ["listen"])
        await until(lambda: not [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, path)])
        await self.check_as_before()
        self.assertEqual(os.path.getsize(path), 0)

    async def test_very_many_mistakes_are_cut_so_that_the_answer_is_one_message(self) -> None:
        rules = [f"allow out {'x' * 60}{n} any {'y' * 800}" for n in range(150)]
        answer = await self.reload(f"rules = {json.dumps(rules)}")
        self.assertEqual(answer["reason"], "150 mistakes; the configuration in force stays")
        self.assertLessEqual(len(json.dumps(answer)), MESSAGE_BYTES)
        self.assertGreater(len(answer["mistakes"]), 10)
        await self.check_as_before()

    async def test_what_goes_wrong_in_the_reading_itself(self) -> None:
        def fail(*args: Any) -> Any:
            raise RuntimeError("on purpose")

        service = self.service
        assert service.core is not None and service.broker is not None and service.tcpd is not None
        right = service.core.reload
        service.core.reload = Reload(service.core, service.broker, service.tcpd, fail)
        self.assertIn("the log says how", (await self.reload())["mistakes"][0]["text"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        service.core.reload = right
        await self.check_as_before()

    async def test_a_broker_that_stops_meanwhile_listens_no_more(self) -> None:
        service = self.service
        assert service.core is not None and service.broker is not None and service.tcpd is not None
        go_on, begun = threading.Event(), []
        self.addCleanup(go_on.set)

        def read(old: Settings) -> Settings:
            begun.append(old)
            go_on.wait(20)
            return old

        told: list[dict[str, Any]] = []
        reload, tcpd = Reload(service.core, service.broker, service.tcpd, read), service.tcpd
        service.core.reload = service._reload = reload
        reload(told.append)
        await until(lambda: begun)
        await service.stopService()
        go_on.set()
        await until(lambda: told)
        reload(told.append)
        self.assertEqual([answer["error"] for answer in told], ["not-possible"] * 2)
        self.assertEqual(tcpd.ports, ())


class Listeners(ReloadTestCase):
    async def connected(self, port: int, name: bytes = b"pong") -> bytes:
        """Return what a caller is told."""
        sock = self.owned(socket.create_connection(("127.0.0.1", port)))
        sock.sendall(name)
        return await in_thread(read_exactly, sock, 2)

    def listen(self, *ports: int, more: str = "") -> str:
        listed = ", ".join(f'"tcp:{port}:interface=127.0.0.1"' for port in ports)
        return f'rules = ["allow in pong any"]\n[listen]\ntcpd = [{listed}]\n{more}'

    async def test_one_is_added_and_one_is_taken_away_and_who_is_connected_stays(self) -> None:
        one, two, three = (free_port() for _ in range(3))
        service = self.run_configured(self.listen(one, two))
        self.serve(self.rundir, "pong")
        over = self.owned(socket.create_connection(("127.0.0.1", one)))
        over.sendall(b"pong")
        self.assertEqual(await in_thread(read_exactly, over, 2), b"ok")
        changed = await self.reloaded(self.listen(two, three))
        self.assertEqual(
            changed,
            [f"listen.tcpd: - tcp:{one}:interface=127.0.0.1", f"listen.tcpd: + tcp:{three}:interface=127.0.0.1"],
        )
        self.assertEqual(sorted(self.ports(service)), sorted((two, three)))
        for port in (two, three):
            self.assertEqual(await self.connected(port), b"ok")
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", one))
        over.sendall(b"still")
        self.assertEqual(await in_thread(read_exactly, over, 5), b"still")

    async def test_a_published_service_is_added_and_taken_away(self) -> None:
        port = free_port()
        service = self.run_configured('rules = ["allow in pong any"]')
        self.serve(self.rundir, "pong", lambda sock: sock.sendall(b"hi"))
        more = f'rules = ["allow in pong any"]\n[listen.publish]\npong = ["tcp:{port}:interface=127.0.0.1"]\n'
        await self.reloaded(more)
        self.assertEqual(await self.connected(port, b""), b"hi")
        await self.reloaded('rules = ["allow in pong any"]')
        self.assertEqual(self.ports(service), [])

    async def test_of_two_that_are_alike_one_can_be_taken_away(self) -> None:
        twice = 'tcpd = ["tcp:0:interface=127.0.0.1", "tcp:0:interface=127.0.0.1"]'
        service = self.run_configured(f"[listen]\n{twice}\n")
        before = self.ports(service)
        self.assertEqual(len(before), 2)
        await self.reloaded(f"[listen]\n{PORT}\n")
        self.assertEqual(len(self.ports(service)), 1)
        self.assertIn(self.ports(service)[0], before)

    async def test_a_unix_listener_that_is_taken_away_leaves_no_path_and_no_name_that_is_refused(self) -> None:
        path = os.path.join(self.home, "callers")
        service = self.run_configured(f'[listen]\ntcpd = ["unix:{path}"]\n')
        assert service.core is not None
        mine = os.stat(path)
        self.assertIn((mine.st_dev, mine.st_ino), service.core.own)
        await self.reloaded("")
        await until(lambda: not os.path.exists(path))
        core = service.core
        await until(lambda: (mine.st_dev, mine.st_ino) not in core.own)

    async def test_who_is_on_the_way_in_through_one_that_is_taken_away_still_gets_there(self) -> None:
        service = self.run_configured(self.listen(free_port()))
        self.serve(self.rundir, "pong")
        sock = self.owned(socket.create_connection(("127.0.0.1", self.ports(service)[0])))
        assert service.tcpd is not None
        peers = service.tcpd.peers
        await until(lambda: peers)
        await self.reloaded('rules = ["allow in pong any"]')
        sock.sendall(b"pong")
        self.assertEqual(await in_thread(read_exactly, sock, 2), b"ok")


class UnderWay(ReloadTestCase):
    """What there is when it comes."""

    async def test_connections_of_every_kind_stay(self) -> None:
        far = self.serve_tcp()
        self.run_configured('rules = ["allow out relayed any handover=relayed"]')
        self.serve(self.rundir, "pong")
        socks = []
        for name, routes in (("locked", far), ("relayed", far), ("pong", None)):
            answer, sock = await in_thread(
                native_lookup, self.rundir, name, f"{name} tcp://127.0.0.1:{routes}" if routes else None
            )
            self.assertTrue(answer["ok"], answer)
            assert sock is not None
            socks.append(self.owned(sock))
        with dialled(self.rundir, "plumberd") as conversation:
            await self.reloaded('rules = ["deny out any any", "deny in any any"]\n[default]\nout = "deny"\n')
            for sock in socks:
                sock.sendall(b"still")
                self.assertEqual(await in_thread(read_exactly, sock, 5), b"still")
            conversation.sendall(native_frame({"op": "status"}))
            self.assertTrue((await in_thread(native_read, conversation))[0]["ok"])

    async def test_who_waits_for_a_place_has_its_turn_where_there_is_one_now(self) -> None:
        service = self.run_configured("[limits]\nlookups_per_uid = 1\n")
        self.serve(self.rundir, "pong")
        assert service.broker is not None
        silent, lookups = self.serve_tcp(lambda sock: read_all(sock)), service.broker.lookups
        blocking = dial(self.rundir, "plumberd")
        self.addCleanup(blocking.close)
        blocking.sendall(native_frame({"op": "lookup", "service": "x", "routes": f"x tcp://127.0.0.1:{silent}/x"}))
        await until(lambda: lookups.active == 1)
        waiting = [in_thread(native_lookup, self.rundir, "pong") for _ in range(3)]
        await until(lambda: lookups.waiting == 3)
        await self.reloaded("[limits]\nlookups_per_uid = 10\n")
        for one in waiting:
            answer, sock = await one
            self.assertTrue(answer["ok"], answer)
            assert sock is not None
            sock.close()
        self.assertEqual((lookups.active, lookups.waiting), (1, 0))

    async def test_a_deadline_is_the_new_one_for_who_asks_from_then_on(self) -> None:
        self.run_configured("[limits]\nconnect_seconds = 60\n")
        silent = self.serve_tcp(lambda sock: read_all(sock))
        await self.reloaded("[limits]\nconnect_seconds = 0.1\n")
        self.assertEqual(await self.word("x", f"tcp://127.0.0.1:{silent}/x"), "timeout")

    async def test_fewer_places_hold_for_who_comes_from_then_on(self) -> None:
        service = self.run_configured()
        far = self.serve_tcp()
        await self.reloaded('handover = "relayed"\n[limits]\nrelays_per_peer = 1\n')
        answer, first = await in_thread(native_lookup, self.rundir, "x", f"x tcp://127.0.0.1:{far}")
        assert first is not None
        self.owned(first)
        self.assertEqual(await self.word("x", f"tcp://127.0.0.1:{far}"), "busy")
        await self.reloaded('handover = "relayed"\n')
        self.assertEqual(await self.word("x", f"tcp://127.0.0.1:{far}"), "relayed")
        first.close()
        await self.wait_until_idle(service)

    async def test_a_claim_that_the_rules_do_not_allow_any_more_ends(self) -> None:
        service = self.run_configured('rules = ["allow serve pong", "allow serve ping"]')
        pong, ping = dial(self.rundir, "plumberd"), dial(self.rundir, "plumberd")
        for sock, name in ((pong, "pong"), (ping, "ping")):
            self.owned(sock).sendall(native_frame({"op": "serve", "service": name}))
            self.assertTrue((await in_thread(native_read, sock))[0]["ok"])
        await self.reloaded('rules = ["allow serve ping"]')
        self.assertEqual(await in_thread(read_all, pong), b"")
        assert service.core is not None
        self.assertEqual([claim.service for claim in service.core.registrations], ["ping"])
        self.assertEqual(await self.word("pong", "unix:///pong"), "unknown-service")

    async def test_outcomes_go_to_the_new_audit_file_and_the_old_one_is_let_go(self) -> None:
        old, new = (os.path.join(self.home, name) for name in ("old", "new"))
        self.run_configured(f'[audit]\nfile = "{old}"\n')
        await self.word("before")
        self.assertEqual(await self.reloaded(f'[audit]\nfile = "{new}"\n'), [f"audit.file: {old} → {new}"])
        await self.word("after")
        await until(lambda: os.path.getsize(new) and not [f for f in os.listdir("/proc/self/fd") if _leads_to(f, old)])
        for path, service in ((old, "before"), (new, "after")):
            with open(path, encoding="utf-8") as file:
                self.assertIn(service, {json.loads(line)["service"] for line in file})


class Allowed(ReloadTestCase):
    async def test_who_asks_is_in_the_log(self) -> None:
        said: list[str] = []

        @implementer(ILogObserver)
        def observe(event: Any) -> None:
            said.append(str(event.get("log_format") or "").format(**{**event, "line": event.get("line", "")}))

        self.run_configured()
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        await self.reload('rules = ["deny out y any"]')
        self.assertIn(f"uid={os.geteuid()} gid={os.getegid()} pid={os.getpid()} asks for a reload", said)
        self.assertIn("reloaded: rules: + deny out y any", said)


def _leads_to(fd: str, path: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == path
    except OSError:
        return False
