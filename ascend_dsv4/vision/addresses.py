# SPDX-License-Identifier: Apache-2.0
"""Which internet addresses a server may connect to for a user: public ones, and networks that its operator listed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED_NETWORKS: tuple[tuple[Network, str], ...] = (
    (ipaddress.IPv4Network("192.0.0.0/24"), "a special-purpose address"),
    (ipaddress.IPv4Network("192.88.99.0/24"), "a relay to other addresses"),
    (ipaddress.IPv4Network("168.63.129.16/32"), "a platform service of a cloud"),
    (ipaddress.IPv6Network("64:ff9b:1::/48"), "a translated private address"),
    (ipaddress.IPv6Network("2001::/23"), "a special-purpose address"),
    (ipaddress.IPv6Network("3fff::/20"), "a special-purpose address"),
)
"""What some versions of `ipaddress`, or all, count as global, but leads to something that is not, or to the host's platform."""


def refusal(address: Address, allowed_networks: Iterable[Network]) -> str | None:
    """Why an address must not be connected to; None if it may.

    An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4) leads to that one and is judged by it.
    """
    target = _carried(address)
    allowed = tuple(allowed_networks)
    if any(candidate in network for network in allowed for candidate in (address, target)):
        return None
    for network, what in _REFUSED_NETWORKS:
        if target in network:
            return what
    kinds = (
        ("unspecified", target.is_unspecified), ("loopback", target.is_loopback), ("link-local", target.is_link_local),
        ("multicast", target.is_multicast), ("site-local", getattr(target, "is_site_local", False)),
        ("reserved", target.is_reserved), ("private", not target.is_global),
    )  # fmt: skip
    return next((f"a {name} address" for name, holds in kinds if holds), None)


def _carried(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or address
