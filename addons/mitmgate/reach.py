"""What may be reached through the gateway. Pure.

Nobody gets to its own ports, to link-local addresses or to a cloud's metadata service, by whichever name.
"""

import ipaddress
from collections.abc import Set
from functools import lru_cache

METADATA_NAMES = frozenset({"metadata.google.internal", "metadata", "instance-data"})
METADATA_ADDRESSES = frozenset({"fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"})


def refused(host: str, port: int, own_ports: Set[int]) -> str | None:
    """Return why nothing is forwarded to *host*:*port*, None where it may be reached."""
    if is_closed(host):
        return f"mitmgate forwards nothing to {host}: link-local and metadata addresses are closed"
    if port in own_ports and is_local(host):
        return f"mitmgate forwards nothing to its own port {port}: call the provider's URL, with HTTPS_PROXY set"
    return None


def is_closed(host: str) -> bool:
    """True for addresses that nobody calls through a gateway: link-local and the clouds' metadata services."""
    address = _address(host)
    if address is None:
        return host.lower().rstrip(".") in METADATA_NAMES
    return address.is_link_local or str(address) in METADATA_ADDRESSES


def is_local(host: str) -> bool:
    """True for names and addresses of this machine."""
    name = host.lower().rstrip(".").strip("[]")
    if name in ("localhost", "") or name.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


@lru_cache(maxsize=1024)
def is_ip(host: str) -> bool:
    return _address(host) is not None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that *host* writes out, an IPv4 one inside of IPv6 unwrapped; None where it is a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]").split("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
