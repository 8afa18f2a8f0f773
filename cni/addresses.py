"""Layer 3 of an attachment: addresses and routes of the container, and the bridge as gateway."""

import ipaddress
import socket
import struct
import time
from pathlib import Path

from cni import errors
from cni.desired_attachment import DesiredAttachment
from cni.errors import CniError
from cni.spec import CniResult, ResultIp, ResultRoute
from kit.netlink import route
from kit.netlink.route import Interface, IpAddress, Network
from kit.netlink.transport import NetlinkRefusal

_DAD_SECONDS = 10
_EEXIST = 17
_FORWARDING = {4: "/proc/sys/net/ipv4/ip_forward", 6: "/proc/sys/net/ipv6/conf/all/forwarding"}
_DEFAULT: dict[int, Network] = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


def complete(found: CniResult, desired: DesiredAttachment) -> CniResult:
    """The IPAM plugin's result, with gateway addresses and default routes added as configured."""
    ips = [_with_gateway(each) if desired.gateway else each for each in found.ips]
    routes = list(found.routes)
    if desired.default_gateway:
        for ip in ips:
            family = ipaddress.ip_interface(ip.address).version
            if not any(ipaddress.ip_network(r.dst, strict=False) == _DEFAULT[family] for r in routes):
                routes.append(ResultRoute(dst=str(_DEFAULT[family]), gw=ip.gateway))
    return CniResult(cniVersion=found.cniVersion, interfaces=found.interfaces, ips=ips, routes=routes, dns=found.dns)


def _with_gateway(ip: ResultIp) -> ResultIp:
    if ip.gateway:
        return ip
    network = ipaddress.ip_interface(ip.address).network
    return ResultIp(address=ip.address, gateway=str(network.network_address + 1), interface=ip.interface)


def interfaces(found: CniResult) -> list[Interface]:
    """The addresses of a result."""
    return [ipaddress.ip_interface(each.address) for each in found.ips]


def configure(one: route.RtnetlinkSocket, name: str, found: CniResult, dad: bool) -> None:
    """Configure a container interface's addresses and routes, in the calling thread's (container's) namespace.

    With `dad`, wait until no address is tentative. Raises CniError, OSError.
    """
    link = one.link(name)
    if link is None:
        raise CniError(errors.KERNEL, f"{name} has disappeared from the container")
    for address in interfaces(found):
        one.do(route.add_address(link.index, address, dad))
    if dad:
        _settle(one, link.index, name)
    gateways: dict[int, str] = {
        ipaddress.ip_interface(ip.address).version: ip.gateway for ip in reversed(found.ips) if ip.gateway
    }
    for wanted in found.routes:
        one.do(route.add_route(link.index, _wanted(wanted, gateways)))
    for address in interfaces(found):
        if address.version == 4:
            _announce(name, link.mac, address)


def _wanted(given: ResultRoute, gateways: dict[int, str]) -> route.NewRoute:
    destination = ipaddress.ip_network(given.dst, strict=False)
    through = given.gw or gateways.get(destination.version)
    return route.NewRoute(
        destination,
        ipaddress.ip_address(through) if through else None,
        mtu=given.mtu or 0,
        advmss=given.advmss or 0,
        priority=given.priority or 0,
        table=given.table or 0,
        scope=given.scope,
    )


def _settle(one: route.RtnetlinkSocket, index: int, name: str) -> None:
    deadline = time.monotonic() + _DAD_SECONDS
    while True:
        held = one.addresses(index)
        failed = [str(each.interface.ip) for each in held if each.flags & route.F_DADFAILED]
        if failed:
            raise CniError(errors.KERNEL, f"{', '.join(failed)} is already in use on the network of {name}")
        if not any(each.flags & route.F_TENTATIVE for each in held):
            return
        if time.monotonic() > deadline:
            raise CniError(errors.KERNEL, f"an address of {name} is still tentative after {_DAD_SECONDS} s")
        time.sleep(0.05)


def _announce(name: str, mac: str, address: Interface) -> None:
    """Send gratuitous ARP (RFC 5227, section 3): neighbours update their caches."""
    source = route.mac_bytes(mac)
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + source + address.ip.packed + bytes(6) + address.ip.packed
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as raw:
        try:
            raw.bind((name, 0x0806))
            raw.send(b"\xff" * 6 + source + b"\x08\x06" + body)
        except OSError:  # the peer may be down: then no neighbour needs the update
            return


def serve(one: route.RtnetlinkSocket, link: route.Link, found: CniResult, force: bool) -> list[Interface]:
    """Make a host device the gateway of the addresses; returns the addresses added. Raises CniError, OSError."""
    given: list[Interface] = []
    for ip in found.ips:
        if not ip.gateway:
            continue
        network = ipaddress.ip_interface(ip.address).network
        gateway = ipaddress.ip_interface(f"{ip.gateway}/{network.prefixlen}")
        if _ensure(one, link, gateway, force):
            given.append(gateway)
        _forward(gateway.version)
    if given:
        # Fix the bridge's MAC: otherwise it follows that of its ports, and the gateway's neighbours lose it.
        one.do(route.set_link(index=link.index, mac=link.mac))
    return given


def _ensure(one: route.RtnetlinkSocket, link: route.Link, wanted: Interface, force: bool) -> bool:
    for held in one.addresses(link.index):
        if held.interface.version != wanted.version or held.scope == 253:
            continue
        if held.interface == wanted:
            return False
        if wanted.version == 6 and not held.interface.network.overlaps(wanted.network):
            continue
        if not force:
            raise CniError(
                errors.KERNEL,
                f"{link.name} has the address {held.interface} instead of {wanted}; set forceAddress to replace it",
            )
        one.do(route.del_address(link.index, held.interface))
    try:
        one.do(route.add_address(link.index, wanted, dad=False))
    except NetlinkRefusal as refusal:
        if refusal.errno != _EEXIST:  # added by a concurrent ADD
            raise
        return False
    return True


def _forward(family: int) -> None:
    switch = Path(_FORWARDING[family])
    if switch.read_text().strip() != "1":
        switch.write_text("1")


def faults(one: route.RtnetlinkSocket, name: str, ips: list[ResultIp], routes: list[ResultRoute]) -> list[str]:
    """Differences of addresses and routes from the result, in the calling thread's (container's) namespace."""
    link = one.link(name)
    if link is None:
        return [f"{name} is not in the container"]
    held = {each.interface for each in one.addresses(link.index)}
    found = [
        f"{name} has lost its address {each.address}"
        for each in ips
        if ipaddress.ip_interface(each.address) not in held
    ]
    paths = one.routes()
    for wanted in routes:
        destination = ipaddress.ip_network(wanted.dst, strict=False)
        gateway: IpAddress | None = ipaddress.ip_address(wanted.gw) if wanted.gw else None
        if not any(p.destination == destination and (gateway is None or p.gateway == gateway) for p in paths):
            found.append(f"the container has lost its route to {wanted.dst}")
    return found


def owned(found: CniResult, position: int) -> CniResult:
    """The result with all addresses assigned to the interface at index `position`."""
    ips = [ResultIp(address=ip.address, gateway=ip.gateway, interface=position) for ip in found.ips]
    return CniResult(
        cniVersion=found.cniVersion, interfaces=found.interfaces, ips=ips, routes=found.routes, dns=found.dns
    )
