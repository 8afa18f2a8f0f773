"""The pod network of a guest: bridge, tap, addresses, forwarding and NAT in the launcher's network namespace.

Read what is there, compose what should be, apply the difference: a handler that starts again finds nothing to do.
Only the masquerade binding on the pod's own network lives here.
"""

import contextlib
import ipaddress
import os
import pathlib
import re
from dataclasses import dataclass

from api import names
from api.errors import NetworkError
from api.networks import Interface, Network
from api.vmi import VirtualMachineInstance
from handler import nft, resolver
from kit import netlink, proc
from kit.netlink import Address, Link, Netlink

TAP = "tap0"
GATEWAY_MAC = "02:00:00:00:00:01"
DEFAULT_SUBNET4 = "10.0.2.0/24"
DEFAULT_SUBNET6 = "fd10:0:2::/120"
_MAX_QUEUES = 256
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
HOST = "/proc/1/ns/net"
"""The node's own network namespace, seen from a pod with hostPID."""
_SYSCTLS = pathlib.Path("/proc/sys")

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Request:
    """What a VMI asks of the pod network, checked. The gateway has a subnet's first address, the guest the second."""

    name: str
    mac: str
    subnet4: ipaddress.IPv4Network
    subnet6: ipaddress.IPv6Network
    ports: tuple[nft.Forwarded, ...]
    queues: int


@dataclass(frozen=True)
class Current:
    """What is in the namespace now."""

    links: dict[str, Link]
    addresses: tuple[Address, ...]
    sysctls: dict[str, str]

    def uplink(self) -> Link:
        """The pod's own interface: eth0, or else the first device with a global address. Raises NetworkError."""
        ours = {"lo", TAP} | {name for name in self.links if name.startswith("k6t-")}
        with_address = {address.index for address in self.addresses if address.scope == 0}
        chosen = [link for link in self.links.values() if link.name not in ours and link.index in with_address]
        if not chosen:
            raise NetworkError("the pod has no interface with an address")
        return min(chosen, key=lambda link: (link.name != "eth0", link.index))

    def of(self, link: Link, version: int) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
        """The global addresses of a device."""
        return tuple(
            address.interface.ip
            for address in self.addresses
            if address.index == link.index and address.scope == 0 and address.interface.version == version
        )


@dataclass(frozen=True)
class Desired:
    """What should be in the namespace."""

    bridge: str
    mtu: int
    multi_queue: bool
    addresses: tuple[netlink.Interface, ...]
    sysctls: dict[str, str]
    rules: nft.Ruleset


@dataclass(frozen=True)
class Attachment:
    """The result: everything a NIC's message, its status and the router advertisements are made of."""

    request: Request
    bridge: str
    mtu: int
    pod4: tuple[str, ...]
    pod6: tuple[str, ...]
    gateway4: ipaddress.IPv4Interface
    guest4: ipaddress.IPv4Address | None
    gateway6: ipaddress.IPv6Interface
    guest6: ipaddress.IPv6Address | None
    resolver: resolver.Resolver
    changed: tuple[str, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that the guest is reached by: the pod's."""
        return self.pod4 + self.pod6


def request_of(vmi: VirtualMachineInstance) -> Request | None:
    """What the VMI asks for; None for a VMI without a NIC. Raises NetworkError, in words, for what cannot be had."""
    interfaces = [nic for nic in vmi.spec.domain.devices.interfaces or [] if nic.state != "absent"]
    if not interfaces:
        return None
    if len(interfaces) > 1:
        raise NetworkError("only one network interface is supported")
    nic = interfaces[0]
    network = next((network for network in vmi.spec.networks or [] if network.name == nic.name), None)
    if network is None or network.pod is None:
        raise NetworkError(f"interface {nic.name}: only the pod network is supported")
    if nic.masquerade is None:
        raise NetworkError(f"interface {nic.name}: only the masquerade binding is supported")
    return _request(nic, network, _queues(vmi, nic))


def _request(nic: Interface, network: Network, queues: int) -> Request:
    pod = network.pod
    mac = (nic.macAddress or "").lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise NetworkError(f"interface {nic.name}: {nic.macAddress!r} is not an Ethernet address")
    if mac == GATEWAY_MAC:
        raise NetworkError(f"interface {nic.name}: {mac} is the gateway's own address")
    return Request(
        nic.name,
        mac,
        _subnet4(nic.name, (pod and pod.vmNetworkCIDR) or DEFAULT_SUBNET4),
        _subnet6(nic.name, (pod and pod.vmIPv6NetworkCIDR) or DEFAULT_SUBNET6),
        _ports(nic),
        queues,
    )


def _subnet4(nic: str, text: str) -> ipaddress.IPv4Network:
    try:
        subnet = ipaddress.IPv4Network(text, strict=False)
    except ValueError as error:
        raise NetworkError(f"interface {nic}: {error}") from error
    if not 8 <= subnet.prefixlen <= 30:
        raise NetworkError(f"interface {nic}: {text} has no room for a gateway and a guest")
    return subnet


def _subnet6(nic: str, text: str) -> ipaddress.IPv6Network:
    try:
        subnet = ipaddress.IPv6Network(text, strict=False)
    except ValueError as error:
        raise NetworkError(f"interface {nic}: {error}") from error
    if not 8 <= subnet.prefixlen <= 126:
        raise NetworkError(f"interface {nic}: {text} has no room for a gateway and a guest")
    return subnet


def _ports(nic: Interface) -> tuple[nft.Forwarded, ...]:
    single = [nft.Forwarded((port.protocol or "TCP").lower(), port.port, port.port) for port in nic.ports or []]
    ranges = [nft.Forwarded(item.protocol.lower(), item.start, item.end) for item in nic.portRanges or []]
    return tuple(single + ranges)


def _queues(vmi: VirtualMachineInstance, nic: Interface) -> int:
    if not vmi.spec.domain.devices.networkInterfaceMultiqueue or (nic.model or "virtio") != "virtio":
        return 1
    cpu = vmi.spec.domain.cpu
    count = (cpu.cores or 1) * (cpu.sockets or 1) * (cpu.threads or 1) if cpu else 1
    return max(1, min(count, _MAX_QUEUES))


def attach(process: proc.Process, request: Request, host: str = HOST) -> Attachment:
    """Makes the namespace of the process what the request asks for; `host` is the node's own. Raises NetworkError.

    Changes the calling thread's namespace: call it through `kit.proc.isolated`.
    """
    try:
        settings = resolver.read(process)
    except OSError:
        settings = resolver.Resolver()  # a guest without DNS is better than none
    try:
        with proc.closing(process.namespace("net")) as namespace:
            _refuse_the_nodes(namespace, host)
            proc.setns(namespace, proc.CLONE_NEWNET)
        with Netlink() as route:
            return _attach(route, request, settings)
    except OSError as error:
        raise NetworkError(f"the pod network cannot be set up: {error.strerror or error}") from error


def _refuse_the_nodes(namespace: int, host: str) -> None:
    """A pod with hostNetwork would have the node's own network rebuilt; so would whoever shares the handler's."""
    for ours in (host, "/proc/self/ns/net"):
        if os.path.samestat(os.fstat(namespace), pathlib.Path(ours).stat()):
            raise NetworkError("the launcher is in the node's network namespace")


def _attach(route: Netlink, request: Request, settings: resolver.Resolver) -> Attachment:
    current = observe(route)
    desired = compose(current, request)
    steps = difference(current, desired)
    if "rules" not in steps and not nft.in_place(desired.rules):
        steps.append("rules")
    _apply(route, desired, steps)
    uplink = current.uplink()
    pod4, pod6 = current.of(uplink, 4), current.of(uplink, 6)
    gateway4, gateway6 = _gateway4(request), _gateway6(request)
    return Attachment(
        request,
        desired.bridge,
        desired.mtu,
        tuple(map(str, pod4)),
        tuple(map(str, pod6)),
        gateway4,
        gateway4.ip + 1 if pod4 else None,
        gateway6,
        gateway6.ip + 1 if pod6 else None,
        settings,
        tuple(steps),
    )


def _gateway4(request: Request) -> ipaddress.IPv4Interface:
    return ipaddress.IPv4Interface((request.subnet4.network_address + 1, request.subnet4.prefixlen))


def _gateway6(request: Request) -> ipaddress.IPv6Interface:
    return ipaddress.IPv6Interface((request.subnet6.network_address + 1, request.subnet6.prefixlen))


def observe(route: Netlink) -> Current:
    """What is in the calling thread's network namespace."""
    links = route.links()
    watched = _common_sysctls() | {f"net/ipv6/conf/{name}/disable_ipv6": "" for name in links}
    found = {}
    for key in [*watched, *(key for name in links if name.startswith("k6t-") for key in _bridge_sysctls(name, True))]:
        with contextlib.suppress(OSError):
            found[key] = (_SYSCTLS / key).read_text().strip()
    return Current(links, tuple(route.addresses()), found)


def compose(current: Current, request: Request) -> Desired:
    """What should be there, given the pod's own interface. Pure. Raises NetworkError for overlapping subnets."""
    uplink = current.uplink()
    bridge = f"k6t-{uplink.name}"[:15]
    gateways: list[ipaddress.IPv4Interface | ipaddress.IPv6Interface] = []
    families = []
    for gateway in (_gateway4(request), _gateway6(request)):
        pod = current.of(uplink, gateway.version)
        if not pod:
            continue
        if any(address in gateway.network for address in pod):
            raise NetworkError(
                f"the guest's network {gateway.network} contains the pod's own address; choose another "
                f"vm{'IPv6' if gateway.version == 6 else ''}NetworkCIDR"
            )
        gateways.append(gateway)
        families.append(nft.Family(gateway.ip + 1, gateway.ip, gateway.network, pod))
    with_ipv6 = any(gateway.version == 6 for gateway in gateways)
    sysctls = _common_sysctls() | _bridge_sysctls(bridge, with_ipv6) | {f"net/ipv6/conf/{TAP}/disable_ipv6": "1"}
    if with_ipv6:
        sysctls["net/ipv6/conf/all/forwarding"] = "1"
    else:
        sysctls.pop("net/ipv6/conf/all/forwarding", None)
    rules = nft.Ruleset(uplink.name, bridge, tuple(families), request.ports)
    return Desired(bridge, uplink.mtu, request.queues > 1, tuple(gateways), sysctls, rules)


def _common_sysctls() -> dict[str, str]:
    # The launcher serves DHCP on port 67 without any capability.
    return {"net/ipv4/ip_forward": "1", "net/ipv4/ip_unprivileged_port_start": "0", "net/ipv6/conf/all/forwarding": "1"}


def _bridge_sysctls(bridge: str, with_ipv6: bool) -> dict[str, str]:
    common = {
        f"net/ipv4/conf/{bridge}/route_localnet": "1",
        f"net/ipv6/conf/{bridge}/disable_ipv6": "0" if with_ipv6 else "1",
    }
    if not with_ipv6:
        return common
    return common | {f"net/ipv6/conf/{bridge}/accept_ra": "0", f"net/ipv6/conf/{bridge}/accept_dad": "0"}


def difference(current: Current, desired: Desired) -> list[str]:
    """The steps that lead from one to the other, in order; empty when there is nothing to do. Pure."""
    steps = []
    bridge, tap = current.links.get(desired.bridge), current.links.get(TAP)
    if bridge is None:
        steps.append("bridge")
    if tap is None:
        steps.append("tap")
    steps += [f"sysctl {key}" for key, value in desired.sysctls.items() if _wrong(current, key, value)]
    if bridge is None or not bridge.up or bridge.mtu != desired.mtu:
        steps.append("bridge up")
    have = {address.interface for address in current.addresses if bridge and address.index == bridge.index}
    steps += [f"address {interface}" for interface in desired.addresses if interface not in have]
    if tap is None or not tap.up or tap.mtu != desired.mtu or (bridge and tap.master != bridge.index):
        steps.append("tap up")
    if bridge is None:
        steps.append("rules")
    return steps


def _wrong(current: Current, key: str, value: str) -> bool:
    if key in current.sysctls:
        return current.sysctls[key] != value
    # Those of a device that is still to be made do not exist yet; without IPv6 in the kernel there are none at all.
    return not key.startswith("net/ipv6/") or "net/ipv6/conf/all/forwarding" in current.sysctls


def _apply(route: Netlink, desired: Desired, steps: list[str]) -> None:
    for step in steps:
        word, _, rest = step.partition(" ")
        if step == "bridge":
            route.add_bridge(desired.bridge, GATEWAY_MAC, desired.mtu)
            with contextlib.suppress(OSError):
                netlink.leaves_checksums(desired.bridge, False)
        elif step == "tap":
            netlink.add_tap(TAP, names.LAUNCHER_UID, desired.multi_queue)
        elif word == "sysctl":
            (_SYSCTLS / rest).write_text(desired.sysctls[rest])
        elif step == "bridge up":
            route.change_link(route.links()[desired.bridge].index, up=True, mtu=desired.mtu)
        elif word == "address":
            route.add_address(route.links()[desired.bridge].index, ipaddress.ip_interface(rest))
        elif step == "tap up":
            links = route.links()
            route.change_link(links[TAP].index, up=True, mtu=desired.mtu, master=links[desired.bridge].index)
        elif step == "rules":
            nft.apply(desired.rules)
