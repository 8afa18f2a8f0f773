"""The nftables rules of a guest, in the launcher's network namespace.

They are in two tables of our own, `inet hyperlet` for masquerade and `bridge hyperlet` for bridges, replaced in one
transaction. An empty chain whose name holds a digest of the rules tells later whether they are in place. Source:
nft(8), sections on NAT statements, payload expressions and the bridge family.
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
    """A range of ports that reaches the guest; `protocol` is tcp or udp."""

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
    """The guest's side of one IP version."""

    guest: IPv4Address | IPv6Address
    gateway: IPv4Address | IPv6Address
    subnet: IPv4Network | IPv6Network
    pod: tuple[IPv4Address | IPv6Address, ...]

    @property
    def word(self) -> str:
        """nft's word for the IP version."""
        return "ip" if self.guest.version == 4 else "ip6"

    @property
    def loopback(self) -> str:
        """The address by which the pod itself reaches the guest; there is none for IPv6, which never routes ::1."""
        return "127.0.0.1" if self.guest.version == 4 else ""


def checked(device: str) -> str:
    """The name of a device. Raises NetworkError if nft would not take it for one word: the kernel lets it hold
    quotation marks, and some CNI plugins let users choose it."""
    if not _DEVICE.fullmatch(device):
        raise NetworkError(f"the pod's network device {device!r} has an unsupported name")
    return device


class NftTable:
    """A table of rules."""

    family = "inet"

    def text(self) -> str:
        """The input for `nft -f -`; applying it again changes nothing."""
        where, rules = f"{self.family} {TABLE}", self._table()
        return f"table {where} {{}}\ndelete table {where}\n{rules}add chain {where} {marker(rules)}\n"

    @property
    def marker(self) -> str:
        """Name of the chain that exists if and only if these very rules are in place."""
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
    """The rules of the masquerade binding. What goes where:

    - in at the pod's interface, to the pod's addresses: on to the guest (everything, or only the listed ports);
    - out from the guest: with the pod's address;
    - from the pod itself to its loopback or its own addresses: to the guest, which sees the gateway as the sender.
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
        # route_localnet opens 127.0.0.0/8 to the bridge; the guest must not come in by it.
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
    """The name of the marking chain for a text of rules."""
    return f"rules_{hashlib.sha256(rules.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class BridgedInterface:
    """The devices of one interface with the bridge binding. `server4`: our own address there, where we serve DHCP;
    `serves6`: whether we serve DHCPv6."""

    uplink: str
    tap: str
    server4: str = ""
    serves6: bool = False

    def __post_init__(self) -> None:
        for device in (self.uplink, self.tap):
            checked(device)


@dataclass(frozen=True)
class BridgeRules(NftTable):
    """The rules of the bridge binding. Between guest and network everything passes but the DHCP that we serve. The
    pod's own network stack has nothing to do with that network: nothing of it goes out there, nothing comes in from
    there, and the guest gets no further in than our DHCP servers."""

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
    """Puts the rules in place, in the calling thread's network namespace. Raises NetworkError with nft's words."""
    if text := "".join(table.text() for table in tables):
        _run(["nft", "-f", "-"], text)


def in_place(tables: Iterable[NftTable]) -> bool:
    """Whether these very rules are in place in the calling thread's network namespace. Raises NetworkError."""
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
