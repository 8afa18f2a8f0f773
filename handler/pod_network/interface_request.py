"""The validated network interfaces of a VMI: one `InterfaceRequest` each."""

import ipaddress
from dataclasses import dataclass
from typing import TypeVar

from api import defaults
from api.errors import NetworkError
from api.kubevirt.networks import Interface, Network, pod_interface
from api.kubevirt.vmi import VirtualMachineInstance
from api.text import is_mac
from handler.pod_network import nftables
from protos import limits

GATEWAY_MAC = "02:00:00:00:00:01"
DEFAULT_SUBNET4 = "10.0.2.0/24"
DEFAULT_SUBNET6 = "fd10:0:2::/120"
_MAX_QUEUES = 256
N = TypeVar("N", ipaddress.IPv4Network, ipaddress.IPv6Network)


@dataclass(frozen=True)
class MasqueradeNetwork:
    """The subnets of the masquerade binding: the gateway has the first address, the guest the second."""

    subnet4: ipaddress.IPv4Network
    subnet6: ipaddress.IPv6Network
    ports: tuple[nftables.ForwardedPorts, ...] = ()

    @property
    def gateways(self) -> tuple[ipaddress.IPv4Interface, ipaddress.IPv6Interface]:
        """The gateway's address of each IP version."""
        return (
            ipaddress.IPv4Interface((self.subnet4.network_address + 1, self.subnet4.prefixlen)),
            ipaddress.IPv6Interface((self.subnet6.network_address + 1, self.subnet6.prefixlen)),
        )


@dataclass(frozen=True)
class InterfaceRequest:
    """One interface of a VMI."""

    name: str
    interface: str = ""
    """The pod interface it is connected to; empty for the pod network, whose interface may have any name."""
    mac: str = ""
    """MAC of the guest; empty: that of the pod interface."""
    insists: bool = False
    """Whether the user chose the MAC: no other is acceptable."""
    queues: int = 1
    translated: MasqueradeNetwork | None = None
    """Set for the masquerade binding."""
    hardware: bool = False
    """The sriov binding: the guest gets a host device, and nothing is created in the pod."""

    @property
    def on_pod_network(self) -> bool:
        """Whether it is on the pod network."""
        return not self.interface

    @property
    def bridged(self) -> bool:
        """Whether it has the bridge binding."""
        return self.translated is None and not self.hardware


def requests_of(vmi: VirtualMachineInstance) -> tuple[InterfaceRequest, ...]:
    """The interfaces of the VMI in order, without those in state `absent`. Raises NetworkError."""
    nics = [nic for nic in vmi.spec.domain.devices.interfaces or [] if nic.state != "absent"]
    if len(nics) > limits.NICS:
        raise NetworkError(
            f"spec.domain.devices.interfaces: {len(nics)} interfaces, at most {limits.NICS} are supported"
        )
    networks = {network.name: network for network in vmi.spec.networks or []}
    found = tuple(_request(vmi, nic, networks.get(nic.name)) for nic in nics)
    own = [request.name for request in found if request.on_pod_network]
    if len(own) > 1:
        raise NetworkError(f"interfaces {', '.join(own)}: only one can be on the pod network")
    if len({request.name for request in found}) < len(found):
        raise NetworkError("spec.domain.devices.interfaces: names must be unique")
    return found


def _request(vmi: VirtualMachineInstance, nic: Interface, network: Network | None) -> InterfaceRequest:
    if network is None or (network.pod is None and network.multus is None):
        raise NetworkError(f"interface {nic.name}: spec.networks has no pod or multus network of this name")
    mac = _mac(nic)
    insists = bool(mac) and mac != defaults.mac_address(vmi.metadata, nic.name)
    interface = "" if network.pod is not None else pod_interface(nic.name)
    if nic.masquerade is not None:
        return _masqueraded(vmi, nic, network, mac)
    if nic.bridge is not None:
        return InterfaceRequest(nic.name, interface, mac, insists, _queues(vmi, nic))
    if nic.sriov is not None and network.multus is not None:
        return InterfaceRequest(nic.name, interface, mac, insists, 0, hardware=True)
    raise NetworkError(
        f"interface {nic.name}: no supported binding: use masquerade, bridge or (on multus networks) sriov"
    )


def _masqueraded(vmi: VirtualMachineInstance, nic: Interface, network: Network, mac: str) -> InterfaceRequest:
    pod = network.pod
    if network.multus is not None:
        raise NetworkError(f"interface {nic.name}: masquerade is supported on the pod network only; use bridge")
    if not mac:
        raise NetworkError(f"interface {nic.name}: macAddress: required")
    subnet4 = _subnet(ipaddress.IPv4Network, nic.name, (pod and pod.vmNetworkCIDR) or DEFAULT_SUBNET4)
    subnet6 = _subnet(ipaddress.IPv6Network, nic.name, (pod and pod.vmIPv6NetworkCIDR) or DEFAULT_SUBNET6)
    return InterfaceRequest(
        nic.name, "", mac, True, _queues(vmi, nic), MasqueradeNetwork(subnet4, subnet6, _ports(nic))
    )


def _mac(nic: Interface) -> str:
    if not nic.macAddress:
        return ""
    mac = nic.macAddress.lower().replace("-", ":")
    if not is_mac(mac):
        raise NetworkError(f"interface {nic.name}: {nic.macAddress!r} is not an Ethernet address")
    if mac == GATEWAY_MAC:
        raise NetworkError(f"interface {nic.name}: {mac} is the gateway's own address; choose another")
    return mac


def _subnet(kind: type[N], nic: str, text: str) -> N:
    try:
        subnet = kind(text, strict=False)
    except ValueError as error:
        raise NetworkError(f"interface {nic}: {error}") from error
    if not 8 <= subnet.prefixlen <= subnet.max_prefixlen - 2:
        raise NetworkError(f"interface {nic}: {text} has no room for a gateway and a guest")
    return subnet


def _ports(nic: Interface) -> tuple[nftables.ForwardedPorts, ...]:
    single = [
        nftables.ForwardedPorts((port.protocol or "TCP").lower(), port.port, port.port) for port in nic.ports or []
    ]
    ranges = [nftables.ForwardedPorts(item.protocol.lower(), item.start, item.end) for item in nic.portRanges or []]
    return tuple(single + ranges)


def _queues(vmi: VirtualMachineInstance, nic: Interface) -> int:
    if not vmi.spec.domain.devices.networkInterfaceMultiqueue or nic.model != "virtio":
        return 1
    return max(1, min(defaults.vcpus(vmi.spec), _MAX_QUEUES))
