"""What the handler has made for one interface of a VM: what its message, its status and its router are made from."""

import ipaddress
from dataclasses import dataclass, field

from handler.pod_network.interface_record import SavedRoute
from handler.pod_network.interface_request import InterfaceRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Dhcpv4Lease:
    """What the guest gets by DHCPv4."""

    address: ipaddress.IPv4Interface
    server: ipaddress.IPv4Address
    router: ipaddress.IPv4Address | None = None
    routes: tuple[SavedRoute, ...] = ()


@dataclass(frozen=True)
class Ipv6Router:
    """What the guest is told by router advertisements. `leads_on`: there is a way out through us, else only the
    subnet is told."""

    gateway: ipaddress.IPv6Interface
    leads_on: bool = True


@dataclass(frozen=True)
class VmInterface:
    """One interface that is joined to its network."""

    request: InterfaceRequest
    interface: str
    """The pod's interface."""
    mac: str = ""
    """Of the guest."""
    bridge: str = ""
    bridge_mac: str = ""
    tap: str = ""
    """Empty where the guest has a device of the host."""
    mtu: int = 0
    addresses: tuple[Address, ...] = ()
    """By which the guest is reached: the pod's on its own network, else those that we give."""
    lease4: Dhcpv4Lease | None = None
    lease6: ipaddress.IPv6Address | None = None
    router6: Ipv6Router | None = None
    fresh: bool = field(default=False, compare=False)
    """Whether its bridge is new."""
