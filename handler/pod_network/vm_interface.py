"""The configured interface of a VM: source of its NIC message, its status and its router advertisements."""

import ipaddress
from dataclasses import dataclass, field

from handler.pod_network.interface_record import SavedRoute
from handler.pod_network.interface_request import InterfaceRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Dhcpv4Lease:
    """The guest's DHCPv4 lease."""

    address: ipaddress.IPv4Interface
    server: ipaddress.IPv4Address
    router: ipaddress.IPv4Address | None = None
    routes: tuple[SavedRoute, ...] = ()


@dataclass(frozen=True)
class Ipv6Router:
    """The content of router advertisements. `leads_on`: whether a default route is announced, or the subnet only."""

    gateway: ipaddress.IPv6Interface
    leads_on: bool = True


@dataclass(frozen=True)
class VmInterface:
    """One interface connected to its network."""

    request: InterfaceRequest
    interface: str
    """The pod's interface."""
    mac: str = ""
    """Of the guest."""
    bridge: str = ""
    bridge_mac: str = ""
    tap: str = ""
    """Empty for a host device (sriov)."""
    mtu: int = 0
    addresses: tuple[Address, ...] = ()
    """Addresses to reach the guest: the pod's on the pod network, else those leased."""
    lease4: Dhcpv4Lease | None = None
    lease6: ipaddress.IPv6Address | None = None
    router6: Ipv6Router | None = None
    fresh: bool = field(default=False, compare=False)
    """Whether its bridge was just created."""
