"""The nftables rules of a guest, in the launcher's network namespace.

Two tables, `inet hyperlet` for masquerade and `bridge hyperlet` for bridges, are replaced in one transaction. An empty
chain named by a digest of the rules shows whether they are in place.
Source: nft(8), NAT statements, payload expressions and the bridge family.
"""

import hashlib
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from api.errors import NetworkError

TABLE = "hyperlet"
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}")
_SECONDS = 15


@dataclass(frozen=True)
class ForwardedPorts:
    """A range of ports forwarded to the guest; `protocol` is tcp or udp."""

    protocol: str
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.protocol not in ("tcp", "udp") or not 1 <= self.first <= self.last <= 65535:
            raise NetworkError(f"cannot forward {self.protocol!r} ports {self.first} to {self.last}")

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class IpFamily:
    """The addresses of one IP version."""

    guest: IPv4Address | IPv6Address
    gateway: IPv4Address | IPv6Address
    subnet: IPv4Network | IPv6Network
    pod: tuple[IPv4Address | IPv6Address, ...]

    @property
    def word(self) -> str:
        """nft's keyword for the IP version."""
        return "ip" if self.guest.version == 4 else "ip6"

    @property
    def loopback(self) -> str:
        """The loopback address forwarded to the guest; none for IPv6, which never routes ::1."""
        return "127.0.0.1" if self.guest.version == 4 else ""


def checked(device: str) -> str:
    """The device name. Raises NetworkError for one that nft cannot parse: the kernel allows quotation marks, and some
    CNI plugins let users choose the name."""
    if not _DEVICE.fullmatch(device):
        raise NetworkError(f"the pod's network device {device!r} has an unsupported name")
    return device


class NftTable:
    """A table of rules."""

    family = "inet"

    def text(self) -> str:
        """Input for `nft -f -`; idempotent."""
        where, rules = f"{self.family} {TABLE}", self._table()
        return f"table {where} {{}}\ndelete table {where}\n{rules}add chain {where} {marker(rules)}\n"

    @property
    def marker(self) -> str:
        """Name of the chain that exists if and only if exactly these rules are in place."""
        return marker(self._table())

    def _table(self) -> str:
        body = "".join(
            f"  chain {name} {{\n    type {kind}\n{''.join(f'    {rule}{chr(10)}' for rule in rules)}  }}\n"
            for name, kind, rules in self._chains()
        )
        return f"table {self.family} {TABLE} {{\n{body}}}\n"

    def _chains(self) -> list[tuple[str, str, list[str]]]:
        """Name, kind and rules of each."""
        raise NotImplementedError


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

    def _chains(self) -> list[tuple[str, str, list[str]]]:
        return [
            ("guard", "filter hook prerouting priority raw; policy accept;", self._guard()),
            ("prerouting", "nat hook prerouting priority dstnat; policy accept;", self._inbound()),
            ("output", "nat hook output priority -100; policy accept;", self._local()),
            ("postrouting", "nat hook postrouting priority srcnat; policy accept;", self._outbound()),
        ]

    def _guard(self) -> list[str]:
        # route_localnet opens 127.0.0.0/8 to the bridge; guest and network must not use it.
        return [
            f'iifname "{self.bridge}" ip daddr 127.0.0.0/8 drop',
            f'iifname "{self.uplink}" ip daddr 127.0.0.0/8 drop',
        ]

    def _inbound(self) -> list[str]:
        return [
            f'iifname "{self.uplink}" {_to_pod(family)} {match}{_to_guest(family)}'
            for family in self.families
            if family.pod
            for match in self._matches()
        ]

    def _local(self) -> list[str]:
        return [
            f'oifname "lo" {family.word} daddr {{ {", ".join(own)} }} {match}{_to_guest(family)}'
            for family in self.families
            if (own := [address for address in (family.loopback, *map(str, family.pod)) if address])
            for match in self._matches()
        ]

    def _outbound(self) -> list[str]:
        rules = []
        for family in self.families:
            own = [address for address in (family.loopback, *map(str, family.pod)) if address]
            rules.append(f'oifname "{self.uplink}" {family.word} saddr {family.subnet} masquerade')
            if own:
                rules.append(
                    f'oifname "{self.bridge}" {family.word} saddr {{ {", ".join(own)} }} '
                    f"snat {family.word} to {family.gateway}"
                )
        return rules

    def _matches(self) -> list[str]:
        if not self.ports:
            return [""]
        found = []
        for protocol in ("tcp", "udp"):
            if chosen := sorted({str(port) for port in self.ports if port.protocol == protocol}):
                found.append(f"{protocol} dport {{ {', '.join(chosen)} }} ")
        return found


def _to_pod(family: IpFamily) -> str:
    return f"{family.word} daddr {{ {', '.join(map(str, family.pod))} }}"


def _to_guest(family: IpFamily) -> str:
    return f"dnat {family.word} to {family.guest}"


def marker(rules: str) -> str:
    """The name of the marker chain for a text of rules."""
    return f"rules_{hashlib.sha256(rules.encode()).hexdigest()[:16]}"


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
    family = "bridge"

    def _chains(self) -> list[tuple[str, str, list[str]]]:
        return [
            ("input", "filter hook input priority filter; policy accept;", self._in()),
            ("output", "filter hook output priority filter; policy accept;", self._out()),
            ("forward", "filter hook forward priority filter; policy accept;", self._between()),
        ]

    def _in(self) -> list[str]:
        rules = []
        for nic in self.nics:
            rules.append(f'iifname "{nic.uplink}" drop')
            if nic.server4:
                rules.append(f'iifname "{nic.tap}" ether type ip udp dport 67 accept')
                rules.append(f'iifname "{nic.tap}" arp daddr ip {nic.server4} accept')
            if nic.serves6:
                rules.append(f'iifname "{nic.tap}" ether type ip6 udp dport 547 accept')
                kinds = "nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert"
                rules.append(f'iifname "{nic.tap}" icmpv6 type {{ {kinds} }} accept')
            rules.append(f'iifname "{nic.tap}" drop')
        return rules

    def _out(self) -> list[str]:
        return [f'oifname "{nic.uplink}" drop' for nic in self.nics]

    def _between(self) -> list[str]:
        rules = []
        for nic in self.nics:
            ends = f'iifname {{ "{nic.uplink}", "{nic.tap}" }}'
            if nic.server4:
                rules.append(f"{ends} ether type ip udp dport {{ 67, 68 }} drop")
            if nic.serves6:
                rules.append(f"{ends} ether type ip6 udp dport {{ 546, 547 }} drop")
        return rules


def apply(tables: Iterable[NftTable]) -> None:
    """Apply the rules in the calling thread's network namespace. Raises NetworkError with nft's message."""
    if text := "".join(table.text() for table in tables):
        _run(["nft", "-f", "-"], text)


def in_place(tables: Iterable[NftTable]) -> bool:
    """Whether exactly these rules are in place in the calling thread's network namespace. Raises NetworkError."""
    wanted = [table.marker for table in tables]
    if not wanted:
        return True
    there = _run(["nft", "list", "chains"], "")
    return all(marker in there for marker in wanted)


def _run(command: list[str], text: str) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"cannot run nft: {error}") from error
    if done.returncode:
        raise NetworkError(f"nft rejected the rules: {done.stderr.strip()[:500]}")
    return done.stdout
