"""plumberd.wiring.core: the parts that all share, made once and left without a trace."""

from __future__ import annotations

import ipaddress
import os
import resource
from dataclasses import replace
from typing import Any

from twisted.internet.task import Clock

from plumberd.effects.credentials import maker_of
from plumberd.effects.handover import try_powers
from plumberd.effects.resolve import Resolver
from plumberd.pure.limits import Limits
from plumberd.pure.login import LoginSettings
from plumberd.pure.modes import Mode
from plumberd.pure.policy.decide import Policy, Question
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.policy.subject import Standing, Subject
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress
from plumberd.pure.who import LocalWho
from plumberd.wiring import core as core_module
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.core import OWN_ADDRESSES_SECONDS, Core, make_core
from tests.children import ChildTestCase, needs_root
from tests.support import in_thread, read_all, real_reactor, until

ONE, TWO = (ipaddress.ip_address(a) for a in ("192.0.2.1", "192.0.2.2"))


class CoreTestCase(ChildTestCase):
    def make(self, resolver: Resolver | None = None, **settings: Any) -> Core:
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        core = make_core(real_reactor, Settings("/run/ipc", **settings), resolver)
        self.addCleanup(self.end, core)
        return core

    async def end(self, core: Core) -> None:
        await core.end_relays()
        core.close()


class Made(CoreTestCase):
    def test_it_has_tried_what_this_process_may_do(self) -> None:
        self.assertEqual(self.make().powers, try_powers())

    def test_it_may_have_as_many_descriptors_as_the_hard_limit_says(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
        core = self.make()
        self.assertEqual((core.descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)), (hard, (hard, hard)))

    def test_root_the_broker_and_configured_users_may_serve_a_name(self) -> None:
        core = self.make(service_uids=frozenset((4321,)))
        self.assertEqual(set(core.services.trusted_uids), {0, os.geteuid(), 4321})

    def test_what_is_listened_on_is_not_dialled(self) -> None:
        core = self.make()
        core.own.add((1, 2))
        self.assertIn((1, 2), core.services.own)

    def test_a_resolver_of_the_callers_is_used(self) -> None:
        resolver = Resolver(real_reactor, lambda name: (ONE,))
        self.assertIs(self.make(resolver).resolver, resolver)

    def test_logins_are_checked_where_anything_checks_them(self) -> None:
        self.assertIsNone(self.make().logins)
        core = self.make(logins=LoginSettings("/passwords"))
        self.assertIsNotNone(core.logins)
        core.reconfigure(replace(core.settings, logins=LoginSettings()))
        self.assertIsNone(core.logins)

    def test_the_limit_of_failed_logins_is_the_one_in_force(self) -> None:
        core = self.make(logins=LoginSettings("/passwords"), limits=Limits(login_failures_per_minute=3))
        self.assertEqual(core._own_logins._attempts.per_address, 3)
        core.reconfigure(replace(core.settings, limits=Limits(login_failures_per_minute=2)))
        self.assertEqual(core._own_logins._attempts.per_address, 2)

    def test_the_deadlines_are_the_limits(self) -> None:
        core = self.make(limits=Limits(connect_seconds=7.0, handshake_seconds=3.0))
        self.assertEqual((core.connect_deadline.seconds, core.patience.seconds), (7.0, 3.0))


class Cgroups(CoreTestCase):
    """A client's cgroup is only read where a hand-over may be direct."""

    def same_cgroup(self, **settings: Any) -> bool:
        core = self.make(**settings)
        left, _ = self.pair()
        maker = maker_of(left)
        return core.inspector.who(left, maker, maker).same_cgroup

    @needs_root
    def test_where_all_is_locked_it_is_not(self) -> None:
        self.assertFalse(self.same_cgroup())

    def test_where_direct_is_asked_for_it_is(self) -> None:
        self.assertTrue(self.same_cgroup(handover=Mode.DIRECT))

    def test_where_a_rule_asks_for_direct_it_is(self) -> None:
        policy = Policy((parse_rule("allow out any any handover=direct"),))
        self.assertTrue(self.same_cgroup(policy=policy))


class Decisions(CoreTestCase):
    def question(self, service: str = "pong") -> Question:
        return Question(Direction.OUT, service, Destination("tcp", None, (ONE,), 9000))

    def test_they_are_those_of_the_policy(self) -> None:
        core = self.make(policy=Policy((parse_rule("deny out pong any"),)))
        self.assertIs(core.decide(self.question()).granted, False)
        self.assertIs(core.decide(self.question("ping")).granted, True)

    def test_the_same_question_is_decided_once(self) -> None:
        core = self.make()
        first = core.decide(self.question())
        self.assertIs(core.decide(self.question()), first)

    def test_none_outlives_the_settings_that_it_was_made_under(self) -> None:
        core = self.make()
        generation = core.generation
        self.assertIs(core.decide(self.question()).granted, True)
        core.reconfigure(replace(core.settings, policy=Policy((parse_rule("deny out pong any"),))))
        self.assertIs(core.decide(self.question()).granted, False)
        self.assertGreater(core.generation, generation)

    def test_no_more_are_remembered_than_so_many(self) -> None:
        self.patch(core_module, "DECISIONS", 2)
        core = self.make()
        for service in ("a", "b", "c"):
            core.decide(self.question(service))
        self.assertLessEqual(len(core._decisions), 2)


class InForce(CoreTestCase):
    """What settings say holds from the moment they are put in force."""

    def test_the_limits(self) -> None:
        core = self.make()
        limits = Limits(connect_seconds=3.0, handshake_seconds=2.0, relays=5, relays_per_peer=2)
        core.reconfigure(replace(core.settings, limits=limits, service_uids=frozenset((4321,))))
        self.assertEqual((core.connect_deadline.seconds, core.patience.seconds), (3.0, 2.0))
        self.assertEqual((core.relay_places.total, core.relay_places.per_key), (5, 2))
        self.assertIn(4321, core.services.trusted_uids)

    def test_cgroups_are_read_when_a_rule_asks_for_a_unit(self) -> None:
        core = self.make()
        before = core.inspector.tell_cgroup
        core.reconfigure(replace(core.settings, policy=Policy((parse_rule("allow out any any for unit:ci.service"),))))
        self.assertEqual((core.inspector.tell_cgroup, before or core.inspector.tell_cgroup), (True, True))

    def test_all_clients_are_one_to_rules_that_speak_of_none(self) -> None:
        core = self.make()
        one, other = LocalWho(1, 1, (), 1), LocalWho(2, 2, (), 2)
        self.assertEqual(core.subject_of(one), core.subject_of(other))
        core.reconfigure(replace(core.settings, policy=Policy((parse_rule("allow out any any for uid:1"),))))
        self.assertNotEqual(core.subject_of(one), core.subject_of(other))
        self.assertEqual(core.subject_of(replace(one, confined="in a test")).standing, Standing.CONFINED)


class AuditOnly(CoreTestCase):
    """For a time, what would be refused is granted."""

    question = Question(Direction.OUT, "pong", Destination("tcp", None, (ONE,), 9000))
    denying = Policy((parse_rule("deny out any any"),))

    def answers(self, core: Core) -> tuple[bool | None, str]:
        verdict = core.decide(self.question)
        return verdict.granted, verdict.would

    def test_it_ends_by_itself_and_decisions_are_made_anew(self) -> None:
        clock = Clock()
        core = self.make(policy=self.denying)
        core.reactor = clock
        core.reconfigure(replace(core.settings, audit_only_seconds=60))
        generation = core.generation
        self.assertEqual(self.answers(core), (True, "denied"))
        clock.advance(59)
        self.assertEqual(self.answers(core), (True, "denied"))
        clock.advance(1)
        self.assertEqual(self.answers(core), (False, ""))
        self.assertGreater(core.generation, generation)
        core.reactor = real_reactor

    def test_a_reload_that_says_the_same_neither_prolongs_nor_ends_it(self) -> None:
        clock = Clock()
        core = self.make(policy=self.denying)
        core.reactor = clock
        core.reconfigure(replace(core.settings, audit_only_seconds=60))
        clock.advance(50)
        core.reconfigure(replace(core.settings, generation=2))
        self.assertEqual(self.answers(core), (True, "denied"))
        clock.advance(10)
        self.assertEqual(self.answers(core), (False, ""))
        core.reconfigure(replace(core.settings, generation=3))
        self.assertEqual(self.answers(core), (False, ""))
        core.reactor = real_reactor

    def test_a_reload_without_it_ends_it(self) -> None:
        core = self.make(policy=self.denying, audit_only_seconds=60)
        self.assertEqual(self.answers(core), (True, "denied"))
        core.reconfigure(replace(core.settings, audit_only_seconds=0))
        self.assertEqual(self.answers(core), (False, ""))


class OwnAddresses(CoreTestCase):
    """What a confined client needs a rule for is what the machine has now."""

    def setUp(self) -> None:
        super().setUp()
        self.now: frozenset[IPAddress] = frozenset((ONE,))
        self.broken = False
        self.patch(core_module, "own_addresses", self.own_addresses)

    def own_addresses(self) -> frozenset[IPAddress]:
        if self.broken:
            raise OSError(24, "Too many open files")
        return self.now

    def judged_by(self, core: Core) -> frozenset[IPAddress]:
        return core.refreshed_policy().own_addresses

    def test_a_confined_client_is_judged_by_what_there_is_when_it_asks(self) -> None:
        core = self.make(policy=Policy((parse_rule("allow out any tcp:any"),)))
        core.reactor = clock = Clock()
        to = Destination("tcp", None, (TWO,), 80)
        question = Question(Direction.OUT, "pong", to, Subject(Standing.CONFINED))
        self.assertIs(core.decide(question).granted, True)
        self.now = frozenset((TWO,))
        clock.advance(2 * OWN_ADDRESSES_SECONDS)
        self.assertIs(core.decide(question).granted, False)
        core.reactor = real_reactor

    def test_those_of_the_start_count_as_well(self) -> None:
        core = self.make(policy=Policy(own_addresses=frozenset((TWO,))))
        self.assertEqual(self.judged_by(core), {ONE, TWO})

    def test_a_new_one_counts_when_the_list_is_too_old(self) -> None:
        core = self.make()
        core.reactor = clock = Clock()
        self.assertEqual(self.judged_by(core), {ONE})
        self.now = frozenset((TWO,))
        clock.advance(OWN_ADDRESSES_SECONDS)
        self.assertEqual(self.judged_by(core), {ONE})
        clock.advance(0.001)
        self.assertEqual(self.judged_by(core), {TWO})
        core.reactor = real_reactor

    def test_where_they_cannot_be_had_what_was_known_holds(self) -> None:
        core = self.make()
        core.reactor = clock = Clock()
        self.judged_by(core)
        self.broken = True
        clock.advance(2 * OWN_ADDRESSES_SECONDS)
        self.assertEqual(self.judged_by(core), {ONE})
        core.reactor = real_reactor


class Relays(CoreTestCase):
    def test_one_peer_has_so_many_and_others_are_not_concerned(self) -> None:
        core = self.make(limits=Limits(relays=10, relays_per_peer=2))
        core.begin_relay("uid 1")
        core.begin_relay("uid 1")
        with self.assertRaises(Refused) as raised:
            core.begin_relay("uid 1")
        self.assertIs(raised.exception.word, Refusal.BUSY)
        self.assertIn("relays_per_peer=2", raised.exception.reason)
        core.begin_relay("uid 2")

    def test_all_together_have_so_many(self) -> None:
        core = self.make(limits=Limits(relays=2, relays_per_peer=2))
        core.begin_relay("uid 1")
        core.begin_relay("uid 2")
        with self.assertRaises(Refused) as raised:
            core.begin_relay("uid 3")
        self.assertIn("relays=2", raised.exception.reason)

    async def test_one_that_ends_makes_room(self) -> None:
        core = self.make(limits=Limits(relays=1, relays_per_peer=1))
        core.begin_relay("uid 1")
        service, ours = self.pair()
        half = core.adopt(ours)
        self.assertEqual(core.relays, {half})
        core.end_relay("uid 1", half)
        self.assertEqual(core.relays, set())
        core.begin_relay("uid 1")
        half.abort()
        await until(lambda: half.lost)
        self.assertEqual(await in_thread(read_all, service), b"")

    async def test_an_adopted_side_is_a_relay_until_it_ends(self) -> None:
        core = self.make()
        _service, ours = self.pair()
        half = core.adopt(ours)
        self.assertEqual(core.relays, {half})
        half.abort()
        await until(lambda: half.lost)
        self.assertEqual(core.relays, set())

    async def test_at_the_end_all_are_cut_and_waited_for(self) -> None:
        core = self.make()
        services = []
        for _ in range(3):
            service, ours = self.pair()
            core.adopt(ours)
            services.append(service)
        await core.end_relays()
        self.assertEqual(core.relays, set())
        for service in services:
            self.assertEqual(service.recv(1), b"")


class Closed(CoreTestCase):
    async def test_nothing_is_left_and_nothing_is_told_any_more(self) -> None:
        told: list[object] = []
        core = self.make(Resolver(real_reactor, lambda name: (ONE,)))
        core.connect_deadline.set("a", lambda: told.append("deadline"))
        core.patience.set("b", lambda: told.append("patience"))
        core.resolver.resolve("a.example", 1, told.append)
        left, right = self.pair()
        core.poll.watch(left.fileno(), told.append)
        core.poll.again(lambda: told.append("again"))
        core.pipes.give_back(core.pipes.take())
        core.close()
        right.sendall(b"x")
        await in_thread(lambda: None)
        self.assertEqual(told, [])


@needs_root
class AsAnother(CoreTestCase):
    MAKE = """
import sys
from twisted.internet import reactor
from plumberd.effects import kernel
from plumberd.wiring.core import make_core
from plumberd.wiring.config.settings import Settings
from tests.inside import NOBODY, become
def tell(core):
    powers, services = core.powers, core.services
    print(powers.lock, powers.give, powers.uid, services.actas.can_switch, sorted(services.trusted_uids))
"""

    async def test_when_root_is_given_up_it_finds_out_again(self) -> None:
        out = await self.run_child(
            self.MAKE + "core = make_core(reactor, Settings('/r', service_uids=frozenset((7,))))\n"
            "tell(core); become(NOBODY); core.know_yourself(); tell(core); core.close()"
        )
        self.assertEqual(out.splitlines(), ["True True 0 True [0, 7]", "False False 65534 False [0, 7, 65534]"])

    async def test_who_is_not_root_drops_what_would_open_every_socket(self) -> None:
        out = await self.run_child(
            self.MAKE + "become(NOBODY, keep_capabilities=True)\n"
            "override = 1 << kernel.CAP_DAC_OVERRIDE | 1 << kernel.CAP_DAC_READ_SEARCH\n"
            "before = kernel.effective_capabilities(); core = make_core(reactor, Settings('/r'))\n"
            "after = kernel.effective_capabilities()\n"
            "print(before & override == override, after == before & ~override, core.powers.lock, core.powers.give)\n"
            "core.close()"
        )
        self.assertEqual(out, "True True True True\n")

    async def test_root_keeps_it(self) -> None:
        out = await self.run_child(
            self.MAKE + "before = kernel.effective_capabilities(); core = make_core(reactor, Settings('/r'))\n"
            "print(kernel.effective_capabilities() == before); core.close()"
        )
        self.assertEqual(out, "True\n")
