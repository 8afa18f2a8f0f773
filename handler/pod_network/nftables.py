"""The nftables rules of a guest, in the launcher's network namespace.

Two tables, `inet hyperlet` for masquerade and `bridge hyperlet` for bridges, are replaced in one transaction. An empty
chain named by a digest of the rules shows whether they are in place.
Source: nft(8), NAT statements, payload expressions and the bridge family.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple

from api.errors import NetworkError
from kit.netlink import nft
from kit.netlink.nft import Expressions, IpNetwork
from kit.netlink.transport import Message

TABLE = "hyperlet"
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}")
_LOOPBACK = IPv4Network("127.0.0.0/8")
_PROTOCOLS = {"tcp": nft.TCP, "udp": nft.UDP}
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD  # Ethernet types
_ARP_TARGET = (24, 4)  # offset and size of the target's address in an ARP packet for IPv4
_ROUTER_SOLICITATION, _NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 133, 135, 136  # ICMPv6 types
# Hooks of enum nf_inet_hooks, which have the same numbers in the bridge family, and priorities.
_PREROUTING, _INPUT, _FORWARD, _OUTPUT, _POSTROUTING = range(5)
_RAW, _DSTNAT, _SRCNAT, _BRIDGE_FILTER = -300, -100, 100, -200


@dataclass(frozen=True)
class ForwardedPorts:
    """A range of ports forwarded to the guest; `protocol` is tcp or udp."""

    protocol: str
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.protocol not in ("tcp", "udp") or not 1 <= self.first <= self.last <= 65535:
            raise NetworkError(f"cannot forward {self.protocol!r} ports {self.first} to {self.last}")

    @property
    def match(self) -> Expressions:
        """Matches these destination ports."""
        return nft.to_ports(_PROTOCOLS[self.protocol], self.first, self.last)


@dataclass(frozen=True)
class IpFamily:
    """The addresses of one IP version."""

    guest: IPv4Address | IPv6Address
    gateway: IPv4Address | IPv6Address
    subnet: IPv4Network | IPv6Network
    pod: tuple[IPv4Address | IPv6Address, ...]

    @property
    def own(self) -> list[IpNetwork]:
        """The pod's addresses, with the loopback address that is forwarded to the guest; IPv6 never routes ::1."""
        loopback = ["127.0.0.1"] if self.guest.version == 4 else []
        return [ip_network(address) for address in (*loopback, *self.pod)]


def checked(device: str) -> str:
    """The device name. Raises NetworkError for one that `nft` could not show: the kernel allows quotation marks, and
    some CNI plugins let users choose the name."""
    if not _DEVICE.fullmatch(device):
        raise NetworkError(f"the pod's network device {device!r} has an unsupported name")
    return device


class BaseChain(NamedTuple):
    """A chain attached to a hook. `kind`: filter or nat."""

    name: str
    kind: str
    hook: int
    priority: int
    rules: list[Expressions]


class NftTable:
    """A table of rules."""

    family = nft.INET

    def chains(self) -> list[BaseChain]:
        """The chains with their rules."""
        raise NotImplementedError

    @property
    def marker(self) -> str:
        """Name of the chain that exists if and only if exactly these rules are in place."""
        digest = hashlib.sha256(b"".join(body for _, _, body in self._contents())).hexdigest()
        return f"rules_{digest[:16]}"

    def messages(self) -> list[Message]:
        """Replaces the table; idempotent."""
        fresh = [nft.ensure_table(self.family, TABLE), nft.delete_table(self.family, TABLE)]
        marker = nft.chain(self.family, TABLE, self.marker)
        return [*fresh, nft.table(self.family, TABLE), *self._contents(), marker]

    def _contents(self) -> Iterator[Message]:
        for chain in self.chains():
            yield nft.base_chain(self.family, TABLE, chain.name, chain.kind, chain.hook, chain.priority)
            for rule in chain.rules:
                yield nft.rule(self.family, TABLE, chain.name, *rule)


@dataclass(frozen=True)
class MasqueradeRules(NftTable):
    """The rules of the masquerade binding:

    - from the network to the pod's addresses: DNAT to the guest (all ports, or the listed ones);
    - from the guest: SNAT to the pod's address;
    - from the pod to its loopback or its own addresses: DNAT to the guest, which sees the gateway as the source.
    """

    uplink: str
    bridge: str
    families: tuple[IpFamily, ...]
    ports: tuple[ForwardedPorts, ...] = ()

    def __post_init__(self) -> None:
        for device in (self.uplink, self.bridge):
            checked(device)

    def chains(self) -> list[BaseChain]:
        """See NftTable."""
        return [
            BaseChain("guard", "filter", _PREROUTING, _RAW, self._guard()),
            BaseChain("prerouting", "nat", _PREROUTING, _DSTNAT, self._inbound()),
            BaseChain("output", "nat", _OUTPUT, _DSTNAT, self._local()),
            BaseChain("postrouting", "nat", _POSTROUTING, _SRCNAT, self._outbound()),
        ]

    def _guard(self) -> list[Expressions]:
        # route_localnet opens 127.0.0.0/8 to the bridge; guest and network must not use it.
        return [
            (*nft.input_interface(device), *nft.to_network(_LOOPBACK), nft.drop())
            for device in (self.bridge, self.uplink)
        ]

    def _inbound(self) -> list[Expressions]:
        return [
            rule
            for family in self.families
            for address in family.pod
            for rule in self._to_guest(nft.input_interface(self.uplink), ip_network(address), family)
        ]

    def _local(self) -> list[Expressions]:
        return [
            rule
            for family in self.families
            for address in family.own
            for rule in self._to_guest(nft.output_interface("lo"), address, family)
        ]

    def _to_guest(self, way: Expressions, address: IpNetwork, family: IpFamily) -> list[Expressions]:
        ports = sorted(set(self.ports), key=lambda each: (each.protocol, each.first, each.last))
        matches = [each.match for each in ports] if ports else [()]
        translation = nft.destination_nat(family.guest)
        return [(*way, *nft.to_network(address), *match, *translation) for match in matches]

    def _outbound(self) -> list[Expressions]:
        rules: list[Expressions] = []
        for family in self.families:
            rules.append((*nft.output_interface(self.uplink), *nft.from_network(family.subnet), nft.masquerade()))
            rules += [
                (*nft.output_interface(self.bridge), *nft.from_network(address), *nft.source_nat(family.gateway))
                for address in family.own
            ]
        return rules


@dataclass(frozen=True)
class BridgedInterface:
    """The devices of one interface with the bridge binding. `server4`: address of the DHCP server; `serves6`: whether
    DHCPv6 is served."""

    uplink: str
    tap: str
    server4: str = ""
    serves6: bool = False

    def __post_init__(self) -> None:
        for device in (self.uplink, self.tap):
            checked(device)


@dataclass(frozen=True)
class BridgeRules(NftTable):
    """The rules of the bridge binding. Between guest and network everything passes except DHCP served by the launcher.
    The pod's network stack is isolated from that network in both directions, and the guest reaches nothing of it but
    the DHCP servers."""

    nics: tuple[BridgedInterface, ...]
    family = nft.BRIDGE

    def chains(self) -> list[BaseChain]:
        """See NftTable."""
        return [
            BaseChain("input", "filter", _INPUT, _BRIDGE_FILTER, self._in()),
            BaseChain("output", "filter", _OUTPUT, _BRIDGE_FILTER, self._out()),
            BaseChain("forward", "filter", _FORWARD, _BRIDGE_FILTER, self._between()),
        ]

    def _in(self) -> list[Expressions]:
        rules: list[Expressions] = []
        for nic in self.nics:
            guest = nft.input_interface(nic.tap)
            rules.append((*nft.input_interface(nic.uplink), nft.drop()))
            if nic.server4:
                server = IPv4Address(nic.server4).packed
                rules.append((*guest, *_udp(_IPV4, 67), nft.accept()))
                target = (nft.load_network(*_ARP_TARGET), nft.equal(server))
                rules.append((*guest, *nft.ether_type(_ARP), *target, nft.accept()))
            if nic.serves6:
                rules.append((*guest, *_udp(_IPV6, 547), nft.accept()))
                rules += [
                    (*guest, *nft.ether_type(_IPV6), *nft.icmpv6_type(kind), nft.accept())
                    for kind in (_ROUTER_SOLICITATION, _NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT)
                ]
            rules.append((*guest, nft.drop()))
        return rules

    def _out(self) -> list[Expressions]:
        return [(*nft.output_interface(nic.uplink), nft.drop()) for nic in self.nics]

    def _between(self) -> list[Expressions]:
        rules: list[Expressions] = []
        for nic in self.nics:
            dhcp = [_udp(_IPV4, port) for port in (67, 68) if nic.server4]
            dhcp += [_udp(_IPV6, port) for port in (546, 547) if nic.serves6]
            rules += [
                (*nft.input_interface(end), *match, nft.drop()) for match in dhcp for end in (nic.uplink, nic.tap)
            ]
        return rules


def _udp(ether_type: int, port: int) -> Expressions:
    return (*nft.ether_type(ether_type), *nft.to_ports(nft.UDP, port, port))


def apply(tables: Iterable[NftTable]) -> None:
    """Apply the rules in the calling thread's network namespace. Raises NetworkError with the kernel's message."""
    messages = [message for table in tables for message in table.messages()]
    if not messages:
        return
    try:
        with contextlib.closing(nft.Nft()) as socket:
            socket.commit(*messages)
    except OSError as error:
        raise NetworkError(f"the kernel rejected the nftables rules: {error.strerror}") from error


def in_place(tables: Iterable[NftTable]) -> bool:
    """Whether exactly these rules are in place in the calling thread's network namespace. Raises NetworkError."""
    wanted = [(table.family, table.marker) for table in tables]
    if not wanted:
        return True
    try:
        with contextlib.closing(nft.Nft()) as socket:
            return all(socket.has_chain(family, TABLE, marker) for family, marker in wanted)
    except OSError as error:
        raise NetworkError(f"cannot read the nftables rules: {error.strerror}") from error
