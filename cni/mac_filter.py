"""macspoofchk: only frames with the interface's own source MAC pass.

One bridge family table per node. A verdict map dispatches the frames of each guarded interface to its own chain, whose
only rule drops other source addresses: one hash lookup per frame for any number of interfaces, and removal needs only
the interface's name. All rules are committed before the interface joins the bridge.
"""

import errno

from kit.netlink import nft
from kit.netlink.route import mac_bytes
from kit.netlink.transport import Message, NetlinkRefusal

TABLE, MAP, ENTRY = "hyperlet-cni", "guarded", "entry"
_HOOK, _PRIORITY = 0, -300  # NF_BR_PRE_ROUTING, NF_BR_PRI_NAT_DST_BRIDGED
_SOURCE = (6, 6)  # offset and size of the source address in an Ethernet header
_F = nft.BRIDGE


def _setup() -> list[Message]:
    return [
        nft.table(_F, TABLE),
        nft.verdict_map(_F, TABLE, MAP),
        nft.base_chain(_F, TABLE, ENTRY, "filter", _HOOK, _PRIORITY),
        nft.rule(_F, TABLE, ENTRY, nft.load_input_interface(), nft.look_up_verdict(MAP)),
    ]


def _only(interface: str, mac: str) -> Message:
    return nft.rule(_F, TABLE, interface, nft.load_link(*_SOURCE), nft.different(mac_bytes(mac)), nft.drop())


def add(socket: nft.Nft, interface: str, mac: str) -> None:
    """Guard an interface, replacing the rules of an earlier one of that name. Raises OSError."""
    messages = [
        nft.chain(_F, TABLE, interface),
        _only(interface, mac),
        nft.element(_F, TABLE, MAP, interface, interface),
    ]
    for _ in range(4):
        try:
            return socket.commit(*messages)
        except NetlinkRefusal as refusal:
            if refusal.errno == errno.ENOENT:
                _make_table(socket)
            elif refusal.errno == errno.EEXIST:
                remove(socket, interface)
            else:
                raise
    raise OSError(errno.EBUSY, f"another process keeps changing the nftables table {TABLE}")


def _make_table(socket: nft.Nft) -> None:
    try:
        socket.commit(*_setup())
    except NetlinkRefusal as refusal:
        if refusal.errno != errno.EEXIST:
            raise


def change(socket: nft.Nft, interface: str, mac: str) -> bool:
    """Change the allowed MAC. False, without a change, if the interface is not guarded. Raises OSError."""
    if not socket.has_chain(_F, TABLE, interface):
        return False
    try:
        socket.commit(nft.delete_rules(_F, TABLE, interface), _only(interface, mac))
    except NetlinkRefusal as refusal:
        if refusal.errno == errno.ENOENT:
            return False
        raise
    return True


def remove(socket: nft.Nft, interface: str) -> None:
    """Remove the rules, complete or not, if any. Raises OSError."""
    if not socket.has_chain(_F, TABLE, interface):
        return  # a map element needs its chain: without the chain there is none
    both = [nft.delete_element(_F, TABLE, MAP, interface), nft.delete_chain(_F, TABLE, interface)]
    for attempt in ([both], [both[:1], both[1:]]):
        missing = False
        for messages in attempt:
            try:
                socket.commit(*messages)
            except NetlinkRefusal as refusal:
                if refusal.errno != errno.ENOENT:
                    raise
                missing = True
        if not missing:
            return


def allows(socket: nft.Nft, interface: str, mac: str) -> bool:
    """Whether the interface is guarded with this MAC allowed. Raises OSError."""
    rules = socket.rules(_F, TABLE, interface)
    return len(rules) == 1 and mac_bytes(mac) in rules[0]


def guarded(socket: nft.Nft) -> set[str]:
    """The names of all guarded interfaces. Raises OSError."""
    return set(socket.chains(_F, TABLE)) - {ENTRY}
