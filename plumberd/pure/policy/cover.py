"""Single addresses and ports as few networks and ranges that hold them, and nothing else.

A grid of addresses and ports can be cut into rectangles in many ways, and the
very fewest are hard to find. Two cuts are tried, by address and by port; the
smaller one is taken. Either is exact: each pair is in one rectangle, and each
rectangle holds only pairs that were there.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator

from plumberd.pure.policy.peer import IPNetwork, Ports
from plumberd.pure.uri import IPAddress

Cell = tuple[IPAddress, int | None]
"""An address and a port; ``None``, where ports say nothing, stands for itself alone."""

Rectangle = tuple[IPNetwork, Ports | None]


def cover(cells: Iterable[Cell]) -> list[Rectangle]:
    """Return rectangles that hold each of *cells* once, and no other."""
    given = list(dict.fromkeys(cells))
    return min(_by_address(given), _by_port(given), key=len)


def cells_of(rectangle: Rectangle) -> Iterator[Cell]:
    """Yield what a rectangle holds."""
    network, span = rectangle
    for address in network:
        if span is None:
            yield address, None
        else:
            for port in range(span[0], span[1] + 1):
                yield address, port


def ranges(ports: Iterable[int | None]) -> list[Ports | None]:
    """Return *ports* as ranges of neighbours; ``None`` stands for itself."""
    wanted = set(ports)
    found: list[Ports] = []
    for port in sorted(port for port in wanted if port is not None):
        if found and found[-1][1] + 1 == port:
            found[-1] = (found[-1][0], port)
        else:
            found.append((port, port))
    return [*found, None] if None in wanted else [*found]


def networks(addresses: Iterable[IPAddress]) -> list[IPNetwork]:
    """Return *addresses* as the fewest networks that hold exactly them."""
    given = list(addresses)
    four = [ipaddress.IPv4Network(a) for a in given if a.version == 4]
    six = [ipaddress.IPv6Network(a) for a in given if a.version == 6]
    return [*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six)]


def _by_address(cells: list[Cell]) -> list[Rectangle]:
    """Each address's ports become ranges, and addresses with the same range networks."""
    ports: dict[IPAddress, list[int | None]] = defaultdict(list)
    for address, port in cells:
        ports[address].append(port)
    alike: dict[Ports | None, list[IPAddress]] = defaultdict(list)
    for address, its in ports.items():
        for span in ranges(its):
            alike[span].append(address)
    return [(network, span) for span, those in alike.items() for network in networks(those)]


def _by_port(cells: list[Cell]) -> list[Rectangle]:
    """Each port's addresses become networks, and ports with the same network ranges."""
    addresses: dict[int | None, list[IPAddress]] = defaultdict(list)
    for address, port in cells:
        addresses[port].append(address)
    alike: dict[IPNetwork, list[int | None]] = defaultdict(list)
    for port, those in addresses.items():
        for network in networks(those):
            alike[network].append(port)
    return [(network, span) for network, its in alike.items() for span in ranges(its)]
