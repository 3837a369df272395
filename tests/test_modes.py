"""plumberd.pure.modes: the hand-over mode, and never silently a weaker one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.modes import WISHES, Mode, Powers, choose_local_mode, choose_mode
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho
from tests.tables import PROPERTY, each

OURS = 1000
SAME = LocalWho(OURS, OURS, (), 1, "", True)
OTHER_CGROUP = LocalWho(OURS, OURS, (), 1)
OTHER_USER = LocalWho(2000, 2000, (), 1, "", True)
CONFINED = LocalWho(OURS, OURS, (), 1, "another network namespace", True)

NOTHING = Powers(lock=False, give=False, uid=OURS)
LOCK = Powers(lock=True, give=False, uid=OURS)
GIVE = Powers(lock=False, give=True, uid=OURS)
BOTH = Powers(lock=True, give=True, uid=OURS)
ROOT = Powers(lock=True, give=True, uid=0)


class Chosen(SynchronousTestCase):
    @each(
        ("auto_locks_for_everybody", Mode.AUTO, CONFINED, BOTH, Mode.LOCKED),
        ("auto_locks_for_another_user", Mode.AUTO, OTHER_USER, BOTH, Mode.LOCKED),
        ("auto_of_root", Mode.AUTO, OTHER_CGROUP, ROOT, Mode.LOCKED),
        ("auto_without_chown_for_its_own_user", Mode.AUTO, OTHER_CGROUP, LOCK, Mode.LOCKED),
        ("auto_without_chown_for_another", Mode.AUTO, OTHER_USER, LOCK, Mode.RELAYED),
        ("auto_without_powers", Mode.AUTO, SAME, NOTHING, Mode.DIRECT),
        ("auto_without_filter", Mode.AUTO, SAME, GIVE, Mode.DIRECT),
        ("auto_for_another_user", Mode.AUTO, OTHER_USER, GIVE, Mode.RELAYED),
        ("auto_for_another_cgroup", Mode.AUTO, OTHER_CGROUP, NOTHING, Mode.RELAYED),
        ("auto_for_a_confined_one", Mode.AUTO, CONFINED, NOTHING, Mode.RELAYED),
        ("locked", Mode.LOCKED, CONFINED, LOCK, Mode.LOCKED),
        ("direct_though_it_could_be_locked", Mode.DIRECT, SAME, BOTH, Mode.DIRECT),
        ("relayed_always", Mode.RELAYED, SAME, BOTH, Mode.RELAYED),
        ("relayed_without_powers", Mode.RELAYED, CONFINED, NOTHING, Mode.RELAYED),
    )
    def test_the_strongest_possible_mode_is_chosen(
        self, _: str, wish: Mode, who: LocalWho, powers: Powers, mode: Mode
    ) -> None:
        self.assertEqual(choose_mode(wish, who, powers), mode)

    @each(
        ("locked_without_filter", Mode.LOCKED, SAME, GIVE, "cannot lock sockets"),
        ("locked_without_chown", Mode.LOCKED, OTHER_USER, LOCK, "cannot give sockets to uid 2000 (CAP_CHOWN)"),
        ("direct_confined", Mode.DIRECT, CONFINED, BOTH, "confined (another network namespace)"),
        ("direct_other_user", Mode.DIRECT, OTHER_USER, BOTH, "uid 2000 is not the broker's (1000)"),
        ("direct_of_root", Mode.DIRECT, SAME, ROOT, "uid 1000 is not the broker's (0)"),
        ("direct_other_cgroup", Mode.DIRECT, OTHER_CGROUP, BOTH, "cgroup is not the broker's"),
    )
    def test_a_wish_that_cannot_be_met_is_refused_with_the_reason(
        self, _: str, wish: Mode, who: LocalWho, powers: Powers, reason: str
    ) -> None:
        with self.assertRaises(Refused) as caught:
            choose_mode(wish, who, powers)
        self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)
        self.assertIn(f"handover={wish.value}", caught.exception.reason)
        self.assertIn(reason, caught.exception.reason)

    @each(("auto", Mode.AUTO), ("relayed", Mode.RELAYED))
    def test_an_endpoint_is_relayed(self, _: str, wish: Mode) -> None:
        self.assertEqual(choose_mode(wish, SAME, BOTH, carrier="an endpoint"), Mode.RELAYED)

    def test_what_carries_messages_can_write_them_whole(self) -> None:
        self.assertEqual(choose_mode(Mode.FRAMED, SAME, BOTH, carrier="udp", messages=True), Mode.FRAMED)
        self.assertEqual(choose_mode(Mode.AUTO, SAME, BOTH, carrier="udp", messages=True), Mode.RELAYED)
        with self.assertRaises(Refused) as caught:
            choose_mode(Mode.FRAMED, SAME, BOTH, carrier="udp", packets=True, messages=True)
        self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)

    @each(("locked", Mode.LOCKED), ("direct", Mode.DIRECT))
    def test_an_endpoint_can_be_nothing_else(self, wish_name: str, wish: Mode) -> None:
        with self.assertRaises(Refused) as caught:
            choose_mode(wish, SAME, BOTH, carrier="an endpoint")
        self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)
        self.assertIn(f"handover={wish_name}", caught.exception.reason)


class Never(SynchronousTestCase):
    @PROPERTY
    @given(
        st.sampled_from(WISHES),
        st.builds(
            lambda uid, confined, same_cgroup: LocalWho(uid, 0, (), 1, confined, same_cgroup),
            st.integers(0, 2),
            st.sampled_from(("", "another network namespace")),
            st.booleans(),
        ),
        st.builds(Powers, st.booleans(), st.booleans(), st.integers(0, 2)),
        st.sampled_from(("", "an endpoint")),
        st.booleans(),
    )
    def test_a_mode_without_what_it_needs(
        self, wish: Mode, who: LocalWho, powers: Powers, carrier: str, packets: bool
    ) -> None:
        """A bare socket goes to a proved equal alone, a locked one only where it can be locked, none is made up."""
        try:
            mode = choose_mode(wish, who, powers, carrier=carrier, packets=packets)
        except Refused as e:
            self.assertEqual(e.word, Refusal.NOT_POSSIBLE)
            self.assertIn(wish, (Mode.LOCKED, Mode.DIRECT, Mode.FRAMED))
            return
        self.assertIn(mode, (Mode.LOCKED, Mode.DIRECT, Mode.RELAYED, Mode.FRAMED))
        self.assertIn(wish, (Mode.AUTO, mode))
        if mode is not Mode.RELAYED:
            self.assertEqual((carrier, packets), ("", False))
        if mode is Mode.DIRECT:
            self.assertEqual((who.confined, who.uid, who.same_cgroup), ("", powers.uid, True))
        if mode is Mode.LOCKED:
            self.assertTrue(powers.lock and (powers.give or who.uid == powers.uid))

    @each(
        (Mode.AUTO, True, False, Mode.LOCAL),
        (Mode.LOCKED, True, True, Mode.LOCAL),
        (Mode.DIRECT, True, False, Mode.LOCAL),
        (Mode.RELAYED, True, False, Mode.RELAYED),
        (Mode.AUTO, False, True, Mode.RELAYED),
        (Mode.FRAMED, True, False, Mode.FRAMED),
        (Mode.FRAMED, False, False, Mode.FRAMED),
    )
    def test_a_local_connection_is_local_or_translated(
        self, wish: Mode, same_kind: bool, packets: bool, mode: Mode
    ) -> None:
        self.assertEqual(choose_local_mode(wish, same_kind=same_kind, packets=packets), mode)

    def test_packets_are_framed_already(self) -> None:
        with self.assertRaises(Refused) as caught:
            choose_local_mode(Mode.FRAMED, same_kind=True, packets=True)
        self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)

    def test_local_is_no_mode_to_ask_for(self) -> None:
        self.assertEqual([mode.value for mode in WISHES], ["auto", "direct", "locked", "relayed", "framed"])
        self.assertEqual({mode.value for mode in Mode} - {mode.value for mode in WISHES}, {"local"})
