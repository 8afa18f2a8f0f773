"""rtnetlink messages as pure functions, and `RtnetlinkSocket` to send them.

Each message sets as much as possible: one creates a veth pair with one end in another namespace, up, with its MAC.
Sources: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,if_bridge,veth,neighbour}.h.
"""

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from kit.netlink.transport import (
    ACK,
    CREATE,
    EXCL,
    REPLACE,
    Message,
    NetlinkRefusal,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
    string,
    text,
)

_INFO = struct.Struct("=BxHiII")  # ifinfomsg
_ADDR = struct.Struct("=BBBBI")  # ifaddrmsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _GETROUTE = 24, 26
DELLINK = _DELLINK

_ADDRESS, _NAME, _MTU, _LINK, _MASTER, _PROTINFO, _TXQLEN = 1, 3, 4, 5, 10, 12, 13
_LINKINFO, _ALIAS, _AF_SPEC, _NET_NS_FD, _EXT_MASK = 18, 20, 26, 28, 29
_KIND, _DATA = 1, 2
_VETH_PEER = 1
_VLAN_ID = 1
_BR_FORWARD_DELAY, _BR_STP, _BR_VLAN_FILTERING, _BR_MULTICAST_SNOOPING = 1, 5, 7, 23
_PORT_HAIRPIN, _PORT_ISOLATED = 4, 33
_BRIDGE_FLAGS, _BRIDGE_VLAN_INFO = 0, 2
_BRIDGE_FLAGS_SELF, _BRIDGE_FLAGS_MASTER = 2, 1
VLAN_PVID, VLAN_UNTAGGED, _VLAN_BEGIN, _VLAN_END = 2, 4, 8, 16
_RTEXT_FILTER_BRVLAN, _RTEXT_FILTER_SKIP_STATS = 2, 8
_INFO_SLAVE_DATA = 5

IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_F_NODAD, F_DADFAILED, F_TENTATIVE, F_PERMANENT = 0x02, 0x08, 0x40, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS = 1, 4, 5, 6, 8
_RTA_TABLE = 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
MAIN, _LOCAL = 254, 255
_PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST, _CLONED = 4, 253, 1, 0x200

_ANYWHERE = {int(socket.AF_INET): bytes(4), int(socket.AF_INET6): bytes(16)}

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Link:
    """A device. `master`: its bridge's index or 0; `vlan_filtering` and the port's flags: None if the kernel does not
    report them."""

    index: int
    name: str
    mac: str
    mtu: int
    flags: int
    master: int
    kind: str
    alias: str = ""
    txqlen: int = 0
    vlan_filtering: bool | None = None
    hairpin: bool | None = None
    isolated: bool | None = None

    @property
    def up(self) -> bool:
        """Whether it is set up."""
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True)
class Address:
    """An address assigned to a device. `scope` as in rtnetlink: 0 global, 253 link, 254 host."""

    index: int
    interface: Interface
    scope: int
    flags: int = F_PERMANENT

    @property
    def permanent(self) -> bool:
        """Whether it stays. Others come from router advertisements and expire."""
        return bool(self.flags & F_PERMANENT)


@dataclass(frozen=True)
class Route:
    """A unicast route. `gateway`: None for an on-link route; `index`: 0 with several devices. `protocol`: its origin as
    in rtnetlink: 2 the kernel, for an address; 3 and above user space."""

    destination: Network
    gateway: IpAddress | None
    index: int
    metric: int = 0
    protocol: int = _PROTOCOL_STATIC
    table: int = MAIN


@dataclass(frozen=True)
class Veth:
    """A veth pair to create: the peer is placed in the namespace `netns` as `inside`."""

    outside: str
    outside_mac: str
    inside: str
    inside_mac: str
    netns: int
    mtu: int
    up: bool = True


@dataclass(frozen=True)
class Vlans:
    """A port's VLANs as listed by the kernel: flags by ID."""

    ids: dict[int, int] = field(default_factory=dict)


def mac_bytes(mac: str) -> bytes:
    """The six bytes of `aa:bb:...`. Raises ValueError."""
    raw = bytes.fromhex(mac.replace(":", "").replace("-", ""))
    if len(raw) != 6:
        raise ValueError(f"{mac!r} is not an Ethernet address")
    return raw


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def _link(index: int = 0, flags: int = 0, mask: int = 0, family: int = 0) -> bytes:
    return _INFO.pack(family, 0, index, flags, mask)


def get_link(name: str = "", index: int = 0) -> Message:
    """Get one device by name or index."""
    brief = _u32(_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    return _GETLINK, 0, _link(index) + brief + (text(_NAME, name) if name else b"")


def new_veth(veth: Veth) -> Message:
    """Create a veth pair. The primary device is the container's end: created in its namespace, named and up at once."""
    peer = nested(
        _VETH_PEER,
        _link() + text(_NAME, veth.outside) + attribute(_ADDRESS, mac_bytes(veth.outside_mac)) + _u32(_MTU, veth.mtu),
    )
    flags = IFF_UP if veth.up else 0
    body = (
        _link(0, flags, flags)
        + text(_NAME, veth.inside)
        + attribute(_ADDRESS, mac_bytes(veth.inside_mac))
        + _u32(_MTU, veth.mtu)
        + _u32(_NET_NS_FD, veth.netns)
        + nested(_LINKINFO, text(_KIND, "veth"), nested(_DATA, peer))
    )
    return _NEWLINK, ACK | CREATE | EXCL, body


def new_bridge(name: str, mac: str, mtu: int, vlan_filtering: bool) -> Message:
    """Create a bridge, up. Its MAC is fixed: otherwise it would follow its ports. `mtu` 0: the default."""
    data = _u32(_BR_STP, 0) + (_u8(_BR_VLAN_FILTERING, 1) if vlan_filtering else b"")
    return _bridge(name, mac, mtu, IFF_UP, data)


def new_quiet_bridge(name: str, mac: str, mtu: int) -> Message:
    """Create a bridge, down, whose ports forward at once: without STP, and without multicast snooping, which would drop
    IPv6 neighbour discovery."""
    data = _u32(_BR_FORWARD_DELAY, 0) + _u32(_BR_STP, 0) + _u8(_BR_MULTICAST_SNOOPING, 0)
    return _bridge(name, mac, mtu, 0, data)


def _bridge(name: str, mac: str, mtu: int, flags: int, data: bytes) -> Message:
    body = _link(0, flags, flags) + text(_NAME, name) + attribute(_ADDRESS, mac_bytes(mac))
    if mtu:
        body += _u32(_MTU, mtu)
    return _NEWLINK, ACK | CREATE | EXCL, body + nested(_LINKINFO, text(_KIND, "bridge"), nested(_DATA, data))


def new_vlan(name: str, parent: int, vlan: int) -> Message:
    """Create a VLAN device on a device, up."""
    data = nested(_DATA, attribute(_VLAN_ID, struct.pack("=H", vlan)))
    body = _link(0, IFF_UP, IFF_UP) + text(_NAME, name) + _u32(_LINK, parent)
    return _NEWLINK, ACK | CREATE | EXCL, body + nested(_LINKINFO, text(_KIND, "vlan"), data)


def set_link(
    name: str = "",
    index: int = 0,
    *,
    master: int | None = None,
    alias: str = "",
    mac: str = "",
    mtu: int = 0,
    txqlen: int | None = None,
    flags: int = 0,
    mask: int = 0,
) -> Message:
    """Change a device, by name or index."""
    body = _link(index, flags, mask) + (text(_NAME, name) if name else b"")
    if mac:
        body += attribute(_ADDRESS, mac_bytes(mac))
    if mtu:
        body += _u32(_MTU, mtu)
    if txqlen is not None:
        body += _u32(_TXQLEN, txqlen)
    if alias:
        body += attribute(_ALIAS, alias.encode())
    if master is not None:
        body += _u32(_MASTER, master)
    return _SETLINK, ACK, body


def del_link(name: str = "", index: int = 0) -> Message:
    """Delete a device."""
    return _DELLINK, ACK, _link(index) + (text(_NAME, name) if name else b"")


def set_port(index: int, hairpin: bool, isolated: bool) -> Message:
    """Sets a bridge port's hairpin mode and isolation."""
    info = nested(_PROTINFO, _u8(_PORT_HAIRPIN, hairpin), _u8(_PORT_ISOLATED, isolated))
    return _SETLINK, ACK, _link(index, family=socket.AF_BRIDGE) + info


def add_vlans(index: int, native: int, tagged: Iterable[int], on_bridge: bool = False) -> Message:
    """Add a port to VLANs: `native` (0: none) as untagged PVID, the others tagged.

    `on_bridge`: the bridge's own port to the host's network stack.
    """
    infos = [] if not native else [_vlan(VLAN_PVID | VLAN_UNTAGGED, native)]
    for first, last in _ranges(tagged):
        infos += [_vlan(0, first)] if first == last else [_vlan(_VLAN_BEGIN, first), _vlan(_VLAN_END, last)]
    return _SETLINK, ACK, _link(index, family=socket.AF_BRIDGE) + _af_spec(on_bridge, infos)


def del_vlan(index: int, vlan: int) -> Message:
    """Remove a port from a VLAN."""
    return _DELLINK, ACK, _link(index, family=socket.AF_BRIDGE) + _af_spec(False, [_vlan(0, vlan)])


def _af_spec(on_bridge: bool, infos: list[bytes]) -> bytes:
    mark = struct.pack("=H", _BRIDGE_FLAGS_SELF if on_bridge else _BRIDGE_FLAGS_MASTER)
    return nested(_AF_SPEC, attribute(_BRIDGE_FLAGS, mark), *infos)


def _vlan(flags: int, vlan: int) -> bytes:
    return attribute(_BRIDGE_VLAN_INFO, struct.pack("=HH", flags, vlan))


def _ranges(ids: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for each in sorted(set(ids)):
        if found and found[-1][1] == each - 1:
            found[-1] = (found[-1][0], each)
        else:
            found.append((each, each))
    return found


def add_address(index: int, interface: Interface, dad: bool, broadcast: bool = True) -> Message:
    """Add an address; without `dad` an IPv6 address is usable at once. `broadcast`: with its network's."""
    flags = _F_NODAD if interface.version == 6 and not dad else 0
    return _NEWADDR, ACK | CREATE | EXCL, _address(index, interface, flags, broadcast)


def del_address(index: int, interface: Interface) -> Message:
    """Remove an address, and with it the routes that depend on it."""
    return _DELADDR, ACK, _address(index, interface, 0, False)


def _address(index: int, interface: Interface, flags: int, broadcast: bool) -> bytes:
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    packed = interface.ip.packed
    body = _ADDR.pack(family, interface.network.prefixlen, 0, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    if broadcast and interface.version == 4 and interface.network.prefixlen < 31:
        body += attribute(_IFA_BROADCAST, interface.network.broadcast_address.packed)
    return body + (_u32(_IFA_FLAGS, flags) if flags else b"")


def add_route(index: int, route: "NewRoute", replace: bool = False) -> Message:
    """Add a device route; `replace` an equal one."""
    destination, gateway = route.destination, route.gateway
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    scope = route.scope if route.scope is not None else (0 if gateway else _SCOPE_LINK)
    table = route.table or MAIN
    head = (destination.prefixlen, 0, 0, table if table < 256 else 0, _PROTOCOL_STATIC, scope, _UNICAST, 0)
    body = _ROUTE.pack(family, *head)
    if destination.prefixlen:
        body += attribute(_RTA_DST, destination.network_address.packed)
    if gateway:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    if table >= 256:
        body += _u32(_RTA_TABLE, table)
    if route.priority:
        body += _u32(_RTA_PRIORITY, route.priority)
    metrics = b"".join(
        _u32(kind, value) for kind, value in ((_RTAX_MTU, route.mtu), (_RTAX_ADVMSS, route.advmss)) if value
    )
    if metrics:
        body += nested(_RTA_METRICS, metrics)
    return _NEWROUTE, ACK | CREATE | (REPLACE if replace else EXCL), body + _u32(_RTA_OIF, index)


@dataclass(frozen=True)
class NewRoute:
    """A route to add. `table` 0: main; `scope` None: the default."""

    destination: Network
    gateway: IpAddress | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int = 0
    scope: int | None = None


class RtnetlinkSocket:
    """A route netlink socket of one namespace."""

    def __init__(self) -> None:
        self.socket = NetlinkSocket(socket.NETLINK_ROUTE)

    def do(self, *messages: Message) -> list[bytes]:
        """Send messages; see NetlinkSocket.talk."""
        return self.socket.talk(messages)

    def link(self, name: str = "", index: int = 0) -> Link | None:
        """One device, None if it does not exist. Raises OSError."""
        try:
            return read_link(self.do(get_link(name, index))[0])
        except NetlinkRefusal as refusal:
            if refusal.errno == errno.ENODEV:
                return None
            raise

    def links(self) -> list[Link]:
        """All devices."""
        return [read_link(body) for body in self.socket.dump(_GETLINK, _link())]

    def addresses(self, index: int = 0) -> list[Address]:
        """The addresses of one device, or of all, of both families."""
        found = (read_address(body) for body in self.socket.dump(_GETADDR, _ADDR.pack(0, 0, 0, 0, 0)))
        return [address for address in found if address is not None and index in (0, address.index)]

    def routes(self) -> list[Route]:
        """The unicast routes of both families, in all tables but the local one."""
        found = (read_route(body) for body in self.socket.dump(_GETROUTE, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)))
        return [route for route in found if route is not None]

    def vlans(self, index: int) -> Vlans:
        """The VLANs of a bridge port, or of the bridge by its own index."""
        body = _link(0, family=socket.AF_BRIDGE) + _u32(_EXT_MASK, _RTEXT_FILTER_BRVLAN)
        ids: dict[int, int] = {}
        for answer in self.socket.dump(_GETLINK, body):
            if _INFO.unpack_from(answer)[2] != index:
                continue
            spec = dict(attributes(answer, _INFO.size)).get(_AF_SPEC, b"")
            for kind, raw in attributes(spec):
                if kind == _BRIDGE_VLAN_INFO:
                    flags, vlan = struct.unpack("=HH", raw)
                    ids[vlan] = flags
        return Vlans(ids)

    def close(self) -> None:
        """Closes the socket."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_address(body: bytes) -> Address | None:
    """Parse an RTM_NEWADDR message; None for other families than IP."""
    family, prefix, flags, scope, index = _ADDR.unpack_from(body)
    fields = dict(attributes(body, _ADDR.size))
    raw = fields.get(_IFA_LOCAL) or fields.get(_IFA_ADDRESS)
    if not raw or family not in _ANYWHERE:
        return None
    return Address(index, ipaddress.ip_interface((raw, prefix)), scope, _number(fields.get(_IFA_FLAGS)) or flags)


def read_route(body: bytes) -> Route | None:
    """Parse an RTM_NEWROUTE message; None for a route that is not unicast, local or cached."""
    family, prefix, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
    fields = dict(attributes(body, _ROUTE.size))
    table = _number(fields.get(_RTA_TABLE)) or table
    if family not in _ANYWHERE or kind != _UNICAST or table == _LOCAL or flags & _CLONED:
        return None
    gateway = fields.get(_RTA_GATEWAY)
    return Route(
        destination=ipaddress.ip_network((fields.get(_RTA_DST, _ANYWHERE[family]), prefix)),
        gateway=ipaddress.ip_address(gateway) if gateway else None,
        index=_number(fields.get(_RTA_OIF)),
        metric=_number(fields.get(_RTA_PRIORITY)),
        protocol=protocol,
        table=table,
    )


def read_link(body: bytes) -> Link:
    """Parse an RTM_NEWLINK message."""
    _, _, index, flags, _ = _INFO.unpack_from(body)
    fields = dict(attributes(body, _INFO.size))
    info = dict(attributes(fields.get(_LINKINFO, b"")))
    kind = string(info.get(_KIND))
    data = dict(attributes(info[_DATA])) if kind == "bridge" and _DATA in info else {}
    port = dict(attributes(info.get(_INFO_SLAVE_DATA, b"")))
    return Link(
        index=index,
        name=string(fields.get(_NAME)),
        mac=fields.get(_ADDRESS, b"").hex(":"),
        mtu=_number(fields.get(_MTU)),
        flags=flags,
        master=_number(fields.get(_MASTER)),
        kind=kind,
        alias=string(fields.get(_ALIAS)),
        txqlen=_number(fields.get(_TXQLEN)),
        vlan_filtering=_switch(data.get(_BR_VLAN_FILTERING)),
        hairpin=_switch(port.get(_PORT_HAIRPIN)),
        isolated=_switch(port.get(_PORT_ISOLATED)),
    )


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw, sys.byteorder) if raw else 0


def _switch(raw: bytes | None) -> bool | None:
    return bool(raw[0]) if raw else None
