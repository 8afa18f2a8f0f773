"""ipMasq: traffic from an attachment's addresses that leaves its networks gets the node's address.

Each attachment has its own inet table, named after its host interface, so that one message removes it.
"""

import errno
import ipaddress

from kit.netlink import nft
from kit.netlink.route import Interface
from kit.netlink.transport import Message, NetlinkRefusal

PREFIX = "hyperlet-cni-"
_CHAIN = "outgoing"
_HOOK, _PRIORITY = 4, 100  # NF_INET_POST_ROUTING, NF_IP_PRI_NAT_SRC
_F = nft.INET
_MULTICAST = {4: ipaddress.ip_network("224.0.0.0/4"), 6: ipaddress.ip_network("ff00::/8")}


def _rule(table: str, interface: Interface) -> Message:
    stays = (interface.network, _MULTICAST[interface.version])
    elsewhere = [expression for network in stays for expression in nft.not_to_network(network)]
    source = nft.from_network(ipaddress.ip_network(interface.ip))
    return nft.rule(_F, table, _CHAIN, *source, *elsewhere, nft.masquerade())


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
