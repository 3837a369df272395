"""plumberd.wiring.ops.status: a client learns about itself, an administrator everything, and nobody a password."""

from __future__ import annotations

import json
import os
import resource
from importlib.metadata import PackageNotFoundError
from typing import Any

from plumberd.effects.audit import Outcome
from plumberd.pure.admission import FairQueue
from plumberd.pure.modes import Mode
from plumberd.pure.policy.decide import Policy
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Routes, parse_redirect, parse_route
from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.who import LocalWho
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.core import Core, make_core
from plumberd.wiring.ops import status
from plumberd.wiring.ops.status import about_client, about_everything, version
from tests.running import leading
from tests.support import CleanTestCase, real_reactor

ALICE = LocalWho(1000, 1001, (1002,), 77)


class BusyBroker:
    """A broker with one client, whose second lookup waits, and who has not read a descriptor."""

    paths = ("/run/ipc/plumberd", "/run/ipc/ipc")
    conversations = 1
    controls = 2

    def __init__(self) -> None:
        self.lookups: FairQueue[int, Any] = FairQueue(1, 10, 10)
        self.unread: FairQueue[int, Any] = FairQueue(10, 10, 10)
        for item in ("first", "second"):
            self.lookups.enter(1000, item)
        self.unread.enter(1000, "first")


class StatusTestCase(CleanTestCase):
    def core(self, **settings: Any) -> Core:
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        core = make_core(real_reactor, Settings("/run/ipc", **settings))
        self.addCleanup(core.close)
        return core

    def everything(self, **settings: Any) -> dict[str, Any]:
        return about_everything(self.core(**settings), BusyBroker())


class Client(StatusTestCase):
    def test_it_is_told_who_it_is(self) -> None:
        told = about_client(self.core(), ALICE, 3)
        self.assertEqual(told["you"], {"uid": 1000, "gid": 1001, "pid": 77, "confined": False, "connections": 3})

    def test_it_is_told_that_it_is_confined(self) -> None:
        told = about_client(self.core(), LocalWho(1, 1, (), 1, confined="in a cage"), 1)
        self.assertIs(told["you"]["confined"], True)

    def test_it_is_told_whom_it_talks_to(self) -> None:
        told = about_client(self.core(dialects=("native", "libipc-zig")), ALICE, 1)
        self.assertEqual(
            (told["version"], told["rundir"], told["dialects"]),
            (version(), "/run/ipc", {"native": "plumberd", "libipc-zig": "ipc"}),
        )

    def test_it_is_told_nothing_else(self) -> None:
        self.assertEqual(set(about_client(self.core(), ALICE, 1)), {"version", "rundir", "dialects", "you"})


class Everything(StatusTestCase):
    def test_the_process(self) -> None:
        told = self.everything(group="ipc")
        self.assertEqual((told["pid"], told["group"]), (os.getpid(), "ipc"))
        self.assertGreaterEqual(told["uptime_seconds"], 0)

    def test_where_it_listens(self) -> None:
        told = self.everything(tcpd=("tcp:9000",))
        self.assertEqual((told["sockets"], told["tcpd"]), (["/run/ipc/plumberd", "/run/ipc/ipc"], ["tcp:9000"]))

    def test_rules_in_their_order_and_the_defaults(self) -> None:
        rules = ("deny in a tcp://192.0.2.1", "allow out * *")
        told = self.everything(policy=Policy(tuple(map(parse_rule, rules)), {Direction.IN: True, Direction.OUT: False}))
        self.assertEqual(told["rules"], ["deny in a tcp://192.0.2.1", "allow out * *"])
        self.assertEqual(told["defaults"], {"in": "allow", "out": "deny"})

    def test_redirects_and_routes_without_their_passwords(self) -> None:
        told = self.everything(
            routes=Routes(
                leading(a=parse_redirect("a", "b")),
                leading(
                    c=parse_route("c", "tls://user:secret@h.example/c"),
                    d=parse_route("d", "tls:h.example:443:privateKey=secret"),
                ),
            )
        )
        self.assertEqual(told["redirects"], {"a": "b"})
        self.assertEqual(told["routes"]["c"], "tls://user:***@h.example:9001/c")
        self.assertNotIn("secret", json.dumps(told))

    def test_how_sockets_are_handed_over(self) -> None:
        core = self.core(handover=Mode.RELAYED)
        told = about_everything(core, BusyBroker())
        self.assertEqual(told["handover"], "relayed")
        self.assertEqual(
            told["powers"],
            {"lock": core.powers.lock, "give": core.powers.give, "act_as": core.services.actas.can_switch},
        )

    def test_what_is_under_way(self) -> None:
        self.assertEqual(
            self.everything()["now"],
            {"clients": 1, "control_sockets": 2, "lookups": 1, "waiting": 1, "unread_descriptors": 1, "relays": 0},
        )

    def test_where_nobody_has_claimed_a_service_it_says_so(self) -> None:
        self.assertEqual(self.everything()["serving"], [])

    def test_what_has_been(self) -> None:
        core = self.core()
        core.audit.note(Outcome("granted", "out"))
        core.audit.note(Outcome("denied", "in"))
        self.assertEqual(about_everything(core, BusyBroker())["counts"], {"out granted": 1, "in denied": 1})

    def test_it_can_be_sent(self) -> None:
        told = {**about_client(self.core(), ALICE, 1), **self.everything()}
        self.assertEqual(json.loads(json.dumps(told)), told)


class Version(CleanTestCase):
    def test_of_an_installed_package_it_is_that_packages(self) -> None:
        self.patch(status, "package_version", lambda name: f"{name} 9.9")
        self.assertEqual(version(), "plumberd 9.9")

    def test_without_an_installation_there_is_none(self) -> None:
        def refuse(name: str) -> str:
            raise PackageNotFoundError(name)

        self.patch(status, "package_version", refuse)
        self.assertEqual(version(), "not installed")
