"""Rules for interfaces and networks. The fields are described in `api.kubevirt.networks`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from api import names
from api.errors import Fault
from api.kubevirt.networks import RESERVED_MAC, Interface, Network
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from api.network_attachments import SHARED_NAMESPACE
from api.validation import syntax
from api.validation.domain_rules import check
from api.validation.network_option_rules import option_faults
from api.validation.storage_rules import duplicates

if TYPE_CHECKING:
    from api.kubevirt.configuration import KubeVirtConfiguration

BINDINGS = ("masquerade", "bridge", "sriov", "binding", "passtBinding", "macvtap", "passt", "slirp")
_SOURCES = ("pod", "multus", "resourceClaim")
MAX_INTERFACES = 32
MAX_ACPI_INDEX = 16 * 1024 - 1
"""QEMU's limit, https://libvirt.org/formatdomain.html#network-interfaces."""


def network_faults(
    spec: VirtualMachineInstanceSpec,
    path: str,
    namespace: str | None = None,
    config: "KubeVirtConfiguration | None" = None,
) -> Iterator[Fault]:
    """Faults of interfaces and networks. Without either, the VM gets the pod network by default.

    `namespace` is the VM's; without it the namespaces of networks are not checked.
    """
    interfaces, networks = spec.domain.devices.interfaces or [], spec.networks or []
    interfaces_path, networks_path = f"{path}.domain.devices.interfaces", f"{path}.networks"
    if max(len(interfaces), len(networks)) > MAX_INTERFACES:
        yield Fault(interfaces_path, names.FAULT_INVALID, f"must have at most {MAX_INTERFACES} interfaces")
        return
    yield from duplicates([interface.name for interface in interfaces], interfaces_path, "interface")
    yield from duplicates([network.name for network in networks], networks_path, "network")
    by_name = {network.name: network for network in networks}
    for index, interface in enumerate(interfaces):
        yield from _interface(interface, by_name.get(interface.name), f"{interfaces_path}[{index}]", config)
    joined = {interface.name for interface in interfaces}
    for index, network in enumerate(networks):
        here = f"{networks_path}[{index}]"
        yield from _network(network, here, namespace)
        if network.name not in joined:
            yield Fault(
                f"{here}.name",
                names.FAULT_INVALID,
                f"network {network.name[:63]!r} has no interface with the same name",
            )
    if sum(network.pod is not None for network in networks) > 1:
        yield Fault(networks_path, names.FAULT_INVALID, "only one network can have the pod source")
    yield from _used_once(interfaces, interfaces_path)
    yield from _places(spec, f"{path}.domain.devices")


# ---- one interface --------------------------------------------------------------------------------------------------


def _interface(
    interface: Interface, network: Network | None, path: str, config: "KubeVirtConfiguration | None"
) -> Iterator[Fault]:
    yield from check(syntax.device_name(interface.name), f"{path}.name")
    if network is None:
        yield Fault(
            f"{path}.name", names.FAULT_INVALID, f"interface {interface.name[:63]!r} has no network with the same name"
        )
    else:
        yield from _binding(interface, network, path, config)
    bindings = [binding for binding in BINDINGS if getattr(interface, binding) is not None]
    if len(bindings) > 1:
        yield Fault(path, names.FAULT_INVALID, f"{' and '.join(bindings)} are mutually exclusive")
    if interface.macAddress is not None:
        yield from check(syntax.mac_address(interface.macAddress), f"{path}.macAddress")
        if _plain(interface.macAddress) == RESERVED_MAC:
            yield Fault(f"{path}.macAddress", names.FAULT_INVALID, "must differ from the MAC address of the gateway")
    if interface.pciAddress is not None:
        yield from check(syntax.pci_address(interface.pciAddress), f"{path}.pciAddress")
    if interface.acpiIndex is not None and not 1 <= interface.acpiIndex <= MAX_ACPI_INDEX:
        yield Fault(f"{path}.acpiIndex", names.FAULT_INVALID, f"must be between 1 and {MAX_ACPI_INDEX}")
    yield from _state(interface, network, path)
    yield from option_faults(interface, path)


def _plain(mac: str) -> str:
    return mac.lower().replace("-", ":")


def _binding(
    interface: Interface, network: Network, path: str, config: "KubeVirtConfiguration | None"
) -> Iterator[Fault]:
    """Whether the binding is supported on the network."""
    if network.pod is None:
        if interface.masquerade is not None and (network.multus or network.resourceClaim):
            yield Fault(f"{path}.masquerade", names.FAULT_INVALID, "requires the pod network: use bridge")
        return
    if interface.sriov is not None:
        yield Fault(
            f"{path}.sriov", names.FAULT_INVALID, "requires a multus network: the pod network has no SR-IOV device"
        )
    settings = config.network if config else None
    if settings is None or settings.permitBridgeInterfaceOnPodNetwork is not False:
        return
    bare = all(getattr(interface, binding) is None for binding in BINDINGS)
    if interface.bridge is not None or (bare and settings.defaultNetworkInterface == "bridge"):
        yield Fault(
            f"{path}.bridge",
            names.FAULT_FORBIDDEN,
            "a bridge on the pod network is disabled by permitBridgeInterfaceOnPodNetwork of the KubeVirt object: "
            "use masquerade",
        )


def _state(interface: Interface, network: Network | None, path: str) -> Iterator[Fault]:
    """Link state down requires a tap device; absent requires a hot-pluggable secondary network."""
    if interface.state == "absent":
        on_pod = network is not None and network.pod is not None
        others = [binding for binding in BINDINGS if binding != "bridge" and getattr(interface, binding) is not None]
        if on_pod or others:
            yield Fault(
                f"{path}.state",
                names.FAULT_INVALID,
                "absent requires a bridge on a multus network",
            )
    if interface.state == "down" and interface.sriov is not None:
        yield Fault(f"{path}.state", names.FAULT_INVALID, "down is not supported for an sriov interface")


# ---- networks -------------------------------------------------------------------------------------------------------


def _network(network: Network, path: str, namespace: str | None) -> Iterator[Fault]:
    yield from check(syntax.device_name(network.name), f"{path}.name")
    sources = [source for source in _SOURCES if getattr(network, source) is not None]
    if len(sources) > 1:
        yield Fault(path, names.FAULT_INVALID, f"{' and '.join(sources)} are mutually exclusive")
    if not sources:
        yield Fault(path, names.FAULT_REQUIRED, f"network {network.name[:63]!r} has no source: set pod or multus")
    if network.pod is not None and network.pod.vmNetworkCIDR is not None:
        yield from check(syntax.ipv4_network(network.pod.vmNetworkCIDR, 30), f"{path}.pod.vmNetworkCIDR")
    if network.pod is not None and network.pod.vmIPv6NetworkCIDR is not None:
        yield from check(syntax.ipv6_network(network.pod.vmIPv6NetworkCIDR, 126), f"{path}.pod.vmIPv6NetworkCIDR")
    if network.multus is not None:
        yield from _definition(network.multus.networkName, f"{path}.multus.networkName", namespace)


def _definition(text: str, path: str, namespace: str | None) -> Iterator[Fault]:
    """The name of a NetworkAttachmentDefinition, `[namespace/]name`, in a namespace that the VM may use."""
    prefix, slash, name = text.rpartition("/")
    problem = syntax.object_name(name) or (syntax.dns_label(prefix) if slash else None)
    if problem is not None:
        yield Fault(path, names.FAULT_INVALID, f"{problem}; expected [namespace/]name of a NetworkAttachmentDefinition")
    elif slash and namespace is not None and prefix not in (namespace, SHARED_NAMESPACE):
        yield Fault(
            path,
            names.FAULT_FORBIDDEN,
            f"{text[:80]!r} is in another namespace: a VM can join networks of its own namespace ({namespace}) and of "
            f"{SHARED_NAMESPACE} only",
        )


# ---- uniqueness -----------------------------------------------------------------------------------------------------


def _used_once(interfaces: Sequence[Interface], path: str) -> Iterator[Fault]:
    """MAC addresses and ACPI indexes."""
    macs: set[str] = set()
    indexes: set[int] = set()
    for number, interface in enumerate(interfaces):
        mac = _plain(interface.macAddress or "")
        if mac and mac in macs:
            yield Fault(f"{path}[{number}].macAddress", names.FAULT_DUPLICATE, f"{mac[:17]} is used twice")
        macs.add(mac)
        index = interface.acpiIndex
        if index is not None and index in indexes:
            yield Fault(f"{path}[{number}].acpiIndex", names.FAULT_DUPLICATE, f"{index} is used twice")
        if index is not None:
            indexes.add(index)


def _places(spec: VirtualMachineInstanceSpec, path: str) -> Iterator[Fault]:
    """PCI addresses, unique among disks and interfaces."""
    devices, seen = spec.domain.devices, dict[str, str]()
    taken = [
        *(
            (f"{path}.disks[{number}].disk", disk.name, disk.disk.pciAddress)
            for number, disk in enumerate(devices.disks or ())
            if disk.disk
        ),
        *(
            (f"{path}.interfaces[{number}]", interface.name, interface.pciAddress)
            for number, interface in enumerate(devices.interfaces or ())
        ),
    ]
    for where, name, address in taken:
        if address is None:
            continue
        known = seen.get(address.lower())
        if known is not None:
            yield Fault(
                f"{where}.pciAddress", names.FAULT_DUPLICATE, f"{address[:16]} is already used by {known[:63]!r}"
            )
        seen[address.lower()] = name
