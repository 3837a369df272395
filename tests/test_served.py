"""plumberd.wiring.dialing.served: what something here carries, and what would lead back here."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import Endpoint, parse_target_uri
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, Uri
from plumberd.wiring.dialing.served import SERVED, carrier_of, check_leads_away, check_served
from tests.tables import each

HERE = ipaddress.ip_address("127.0.0.1")


def raised(work: Callable[..., None], *args: Any) -> Refused | None:
    """Return the refusal that *work* raises, if it does."""
    try:
        work(*args)
    except Refused as e:
        return e
    return None


class Served(SynchronousTestCase):
    @each(*((scheme,) for scheme in SERVED))
    def test_what_something_here_carries(self, scheme: str) -> None:
        self.assertIsNone(raised(check_served, Uri(scheme, "h.example", 1)))

    def test_an_endpoint_is_twisted_s_business(self) -> None:
        self.assertIsNone(raised(check_served, Endpoint("anything:x")))

    def test_what_nothing_carries_is_told_with_what_is(self) -> None:
        with self.assertRaises(Refused) as caught:
            check_served(Uri("carrier-pigeon", "h.example", 1))
        self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)
        self.assertIn(", ".join(SERVED), caught.exception.reason)


class Away(SynchronousTestCase):
    """Whether a caller would come back here."""

    def check(self, port: int | None, *addresses: IPAddress) -> None:
        core: Any = SimpleNamespace(is_here=lambda address, number: (address, number) == (HERE, 9000))
        check_leads_away(core, "pong", Destination("tcp", None, addresses or None, port), addresses)

    def test_another_port_another_address_and_a_name_of_which_nothing_is_known(self) -> None:
        other = ipaddress.ip_address("127.0.0.2")
        for port, addresses in ((9001, (HERE,)), (9000, (other,)), (9000, ()), (None, (HERE,))):
            self.assertIsNone(raised(self.check, port, *addresses))

    def test_this_very_listener_also_as_one_of_several_addresses(self) -> None:
        for addresses in ((HERE,), (ipaddress.ip_address("192.0.2.1"), HERE)):
            with self.assertRaises(Refused) as caught:
                self.check(9000, *addresses)
            self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)
            self.assertIn("pong leads to tcp:", caught.exception.reason)


class Carriers(SynchronousTestCase):
    @each(
        ("tcp", parse_target_uri("tcp://192.0.2.1"), ""),
        ("unix", parse_target_uri("unix:///pong"), ""),
        ("tls", parse_target_uri("tls://192.0.2.1"), "tls"),
        ("endpoint", Endpoint("tcp:host=h:port=1"), "an administrator's endpoint"),
    )
    def test_what_else_carries_it_where_nothing_runs(self, _: str, target: Uri | Endpoint, carrier: str) -> None:
        self.assertEqual(carrier_of(None, target, ()), carrier)
