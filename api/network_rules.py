"""Rules for network cards and networks."""

from collections.abc import Iterator

from api import names, syntax
from api.domain_rules import check
from api.errors import Fault
from api.networks import DHCPOptions, Interface, Network
from api.storage_rules import duplicates
from api.vmi import VirtualMachineInstanceSpec

BINDINGS = ("masquerade", "bridge", "sriov", "binding", "passtBinding", "macvtap", "passt", "slirp")
_SOURCES = ("pod", "multus", "resourceClaim")
MAX_INTERFACES = 32


def network_faults(spec: VirtualMachineInstanceSpec, path: str) -> Iterator[Fault]:
    """Faults of interfaces and networks. Neither of both is none: the pod network is joined by default."""
    interfaces, networks = spec.domain.devices.interfaces or [], spec.networks or []
    interfaces_path, networks_path = f"{path}.domain.devices.interfaces", f"{path}.networks"
    if max(len(interfaces), len(networks)) > MAX_INTERFACES:
        yield Fault(interfaces_path, names.FAULT_INVALID, f"more than {MAX_INTERFACES} interfaces")
        return
    yield from duplicates([interface.name for interface in interfaces], interfaces_path, "interface")
    yield from duplicates([network.name for network in networks], networks_path, "network")
    by_name = {network.name: network for network in networks}
    for index, interface in enumerate(interfaces):
        yield from _interface(interface, by_name.get(interface.name), f"{interfaces_path}[{index}]")
    joined = {interface.name for interface in interfaces}
    for index, network in enumerate(networks):
        here = f"{networks_path}[{index}]"
        yield from _network(network, here)
        if network.name not in joined:
            yield Fault(
                f"{here}.name", names.FAULT_INVALID, f"network {network.name[:63]!r} has no interface of that name"
            )
    pods = [network.name for network in networks if network.pod is not None]
    if len(pods) > 1:
        yield Fault(networks_path, names.FAULT_INVALID, "the pod network can be joined once only")
    yield from _same_macs(interfaces, interfaces_path)


def _interface(interface: Interface, network: Network | None, path: str) -> Iterator[Fault]:
    name = interface.name[:63]
    yield from check(syntax.dns_label(interface.name), f"{path}.name")
    if network is None:
        yield Fault(f"{path}.name", names.FAULT_INVALID, f"interface {name!r} has no network of that name")
    bindings = [binding for binding in BINDINGS if getattr(interface, binding) is not None]
    if len(bindings) > 1:
        yield Fault(path, names.FAULT_INVALID, f"{' and '.join(bindings)} exclude each other")
    if interface.masquerade is not None and network is not None and (network.multus or network.resourceClaim):
        yield Fault(f"{path}.masquerade", names.FAULT_INVALID, "is for the pod network only")
    if interface.macAddress is not None:
        yield from check(syntax.mac_address(interface.macAddress), f"{path}.macAddress")
    if interface.pciAddress is not None:
        yield from check(syntax.pci_address(interface.pciAddress), f"{path}.pciAddress")
    yield from _ports(interface, path)
    if interface.dhcpOptions:
        yield from _dhcp(interface.dhcpOptions, f"{path}.dhcpOptions")


def _ports(interface: Interface, path: str) -> Iterator[Fault]:
    seen: set[tuple[str, int]] = set()
    named: set[str] = set()
    for index, port in enumerate(interface.ports or ()):
        here = f"{path}.ports[{index}]"
        key = (port.protocol or "TCP", port.port)
        if key in seen:
            yield Fault(f"{here}.port", names.FAULT_DUPLICATE, f"port {key[1]} {key[0]} is named twice")
        seen.add(key)
        if port.name:
            yield from check(syntax.dns_label(port.name), f"{here}.name")
            if port.name in named:
                yield Fault(f"{here}.name", names.FAULT_DUPLICATE, f"two ports are named {port.name[:63]!r}")
            named.add(port.name)
    if interface.ports and interface.masquerade is None and interface.bridge is not None:
        yield Fault(f"{path}.ports", names.FAULT_INVALID, "ports are for masquerade only")


def _dhcp(options: DHCPOptions, path: str) -> Iterator[Fault]:
    for index, server in enumerate(options.ntpServers or ()):
        yield from check(syntax.ip_address(server), f"{path}.ntpServers[{index}]")
    if options.tftpServerName is not None:
        yield from check(syntax.word(options.tftpServerName, 253), f"{path}.tftpServerName")
    if options.bootFileName is not None:
        yield from check(syntax.printable(options.bootFileName, 127), f"{path}.bootFileName")
    for index, private in enumerate(options.privateOptions or ()):
        yield from check(syntax.printable(private.value, 255), f"{path}.privateOptions[{index}].value")


def _network(network: Network, path: str) -> Iterator[Fault]:
    yield from check(syntax.dns_label(network.name), f"{path}.name")
    sources = [source for source in _SOURCES if getattr(network, source) is not None]
    if len(sources) > 1:
        yield Fault(path, names.FAULT_INVALID, f"{' and '.join(sources)} exclude each other")
    if not sources:
        yield Fault(path, names.FAULT_REQUIRED, f"network {network.name[:63]!r} says not what it is: set pod")
    if network.pod is not None and network.pod.vmNetworkCIDR is not None:
        yield from check(syntax.ipv4_network(network.pod.vmNetworkCIDR, 30), f"{path}.pod.vmNetworkCIDR")
    if network.pod is not None and network.pod.vmIPv6NetworkCIDR is not None:
        yield from check(syntax.ipv6_network(network.pod.vmIPv6NetworkCIDR, 126), f"{path}.pod.vmIPv6NetworkCIDR")


def _same_macs(interfaces: list[Interface], path: str) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, interface in enumerate(interfaces):
        mac = (interface.macAddress or "").lower().replace("-", ":")
        if mac and mac in seen:
            yield Fault(f"{path}[{index}].macAddress", names.FAULT_DUPLICATE, f"{mac[:17]} is used twice")
        seen.add(mac)
