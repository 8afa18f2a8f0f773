"""ipMasq: traffic from an attachment's addresses that leaves its networks gets the node's address.

Each attachment has its own inet table, named after its host interface, so that one message removes it.
"""

import errno
import ipaddress

from cni import nft
from cni.netlink import Message, NetlinkRefusal
from cni.route import Interface

PREFIX = "hyperlet-cni-"
_CHAIN = "outgoing"
_HOOK, _PRIORITY = 4, 100  # NF_INET_POST_ROUTING, NF_IP_PRI_NAT_SRC
_F = nft.INET
_MULTICAST = {4: ipaddress.ip_network("224.0.0.0/4"), 6: ipaddress.ip_network("ff00::/8")}
# nfproto, offsets of source and destination in the header, address size.
_LAYOUT = {4: (2, 12, 16, 4), 6: (10, 8, 24, 16)}


def _rule(table: str, interface: Interface) -> Message:
    family, source, destination, size = _LAYOUT[interface.version]
    expressions = [
        nft.load_protocol(),
        nft.equal(bytes([family])),
        nft.load_network(source, size),
        nft.equal(interface.ip.packed),
    ]
    for stays in (interface.network, _MULTICAST[interface.version]):
        expressions += [
            nft.load_network(destination, size),
            nft.mask(stays.netmask.packed),
            nft.different(stays.network_address.packed),
        ]
    return nft.rule(_F, table, _CHAIN, *expressions, nft.masquerade())


def add(socket: nft.Nft, interface: str, addresses: list[Interface]) -> None:
    """Masquerades the addresses of an attachment. Raises OSError."""
    remove(socket, interface)
    name = PREFIX + interface
    socket.commit(
        nft.table(_F, name),
        nft.base_chain(_F, name, _CHAIN, "nat", _HOOK, _PRIORITY),
        *(_rule(name, address) for address in addresses),
    )


def remove(socket: nft.Nft, interface: str) -> None:
    """Remove the masquerading, if any. Raises OSError."""
    if not socket.has_table(_F, PREFIX + interface):
        return
    try:
        socket.commit(nft.delete_table(_F, PREFIX + interface))
    except NetlinkRefusal as refusal:
        if refusal.errno != errno.ENOENT:
            raise


def active(socket: nft.Nft, interface: str, addresses: list[Interface]) -> bool:
    """Whether every address is masqueraded. Raises OSError."""
    rules = socket.rules(_F, PREFIX + interface, _CHAIN)
    return len(rules) == len(addresses) and all(any(a.ip.packed in rule for rule in rules) for a in addresses)
