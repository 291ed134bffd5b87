"""Which addresses a server may fetch from on behalf of whoever asks it."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_NAT64 = ip_network("64:ff9b::/96")
_UNICAST = ip_network("2000::/3")
"""All of IPv6 that was ever given out to the open internet."""

_CLOSED = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; one cloud's metadata (Oracle) among them
        "192.88.99.0/24",  # relays of 6to4
        "168.63.129.16/32",  # public by its number, but answered by the cloud's own host (Azure)
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
    )
)
"""What Python's ipaddress, in one version or another, takes for global."""


def is_public(address: str) -> bool:
    """Whether a numeric address is one of the open internet's, also the one that it carries.

    IPv6 forms that carry an IPv4 address (mapped, 6to4, NAT64, Teredo) are public only if that one
    is too. Raises ValueError for what is no numeric address.
    """
    return all(_is_open(a) for a in _all_meant(ip_address(address)))


def _all_meant(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    carried = [*(address.teredo or ()), address.sixtofour]
    return [address, *(a for a in carried if a is not None)]


def _is_open(address: IPv4Address | IPv6Address) -> bool:
    return (
        address.is_global
        and (address.version == 4 or address in _UNICAST)
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _CLOSED)
    )
