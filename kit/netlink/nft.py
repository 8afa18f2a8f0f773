"""nftables by netlink: nfnetlink batches, each a transaction.

Sources: include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h; nft(8) for what the expressions mean.
"""

import errno
import ipaddress
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from kit.netlink.transport import (
    ACK,
    APPEND,
    CREATE,
    EXCL,
    Message,
    NetlinkRefusal,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
    text,
)

INET, IPV4, BRIDGE, IPV6 = 1, 2, 7, 10  # NFPROTO_*
TCP, UDP, ICMPV6 = 6, 17, 58  # IPPROTO_*
_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN = 0, 1, 2, 3, 4, 5
_NEWRULE, _GETRULE, _DELRULE, _NEWSET, _NEWELEM, _DELELEM = 6, 7, 8, 9, 12, 14
_JUMP = -3
_DROP, _ACCEPT = 0, 1
_VERDICT_TYPE = 0xFFFFFF00
_SET_MAP = 0x8
_REG_VERDICT, _REG1 = 0, 1
_IIFNAME, _OIFNAME, _NFPROTO, _L4PROTO = 6, 7, 15, 16
_LINK_LAYER, _NETWORK_LAYER, _TRANSPORT_LAYER = 0, 1, 2
_EQ, _NEQ, _LTE, _GTE = 0, 1, 3, 5
_SNAT, _DNAT = 0, 1
_ETHER_TYPE = 12  # offset in an Ethernet header
# Offsets of source and destination in an IP header, by the size of an address.
_ADDRESSES = {4: (12, 16), 16: (8, 24)}
_IFNAME_TYPE, _IFNAME_SIZE = 41, 16
# nft's user data of a set: keys in host byte order. Without it `nft list` shows empty names.
_HOST_ORDER = struct.pack("=BBI", 0, 4, 1)

Expressions = tuple[bytes, ...]
"""Encoded expressions, evaluated one after the other until one does not match."""
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def _generic(family: int) -> bytes:
    return struct.pack("!BBH", family, 0, 0)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _message(kind: int, flags: int, family: int, *parts: bytes) -> Message:
    return _SUBSYSTEM << 8 | kind, flags, _generic(family) + b"".join(parts)


def table(family: int, name: str) -> Message:
    """Create a table; EEXIST if it exists."""
    return _message(_NEWTABLE, ACK | CREATE | EXCL, family, text(1, name))


def ensure_table(family: int, name: str) -> Message:
    """Create a table unless it exists."""
    return _message(_NEWTABLE, ACK | CREATE, family, text(1, name))


def delete_table(family: int, name: str) -> Message:
    """Delete a table with its contents."""
    return _message(_DELTABLE, ACK, family, text(1, name))


def chain(family: int, owner: str, name: str) -> Message:
    """Create a chain; EEXIST if it exists."""
    return _message(_NEWCHAIN, ACK | CREATE | EXCL, family, text(1, owner), text(3, name))


def base_chain(family: int, owner: str, name: str, kind: str, hook: int, priority: int) -> Message:
    """Create a base chain, attached to a hook."""
    where = nested(4, _number(1, hook), _number(2, priority))
    return _message(_NEWCHAIN, ACK | CREATE | EXCL, family, text(1, owner), text(3, name), where, text(7, kind))


def delete_chain(family: int, owner: str, name: str) -> Message:
    """Delete a chain with its rules; ENOENT if it does not exist, EBUSY if it is a jump target."""
    return _message(_DELCHAIN, ACK, family, text(1, owner), text(3, name))


def rule(family: int, owner: str, where: str, *expressions: bytes) -> Message:
    """Append a rule."""
    parts = b"".join(nested(1, expression) for expression in expressions)
    return _message(_NEWRULE, ACK | CREATE | APPEND, family, text(1, owner), text(2, where), nested(4, parts))


def delete_rules(family: int, owner: str, where: str) -> Message:
    """Delete all rules of a chain; ENOENT if it does not exist."""
    return _message(_DELRULE, ACK, family, text(1, owner), text(2, where))


def verdict_map(family: int, owner: str, name: str) -> Message:
    """Create a map from interface names to verdicts."""
    parts = (text(1, owner), text(2, name), _number(3, _SET_MAP), _number(4, _IFNAME_TYPE), _number(5, _IFNAME_SIZE))
    return _message(
        _NEWSET,
        ACK | CREATE | EXCL,
        family,
        *parts,
        _number(6, _VERDICT_TYPE),
        _number(7, 0),
        _number(10, 1),
        attribute(13, _HOST_ORDER),
    )


def element(family: int, owner: str, name: str, interface: str, target: str) -> Message:
    """Add an element to a verdict map: jump to a chain for frames from an interface."""
    verdict = nested(2, nested(2, _number(1, _JUMP), text(2, target)))
    one = nested(1, _key(interface), verdict)
    return _message(_NEWELEM, ACK | CREATE | EXCL, family, text(1, owner), text(2, name), nested(3, one))


def delete_element(family: int, owner: str, name: str, interface: str) -> Message:
    """Delete an interface's element of a verdict map; ENOENT if it does not exist."""
    return _message(_DELELEM, ACK, family, text(1, owner), text(2, name), nested(3, nested(1, _key(interface))))


def _key(interface: str) -> bytes:
    return nested(1, attribute(1, _padded(interface)))


def _padded(interface: str) -> bytes:
    return interface.encode().ljust(_IFNAME_SIZE, b"\0")


def _expression(name: str, *parts: bytes) -> bytes:
    return text(1, name) + nested(2, *parts)


def _meta(key: int) -> bytes:
    return _expression("meta", _number(2, key), _number(1, _REG1))


def load_input_interface() -> bytes:
    """meta iifname"""
    return _meta(_IIFNAME)


def _payload(base: int, offset: int, size: int) -> bytes:
    return _expression("payload", _number(1, _REG1), _number(2, base), _number(3, offset), _number(4, size))


def load_link(offset: int, size: int) -> bytes:
    """Load bytes of the link layer header."""
    return _payload(_LINK_LAYER, offset, size)


def load_network(offset: int, size: int) -> bytes:
    """Load bytes of the network layer header."""
    return _payload(_NETWORK_LAYER, offset, size)


def _mask(data: bytes) -> bytes:
    """register & data"""
    parts = (_number(1, _REG1), _number(2, _REG1), _number(3, len(data)))
    return _expression("bitwise", *parts, nested(4, attribute(1, data)), nested(5, attribute(1, bytes(len(data)))))


def _compare(operator: int, data: bytes) -> bytes:
    return _expression("cmp", _number(1, _REG1), _number(2, operator), nested(3, attribute(1, data)))


def equal(data: bytes) -> bytes:
    """Match if the register is `data`."""
    return _compare(_EQ, data)


def different(data: bytes) -> bytes:
    """Match if the register is not `data`."""
    return _compare(_NEQ, data)


def look_up_verdict(name: str) -> bytes:
    """vmap @name"""
    return _expression("lookup", text(1, name), _number(2, _REG1), _number(3, _REG_VERDICT))


def drop() -> bytes:
    """drop"""
    return _verdict(_DROP)


def accept() -> bytes:
    """accept"""
    return _verdict(_ACCEPT)


def _verdict(code: int) -> bytes:
    return _expression("immediate", _number(1, _REG_VERDICT), nested(2, nested(2, _number(1, code))))


def masquerade() -> bytes:
    """masquerade"""
    return _expression("masq")


def input_interface(name: str) -> Expressions:
    """iifname NAME"""
    return load_input_interface(), equal(_padded(name))


def output_interface(name: str) -> Expressions:
    """oifname NAME"""
    return _meta(_OIFNAME), equal(_padded(name))


def from_network(network: IpNetwork) -> Expressions:
    """ip saddr NETWORK, ip6 saddr NETWORK; in an inet table."""
    return _in_network(network, 0)


def to_network(network: IpNetwork) -> Expressions:
    """ip daddr NETWORK, ip6 daddr NETWORK; in an inet table."""
    return _in_network(network, 1)


def _in_network(network: IpNetwork, field: int) -> Expressions:
    address = network.network_address.packed
    load = load_network(_ADDRESSES[len(address)][field], len(address))
    masked = () if network.prefixlen == network.max_prefixlen else (_mask(network.netmask.packed),)
    return _meta(_NFPROTO), equal(bytes([_family(network.version)])), load, *masked, equal(address)


def not_to_network(network: IpNetwork) -> Expressions:
    """ip daddr != NETWORK, ip6 daddr != NETWORK; behind a match of the protocol in an inet table."""
    address = network.network_address.packed
    load = load_network(_ADDRESSES[len(address)][1], len(address))
    return load, _mask(network.netmask.packed), different(address)


def to_ports(protocol: int, first: int, last: int) -> Expressions:
    """tcp dport FIRST-LAST, udp dport FIRST-LAST"""
    low, high = struct.pack("!H", first), struct.pack("!H", last)
    matches = (equal(low),) if first == last else (_compare(_GTE, low), _compare(_LTE, high))
    return _meta(_L4PROTO), equal(bytes([protocol])), _payload(_TRANSPORT_LAYER, 2, 2), *matches


def ether_type(number: int) -> Expressions:
    """ether type NUMBER; in a bridge table."""
    return load_link(_ETHER_TYPE, 2), equal(struct.pack("!H", number))


def icmpv6_type(number: int) -> Expressions:
    """icmpv6 type NUMBER; behind the Ethernet type in a bridge table."""
    return _meta(_L4PROTO), equal(bytes([ICMPV6])), _payload(_TRANSPORT_LAYER, 0, 1), equal(bytes([number]))


def destination_nat(address: IpAddress) -> Expressions:
    """dnat to ADDRESS"""
    return _nat(_DNAT, address)


def source_nat(address: IpAddress) -> Expressions:
    """snat to ADDRESS"""
    return _nat(_SNAT, address)


def _nat(kind: int, address: IpAddress) -> Expressions:
    value = _expression("immediate", _number(1, _REG1), nested(2, attribute(1, address.packed)))
    return value, _expression("nat", _number(1, kind), _number(2, _family(address.version)), _number(3, _REG1))


def _family(version: int) -> int:
    return IPV4 if version == 4 else IPV6


class Nft:
    """An nfnetlink socket. Closing one takes the kernel more than 10 ms, so `NftPool` keeps them."""

    def __init__(self) -> None:
        self.socket = NetlinkSocket(_NETFILTER)

    def commit(self, *messages: Message) -> None:
        """Apply all messages or none. Raises NetlinkRefusal, OSError."""
        begin = (_BATCH_BEGIN, 0, struct.pack("!BBH", 0, 0, _SUBSYSTEM))
        end = (_BATCH_END, 0, struct.pack("!BBH", 0, 0, _SUBSYSTEM))
        self.socket.batch(begin, messages, end)

    def has_chain(self, family: int, owner: str, name: str) -> bool:
        """Whether a chain exists. Check before a change: a failed transaction costs 10 ms."""
        return self._has(_GETCHAIN, _generic(family) + text(1, owner) + text(3, name))

    def has_table(self, family: int, name: str) -> bool:
        """Whether a table exists."""
        return self._has(_GETTABLE, _generic(family) + text(1, name))

    def _has(self, kind: int, body: bytes) -> bool:
        try:
            self.socket.talk([(_SUBSYSTEM << 8 | kind, 0, body)])
        except NetlinkRefusal as refusal:
            if refusal.errno == errno.ENOENT:
                return False
            raise
        return True

    def chains(self, family: int, owner: str) -> list[str]:
        """The chains of a table; empty if it does not exist."""
        found = []
        for body in self.socket.dump(_SUBSYSTEM << 8 | _GETCHAIN, _generic(family)):
            fields = dict(attributes(body, 4))
            if fields.get(1, b"").rstrip(b"\0").decode() == owner:
                found.append(fields.get(3, b"").rstrip(b"\0").decode())
        return found

    def rules(self, family: int, owner: str, where: str) -> list[bytes]:
        """The encoded expressions of each rule of a chain."""
        body = _generic(family) + text(1, owner) + text(2, where)
        try:
            found = self.socket.dump(_SUBSYSTEM << 8 | _GETRULE, body)
        except NetlinkRefusal as refusal:
            if refusal.errno == errno.ENOENT:
                return []
            raise
        return [dict(attributes(each, 4)).get(4, b"") for each in found]

    def close(self) -> None:
        """Closes the socket."""
        self.socket.close()


class NftPool:
    """nfnetlink sockets of the daemon's namespace, each lent to one thread at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._idle: list[Nft] = []

    @contextmanager
    def lend(self) -> Iterator[Nft]:
        """Borrow a socket. It is closed, not reused, after an error that leaves its state unknown."""
        with self._lock:
            one = self._idle.pop() if self._idle else None
        one = one or Nft()
        try:
            yield one
        except NetlinkRefusal:
            self._back(one)
            raise
        except BaseException:
            one.close()
            raise
        self._back(one)

    def _back(self, one: Nft) -> None:
        with self._lock:
            self._idle.append(one)

    def close(self) -> None:
        """Close idle sockets."""
        with self._lock:
            idle, self._idle = self._idle, []
        for one in idle:
            one.close()
