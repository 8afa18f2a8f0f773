"""The nftables rules of a masqueraded guest, in the launcher's network namespace.

All of them are in one table of our own, `inet hyperlet`, replaced in one transaction. An empty chain whose name holds
a digest of the rules tells later whether they are in place. Source: nft(8), sections on NAT statements and expressions.

What goes where:
- in at the pod's interface, to the pod's addresses: on to the guest (everything, or only the listed ports);
- out from the guest: with the pod's address;
- from the pod itself to its loopback or its own addresses: to the guest, which sees the gateway as the sender.
"""

import hashlib
import re
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from api.errors import NetworkError

TABLE = "hyperlet"
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}")
_SECONDS = 15


@dataclass(frozen=True)
class Forwarded:
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
class Family:
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


@dataclass(frozen=True)
class Ruleset:
    """Everything the rules depend on. Raises NetworkError for a device whose name nft would not take for one word:
    the kernel lets it hold quotation marks, and some CNI plugins let users choose it."""

    uplink: str
    bridge: str
    families: tuple[Family, ...]
    ports: tuple[Forwarded, ...] = ()

    def __post_init__(self) -> None:
        for device in (self.uplink, self.bridge):
            if not _DEVICE.fullmatch(device):
                raise NetworkError(f"the pod's network device {device!r} has a name that cannot be used")

    def text(self) -> str:
        """The input for `nft -f -`; applying it again changes nothing."""
        rules = self._table()
        return f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n{rules}add chain inet {TABLE} {marker(rules)}\n"

    @property
    def marker(self) -> str:
        """Name of the chain that exists if and only if these very rules are in place."""
        return marker(self._table())

    def _table(self) -> str:
        chains = [
            ("guard", "filter hook prerouting priority raw; policy accept;", self._guard()),
            ("prerouting", "nat hook prerouting priority dstnat; policy accept;", self._inbound()),
            ("output", "nat hook output priority -100; policy accept;", self._local()),
            ("postrouting", "nat hook postrouting priority srcnat; policy accept;", self._outbound()),
        ]
        body = "".join(
            f"  chain {name} {{\n    type {kind}\n{''.join(f'    {rule}{chr(10)}' for rule in rules)}  }}\n"
            for name, kind, rules in chains
        )
        return f"table inet {TABLE} {{\n{body}}}\n"

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


def _to_pod(family: Family) -> str:
    return f"{family.word} daddr {{ {', '.join(map(str, family.pod))} }}"


def _to_guest(family: Family) -> str:
    return f"dnat {family.word} to {family.guest}"


def marker(rules: str) -> str:
    """The name of the marking chain for a text of rules."""
    return f"rules_{hashlib.sha256(rules.encode()).hexdigest()[:16]}"


def apply(ruleset: Ruleset) -> None:
    """Puts the rules in place, in the calling thread's network namespace. Raises NetworkError with nft's words."""
    _run(["nft", "-f", "-"], ruleset.text())


def in_place(ruleset: Ruleset) -> bool:
    """Whether these very rules are in place in the calling thread's network namespace."""
    try:
        return ruleset.marker in _run(["nft", "list", "table", "inet", TABLE], "")
    except NetworkError:
        return False  # there is no such table


def _run(command: list[str], text: str) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"nft did not run: {error}") from error
    if done.returncode:
        raise NetworkError(f"nft refused the rules: {done.stderr.strip()[:500]}")
    return done.stdout
