"""The documents: they name everything that there is, and every example and link in them holds."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.pumps import PACKET_BYTES, READ_BYTES
from plumberd.endpoints import IpcParser
from plumberd.framing import Framing
from plumberd.pure import carry
from plumberd.pure.dialects import DEFAULT, DIALECTS, Kind, Request
from plumberd.pure.dialects.native import MESSAGE_BYTES, MOST_WORDS, OPS, NativeDecoder, answer, grant
from plumberd.pure.handshake import GRANTED, call, refusal
from plumberd.pure.limits import Limits
from plumberd.pure.modes import GENERAL_WISHES, WISHES, Mode
from plumberd.pure.names import RESERVED, SCHEMES
from plumberd.pure.refusals import Refusal
from plumberd.pure.uri import DEFAULT_PORTS, FRAMINGS, OPTIONS, URI_BYTES, Uri, parse_uri
from plumberd.pure.who import RemoteWho
from plumberd.wiring.clients.registrations import CLAIMS_PER_UID, WAITING, told_of
from plumberd.wiring.config.options import Options
from plumberd.wiring.config.settings import PARTS
from plumberd.wiring.inbound.inbound import HOLD_SECONDS
from plumberd.wiring.ops.accounting import A_PAGE
from plumberd.wiring.ops.operations import RIGHTS, Right
from plumberd.wiring.ops.status import about_client, about_everything
from tests.running import RunningTestCase
from tests.serving_case import ALLOW, PLAIN, ServingTestCase
from tests.support import in_thread, native_ask, native_lookup
from tests.test_generations import CLIENTS, SERVICES, fits

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
DOCUMENTS = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")))
LOGGED = ("granted", "ended", "gone", *(word.value for word in Refusal))
"""Every verdict of a log event."""

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_URI_WITH_OPTION = re.compile(r"`(?:\w+ )?((?:tcp|unix)://[^`\s]*\?[^`\s]+)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PATH = re.compile(r"`((?:tests|plumberd|twisted|examples|bench)/(?:[\w/]+\.(?:py|c|sh)|[\w/]+/))`")
_SHORT_PATH = re.compile(r"`((?:pure|effects|wiring)/[\w/]+\.py)`")


def read(name: str) -> str:
    """Return the text of a document below docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """Return the part of a document below *heading*, up to the next one that is not below it."""
    text = read(name)
    begin = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    if begin is None:
        raise AssertionError(f"{name} has no heading {heading!r}")
    rest = text[begin.end() :]
    end = re.search(rf"^#{{1,{len(begin[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def quoted(text: str) -> set[str]:
    """Return what stands between backquotes."""
    return set(re.findall(r"`([^`\n]+)`", text))


def hexadecimal(text: str) -> str:
    """Return *text* without its blanks, so that bytes are found however they are grouped."""
    return "".join(text.split())


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found = set()
    for heading in _HEADING.findall(document.read_text(encoding="utf-8")):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.replace(" ", "-"))
    return found


def rows(text: str) -> list[list[str]]:
    """Return the cells of a document's tables, without their rules."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in found]


def command_lines() -> Iterator[str]:
    """Yield every command line of the documents that starts a plumberd."""
    for document in DOCUMENTS:
        for line in document.read_text(encoding="utf-8").splitlines():
            if line.startswith("    twistd -n plumberd"):
                yield line.strip()


class Listed(SynchronousTestCase):
    """Whatever there is stands in the document where a reader looks for it."""

    def _all_in(self, text: str, words: Any, where: str) -> None:
        found = quoted(text)
        self.assertEqual([word for word in words if word not in found], [], f"missing in {where}")

    def test_every_option_has_its_entry_with_its_default_and_an_example(self) -> None:
        text = read("options.md")
        entries = re.split(r"^(?=\*\*`--)", text, flags=re.MULTILINE)[1:]
        for name in Options().longOpt:
            option = f"--{name.rstrip('=')}"
            mine = [e for e in entries if re.search(rf"`{option}[ `]", e.partition("—")[0])]
            self.assertEqual(len(mine), 1, f"{option} has no entry of its own in options.md")
            self.assertIn("\n    twistd -n plumberd", mine[0], f"{option} has no example")
            if name.endswith("="):
                self.assertIn("Default: ", mine[0], f"{option} has no default")

    def test_no_entry_is_for_an_option_that_does_not_exist(self) -> None:
        known = {f"--{name.rstrip('=')}" for name in Options().longOpt}
        heads = re.findall(r"^\*\*`.*?—", read("options.md"), flags=re.MULTILINE)
        self.assertEqual({o for head in heads for o in re.findall(r"--[a-z-]+", head)}, known)

    def test_every_refusal_has_its_meaning(self) -> None:
        rows = re.findall(r"^\| `([a-z-]+)` \|", section("protocol.md", "Refusals"), flags=re.MULTILINE)
        self.assertEqual(rows, [word.value for word in Refusal])

    def test_every_limit_stands_with_its_default_and_its_consequence(self) -> None:
        rows = re.findall(r"^\| `(\w+)` \| ([0-9.]+)(.*)\| (.+) \|$", section("protocol.md", "Limits"), re.MULTILINE)
        self.assertEqual(
            [(name, float(default)) for name, default, _, _ in rows],
            [(field.name, float(getattr(Limits(), field.name))) for field in dataclasses.fields(Limits)],
        )

    def test_every_dialect_stands_with_its_socket(self) -> None:
        text = section("protocol.md", "Where the run directory is")
        for dialect in DIALECTS.values():
            kind = "packets" if dialect.kind is Kind.PACKET else "stream"
            self.assertIn(f"| `{dialect.name}` | `{dialect.socket_name}` | {kind} |", text)
            if dialect.name != "native":
                self.assertIn(f"## The dialect {dialect.name}\n", read("protocol.md"))
        self.assertIn(f"`{','.join(DEFAULT)}`", read("options.md"))

    def test_every_generation_s_services_stand_with_their_sockets(self) -> None:
        known = {
            (generation.strip("`"), place.strip("`"), kind)
            for generations, place, kind in rows(section("protocol.md", "Local services"))[1:]
            for generation in generations.split(", ")
            if generation.startswith("`")
        }
        framings = [framing for framing in Framing if framing is not Framing.RAW]
        wanted = {(f.value, f.socket_name("<name>"), "packets" if f.packets else "stream") for f in framings}
        self.assertEqual(known, wanted)

    def test_every_framing_stands_where_packets_are_cut_with_what_is_carried(self) -> None:
        text = section("protocol.md", "Packets and streams")
        self.assertEqual(FRAMINGS, tuple(framing.value for framing in Framing))
        self._all_in(text, FRAMINGS, "Packets and streams")
        self.assertIn(f" {PACKET_BYTES} bytes", text)
        self.assertIn(f" {READ_BYTES} bytes", text)

    def test_every_option_of_a_uri_stands_with_the_uris(self) -> None:
        self._all_in(section("protocol.md", "URIs"), sorted(set().union(*OPTIONS.values())), "URIs")
        for document in DOCUMENTS:
            for uri in _URI_WITH_OPTION.findall(document.read_text(encoding="utf-8")):
                self.assertTrue(parse_uri(uri).options, uri)

    def test_every_part_and_every_general_mode_stands_at_its_option(self) -> None:
        heads = re.findall(r"^\*\*`(.*?)`\*\*", read("options.md"), flags=re.MULTILINE)
        self.assertIn(f"--part {'|'.join(PARTS)}", heads)
        self.assertIn(f"--handover {'|'.join(mode.value for mode in GENERAL_WISHES)}", heads)

    def test_the_words_of_both_kinds_of_endpoint_strings_are_those_that_are_parsed(self) -> None:
        strings = re.findall(rf"`({IpcParser.prefix}:SERVICE.*?)`", section("protocol.md", "From Python"))
        self.assertEqual(len(strings), 2)
        parser = IpcParser()
        for string, parse in zip(strings, (parser.parseStreamClient, parser.parseStreamServer), strict=True):
            words = dict.fromkeys(re.findall(r"\[:(\w+)=", string), "1")
            parse(mock.Mock(), "pong", **words)
            with self.assertRaises(TypeError):
                parse(mock.Mock(), "pong", **words, another="1")

    def test_every_operation_stands_with_its_members(self) -> None:
        text = section("protocol.md", "Requests")
        for op, members in OPS.items():
            rows = "".join(re.findall(rf"^\| `{op}` \|.*$", text, flags=re.MULTILINE))
            self.assertTrue(rows, f"{op} is not in the table of requests")
            self._all_in(rows, sorted(members), f"the rows of {op}")

    def test_every_verdict_of_the_log_has_its_meaning(self) -> None:
        rows = re.findall(r"^\| (`.+?) \|", section("design.md", "How outcomes are logged"), flags=re.MULTILINE)
        self.assertEqual([word for row in rows for word in re.findall(r"`([a-z-]+)`", row)], list(LOGGED))

    def test_every_mode_is_told_to_clients_and_judged(self) -> None:
        results = [mode.value for mode in Mode if mode is not Mode.AUTO]
        for name, heading in (("protocol.md", "Hand-over modes"), ("security.md", "What the modes let through")):
            rows = re.findall(r"^\| `(\w+)` \|", section(name, heading), flags=re.MULTILINE)
            self.assertEqual(rows, results, name)
        self._all_in(section("protocol.md", "Rules"), [mode.value for mode in WISHES], "the rules' grammar")

    def test_every_reserved_name_stands_with_the_names(self) -> None:
        self._all_in(section("protocol.md", "Names"), sorted(RESERVED), "Names")

    def test_every_scheme_stands_with_its_default_port(self) -> None:
        text = section("protocol.md", "URIs")
        self._all_in(text, SCHEMES, "URIs")
        for scheme, port in DEFAULT_PORTS.items():
            self.assertRegex(text, rf"\b{scheme} {port}\b")


class MixedTraffic(SynchronousTestCase):
    """The table of clients, services and daemons says what the tests try."""

    def test_every_client_with_every_service_stands_with_the_daemons_that_may_carry_it(self) -> None:
        (_, *services), *clients = rows(section("protocol.md", "Which programs reach each other"))
        self.assertEqual(services, [f"service `{generation}`" for generation in SERVICES])
        self.assertEqual([row[0] for row in clients], [f"`{client}`" for client in CLIENTS])
        for (_, *cells), client in zip(clients, CLIENTS, strict=True):
            for cell, generation in zip(cells, SERVICES, strict=True):
                packets = Framing(generation).packets
                # LibIPC's broker speaks its own dialect alone, and its tcpd knows no packets.
                near, far = "either" if client == "libipc-zig" else "ours", "ours" if packets else "either"
                wanted = f"{near} / either → {far}" if fits(client, generation) else "no"
                self.assertEqual(cell, wanted, f"{client} with {generation}")


class CodeMap(SynchronousTestCase):
    """Whoever looks for a place in the code finds it."""

    def test_every_module_is_in_it_once_and_nothing_else_is(self) -> None:
        rows = re.findall(r"^\| `(plumberd/[\w/]+\.py)` \|", section("design.md", "The code map"), flags=re.MULTILINE)
        modules = [str(path.relative_to(ROOT)) for path in (ROOT / "plumberd").rglob("*.py")]
        self.assertEqual(sorted(rows), sorted(modules))

    def test_every_source_file_that_a_document_names_exists(self) -> None:
        for document in DOCUMENTS:
            text = document.read_text(encoding="utf-8")
            paths = _PATH.findall(text) + [f"plumberd/{path}" for path in _SHORT_PATH.findall(text)]
            missing = [path for path in paths if not (ROOT / path).exists()]
            self.assertEqual(missing, [], f"named in {document.name}")


class Links(SynchronousTestCase):
    """No link leads nowhere."""

    def test_every_relative_link_leads_to_a_file_and_a_heading(self) -> None:
        for document in DOCUMENTS:
            for link in _LINK.findall(document.read_text(encoding="utf-8")):
                if "://" in link:
                    continue
                path, _, anchor = link.partition("#")
                target = document.parent / path if path else document
                self.assertTrue(target.exists(), f"{document.name} links to {link}")
                if anchor:
                    self.assertIn(anchor, anchors(target), f"{document.name} links to {link}")


class Examples(SynchronousTestCase):
    """What the documents show is what happens."""

    def test_every_command_line_is_understood(self) -> None:
        configuration = Path(self.mktemp())
        keys = configuration.parent / "psk"
        keys.write_text("laptop:00112233445566778899aabbccddeeff")
        keys.chmod(0o600)
        configuration.write_text("[tls]\npsk_file = 'psk'")  # what --tlsd wants
        configuration.chmod(0o600)
        configuration.parent.chmod(0o755)
        lines = [re.sub(r"(?<=--config )\S+", str(configuration), line) for line in command_lines()]
        self.assertGreater(len(lines), 15)
        with mock.patch("grp.getgrnam", return_value=mock.Mock(gr_gid=1)), mock.patch("pwd.getpwnam") as getpwnam:
            getpwnam.return_value.pw_uid = 1
            for line in lines:
                with mock.patch("sys.stdout"):
                    try:
                        Options().parseOptions(shlex.split(line, comments=True)[3:])
                    except SystemExit as e:
                        self.assertEqual(e.code or 0, 0, line)

    def test_the_native_example_is_what_is_sent_and_answered(self) -> None:
        text = hexadecimal(section("protocol.md", "An example"))
        asked = b'{"op":"lookup","service":"pong","id":1}'
        asked = len(asked).to_bytes(4, "big") + asked
        self.assertEqual([*NativeDecoder(MESSAGE_BYTES).feed(asked)], [Request("lookup", "pong", ident=1)])
        self.assertIn(asked.hex(), text)
        granted = DIALECTS["native"].grant(Request("lookup", "pong", ident=1), "local", "default for local services")
        self.assertIn(granted[0].data.hex(), text)
        refused = DIALECTS["native"].refuse(2, Refusal.UNKNOWN_SERVICE, "no local service is called ping")
        self.assertIn(refused.hex(), text)
        for message in (asked, granted[0].data, refused):
            self.assertIn(f"({len(message)}bytes)", text)

    def test_the_examples_of_every_libipc_dialect_are_what_is_sent_and_answered(self) -> None:
        reason = "no local service is called ping"
        lookup = b"pong;pong tcp://127.0.0.1:9700/pong"
        length = len(lookup).to_bytes(4, "big")
        for dialect in DIALECTS.values():
            if dialect.name == "native":
                continue
            asked = length + lookup if dialect.name == "libipc-zig" else b"\3" + length + b"\3" + lookup
            (request,) = dialect.decoder(MESSAGE_BYTES).feed(asked)
            assert isinstance(request, Request), dialect.name
            self.assertEqual((request.op, request.service), ("lookup", "pong"))
            sends = dialect.grant(request, "", "")
            text = hexadecimal(section("protocol.md", f"The dialect {dialect.name}"))
            for sent in (asked, *(send.data for send in sends)):
                self.assertIn(sent.hex(), text, dialect.name)
            self.assertIn(dialect.refuse(None, Refusal.UNKNOWN_SERVICE, reason).hex(), text, dialect.name)

    def test_what_a_broker_and_a_scheme_daemon_say_is_what_is_sent(self) -> None:
        text = section("protocol.md", "Between a broker and a scheme daemon")
        for data in (carry.carry(Uri("tcp", "192.0.2.1", 9000, "pong")), carry.ok()):
            self.assertIn(data.hex(), hexadecimal(text))
        self.assertTrue(carry.no(Refusal.BUSY, "reason")[4:].startswith(b"no busy: "))
        self.assertIn("`no <word>: <reason>`", text)
        self.assertIn(f", {carry.ANSWER_BYTES} bytes at most", text)
        self.assertIn(f", {URI_BYTES} bytes at most", text)

    def test_the_bytes_of_the_handshake_are_those_that_are_sent(self) -> None:
        text = section("protocol.md", "tcp, between daemons")
        for data in (call("pong"), GRANTED, refusal(Refusal.BUSY)):
            self.assertIn(f"`{data.hex()}`", text)


class Status(RunningTestCase):
    """The one answer with many members."""

    async def test_every_member_of_it_is_documented(self) -> None:
        service = self.run_broker()
        assert service.core is not None and service.broker is not None
        who = mock.Mock(uid=0, gid=0, pid=1, confined="")
        members = {**about_client(service.core, who, 1), **about_everything(service.core, service.broker)}
        documented = quoted(section("protocol.md", "Answers"))
        nested = [key for name in ("you", "powers", "now") for key in members[name]]
        self.assertEqual([key for key in [*members, *nested] if key not in documented], [])
        self.assertLess(len(answer(None, members)), MESSAGE_BYTES)
        self.assertEqual(json.loads(answer(None, members)[4:]), members)


class Operations(ServingTestCase):
    """What the native socket answers, and what it sends unasked."""

    def documented(self, heading: str, members: Any) -> None:
        found = quoted(section("protocol.md", heading))
        self.assertEqual([key for key in members if key not in found], [], heading)

    def test_who_may_ask_for_which_stands_in_the_table(self) -> None:
        told = {
            op.strip("`"): who
            for ops, who, *rest in rows(section("protocol.md", "Requests"))
            if not rest
            for op in ops.split(", ")
            if op != "operation"
        }
        beginnings = {
            Right.EVERYBODY: "every client, confined ones too",
            Right.ADMITTED: "every client that is not confined",
            Right.ADMIN: "root",
        }
        self.assertEqual(set(told), set(OPS))
        for op, right in RIGHTS.items():
            self.assertTrue(told[op].startswith(beginnings[right]), op)

    async def test_every_member_of_each_answer_is_documented(self) -> None:
        self.start("allow serve pong", f"deny out denied any for uid:{os.geteuid()}")
        listener, port = self.listener()
        _, sock = await in_thread(native_lookup, self.rundir, "x", f"x tcp://127.0.0.1:{port}")
        assert sock is not None
        self.owned(sock)
        await in_thread(native_lookup, self.rundir, "denied")
        asked: dict[str, dict[str, Any]] = {
            "lookup": {"service": "nope"},
            "status": {},
            "explain": {"direction": "out", "service": "pong"},
            "why": {},
            "reload": {},
            "confine": {"services": ["pong"]},
            "serve": {"service": "pong"},
            "ss": {},
            "kill": {"connection": "1"},
            "whois": {"token": "plumberd-0"},
        }
        self.assertEqual(set(asked), set(OPS))
        for op, members in asked.items():
            told, _ = await in_thread(native_ask, self.rundir, op=op, **members)
            nested = [
                one for value in told.values() if isinstance(value, list) for one in value if isinstance(one, dict)
            ]
            self.assertEqual(bool(nested), op in ("status", "explain", "why", "ss", "reload"), op)
            self.documented("Answers", [*told, *(key for one in nested for key in one)])
        listener.close()

    async def test_every_member_of_what_a_claimant_is_handed_is_documented(self) -> None:
        self.start(ALLOW, "allow in pong any", tcpd=(PLAIN,))
        claim = await self.claim()
        _, sock = await in_thread(native_lookup, self.rundir, "pong")
        assert sock is not None
        self.owned(sock)
        caller = self.owned(socket.create_connection(("127.0.0.1", self.tcpd_port(self.service))))
        caller.sendall(b"pong")
        for _ in range(2):
            told, _ = await self.take(claim)
            self.documented("Claimed services", [*told, *told["peer"], told["op"], told["mode"]])

    def test_the_limits_of_claims_and_pages_are_those_that_hold(self) -> None:
        text = read("protocol.md")
        self.assertIn(f"Fixed: {CLAIMS_PER_UID} [claims]", text)
        self.assertIn(f"user's {CLAIMS_PER_UID + 1}th claim", text)
        self.assertIn(f", {WAITING} connections that wait for one claim", text)
        self.assertIn(f"- {WAITING} connections wait for one claim", text)
        self.assertIn(f"a page of at most {A_PAGE}, by `id`", text)
        self.assertIn(f"or {HOLD_SECONDS * 1000:g} ms later", section("protocol.md", "Claimed services"))
        self.assertIn(f"at most {MOST_WORDS} words", section("protocol.md", "Requests"))
        self.assertIn(f"a list of 1 to {MOST_WORDS} names", section("protocol.md", "Requests"))

    def test_the_examples_are_what_is_sent(self) -> None:
        text = section("protocol.md", "Restricted connections")
        sent = grant(Request("lookup", "pong"), "local", "default for local services")[0].data
        self.assertIn(f"{sent[:4].hex()} {sent[4:].decode()}", text)
        packet = '{"op":"lookup","service":"pong"}'
        self.assertEqual(NativeDecoder(MESSAGE_BYTES).one(packet.encode()), Request("lookup", "pong"))
        self.assertIn(f"    {packet}\n", text)
        (accepted,) = re.findall(r'^    (\{"ok".*)$', section("protocol.md", "Claimed services"), re.MULTILINE)
        who = RemoteWho("tcp", ipaddress.ip_address("192.0.2.7"), 50123)
        told = told_of(who, "1: allow in pong tcp:192.0.2.0/24")
        head = {"ok": True, "op": "accepted", "fd": True, "service": "pong", "mode": "locked"}
        self.assertEqual(answer(None, {**head, **told})[4:].decode(), accepted)
