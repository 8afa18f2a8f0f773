"""The masquerade binding: the guest on a private network behind the pod's addresses."""

import ipaddress

from api.errors import NetworkError
from handler.network import nft
from handler.network.lease import Attachment, Lease4, Router6
from handler.network.request import GATEWAY_MAC, Request, Translated
from handler.network.space import BRIDGE, TAP, Current, Devices, no_ipv6
from kit.netlink import Interface, Link

POD_TAP = f"{TAP}0"


def compose(current: Current, uplink: Link, request: Request) -> tuple[Attachment, Devices, nft.Ruleset]:
    """What there should be, given the pod's own interface. Pure. Raises NetworkError for overlapping subnets."""
    assert request.translated is not None
    bridge = f"{BRIDGE}{uplink.name}"[:15]
    own = tuple(interface.ip for interface in current.of(uplink))
    gateways = _gateways(request.name, request.translated, own)
    attachment = _attachment(request, uplink, bridge, own, gateways)
    with_ipv6 = any(gateway.version == 6 for gateway in gateways)
    devices = Devices(
        bridge,
        GATEWAY_MAC,
        POD_TAP,
        uplink.mtu,
        request.queues > 1,
        gateways,
        _sysctls(bridge, with_ipv6),
    )
    return attachment, devices, _rules(request.translated, uplink, bridge, own, gateways)


def space_sysctls(devices: Devices) -> dict[str, str]:
    """Those of the whole namespace: what routes between guest and network."""
    common = {"net/ipv4/ip_forward": "1"}
    if any(interface.version == 6 for interface in devices.addresses):
        common["net/ipv6/conf/all/forwarding"] = "1"
    return common


def _gateways(
    name: str, translated: Translated, own: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]
) -> tuple[Interface, ...]:
    """Ours, for each version that the pod has an address of."""
    chosen: list[Interface] = []
    for gateway in translated.gateways:
        pod = [address for address in own if address.version == gateway.version]
        if any(address in gateway.network for address in pod):
            raise NetworkError(
                f"interface {name}: the guest's network {gateway.network} contains the pod's own address; choose "
                f"another vm{'IPv6' if gateway.version == 6 else ''}NetworkCIDR"
            )
        if pod:
            chosen.append(gateway)
    return tuple(chosen)


def _attachment(
    request: Request,
    uplink: Link,
    bridge: str,
    own: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...],
    gateways: tuple[Interface, ...],
) -> Attachment:
    lease4 = lease6 = router6 = None
    for gateway in gateways:
        if isinstance(gateway, ipaddress.IPv4Interface):
            guest = ipaddress.IPv4Interface((gateway.ip + 1, gateway.network.prefixlen))
            lease4 = Lease4(guest, gateway.ip, gateway.ip)
        else:
            lease6, router6 = gateway.ip + 1, Router6(gateway)
    ordered = tuple(sorted(own, key=lambda address: address.version))
    return Attachment(
        request, uplink.name, request.mac, bridge, GATEWAY_MAC, POD_TAP, uplink.mtu, ordered, lease4, lease6, router6
    )  # fmt: skip


def _rules(
    translated: Translated,
    uplink: Link,
    bridge: str,
    own: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...],
    gateways: tuple[Interface, ...],
) -> nft.Ruleset:
    families = [
        nft.Family(
            gateway.ip + 1,
            gateway.ip,
            gateway.network,
            tuple(address for address in own if address.version == gateway.version),
        )
        for gateway in gateways
    ]
    return nft.Ruleset(uplink.name, bridge, tuple(families), translated.ports)


def _sysctls(bridge: str, with_ipv6: bool) -> dict[str, str]:
    common = {
        f"net/ipv4/conf/{bridge}/route_localnet": "1",
        no_ipv6(bridge): "0" if with_ipv6 else "1",
        no_ipv6(POD_TAP): "1",
    }
    if not with_ipv6:
        return common
    return common | {f"net/ipv6/conf/{bridge}/accept_ra": "0", f"net/ipv6/conf/{bridge}/accept_dad": "0"}
