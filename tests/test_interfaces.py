"""plumberd.effects.interfaces: every address of this machine, and no other."""

from __future__ import annotations

import ctypes
import errno
import ipaddress

from plumberd.effects.interfaces import own_addresses
from tests.children import ChildTestCase, needs_root

PRINT = (
    "from plumberd.effects.interfaces import own_addresses;print(*sorted(map(str, own_addresses())), sep='\\n', end='')"
)


class OwnAddresses(ChildTestCase):
    def test_loopback_is_among_them(self) -> None:
        self.assertIn(ipaddress.ip_address("127.0.0.1"), own_addresses())

    def test_every_ipv6_address_that_the_kernel_lists_is_among_them(self) -> None:
        listed = set()
        with open("/proc/net/if_inet6", encoding="ascii") as table:
            for line in table:
                listed.add(ipaddress.IPv6Address(bytes.fromhex(line.split()[0])))
        self.assertEqual({a for a in own_addresses() if a.version == 6}, listed)

    def test_where_they_cannot_be_had_it_is_an_error(self) -> None:
        class NoInterfaces:
            @staticmethod
            def getifaddrs(head: object) -> int:
                ctypes.set_errno(errno.EMFILE)
                return -1

        self.patch(ctypes, "CDLL", lambda *_, **__: NoInterfaces)
        with self.assertRaises(OSError) as raised:
            own_addresses()
        self.assertEqual(raised.exception.errno, errno.EMFILE)

    @needs_root
    async def test_they_are_those_of_this_very_network_namespace(self) -> None:
        script = 'ip link set lo up; ip addr add 192.0.2.7/32 dev lo; ip addr add 2001:db8::7/128 dev lo; exec "$@"'
        out = await self.run_child(PRINT, within=("unshare", "-n", "sh", "-c", script, "-"))
        self.assertEqual(out.split(), ["127.0.0.1", "192.0.2.7", "2001:db8::7", "::1"])

    @needs_root
    async def test_where_there_is_no_interface_with_one_there_is_none(self) -> None:
        self.assertEqual(await self.run_child(PRINT, within=("unshare", "-n")), "")
