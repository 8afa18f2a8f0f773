"""The bridge binding: the guest takes over the MAC, addresses and routes of the pod's interface.

The interface keeps its name, so that its CNI plugin can delete it, but loses its identity: no addresses, another MAC,
no IPv6. `handler.pod_network.interface_record` keeps what it had.
"""

import hashlib
import ipaddress
from collections.abc import Mapping

from api.errors import NetworkError
from api.kubevirt.networks import pod_interface
from handler.pod_network import nftables
from handler.pod_network.interface_record import SavedInterface, SavedRoute
from handler.pod_network.interface_request import InterfaceRequest
from handler.pod_network.masquerade import POD_TAP
from handler.pod_network.netns import BRIDGE, TAP, BridgedUplink, CurrentState, InterfaceDevices, no_ipv6
from handler.pod_network.vm_interface import Dhcpv4Lease, Ipv6Router, VmInterface
from kit.netlink.route import Interface, Link

SERVER4 = ipaddress.IPv4Interface("169.254.75.10/32")
"""Address of the launcher's DHCP server; the nftables rules keep it off the network."""
_ONE_MAC_KINDS = ("macvlan", "ipvlan")
_FROM_KERNEL = 2
_ANY4 = ipaddress.IPv4Network("0.0.0.0/0")


def names_of(interface: str, on_pod_network: bool) -> tuple[str, str]:
    """Names of the bridge and the tap of a pod interface."""
    if on_pod_network:
        return f"{BRIDGE}{interface}"[:15], POD_TAP
    short = interface.removeprefix("pod")
    return f"{BRIDGE}{short}"[:15], f"{TAP}{short}"[:15]


def local_mac(pod_uid: str, device: str) -> str:
    """A locally administered MAC, derived from pod UID and device: unique and stable."""
    digest = hashlib.sha256(f"{pod_uid}/{device}".encode()).digest()
    return "06:" + digest[:5].hex(":")


def saved_interface_of(current: CurrentState, link: Link) -> SavedInterface:
    """The interface's current state. Raises NetworkError for an interface that cannot be a bridge port."""
    if link.kind in _ONE_MAC_KINDS:
        raise NetworkError(
            f"the pod's interface {link.name} is a {link.kind} device, which passes only its own MAC address "
            "and cannot be a bridge port; use a CNI plugin that creates veth interfaces"
        )
    own = current.of(link)
    routes = [
        route
        for route in sorted(current.routes, key=lambda route: (route.metric, route.destination.prefixlen == 0))
        if route.index == link.index and route.protocol != _FROM_KERNEL
    ]
    ways: dict[ipaddress.IPv4Network, SavedRoute] = {}
    for route in routes:
        if isinstance(route.destination, ipaddress.IPv4Network) and not isinstance(
            route.gateway, ipaddress.IPv6Address
        ):
            ways.setdefault(route.destination, SavedRoute(route.destination, route.gateway))
    return SavedInterface(
        link.index,
        link.mac,
        tuple(interface for interface in own if isinstance(interface, ipaddress.IPv4Interface)),
        tuple(interface for interface in own if isinstance(interface, ipaddress.IPv6Interface)),
        # Link routes first: the gateways of the others are reached by them.
        tuple(sorted(ways.values(), key=lambda way: way.gateway is not None)),
    )


def is_same(link: Link, taken: SavedInterface, pod_uid: str) -> bool:
    """Whether a record is about this interface, and not an earlier one of the same name."""
    return link.index == taken.index and link.mac in (taken.mac, local_mac(pod_uid, link.name))


def recorded(
    current: CurrentState, request: InterfaceRequest, link: Link, known: SavedInterface | None
) -> SavedInterface:
    """The interface's state before it was taken over; `known`: the record, if any.

    Raises NetworkError if it is taken over and not on record.
    """
    if known is not None:
        return known
    bridge, _ = names_of(link.name, request.on_pod_network)
    if link.master and bridge in current.links and current.links[bridge].index == link.master:
        raise NetworkError(
            f"interface {request.name}: the saved addresses and routes of {link.name} are lost; restart the virtual "
            "machine"
        )
    return saved_interface_of(current, link)


def compose(
    link: Link, request: InterfaceRequest, taken: SavedInterface, pod_uid: str
) -> tuple[VmInterface, InterfaceDevices, nftables.BridgedInterface]:
    """The desired state of one interface. Pure. Raises NetworkError if the network assigned another MAC."""
    bridge, tap = names_of(link.name, request.on_pod_network)
    lease4 = _lease4(taken)
    server = (SERVER4,) if lease4 else ()
    lease6 = taken.addresses6[0] if taken.addresses6 else None
    attachment = VmInterface(
        request,
        link.name,
        guest_mac(request, link.name, taken.mac),
        bridge,
        local_mac(pod_uid, bridge),
        tap,
        link.mtu,
        _addresses(request, taken),
        lease4,
        lease6.ip if lease6 else None,
        Ipv6Router(lease6, leads_on=False) if lease6 else None,
    )
    devices = InterfaceDevices(
        bridge,
        local_mac(pod_uid, bridge),
        tap,
        link.mtu,
        request.queues > 1,
        server,
        _sysctls(bridge, tap, with_ipv6=lease6 is not None),
        BridgedUplink(link.name, local_mac(pod_uid, link.name)),
        lease4.address.ip if lease4 else None,
    )
    rules = nftables.BridgedInterface(link.name, tap, str(SERVER4.ip) if lease4 else "", lease6 is not None)
    return attachment, devices, rules


def lingering(
    going: Mapping[str, tuple[str, str]], taken: Mapping[str, SavedInterface]
) -> list[nftables.BridgedInterface]:
    """The rules of interfaces that are no longer requested but still used by the launcher: (bridge, tap) by name."""
    return [
        nftables.BridgedInterface(interface, tap, str(SERVER4.ip) if had.addresses4 else "", bool(had.addresses6))
        for name, (_, tap) in going.items()
        if (had := taken.get(interface := pod_interface(name)))
    ]


def guest_mac(request: InterfaceRequest, interface: str, given: str) -> str:
    """The guest's MAC: that of the interface, since the network passes no other. Raises NetworkError.

    The pod network takes no requested MAC, and most implementations do not filter by MAC, so there a MAC chosen by the
    user is used.
    """
    if request.mac in ("", given) or not request.insists:
        return given
    if request.on_pod_network:
        return request.mac
    raise NetworkError(
        f"interface {request.name}: the network assigned {interface} the MAC address {given} instead of {request.mac} "
        "and drops frames from any other; remove macAddress, or use a CNI plugin that supports the mac capability"
    )


def _lease4(taken: SavedInterface) -> Dhcpv4Lease | None:
    if not taken.addresses4:
        return None
    default = next((way for way in taken.routes4 if way.destination == _ANY4 and way.gateway), None)
    others = tuple(way for way in taken.routes4 if way is not default)
    return Dhcpv4Lease(taken.addresses4[0], SERVER4.ip, default.gateway if default else None, others)


def _addresses(
    request: InterfaceRequest, taken: SavedInterface
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """All addresses of the pod on the pod network; elsewhere those leased to the guest."""
    both: tuple[Interface, ...] = taken.addresses4 + taken.addresses6
    if not request.on_pod_network:
        both = taken.addresses4[:1] + taken.addresses6[:1]
    return tuple(interface.ip for interface in both)


def space_sysctls() -> dict[str, str]:
    """Sysctls of the namespace: bridged frames bypass its packet filter."""
    return {f"net/bridge/bridge-nf-call-{tables}tables": "0" for tables in ("ip", "ip6", "arp")}


def _sysctls(bridge: str, tap: str, with_ipv6: bool) -> dict[str, str]:
    common = {no_ipv6(bridge): "0" if with_ipv6 else "1", no_ipv6(tap): "1"}
    if not with_ipv6:
        return common
    return common | {f"net/ipv6/conf/{bridge}/accept_ra": "0", f"net/ipv6/conf/{bridge}/accept_dad": "0"}
