"""Rules and routes that are for some clients only, over a running broker, with real clients of other users."""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import os
import pwd
import socket
from typing import Any

from plumberd.effects import credentials
from plumberd.pure.policy.decide import DEFAULTS, Policy
from plumberd.pure.policy.route import Choice, Routes, parse_redirect
from plumberd.pure.policy.rule import bind_rule, parse_rule
from plumberd.pure.policy.subject import UNMAPPED, parse_condition
from plumberd.wiring.service import PlumberdService
from tests.children import needs_root
from tests.clients import NO_NETWORK, SECCOMP, Client, ClientTestCase, user, word
from tests.running import rules_of
from tests.support import in_thread, native_lookup, read_exactly
from tests.tables import each

DAEMON = pwd.getpwnam("daemon")
GROUP = grp.getgrnam("daemon")
STRANGER = 5003
"""A uid that no rule names."""

LOOKUP: dict[str, Any] = {"op": "lookup", "service": "web"}


@needs_root
class ConditionTestCase(ClientTestCase):
    """A broker with a local service `web`, for whom the rules say."""

    def start(self, *rules: str, **settings: Any) -> PlumberdService:
        service = self.run_broker(*rules, **settings)
        self.serve(service.settings.rundir, "web", lambda sock: None)
        return self.open_to_all(service)

    async def check(self, client: Client, wanted: str, *rules: str) -> dict[str, Any]:
        found = await self.answer(self.start(*rules), client, **LOOKUP)
        self.assertEqual(word(found), wanted, found)
        return found


OPEN = ("allow out web unix:web for {}", "deny out any any")
CLOSED = ("deny out web unix:web for {}",)


class Users(ConditionTestCase):
    @each(
        ("by_name", "user:daemon", user(DAEMON.pw_uid), "ok"),
        ("by_number", f"uid:{STRANGER}", user(STRANGER), "ok"),
        ("another_by_name", "user:daemon", user(STRANGER), "denied"),
        ("another_by_number", f"uid:{STRANGER}", user(DAEMON.pw_uid), "denied"),
        ("root_is_no_exception", "user:daemon", "", "denied"),
        ("its_group_is_not_it", "user:daemon", user(STRANGER, DAEMON.pw_gid), "denied"),
        ("one_of_whom_nothing_can_be_told", f"uid:{STRANGER}", user(UNMAPPED), "denied"),
    )
    async def test_an_allow_is_for_whom_it_names(self, _: str, condition: str, before: str, wanted: str) -> None:
        await self.check(Client(before), wanted, *(rule.format(condition) for rule in OPEN))

    @each(
        ("by_name", "user:daemon", user(DAEMON.pw_uid), "denied"),
        ("another", "user:daemon", user(STRANGER), "ok"),
        ("one_of_whom_nothing_can_be_told", "user:daemon", user(UNMAPPED), "denied"),
    )
    async def test_a_deny_is_for_whom_it_names(self, _: str, condition: str, before: str, wanted: str) -> None:
        await self.check(Client(before), wanted, *(rule.format(condition) for rule in CLOSED))

    async def test_a_set_uid_program_is_whom_it_acts_as(self) -> None:
        before = f"import os; os.setresgid({STRANGER}, 0, 0); os.setresuid({STRANGER}, {DAEMON.pw_uid}, 0)"
        rules = [rule.format("user:daemon") for rule in OPEN]
        found = await self.answer(self.start(*rules), Client(before), **LOOKUP)
        self.assertEqual(word(found), "ok", found)

    async def test_a_confined_one_is_whom_a_rule_may_name_too(self) -> None:
        rules = [rule.format(f"uid:{STRANGER}") for rule in OPEN]
        for client in (Client(user(STRANGER), within=NO_NETWORK), Client(user(STRANGER) + "; " + SECCOMP)):
            await self.check(client, "ok", *rules)
        await self.check(Client(user(DAEMON.pw_uid), within=NO_NETWORK), "denied", *rules)

    async def test_who_is_refused_is_told_the_word_the_rule_s_number_and_what_to_ask_for(self) -> None:
        rules = ("allow out web unix:web for user:daemon", "deny out any any")
        found = await self.check(Client(user(STRANGER)), "denied", *rules)
        wanted = "rule 2 denies it; it would take a rule in front of that one: allow out web unix:web"
        self.assertEqual(found["reason"], wanted)


class Groups(ConditionTestCase):
    @each(
        ("the_primary_one", user(STRANGER, GROUP.gr_gid), "ok"),
        ("a_supplementary_one", user(STRANGER, groups=[7, GROUP.gr_gid, 9]), "ok"),
        ("none", user(STRANGER, groups=[7, 9]), "denied"),
        ("the_user_of_that_name", user(DAEMON.pw_uid, 7), "denied"),
        ("one_that_cannot_be_told", user(STRANGER, UNMAPPED), "denied"),
    )
    async def test_an_allow_is_for_its_members(self, _: str, before: str, wanted: str) -> None:
        await self.check(Client(before), wanted, *(rule.format("group:daemon") for rule in OPEN))

    async def test_a_deny_is_for_who_may_be_one(self) -> None:
        await self.check(Client(user(STRANGER, UNMAPPED)), "denied", *(rule.format("group:daemon") for rule in CLOSED))

    async def test_the_last_of_more_than_256_counts(self) -> None:
        service = self.start()
        core = service.core
        assert core is not None
        rules = tuple(
            bind_rule(parse_rule(rule.format("group:many")), lambda name: None, lambda name: 60000) for rule in OPEN
        )
        core.reconfigure(dataclasses.replace(core.settings, policy=Policy(rules, dict(DEFAULTS))))
        for groups, wanted in (([*range(1000, 1400), 60000], "ok"), (range(1000, 1400), "denied")):
            found = await self.answer(service, Client(user(STRANGER, groups=[*groups])), **LOOKUP)
            self.assertEqual(word(found), wanted)

    @each(
        ("both", user(DAEMON.pw_uid, groups=[GROUP.gr_gid]), "ok"),
        ("the_user_alone", user(DAEMON.pw_uid, 7), "denied"),
        ("the_group_alone", user(STRANGER, GROUP.gr_gid), "denied"),
    )
    async def test_several_conditions_all_have_to_hold(self, _: str, before: str, wanted: str) -> None:
        condition = "user:daemon for group:daemon"
        await self.check(Client(before), wanted, *(rule.format(condition) for rule in OPEN))


class Elsewhere(ConditionTestCase):
    """Where a name leads may depend on who asks."""

    async def test_a_redirect_for_a_group_is_for_its_members(self) -> None:
        beta = rules_of("allow out x any for group:daemon")[0].conditions
        routes = Routes({"web": (Choice(("next",), beta), Choice(("web",)))})
        service = self.run_broker(routes=routes)
        for name in ("web", "next"):
            self.serve(service.settings.rundir, name, lambda sock: None)
        self.open_to_all(service)
        for before, wanted in ((user(STRANGER, GROUP.gr_gid), "next"), (user(STRANGER), "web")):
            found = await self.answer(service, Client(before), op="explain", direction="out", service="web")
            self.assertIn(f"the local service {wanted}", [step["text"] for step in found["steps"]])
            self.assertEqual(word(await self.answer(service, Client(before), **LOOKUP)), "ok")
        names = [getattr(o.to, "name", None) for o in self.outcomes if o.verdict == "granted"]
        self.assertEqual(names, ["next", "web"])

    async def test_one_for_a_local_user_is_not_for_callers(self) -> None:
        root = rules_of("allow out x any for uid:0")[0].conditions
        routes = Routes({"web": (Choice((parse_redirect("web", "tcp://127.0.0.1:1"),), root), Choice(("web",)))})
        service = self.run_broker("allow in any any", routes=routes, tcpd=("tcp:0:interface=127.0.0.1",))
        self.serve(service.settings.rundir, "web", lambda sock: None)
        sock = self.owned(socket.create_connection(("127.0.0.1", self.tcpd_port(service))))
        sock.sendall(b"web")
        self.assertEqual(await in_thread(read_exactly, sock, 2), b"ok")


class Units(ConditionTestCase):
    """A whole cgroup path, and nothing that only looks like it."""

    def setUp(self) -> None:
        super().setUp()
        self.made: list[str] = []
        self.root = "/sys/fs/cgroup/systemd" if os.path.isdir("/sys/fs/cgroup/systemd") else "/sys/fs/cgroup"

    def cgroup(self, path: str) -> str:
        """Make a cgroup, removed afterwards; return the code by which a process goes there."""
        whole = self.root
        for part in path.strip("/").split("/"):
            whole = os.path.join(whole, part)
            if not os.path.isdir(whole):
                try:
                    os.mkdir(whole)
                except OSError as e:
                    self.skipTest(f"no cgroup can be made here: {e.strerror}")
                self.addCleanup(self.remove, whole)
        return f"import os; open({whole + '/cgroup.procs'!r}, 'w').write(str(os.getpid()))"

    def remove(self, path: str) -> None:
        with contextlib.suppress(OSError):  # a process that is just ending; nobody minds an empty one
            os.rmdir(path)

    async def test_a_process_in_it_is_it_and_others_are_not(self) -> None:
        name = f"pl{os.getpid()}.service"
        rules = [rule.format(f"unit:{name}") for rule in OPEN]
        places = (
            (f"/system.slice/{name}", "ok"),
            (f"/user.slice/{name}", "denied"),
            (f"/system.slice/{name}/child", "denied"),
            (f"/pl{os.getpid()}.slice/system.slice/{name}", "denied"),
        )
        service = self.start(*rules)
        for path, wanted in places:
            before = f"{self.cgroup(path)}; {user(STRANGER)}"
            self.assertEqual(word(await self.answer(service, Client(before), **LOOKUP)), wanted, path)
        self.assertEqual(word(await self.answer(service, Client(user(STRANGER)), **LOOKUP)), "denied")

    async def test_a_whole_path_names_it_too(self) -> None:
        path = f"/pl{os.getpid()}.slice/a/b"
        before = f"{self.cgroup(path)}; {user(STRANGER)}"
        await self.check(Client(before), "ok", *(rule.format(f"unit:{path}") for rule in OPEN))

    async def test_who_goes_there_after_connecting_is_there_when_it_asks(self) -> None:
        path = f"/pl{os.getpid()}.slice"
        client = Client(between=self.cgroup(path))
        await self.check(client, "ok", *(rule.format(f"unit:{path}") for rule in OPEN))

    async def test_of_whom_it_cannot_be_told_an_allow_is_not_and_a_deny_is(self) -> None:
        read = credentials._read

        def hide(path: str) -> bytes:
            if path.endswith("/cgroup") and "/self/" not in path:
                return b"0::/../outside\n"
            return read(path)

        self.patch(credentials, "_read", hide)
        await self.check(Client(), "denied", *(rule.format("unit:/") for rule in OPEN))
        await self.check(Client(), "denied", *(rule.format("unit:ci.service") for rule in CLOSED))


class Asked(ConditionTestCase):
    """What nobody asks for is not looked at."""

    def setUp(self) -> None:
        super().setUp()
        self.read: list[str] = []
        read = credentials._read

        def note(path: str) -> bytes:
            self.read.append(path)
            return read(path)

        self.patch(credentials, "_read", note)

    async def cgroups_read(self, service: PlumberdService) -> int:
        self.read.clear()
        _, sock = await in_thread(native_lookup, service.settings.rundir, "web")
        if sock is not None:
            sock.close()
        self.assertTrue(self.read)
        return len([path for path in self.read if path.endswith("/cgroup")])

    async def test_a_cgroup_is_read_only_while_a_rule_asks_for_one(self) -> None:
        service = self.start("allow out web any for uid:0")
        self.assertEqual(await self.cgroups_read(service), 0)
        self.put_in_force(service, "allow out web any for unit:ci.service")
        self.assertEqual(await self.cgroups_read(service), 1)
        self.put_in_force(service, "allow out web any")
        self.assertEqual(await self.cgroups_read(service), 0)

    async def test_or_a_route_or_redirect(self) -> None:
        choices = (Choice(("web",), (parse_condition("unit:ci.service"),)), Choice(("web",)))
        self.assertEqual(await self.cgroups_read(self.start(routes=Routes({"web": choices}))), 1)
