"""The masquerade binding: the guest is on a private subnet behind the pod's addresses (NAT)."""

import ipaddress

from api.errors import NetworkError
from handler.pod_network import nftables
from handler.pod_network.interface_request import GATEWAY_MAC, InterfaceRequest, MasqueradeNetwork
from handler.pod_network.netns import BRIDGE, TAP, CurrentState, InterfaceDevices, no_ipv6
from handler.pod_network.vm_interface import Dhcpv4Lease, Ipv6Router, VmInterface
from kit.netlink.route import Interface, Link

POD_TAP = f"{TAP}0"


def compose(
    current: CurrentState, uplink: Link, request: InterfaceRequest
) -> tuple[VmInterface, InterfaceDevices, nftables.MasqueradeRules]:
    """The desired state, given the pod's interface. Pure. Raises NetworkError for overlapping subnets."""
    assert request.translated is not None
    bridge = f"{BRIDGE}{uplink.name}"[:15]
    own = tuple(interface.ip for interface in current.of(uplink))
    gateways = _gateways(request.name, request.translated, own)
    attachment = _vm_interface(request, uplink, bridge, own, gateways)
    with_ipv6 = any(gateway.version == 6 for gateway in gateways)
    devices = InterfaceDevices(
        bridge,
        GATEWAY_MAC,
        POD_TAP,
        uplink.mtu,
        request.queues > 1,
        gateways,
        _sysctls(bridge, with_ipv6),
    )
    return attachment, devices, _rules(request.translated, uplink, bridge, own, gateways)


def space_sysctls(devices: InterfaceDevices) -> dict[str, str]:
    """Sysctls of the namespace: forwarding between guest and network."""
    common = {"net/ipv4/ip_forward": "1"}
    if any(interface.version == 6 for interface in devices.addresses):
        common["net/ipv6/conf/all/forwarding"] = "1"
    return common


def _gateways(
    name: str, translated: MasqueradeNetwork, own: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]
) -> tuple[Interface, ...]:
    """The gateway addresses, for each IP version of the pod's addresses."""
    chosen: list[Interface] = []
    for gateway in translated.gateways:
        pod = [address for address in own if address.version == gateway.version]
        if any(address in gateway.network for address in pod):
            raise NetworkError(
                f"interface {name}: the guest's subnet {gateway.network} contains the pod's own address; set "
                f"another vm{'IPv6' if gateway.version == 6 else ''}NetworkCIDR"
            )
        if pod:
            chosen.append(gateway)
    return tuple(chosen)


def _vm_interface(
    request: InterfaceRequest,
    uplink: Link,
    bridge: str,
    own: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...],
    gateways: tuple[Interface, ...],
) -> VmInterface:
    lease4 = lease6 = router6 = None
    for gateway in gateways:
        if isinstance(gateway, ipaddress.IPv4Interface):
            guest = ipaddress.IPv4Interface((gateway.ip + 1, gateway.network.prefixlen))
            lease4 = Dhcpv4Lease(guest, gateway.ip, gateway.ip)
        else:
            lease6, router6 = gateway.ip + 1, Ipv6Router(gateway)
    ordered = tuple(sorted(own, key=lambda address: address.version))
    return VmInterface(
        request, uplink.name, request.mac, bridge, GATEWAY_MAC, POD_TAP, uplink.mtu, ordered, lease4, lease6, router6
    )  # fmt: skip


def _rules(
    translated: MasqueradeNetwork,
    uplink: Link,
    bridge: str,
    own: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...],
    gateways: tuple[Interface, ...],
) -> nftables.MasqueradeRules:
    families = [
        nftables.IpFamily(
            gateway.ip + 1,
            gateway.ip,
            gateway.network,
            tuple(address for address in own if address.version == gateway.version),
        )
        for gateway in gateways
    ]
    return nftables.MasqueradeRules(uplink.name, bridge, tuple(families), translated.ports)


def _sysctls(bridge: str, with_ipv6: bool) -> dict[str, str]:
    common = {
        f"net/ipv4/conf/{bridge}/route_localnet": "1",
        no_ipv6(bridge): "0" if with_ipv6 else "1",
        no_ipv6(POD_TAP): "1",
    }
    if not with_ipv6:
        return common
    return common | {f"net/ipv6/conf/{bridge}/accept_ra": "0", f"net/ipv6/conf/{bridge}/accept_dad": "0"}
