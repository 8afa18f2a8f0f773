"""A minimal rtnetlink client: links, addresses, routes, bridges; and tap devices and offloads by ioctl.

Calls block and raise OSError with the kernel's errno. A socket belongs to the network namespace of the thread that
opened it. Sources: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,if_tun,ethtool}.h.
"""

import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_IFINFO = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=8BI")  # rtmsg: family, destination and source length, tos, table, protocol, scope, type, flags

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_REQUEST, _ACK, _DUMP, _REPLACE, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x200, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_BR_FORWARD_DELAY, _IFLA_BR_STP_STATE, _IFLA_BR_MCAST_SNOOPING = 1, 5, 23
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
_TABLE_MAIN, _PROTOCOL_BOOT, _SCOPE_LINK, _UNICAST, _CLONED = 254, 3, 253, 1, 0x200
_IFF_UP = 0x1

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER, _TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_SIOCETHTOOL, _ETHTOOL_GTXCSUM, _ETHTOOL_STXCSUM = 0x8946, 0x16, 0x17

_ANYWHERE = {int(socket.AF_INET): bytes(4), int(socket.AF_INET6): bytes(16)}

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class Link:
    """A network device. `master`: index of its bridge or 0, `kind`: IFLA_INFO_KIND or empty."""

    index: int
    name: str
    mac: str
    mtu: int
    up: bool
    master: int
    kind: str


@dataclass(frozen=True)
class Address:
    """An address of a device. `scope` as in rtnetlink: 0 global, 253 link, 254 host. Addresses that are not `permanent`
    come from router advertisements and expire."""

    index: int
    interface: Interface
    scope: int
    permanent: bool = True


@dataclass(frozen=True)
class Route:
    """A unicast route of the main table. `gateway`: None for an on-link route. `protocol`: its origin as in rtnetlink:
    2 the kernel, for an address; 3 and above user space."""

    index: int
    destination: ipaddress.IPv4Network | ipaddress.IPv6Network
    gateway: ipaddress.IPv4Address | ipaddress.IPv6Address | None
    metric: int = 0
    protocol: int = _PROTOCOL_BOOT


class Netlink:
    """A route netlink socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(5)
        self._sequence = 0

    def links(self) -> dict[str, Link]:
        """Every device of the namespace, by name."""
        found = {}
        for body in self._dump(_RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)):
            _, _, index, flags, _ = _IFINFO.unpack_from(body)
            fields = dict(_attributes(body[_IFINFO.size :]))
            info = dict(_attributes(fields.get(_IFLA_LINKINFO, b"")))
            name = _text(fields.get(_IFLA_IFNAME, b""))
            found[name] = Link(
                index,
                name,
                fields.get(_IFLA_ADDRESS, b"").hex(":"),
                _u32(fields.get(_IFLA_MTU)),
                bool(flags & _IFF_UP),
                _u32(fields.get(_IFLA_MASTER)),
                _text(info.get(_IFLA_INFO_KIND, b"")),
            )
        return found

    def addresses(self) -> list[Address]:
        """Every address of the namespace, both families."""
        found = []
        for body in self._dump(_RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
            family, prefix, short, scope, index = _IFADDR.unpack_from(body)
            fields = dict(_attributes(body[_IFADDR.size :]))
            raw = fields.get(_IFA_LOCAL) or fields.get(_IFA_ADDRESS)
            if raw and family in (socket.AF_INET, socket.AF_INET6):
                flags = _u32(fields.get(_IFA_FLAGS)) or short
                permanent = bool(flags & _IFA_F_PERMANENT)
                found.append(Address(index, ipaddress.ip_interface((raw, prefix)), scope, permanent))
        return found

    def routes(self) -> list[Route]:
        """The unicast routes of the main table with a single device, both families."""
        found = []
        for body in self._dump(_RTM_GETROUTE, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
            family, prefix, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(body)
            fields = dict(_attributes(body[_ROUTE.size :]))
            table = _u32(fields.get(_RTA_TABLE)) or table
            if family not in _ANYWHERE or kind != _UNICAST or table != _TABLE_MAIN or flags & _CLONED:
                continue
            if _RTA_OIF not in fields:
                continue
            gateway = fields.get(_RTA_GATEWAY)
            found.append(
                Route(
                    _u32(fields[_RTA_OIF]),
                    ipaddress.ip_network((fields.get(_RTA_DST, _ANYWHERE[family]), prefix)),
                    ipaddress.ip_address(gateway) if gateway else None,
                    _u32(fields.get(_RTA_PRIORITY)),
                    protocol,
                )
            )
        return found

    def add_bridge(self, name: str, mac: str, mtu: int) -> None:
        """Creates a bridge without STP and without multicast snooping (which would drop IPv6 neighbour discovery)."""
        data = (
            _attribute(_IFLA_BR_FORWARD_DELAY, _pack_u32(0))
            + _attribute(_IFLA_BR_STP_STATE, _pack_u32(0))
            + _attribute(_IFLA_BR_MCAST_SNOOPING, b"\0")
        )
        info = _attribute(_IFLA_INFO_KIND, b"bridge\0") + _attribute(_IFLA_INFO_DATA, data)
        body = (
            _IFINFO.pack(0, 0, 0, 0, 0)
            + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
            + _attribute(_IFLA_ADDRESS, _mac(mac))
            + _attribute(_IFLA_MTU, _pack_u32(mtu))
            + _attribute(_IFLA_LINKINFO, info)
        )
        self._request(_RTM_NEWLINK, _CREATE | _EXCL, body)

    def change_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        master: int | None = None,
        mac: str | None = None,
    ) -> None:
        """Changes the given attributes. `master` 0 removes the device from its bridge."""
        flags, mask = (_IFF_UP if up else 0, _IFF_UP) if up is not None else (0, 0)
        body = _IFINFO.pack(0, 0, index, flags, mask)
        if mtu is not None:
            body += _attribute(_IFLA_MTU, _pack_u32(mtu))
        if master is not None:
            body += _attribute(_IFLA_MASTER, _pack_u32(master))
        if mac is not None:
            body += _attribute(_IFLA_ADDRESS, _mac(mac))
        self._request(_RTM_NEWLINK, 0, body)

    def delete_link(self, index: int) -> None:
        """Deletes a device."""
        self._request(_RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))

    def add_address(self, index: int, interface: Interface) -> None:
        """Adds an address to a device, without duplicate address detection."""
        family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
        body = (
            _IFADDR.pack(family, interface.network.prefixlen, 0, 0, index)
            + _attribute(_IFA_LOCAL, interface.ip.packed)
            + _attribute(_IFA_ADDRESS, interface.ip.packed)
        )
        if interface.version == 6:
            body += _attribute(_IFA_FLAGS, _pack_u32(_IFA_F_NODAD))
        self._request(_RTM_NEWADDR, _CREATE | _EXCL, body)

    def delete_address(self, index: int, interface: Interface) -> None:
        """Deletes an address from a device, and with it the routes that depend on it."""
        family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
        body = _IFADDR.pack(family, interface.network.prefixlen, 0, 0, index) + _attribute(
            _IFA_LOCAL, interface.ip.packed
        )
        self._request(_RTM_DELADDR, 0, body)

    def add_link_route(self, index: int, destination: ipaddress.IPv4Address) -> None:
        """Adds an on-link host route for one address, or replaces it."""
        head = (socket.AF_INET, 32, 0, 0, _TABLE_MAIN, _PROTOCOL_BOOT, _SCOPE_LINK, _UNICAST, 0)
        body = _ROUTE.pack(*head) + _attribute(_RTA_DST, destination.packed) + _attribute(_RTA_OIF, _pack_u32(index))
        self._request(_RTM_NEWROUTE, _CREATE | _REPLACE, body)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, kind: int, flags: int, body: bytes) -> None:
        for _ in self._exchange(kind, _REQUEST | _ACK | flags, body):
            pass

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        return list(self._exchange(kind, _REQUEST | _DUMP, body))

    def _exchange(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        while True:
            data = self._socket.recv(1 << 17)
            for message, answer in _messages(data, self._sequence):
                if message == _NLMSG_DONE:
                    return
                if message == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", answer)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield answer


def _messages(data: bytes, sequence: int) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, number, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        if number == sequence:
            yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _attribute(kind: int, payload: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def _pack_u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _u32(raw: bytes | None) -> int:
    return int(struct.unpack("=I", raw)[0]) if raw else 0


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("ascii", "replace")


def _mac(text: str) -> bytes:
    raw = bytes.fromhex(text.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"{text!r} is not an Ethernet address")
    return raw


def add_tap(name: str, uid: int, gid: int, multi_queue: bool) -> None:
    """Creates a persistent tap device with virtio-net headers, owned by `uid`. Raises OSError (EBUSY: in use)."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi_queue else 0)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        # The kernel uses 32 bits, Python passes a signed number, and a user of a user namespace may be above 2^31.
        fcntl.ioctl(fd, _TUNSETOWNER, ctypes.c_int32(uid).value)
        fcntl.ioctl(fd, _TUNSETGROUP, ctypes.c_int32(gid).value)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


def leaves_checksums(name: str, wanted: bool | None = None) -> bool:
    """Whether TX checksum offload is enabled on the device; `wanted` sets it first.

    Old DHCP clients drop packets with offloaded checksums, which a virtual device never fills in.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        if wanted is not None:
            _ethtool(control, name, _ETHTOOL_STXCSUM, int(wanted))
        return bool(_ethtool(control, name, _ETHTOOL_GTXCSUM, 0))


def _ethtool(control: socket.socket, name: str, command: int, value: int) -> int:
    payload = (ctypes.c_uint32 * 2)(command, value)  # struct ethtool_value
    fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(payload)))
    return int(payload[1])
