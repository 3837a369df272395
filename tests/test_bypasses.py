"""Attacks on filters of this kind, one by one: advisories, issues and talks tell of each that it has worked somewhere.

Every attack goes the way of a lookup: the URI's grammar, what rules see of it, the rules without
addresses, and the rules for each address.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.resolve import MOST_ADDRESSES, Answer, Resolver
from plumberd.pure.limits import Limits
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.decide import Policy, Question, Verdict, decide, judge
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.index import FEW
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import Choice, Endpoint, Routes, destination, find_way, parse_route, parse_target_uri
from plumberd.pure.policy.rule import RuleError, parse_rule
from plumberd.pure.policy.subject import ANYBODY, Standing, Subject
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import UriError, parse_uri
from plumberd.wiring.service import PlumberdService
from tests.ports import free_port
from tests.running import RunningTestCase
from tests.support import DEADLINE_SECONDS, in_thread, native_ask, native_lookup, read_exactly, real_reactor, until
from tests.tables import PROPERTY, each
from tests.test_address import METADATA, spellings

IN, OUT = Direction.IN, Direction.OUT

PUBLIC = "198.51.100.7"
"""What names resolve to where it does not matter."""

OTHERS = tuple(f"deny out other{n} tcp:other{n}.example" for n in range(FEW + 1))
"""Rules about other services."""

NAMES = (
    "evil.example",
    "EVIL.Example",
    "evil.example.",
    "Evil.EXAMPLE.",
    "%65vil.example",
    "evil%2eexample",
    "evil.exampl%65%2E",
    "evil\u3002example",
    "evil\uff0eexample.",
    "evil.example\uff61",
    "ev%E2%80%8Bil.example",
    "\uff45vil.example",
    "\u24d4\u24e5\u24d8\u24db.example",
    "\U0001d68e\U0001d69f\U0001d692\U0001d695.example",
    "e\u00advil.example",
    "evil\u200b.example",
    "\u2060evil.\ufeffexample",
    "[evil.example]",
    "[[evil.example]]",
    "[evil.example].",
    "evil.example..",
    "evil..example",
    ".evil.example",
    "evil.example%00",
    "evil.example%00.good.example",
    "evil.example%20",
    "evil.example%0a",
    "evil.example\\",
    "%2565vil.example",
    "evil.example%2e.",
    "*.example",
    "evi?.example",
)
"""Attempts to write evil.example so that a rule for it does not see it."""

LOOKALIKES = (
    "ev\u0456l.example",
    "xn--evl-khd.example",
    "evil.example.good.example",
    "evil-.example",
    "evil.exampl\u0435",
)
"""Other hosts than evil.example, and such as are none."""

ADDRESSES = (
    "10.0.0.5",
    "10.0.0.5.",
    "10%2e0.0.5",
    "%31%30.0.0.5",
    "\uff11\uff10.0.0.5",
    "\u2469.\u24ea.\u24ea.\u2464",
    "10\u30020\u30020\u30025",
    "1\u00ad0.0.0.5",
    "10.5",
    "10.0.5",
    "167772165",
    "0xa000005",
    "0xa.0.0.5",
    "012.0.0.5",
    "0012.0.0.5",
    "01200000005",
    "10.0.0.05",
    "10.0.0.0x5",
    "10.0.0.261",
    "1_0.0.0.5",
    "+10.0.0.5",
    "10.0.0.5%00",
    "10.0.0.5 good.example",
    "10.0.0.5%20good.example",
    "10.0.0.5/good.example",
    "[10.0.0.5]",
    "[::ffff:10.0.0.5]",
    "[::FFFF:a00:5]",
    "[0:0:0:0:0:ffff:0a00:0005]",
    "[::ffff:10.0.0.05]",
    "[::ffff:10.5]",
    "[::ffff:10.0.0.5%1]",
    "[::ffff:10.0.0.5%251]",
)
"""Attempts to write 10.0.0.5 so that a rule for it does not see it; other families' are in test_address."""


def reach(
    text: str, *rules: str, known: tuple[str, ...] = (PUBLIC,), out: bool = True, standing: Standing = Standing.LOCAL
) -> tuple[str, ...]:
    """Return the addresses that a lookup of the URI *text* may connect to; none where it is refused.

    Few rules are tried one by one, and many are looked up: it has to come out the same.

    :param known: what its name resolves to, where it is one.
    """
    found, behind_many = (_reach(text, (*more, *rules), known, out, standing) for more in ((), OTHERS))
    if found != behind_many:
        raise AssertionError(f"{text}: {found} with few rules, {behind_many} with many")
    return found


def _reach(text: str, rules: tuple[str, ...], known: tuple[str, ...], out: bool, standing: Standing) -> tuple[str, ...]:
    try:
        to = destination(parse_uri(text))
    except UriError:
        return ()
    policy = Policy(tuple(map(parse_rule, rules)), {IN: False, OUT: out})
    question = Question(OUT, "pong", to, Subject(standing))
    if decide(policy, question).granted is False:
        return ()
    if to.addresses is None:
        found = tuple(map(ipaddress.ip_address, known))
        question = dataclasses.replace(question, to=dataclasses.replace(to, addresses=found))
    verdict = decide(policy, question)
    return tuple(map(str, verdict.addresses)) if verdict.granted else ()


def is_host(text: str, host: str) -> bool:
    """Tell whether *text* is read, and as *host*."""
    try:
        return parse_uri(f"tcp://{text}:80").host == host
    except UriError:
        return False


class DeniedNames(SynchronousTestCase):
    """CVE-2022-24825 (another case, a dot at the end), CVE-2022-29188 (brackets, and then two of them), and more."""

    def test_without_a_rule_the_host_may_be_reached(self) -> None:
        self.assertEqual(reach("tcp://evil.example:80"), (PUBLIC,))

    @each(*((text,) for text in NAMES))
    def test_no_spelling_passes_a_rule_for_the_name(self, text: str) -> None:
        for rule in (
            "deny out any tcp:evil.example",
            "deny out any tcp:*.example",
            "deny out any tcp://EVIL.example.:80",
        ):
            with_rule, without = reach(f"tcp://{text}:80", rule), reach(f"tcp://{text}:80")
            self.assertEqual(with_rule, (), rule)
            if is_host(text, "evil.example"):
                self.assertEqual(without, (PUBLIC,))

    @each(*((text,) for text in NAMES))
    def test_no_rule_is_written_so_that_it_never_matches(self, text: str) -> None:
        """It is a mistake, or it speaks of the host."""
        try:
            parse_rule(f"deny out any tcp:{text}:80")
        except RuleError:
            return
        self.assertEqual(reach(f"tcp://{text}:80", f"deny out any tcp:{text}:80"), ())
        if is_host(text, "evil.example"):
            self.assertEqual(reach("tcp://evil.example:80", f"deny out any tcp:{text}:80"), ())

    def test_the_name_in_another_alphabet_is_denied_in_both_of_its_forms(self) -> None:
        """Once, lists in Unicode were compared with requests in Punycode."""
        for written in ("\u00e9v\u00efl.example", "xn--vl-9iaz.example", "\u00c9V\u00cfL.example", "*.example"):
            for asked in ("\u00e9v\u00efl.example", "XN--VL-9IAZ.example.", "%C3%A9v%c3%afl.example"):
                self.assertEqual(reach(f"tcp://{asked}", f"deny out any tcp:{written}"), (), (written, asked))

    def test_a_port_does_not_take_a_host_out_of_a_rule(self) -> None:
        for port in ("", ":1", ":80", ":9000", ":65535"):
            self.assertEqual(reach(f"tcp://evil.example{port}", "deny out any tcp:evil.example"), ())

    def test_names_below_a_denied_name_are_denied_by_a_wildcard_at_any_depth(self) -> None:
        for host in ("a.evil.example", "A.B.evil.example.", "_x.evil.example", "xn--bcher-kva.evil.example"):
            self.assertEqual(reach(f"tcp://{host}", "deny out any tcp:*.evil.example"), ())
        for host in ("evil.example", "notevil.example", "evil.example.good.example"):
            self.assertEqual(reach(f"tcp://{host}", "deny out any tcp:*.evil.example"), (PUBLIC,))

    @PROPERTY
    @given(st.data())
    def test_no_mixture_of_spellings_passes(self, data: st.DataObject) -> None:
        text = data.draw(mixtures("evil.example"))
        self.assertEqual(reach(f"tcp://{text}:80", "deny out any tcp:evil.example"), ())
        self.assertEqual(reach(f"tcp://{text}:80"), (PUBLIC,))


class AllowedNames(SynchronousTestCase):
    """A rule that opens a host opens no other one."""

    RULES = (
        "allow out pong tcp:good.example:80",
        "allow out pong tls:good.example:443",
        "allow out pong tcp:*.ours.example",
    )

    def test_the_host_itself_may_be_reached(self) -> None:
        for text in (
            "tcp://good.example:80",
            "tcp://GOOD.example.:80",
            "tls://good.example:443",
            "tcp://a.ours.example:7",
        ):
            self.assertEqual(reach(text, *self.RULES, out=False), (PUBLIC,))

    @each(
        ("tcp://good.example:81",),
        ("tcp://good.example",),
        ("tls://good.example:80",),
        ("udp://good.example:80",),
        ("ws://good.example:80",),
        ("tcp://agood.example:80",),
        ("tcp://a.good.example:80",),
        ("tcp://good.example.evil.example:80",),
        ("tcp://good-example:80",),
        ("tcp://goodxexample:80",),
        ("tcp://example:80",),
        ("tcp://good.exampl:80",),
        ("tcp://good.example%00.evil.example:80",),
        ("tcp://evil.example%00good.example:80",),
        ("tcp://evil.example%23good.example:80",),
        ("tcp://evil.example%2fgood.example:80",),
        ("tcp://evil.example%3fgood.example:80",),
        ("tcp://evil.example%40good.example:80",),
        ("tcp://evil.example\\good.example:80",),
        ("tcp://evil.example\\@good.example:80",),
        ("tcp://evil.example#good.example:80",),
        ("tcp://evil.example?good.example:80",),
        ("tcp://evil.example;good.example:80",),
        ("tcp://evil.example,good.example:80",),
        ("tcp://evil.example good.example:80",),
        ("tcp://evil.example\u2100good.example:80",),
        ("tcp://evil.example\uff0fgood.example:80",),
        ("tcp://evil.example\uff03good.example:80",),
        ("tcp://evil.example\uff20good.example:80",),
        ("tcp://ours.example:7",),
        ("tcp://notours.example:7",),
        ("tcp://.ours.example:7",),
        ("tcp://a.ours.example.evil.example:7",),
        ("tcp://a..ours.example:7",),
        ("tcp://*.ours.example:7",),
        ("tcp://[a.ours.example]:7",),
        ("tcp://any:80",),
        ("tcp://xn--good-.example:80",),
        ("tcp://good.example.xn--:80",),
        ("tcp://g\u043eod.example:80",),
        ("tcp://go\u00f3d.example:80",),
    )
    def test_another_host_is_not(self, text: str) -> None:
        self.assertEqual(reach(text, *self.RULES, out=False), ())

    @each(
        # text, the host that it is about; None where it is refused
        ("tls://good.example@evil.example:443/x", "evil.example"),
        ("tls://good.example:443@evil.example:443/x", "evil.example"),
        ("tls://good.example%40@evil.example:443", "evil.example"),
        ("tls://good.example%2f@evil.example:443", "evil.example"),
        ("tls://a:good.example@evil.example:443", "evil.example"),
        ("tls://a@good.example:evil.example:443", "evil.example"),
        ("tls://evil.example@good.example:443", "good.example"),
        ("tls://evil.example:443@good.example:443", "good.example"),
        ("tls://a@evil.example:good.example:443", "good.example"),
        ("tls://a@evil.example:443:good.example", None),
        ("tls://a@evil.example:443:443", None),
        ("tls://a@b@good.example:443", None),
        ("tls://evil.example/@good.example:443", None),
        ("tls://evil.example?@good.example:443", None),
        ("tls://evil.example#@good.example:443", None),
        ("tls://evil.example\\@good.example:443", None),
        ("tls://evil.example:443\\@good.example:443", None),
        ("tls://good.example:443/@evil.example", None),
        ("tls://good.example:443:evil.example:443", None),
        ("tls://good.example:443,evil.example:443", None),
        ("tls:///evil.example@good.example:443", None),
        ("tls:/good.example:443", None),
        ("tls://[good.example]@evil.example:443", None),
        ("tls://good.example:443%40evil.example", None),
        ("tls://good.example:443\r\nevil.example:443", None),
        ("tls://\u00adgood.example@evil.example:443", None),
    )
    def test_of_a_user_and_a_host_the_host_is_judged(self, text: str, host: str | None) -> None:
        try:
            found = parse_uri(text).host
        except UriError:
            found = None
        self.assertEqual(found, host)
        self.assertEqual(reach(text, *self.RULES, out=False), (PUBLIC,) if host == "good.example" else ())

    @each(*((text,) for text in LOOKALIKES))
    def test_what_looks_alike_is_another_host(self, text: str) -> None:
        self.assertFalse(is_host(text, "evil.example"))
        self.assertEqual(reach(f"tcp://{text}:80", "allow out any tcp:evil.example", out=False), ())

    @each(
        ("sharp s", "fa\u00df.example", "fass.example"),
        ("final sigma", "\u03b2\u03cc\u03bb\u03bf\u03c2.example", "\u03b2\u03cc\u03bb\u03bf\u03c3.example"),
        ("joiner", "\u0915\u094d\u200d\u0937.example", "\u0915\u094d\u0937.example"),
        (
            "no joiner",
            "\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.example",
            "\u0646\u0627\u0645\u0647\u0627\u06cc.example",
        ),
    )
    def test_letters_on_which_the_standards_differ_make_two_hosts(self, _: str, one: str, other: str) -> None:
        for asked, ruled in ((one, other), (other, one)):
            self.assertEqual(reach(f"tcp://{asked}", f"allow out any tcp:{ruled}", out=False), ())
            self.assertEqual(reach(f"tcp://{asked}", f"allow out any tcp:{asked}", out=False), (PUBLIC,))

    @PROPERTY
    @given(st.data())
    def test_the_mixtures_of_one_host_s_spellings_are_that_host(self, data: st.DataObject) -> None:
        text = data.draw(mixtures("good.example"))
        self.assertEqual(reach(f"tcp://{text}:80", *self.RULES, out=False), (PUBLIC,))


class DeniedAddresses(SynchronousTestCase):
    """Octal, decimal, mapped, tunnelled: the address is the one that would be dialled."""

    RULES = (
        "deny out any tcp:10.0.0.5",
        "deny out any tcp:[::ffff:10.0.0.5]",
        "deny out any tcp:10.0.0.0/8",
        "deny out any tcp:[::ffff:10.0.0.0]/104:80",
        "deny out any tcp:0.0.0.0/0:1-80",
        "deny out any tcp:10.0.0.5/32:80-80",
    )

    @each(*((text,) for text in ADDRESSES))
    def test_no_spelling_passes_a_rule_for_the_address(self, text: str) -> None:
        for rule in self.RULES:
            self.assertEqual(reach(f"tcp://{text}:80", rule), (), rule)

    @each(*((name,) for name in spellings(ipaddress.IPv4Address(0))))
    def test_no_tunnel_passes_it(self, name: str) -> None:
        outer = str(spellings(ipaddress.IPv4Address("10.0.0.5"))[name])
        for rule in self.RULES:
            self.assertEqual(reach(f"tcp://[{outer}]:80", rule), (), rule)
            self.assertEqual(reach("tcp://evil.example:80", rule, known=(outer,)), (), rule)

    @each(*((name,) for name in spellings(ipaddress.IPv4Address(0)) if "mapped" not in name))
    def test_what_is_opened_is_opened_in_its_own_spelling_alone(self, name: str) -> None:
        outer = str(spellings(ipaddress.IPv4Address("198.51.100.9"))[name])
        self.assertEqual(reach(f"tcp://[{outer}]:80", out=True), (outer,))
        for rule in ("allow out any tcp:198.51.100.9", "allow out any tcp:0.0.0.0/0", "allow out any tcp:0.0.0.0/0:80"):
            self.assertEqual(reach(f"tcp://[{outer}]:80", rule, out=False), (), rule)
            self.assertEqual(reach("tcp://a.example:80", rule, out=False, known=(outer,)), (), rule)

    def test_a_network_of_mapped_addresses_is_that_much_of_ipv4_and_no_more(self) -> None:
        """Once, ``::ffff:10.0.0.0/104`` counted as all of IPv4."""
        self.assertEqual(reach("tcp://10.9.9.9", "allow out any tcp:[::ffff:10.0.0.0]/104", out=False), ("10.9.9.9",))
        self.assertEqual(reach("tcp://11.0.0.1", "allow out any tcp:[::ffff:10.0.0.0]/104", out=False), ())
        for text in ("[::ffff:0.0.0.0]/95", "[::ffff:10.0.0.0]/8", "10.0.0.5/8", "10.0.0.0/33", "10.0.0.0/08", "10/8"):
            with self.assertRaises(RuleError):
                parse_rule(f"allow out any tcp:{text}")

    def test_the_families_are_not_mixed(self) -> None:
        self.assertEqual(reach("tcp://198.51.100.9", "allow out any tcp:[::]/0", out=False), ())
        self.assertEqual(reach("tcp://[2001:db8::9]", "allow out any tcp:0.0.0.0/0", out=False), ())

    def test_a_denied_address_within_an_allowed_network_is_denied_by_the_rule_in_front(self) -> None:
        rules = ("deny out any tcp:192.168.1.5", "allow out any tcp:192.168.0.0/16")
        self.assertEqual(reach("tcp://192.168.1.5:8000", *rules, out=False), ())
        self.assertEqual(reach("tcp://192.168.1.6:8000", *rules, out=False), ("192.168.1.6",))

    def test_carrier_grade_nat_is_a_network_like_others(self) -> None:
        self.assertEqual(reach("tcp://100.64.0.1", "deny out any tcp:100.64.0.0/10"), ())

    @PROPERTY
    @given(st.ip_addresses(v=4).filter(lambda a: a.packed[0]), st.integers(0, 32), st.data())
    def test_a_denied_network_is_closed_in_every_spelling(
        self, inner: ipaddress.IPv4Address, length: int, data: st.DataObject
    ) -> None:
        network = ipaddress.ip_network((inner, length), strict=False)
        outer = data.draw(st.sampled_from(sorted(map(str, spellings(inner).values()))))
        self.assertEqual(reach(f"tcp://[{outer}]:80", f"deny out any tcp:{network}"), ())


class Special(SynchronousTestCase):
    """Metadata services, the link, multicast, and nowhere: no broad rule opens them, whatever leads to them."""

    BROAD = (
        *(
            "allow out any any",
            "allow out any tcp:any",
            "allow out any tcp:any:80",
            "allow out pong tcp:evil.example:80",
        ),
        *("allow out any tcp:*.example", "allow out any tcp:0.0.0.0/0", "allow out any tcp:[::]/0:80"),
        *("allow out any tcp:128.0.0.0/1:80", "allow out any tcp:[8000::]/1", "log out any any"),
    )
    SPECIAL = (
        *METADATA,
        *("169.254.3.4", "224.0.0.251", "255.255.255.255", "0.0.0.0", "0.1.2.3"),
    )
    SPECIAL_IPV6 = ("::", "fe80::1", "fec0::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe")

    @each(*((rule,) for rule in BROAD))
    def test_no_broad_rule_opens_them(self, rule: str) -> None:
        for address in (*self.SPECIAL, *self.SPECIAL_IPV6):
            shown = f"[{address}]" if ":" in address else address
            for standing in Standing:
                self.assertEqual(reach(f"tcp://{shown}:80", rule, standing=standing), ())
                self.assertEqual(reach("tcp://evil.example:80", rule, known=(address,), standing=standing), ())

    @each(*((rule,) for rule in BROAD))
    def test_in_no_tunnel_either(self, rule: str) -> None:
        for address in self.SPECIAL:
            inner = ipaddress.IPv4Address(address)
            for name, outer in spellings(inner).items():
                if inner.packed[0] or "NAT64 local" not in name:
                    self.assertEqual(reach(f"tcp://[{outer}]:80", rule), (), f"{name}: {outer} is {inner}")

    def test_the_default_does_not_open_them(self) -> None:
        for address in (*self.SPECIAL, *self.SPECIAL_IPV6):
            self.assertEqual(reach("tcp://evil.example:80", known=(address,), out=True), ())

    def test_what_names_the_address_opens_it_alone(self) -> None:
        rule = "allow out any tcp:169.254.169.254:80"
        self.assertEqual(reach("tcp://169.254.169.254:80", rule), ("169.254.169.254",))
        self.assertEqual(reach("tcp://[::ffff:169.254.169.254]:80", rule), ("169.254.169.254",))
        for other in ("169.254.169.253", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[fd00:ec2::254]"):
            self.assertEqual(reach(f"tcp://{other}:80", rule), ())

    def test_a_network_of_the_link_does_not_open_the_metadata_in_it(self) -> None:
        rule = "allow out any tcp:169.254.0.0/16:80"
        self.assertEqual(reach("tcp://169.254.3.4:80", rule), ("169.254.3.4",))
        for address in ("169.254.169.254", "169.254.170.2", "169.254.42.42"):
            self.assertEqual(reach(f"tcp://{address}:80", rule), ())

    @each(
        ("a name for it", "tcp://localhost:80", ("127.0.0.1", "::1")),
        ("a name that leads there", "tcp://evil.example:80", ("127.0.0.1",)),
        ("a name of everybody's", "tcp://127.0.0.1.nip.example:80", ("127.0.0.1",)),
        ("elsewhere on loopback", "tcp://127.8.8.8:80", ()),
        ("IPv6", "tcp://[::1]:80", ()),
        ("mapped", "tcp://[::ffff:127.0.0.1]:80", ()),
        ("compatible", "tcp://[::127.0.0.1]:80", ()),
        ("NAT64", "tcp://[64:ff9b::7f00:1]:80", ()),
        ("6to4", "tcp://[2002:7f00:1::]:80", ()),
        ("full width", "tcp://\uff11\uff12\uff17.0.0.1:80", ()),
    )
    def test_no_broad_rule_opens_loopback_to_the_confined(self, _: str, text: str, known: tuple[str, ...]) -> None:
        for rule in (
            *self.BROAD,
            "allow out any tcp:localhost",
            "allow out any tcp:127.0.0.1",
            "allow out any tcp:127.0.0.0/8",
        ):
            self.assertEqual(reach(text, rule, known=known, standing=Standing.CONFINED), (), rule)


class Resolved(SynchronousTestCase):
    """Names that lead elsewhere, as the rules see them; over a running broker they are below."""

    def test_of_mixed_addresses_those_that_pass_are_left_in_their_order(self) -> None:
        known = ("10.0.0.5", "198.51.100.1", "169.254.169.254", "2001:db8::1", "64:ff9b::a00:5", "198.51.100.2")
        self.assertEqual(
            reach("tcp://a.example", "deny out any tcp:10.0.0.0/8", known=known),
            ("198.51.100.1", "2001:db8::1", "198.51.100.2"),
        )

    def test_a_name_s_rule_does_not_open_what_a_rule_in_front_closes(self) -> None:
        rules = ("deny out any tcp:10.0.0.0/8", "allow out pong tcp:a.example")
        self.assertEqual(reach("tcp://a.example", *rules, known=("10.0.0.5",), out=False), ())
        self.assertEqual(reach("tcp://a.example", *rules, known=(PUBLIC,), out=False), (PUBLIC,))

    def test_of_hundreds_each_is_judged(self) -> None:
        known = tuple(f"10.0.{n // 250}.{n % 250}" for n in range(1000))
        rules = ("deny out any tcp:10.0.0.0/9", "allow out any tcp:10.0.3.249")
        self.assertEqual(reach("tcp://a.example", *rules, known=known, out=False), ())
        self.assertEqual(reach("tcp://a.example", *rules[::-1], known=known, out=False), ("10.0.3.249",))


class Patterns(SynchronousTestCase):
    """What a host in a rule may hold: one wildcard, in front, and something behind it."""

    @each(
        ("*.",),
        ("*..",),
        ("*.*",),
        ("**",),
        ("*.*.example",),
        ("a.*.example",),
        ("a*.example",),
        ("*a.example",),
        ("*example",),
        ("a.*",),
        ("%2a.example",),
        ("\uff0a.example",),
        ("*.[::1]",),
        ("*.10.0.0.5",),
        ("*.5",),
        ("*.0x7f",),
        ("?.example",),
        ("[a-z].example",),
        ("*.a.example/8",),
        ("a.example/8",),
        ("::1",),
        ("10.*",),
        ("10.0.0.5-10.0.0.9",),
        ("user@a.example",),
    )
    def test_anything_else_is_a_mistake(self, host: str) -> None:
        for action in ("allow", "deny"):
            with self.assertRaises(RuleError):
                parse_rule(f"{action} out any tcp:{host}:80")

    @each(
        ("0-80",), ("80-",), ("-80",), ("90-80",), ("80-65536",), ("080",), ("80-80-80",), ("0x50",), ("\u0668",), ("",)
    )
    def test_so_is_any_other_range_of_ports(self, ports: str) -> None:
        with self.assertRaises(RuleError):
            parse_rule(f"allow out any tcp:a.example:{ports}")


class Services(SynchronousTestCase):
    """The service behind the host, in disguise."""

    @each(
        ("tcp://h/%74cp", Refusal.DENIED),
        ("tcp://h/plumberd%2elock", Refusal.DENIED),
        ("unix:///%69pc", Refusal.DENIED),
        ("unix://pong%2d0%2d0", Refusal.DENIED),
        ("unix:///pong-0%2D0", Refusal.DENIED),
        ("unix:///%61ny", Refusal.DENIED),
        ("unix:///..%2fsecret", Refusal.BAD_REQUEST),
        ("unix:///%2e%2e", Refusal.BAD_REQUEST),
        ("unix:///a%00b", Refusal.BAD_REQUEST),
        ("unix:///ip\u00adc", Refusal.BAD_REQUEST),
        ("unix:///\uff49\uff50\uff43", Refusal.BAD_REQUEST),
        ("tcp://h/pong%3fx", Refusal.BAD_REQUEST),
        ("tcp://h/pong/../tcp", Refusal.BAD_REQUEST),
        ("tcp://h//tcp", Refusal.BAD_REQUEST),
        ("tcp://h/%2525", Refusal.BAD_REQUEST),
    )
    def test_what_is_reserved_or_no_name_is_so_in_every_spelling(self, text: str, word: Refusal) -> None:
        with self.assertRaises(Refused) as caught:
            parse_target_uri(text)
        self.assertEqual(caught.exception.word, word)

    @each(("secret",), ("s%65cret",), ("%73%65%63%72%65%74",), ("secret?framing=raw",))
    def test_a_denied_service_is_denied_behind_another_one_s_lookup(self, path: str) -> None:
        uri = parse_uri(f"tcp://198.51.100.9:80/{path}")
        for rule in ("deny out secret any", "deny out sec* tcp:any", "deny out ?ecret tcp:198.51.100.0/24"):
            policy = Policy((parse_rule(rule), parse_rule("allow out pong any")))
            question = Question(OUT, "pong", destination(uri))
            verdict = judge(lambda one, policy=policy: decide(policy, one), question, uri.service)  # type: ignore[misc]
            self.assertIs(verdict.granted, False, rule)


class ResolvingTestCase(RunningTestCase):
    """A broker whose names the test resolves, and servers on several addresses of loopback that say which they are."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []
        self.reached: list[str] = []

    def run_with(self, lookup: Callable[[str], Iterable[str]], *rules: str, **settings: Any) -> PlumberdService:
        """Start a broker that asks *lookup* for the addresses of names."""
        service = self.run_broker(*rules, **settings)

        def look_up(name: str) -> Answer:
            self.asked.append(name)
            return tuple(map(ipaddress.ip_address, lookup(name)))

        assert service.core is not None
        service.core.resolver = Resolver(real_reactor, look_up, limits=service.settings.limits)
        return service

    def serve_at(self, *hosts: str) -> int:
        """Listen on one port of all *hosts*; return it."""
        for _ in range(100):
            first, port = self.listener(hosts[0])
            listeners = {hosts[0]: first}
            try:
                for host in hosts[1:]:
                    listeners[host] = self.owned(socket.socket())
                    listeners[host].bind((host, port))
                    listeners[host].listen()
            except OSError as e:
                if e.errno != errno.EADDRINUSE:
                    raise
                continue  # somebody else's there: another port
            for host, listener in listeners.items():
                self.serve_on(listener, lambda sock, host=host: self._greet(sock, host))
            return port
        raise AssertionError("no port is free on all of them")

    def _greet(self, sock: socket.socket, host: str) -> None:
        self.reached.append(host)
        sock.sendall(host.encode().ljust(16))

    async def connect(self, service: PlumberdService, port: int, name: str = "a.example") -> str:
        """Look *name* up; return the address that was connected to, or the refusal's word."""
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "pong", f"pong tcp://{name}:{port}")
        if sock is None:
            return str(answer["error"])
        self.owned(sock)
        greeting = await in_thread(read_exactly, sock, 16)
        host = greeting.decode().strip()
        if sock.family == socket.AF_INET:  # and not relayed
            self.assertEqual(sock.getpeername(), (host, port))
        sock.close()
        return host


class Rebinding(ResolvingTestCase):
    """A name server that answers differently each time."""

    async def test_a_name_is_resolved_once_and_the_connection_goes_to_the_address_that_was_judged(self) -> None:
        port = self.serve_at("127.0.0.1", "127.0.0.2")
        answers = iter((["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1"]))
        service = self.run_with(lambda name: next(answers), "deny out any tcp:127.0.0.2")
        self.assertEqual(await self.connect(service, port), "127.0.0.1")
        self.assertEqual(self.asked, ["a.example"])
        self.assertEqual(await self.connect(service, port), "denied")
        self.assertEqual(await self.connect(service, port), "127.0.0.1")
        self.assertEqual((self.asked, self.reached), (["a.example"] * 3, ["127.0.0.1"] * 2))
        await self.wait_until_idle(service)

    async def test_nothing_that_was_decided_for_one_address_counts_for_the_next(self) -> None:
        port = self.serve_at("127.0.0.1", "127.0.0.2")
        answers = iter([["127.0.0.1"], ["127.0.0.2"]] * 5)
        service = self.run_with(
            lambda name: next(answers),
            f"allow out pong tcp:127.0.0.1:{port}",
            "deny out any any",
        )
        found = [await self.connect(service, port) for _ in range(10)]
        self.assertEqual(found, ["127.0.0.1", "denied"] * 5)
        self.assertEqual(self.reached, ["127.0.0.1"] * 5)

    async def test_a_name_that_turns_to_the_metadata_service_is_refused_there(self) -> None:
        port = self.serve_at("127.0.0.1")
        answers = iter((["127.0.0.1"], ["169.254.169.254"], ["::ffff:169.254.169.254"], ["64:ff9b::a9fe:a9fe"]))
        service = self.run_with(lambda name: next(answers), "allow out any any", "allow out pong tcp:a.example")
        self.assertEqual([await self.connect(service, port) for _ in range(4)], ["127.0.0.1"] + ["denied"] * 3)
        await self.wait_until_idle(service)

    async def test_a_name_and_its_spellings_are_asked_for_in_one(self) -> None:
        port = self.serve_at("127.0.0.1")
        service = self.run_with(lambda name: ["127.0.0.1"])
        for name in ("B\u00dccher.example.", "b%c3%bccher%2eexample", "xn--bcher-kva.example"):
            self.assertEqual(await self.connect(service, port, name), "127.0.0.1")
        self.assertEqual(self.asked, ["xn--bcher-kva.example"] * 3)

    async def test_an_address_is_not_resolved_at_all(self) -> None:
        port = self.serve_at("127.0.0.1")
        service = self.run_with(lambda name: ["127.0.0.2"])
        for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "\uff11\uff12\uff17.0.0.1", "127.0.0.1."):
            self.assertEqual(await self.connect(service, port, host), "127.0.0.1")
        for host in ("2130706433", "127.1", "0x7f.0.0.1", "017700000001", "[127.0.0.1]"):
            self.assertEqual(await self.connect(service, port, host), "bad-request")
        self.assertEqual(self.asked, [])


class Many(ResolvingTestCase):
    """A name server that answers with hundreds of addresses, and one that mixes what is allowed with what is not."""

    async def test_of_hundreds_the_one_that_passes_is_connected_to(self) -> None:
        port = self.serve_at("127.0.0.1", "127.7.0.1", "127.7.0.2")
        many = [f"127.7.{n // 250}.{n % 250 + 1}" for n in range(500)]
        many.insert(MOST_ADDRESSES - 1, "127.0.0.1")
        service = self.run_with(lambda name: many, "deny out any tcp:127.7.0.0/16")
        self.assertEqual(await self.connect(service, port), "127.0.0.1")
        self.assertEqual(self.reached, ["127.0.0.1"])

    async def test_hundreds_that_nobody_listens_on_are_one_short_refusal(self) -> None:
        port = free_port()
        service = self.run_with(lambda name: [f"127.7.{n // 250}.{n % 250 + 1}" for n in range(500)])
        answer, sock = await in_thread(native_ask, service.settings.rundir, op="lookup", uri=f"tcp://a.example:{port}")
        self.assertIsNone(sock)
        self.assertEqual(answer["error"], "unreachable")
        self.assertLess(len(answer["reason"]), 2000)
        await self.wait_until_idle(service)

    async def test_hundreds_that_are_all_forbidden_are_denied_and_none_is_dialled(self) -> None:
        port = self.serve_at("127.7.0.1", "127.7.0.2")
        service = self.run_with(
            lambda name: [f"127.7.{n // 250}.{n % 250 + 1}" for n in range(500)], "deny out any tcp:127.7.0.0/16"
        )
        self.assertEqual(await self.connect(service, port), "denied")
        self.assertEqual(self.reached, [])

    async def test_of_a_mixture_only_what_passes_is_dialled_wherever_it_stands(self) -> None:
        port = self.serve_at("127.0.0.1", "127.0.0.2", "127.0.0.3")
        forbidden = ["127.0.0.2", "169.254.169.254", "127.0.0.3", "64:ff9b::7f00:2", "::127.0.0.2", "fe80::1"]
        service = self.run_with(
            lambda name: [*forbidden, "127.0.0.1"] if name == "last.example" else ["127.0.0.1", *forbidden],
            "deny out any tcp:127.0.0.2",
            "deny out any tcp:127.0.0.3:1-65535",
        )
        for name in ("last.example", "first.example"):
            self.assertEqual(await self.connect(service, port, name), "127.0.0.1")
        self.assertEqual(self.reached, ["127.0.0.1"] * 2)
        await self.wait_until_idle(service)

    async def test_where_the_one_that_passes_does_not_answer_no_other_one_is_tried(self) -> None:
        port = self.serve_at("127.0.0.2")
        service = self.run_with(lambda name: ["127.0.0.2", "127.0.0.1", "127.0.0.2"], "deny out any tcp:127.0.0.2")
        self.assertEqual(await self.connect(service, port), "unreachable")
        self.assertEqual(self.reached, [])


class Hanging(ResolvingTestCase):
    """A name server that never answers."""

    def setUp(self) -> None:
        super().setUp()
        self.let_go = threading.Event()
        self.addCleanup(self.end)

    async def end(self) -> None:
        self.let_go.set()
        await until(lambda: not [t for t in threading.enumerate() if t.name == "resolver"])

    def lookup(self, name: str) -> list[str]:
        if name.startswith("hang"):
            self.let_go.wait(DEADLINE_SECONDS)
        return ["127.0.0.1"]

    def have_time(self, service: PlumberdService) -> None:
        """Give lookups as long as the test has, from now on."""
        assert service.core is not None
        service.core.connect_deadline.change(DEADLINE_SECONDS)

    async def test_the_deadline_ends_the_lookup_and_other_users_names_still_resolve(self) -> None:
        port = self.serve_at("127.0.0.1")
        limits = Limits(connect_seconds=0.5, resolving_per_uid=2, resolving=4)
        service = self.run_with(self.lookup, limits=limits)
        core = service.core
        assert core is not None
        for number in range(3):  # two hang, the third waits behind them
            name = f"hang{number}.example"
            self.assertIn(await self.connect(service, port, name), ("timeout", "busy"))
        self.assertEqual(self.asked, ["hang0.example", "hang1.example"])
        told: list[Answer | Refused] = []
        core.resolver.resolve("b.example", "uid of somebody else", told.append)
        await until(lambda: told)
        self.assertEqual(told, [(ipaddress.ip_address("127.0.0.1"),)])
        await self.wait_until_idle(service)

    async def test_an_answer_that_comes_too_late_connects_nobody(self) -> None:
        port = self.serve_at("127.0.0.1")
        service = self.run_with(self.lookup, limits=Limits(connect_seconds=0.3))
        self.assertEqual(await self.connect(service, port, "hang.example"), "timeout")
        self.have_time(service)
        self.let_go.set()
        self.assertEqual(await self.connect(service, port, "b.example"), "127.0.0.1")
        self.assertEqual(self.reached, ["127.0.0.1"])
        await self.wait_until_idle(service)

    async def test_afterwards_the_user_s_names_resolve_again(self) -> None:
        port = self.serve_at("127.0.0.1")
        service = self.run_with(self.lookup, limits=Limits(connect_seconds=0.3, resolving_per_uid=1))
        self.assertEqual(await self.connect(service, port, "hang.example"), "timeout")
        self.assertIn(await self.connect(service, port, "b.example"), ("timeout", "busy"))
        self.let_go.set()
        await until(lambda: service.core is not None and not service.core.resolver.places.active)
        self.have_time(service)
        self.assertEqual(await self.connect(service, port, "c.example"), "127.0.0.1")


class Chains(ResolvingTestCase):
    """CNAMEs, as getaddrinfo shows them: the last name, if it is asked for at all, and the addresses."""

    ALIAS, TRUE_NAME = "alias.example", "forbidden.example"

    def resolve_as(self, *addresses: str) -> None:
        """Let getaddrinfo tell that the alias leads to *addresses* by another name."""

        def answer(host: str, port: object, *args: object, **kwargs: object) -> list[tuple[Any, ...]]:
            self.asked.append(host)
            kinds = [socket.AF_INET6 if ":" in a else socket.AF_INET for a in addresses]
            return [
                (kind, socket.SOCK_STREAM, 6, self.TRUE_NAME if at == 0 else "", (address, 0))
                for at, (kind, address) in enumerate(zip(kinds, addresses, strict=True))
            ]

        self.patch(socket, "getaddrinfo", answer)

    async def test_a_rule_for_the_address_holds_whatever_the_names_on_the_way(self) -> None:
        port = self.serve_at("127.0.0.1", "127.0.0.2")
        self.resolve_as("127.0.0.2", "127.0.0.2")
        service = self.run_broker("deny out any tcp:127.0.0.2", f"allow out pong tcp:{self.ALIAS}")
        self.assertEqual(await self.connect(service, port, self.ALIAS), "denied")
        self.assertEqual(self.asked, [self.ALIAS + "."])

    async def test_a_rule_for_the_last_name_opens_nothing_for_the_first(self) -> None:
        port = self.serve_at("127.0.0.1")
        self.resolve_as("127.0.0.1")
        service = self.run_broker(f"allow out pong tcp:{self.TRUE_NAME}", "deny out any any")
        self.assertEqual(await self.connect(service, port, self.ALIAS), "denied")
        self.assertEqual(self.asked, [])

    async def test_a_rule_that_denies_a_name_speaks_of_that_name_and_not_of_what_leads_there(self) -> None:
        """Anybody may give an address another name; who wants to close it names the address."""
        port = self.serve_at("127.0.0.1")
        self.resolve_as("127.0.0.1")
        service = self.run_broker(f"deny out any tcp:{self.TRUE_NAME}")
        self.assertEqual(await self.connect(service, port, self.ALIAS), "127.0.0.1")
        self.assertEqual(await self.connect(service, port, self.TRUE_NAME), "denied")

    async def test_a_chain_that_ends_at_the_metadata_service_is_refused(self) -> None:
        self.resolve_as("169.254.169.254")
        service = self.run_broker(f"allow out pong tcp:{self.ALIAS}", "allow out any any")
        self.assertEqual(await self.connect(service, 80, self.ALIAS), "denied")


def _percent(c: str) -> str:
    return f"%{ord(c):02x}"


def _full_width(c: str) -> str:
    return chr(ord(c) + 0xFEE0)


def _with_soft_hyphen(c: str) -> str:
    return c + "\u00ad"


def mixtures(host: str) -> st.SearchStrategy[str]:
    """Spellings of *host*, letter by letter in another one, perhaps with a dot at the end."""
    ways: list[Callable[[str], str]] = [str, str.upper, _percent, _full_width, _with_soft_hyphen]
    chosen = st.lists(st.sampled_from(ways), min_size=len(host), max_size=len(host))
    ends = st.sampled_from(("", ".", "%2E", "\u3002"))
    return st.builds(lambda hows, end: "".join(how(c) for how, c in zip(hows, host, strict=True)) + end, chosen, ends)


class Endpoints(SynchronousTestCase):
    """An endpoint string is resolved by Twisted, and no rule sees to what."""

    def verdict(self, service: str, route: str, subject: Subject = ANYBODY, **policy: Any) -> Verdict:
        routes = Routes({}, {"*": (Choice((parse_route("*", route),)),)})
        target = find_way(service, Pairs(), routes).target
        assert isinstance(target, Endpoint)
        return decide(Policy(**policy), Question(OUT, service, target.destination(), subject))

    @each(
        ("hexadecimal", "0xa9fea9fe", "tls:{service}:443"),
        ("decimal", "2852039166", "tls:{service}:443"),
        ("by_name", "2852039166", "tcp:host={service}:port=80:timeout=5"),
        ("a_name_of_its_own", "x.evil.example", "tls:{service}:443"),
    )
    def test_a_host_that_the_client_chose_needs_a_rule(self, _: str, service: str, route: str) -> None:
        self.assertIs(self.verdict(service, route).granted, False)
        rules = (parse_rule(f"allow out {service} any"),)
        self.assertIs(self.verdict(service, route, rules=rules).granted, True)

    def test_trying_out_opens_none_that_does_what_only_this_machine_can(self) -> None:
        to = Destination("unix", None, None, None, True)
        for subject in (ANYBODY, Subject(Standing.CONFINED)):
            question = Question(OUT, "web", to, subject)
            self.assertIs(decide(Policy(audit_only=True), question).granted, False)
