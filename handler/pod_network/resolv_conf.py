"""A pod's DNS configuration, passed on to its guest. Source: resolv.conf(5)."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from kit import proc

_LIMIT = 64 << 10
_MAX_SERVERS = 8
_MAX_SEARCH = 32
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


class ResolverConfig(NamedTuple):
    """Name servers reachable from the guest, and search domains, in the pod's order."""

    servers4: tuple[IPv4Address, ...] = ()
    servers6: tuple[IPv6Address, ...] = ()
    search: tuple[str, ...] = ()


def read(process: proc.Process) -> ResolverConfig:
    """The resolv.conf of the process's container. Raises OSError if it cannot be read."""
    with proc.closing(process.root()) as root:
        return parse(proc.read_beneath(root, "etc/resolv.conf", _LIMIT).decode("utf-8", "replace"))


def parse(text: str) -> ResolverConfig:
    """Parse resolv.conf. Loopback and scoped link-local servers are dropped, since the guest cannot reach them. IPv4
    link-local ones are kept: a node-local cache uses them, and they are reached through the gateway.
    """
    servers: list[IPv4Address | IPv6Address] = []
    search: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and (server := _reachable(words[1])):
            servers.append(server)
        elif words[0] in ("search", "domain"):
            search = [name for word in words[1:] if (name := _domain(word))]
    chosen = list(dict.fromkeys(servers))[:_MAX_SERVERS]
    return ResolverConfig(
        tuple(server for server in chosen if isinstance(server, IPv4Address)),
        tuple(server for server in chosen if isinstance(server, IPv6Address)),
        tuple(dict.fromkeys(search))[:_MAX_SEARCH],
    )


def with_subdomain(settings: ResolverConfig, subdomain: str | None, namespace: str) -> ResolverConfig:
    """The configuration with the domain of a headless Service first, so that guests find each other by short names.

    The cluster domain comes from the pod's search list: `<namespace>.svc.<domain>`.
    """
    own = next((name for name in settings.search if name.startswith(f"{namespace}.svc.")), None)
    if not subdomain or own is None:
        return settings
    search = dict.fromkeys((f"{subdomain}.{own}", *settings.search))
    return settings._replace(search=tuple(search)[:_MAX_SEARCH])


def _reachable(word: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(word)
    except ValueError:
        return None
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        return None
    if isinstance(address, IPv6Address) and (address.is_link_local or address.scope_id):
        return None
    return address


def _domain(word: str) -> str | None:
    name = word.rstrip(".")
    if 0 < len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split(".")):
        return name
    return None
