"""Network cards of a virtual machine and the networks they are joined to."""

import hashlib
from typing import Annotated, Literal

from msgspec import Meta

from api.k8s.meta import Positive32, Struct, UInt32

PortNumber = Annotated[int, Meta(ge=1, le=65535, extra_json_schema={"format": "int32"})]
# RFC 3942: options 224 to 254 are for private use.
DhcpOption = Annotated[int, Meta(ge=224, le=254, extra_json_schema={"format": "int32"})]


RESERVED_MAC = "02:00:00:00:00:01"
"""The address of a guest's gateway behind masquerade: no card can have it."""


class MultusNetwork(Struct):
    """A secondary network."""

    networkName: str
    """Its NetworkAttachmentDefinition: [namespace/]name."""
    default: bool | None = None
    """Replaces the pod's cluster network."""


class PodNetwork(Struct):
    """The pod network."""

    vmIPv6NetworkCIDR: str | None = None
    """IPv6 network inside of masquerade; fd10:0:2::/120 when absent."""
    vmNetworkCIDR: str | None = None
    """IPv4 network inside of masquerade; 10.0.2.0/24 when absent."""


class ClaimRequest(Struct):
    """A request in a resource claim."""

    claimName: str | None = None
    """Name of the claim in resourceClaims."""
    requestName: str | None = None
    """Name of the request in it."""


class Network(Struct):
    """A network for interfaces."""

    name: str
    """Name referenced by an interface."""
    multus: MultusNetwork | None = None
    """A secondary network, by its NetworkAttachmentDefinition."""
    pod: PodNetwork | None = None
    """The pod network."""
    resourceClaim: ClaimRequest | None = None
    """A network device from a resource claim."""


class PluginBinding(Struct):
    """Binding by a plugin."""

    name: str
    """Name of the plugin in the installation's configuration."""


class InterfaceBridge(Struct):
    """Bridge binding."""


class DHCPPrivateOptions(Struct):
    """A private DHCP option."""

    option: DhcpOption
    """Number, 224 to 254."""
    value: str
    """Its text."""


class DHCPOptions(Struct):
    """DHCP options for the guest."""

    bootFileName: str | None = None
    """File to boot from the network (option 67)."""
    ntpServers: list[str] | None = None
    """Addresses of time servers (option 42)."""
    privateOptions: list[DHCPPrivateOptions] | None = None
    """Options 224 to 254."""
    tftpServerName: str | None = None
    """Server to boot from (option 66)."""


class DeprecatedInterfaceMacvtap(Struct):
    """Removed."""


class InterfaceMasquerade(Struct):
    """Masquerade (NAT) binding."""


class DeprecatedInterfacePasst(Struct):
    """Removed."""


class InterfacePasstBinding(Struct):
    """passt binding."""


class PortRange(Struct):
    """Ports that are forwarded to the guest."""

    end: PortNumber
    """Last port."""
    protocol: Literal["TCP", "UDP"]
    """TCP or UDP."""
    start: PortNumber
    """First port."""


class Port(Struct):
    """A port that is forwarded to the guest."""

    port: PortNumber
    """Number of the port."""
    name: str | None = None
    """Name of the port."""
    protocol: Literal["TCP", "UDP"] | None = None
    """TCP (when absent) or UDP."""


class DeprecatedInterfaceSlirp(Struct):
    """Removed."""


class InterfaceSRIOV(Struct):
    """SR-IOV binding."""


class Interface(Struct):
    """A network interface, connected to the network of the same name."""

    name: str
    """Name of the network."""
    acpiIndex: UInt32 | None = None
    """ACPI index, from which the guest derives the interface name."""
    binding: PluginBinding | None = None
    """Binding by a network binding plugin."""
    bootOrder: Positive32 | None = None
    """Boot order; 1 is first."""
    bridge: InterfaceBridge | None = None
    """Bridge binding: on the pod network the guest takes over the pod's address."""
    dhcpOptions: DHCPOptions | None = None
    """Additional DHCP options for the guest."""
    macAddress: str | None = None
    """MAC address; derived from the VM when absent, and stable."""
    macvtap: DeprecatedInterfaceMacvtap | None = None
    """Removed."""
    masquerade: InterfaceMasquerade | None = None
    """Masquerade binding: the guest has a private address behind the pod's address (NAT)."""
    model: Literal["virtio", "e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139"] | None = None
    """Device model: virtio (when absent), e1000, e1000e, rtl8139, ne2k_pci or pcnet."""
    passt: DeprecatedInterfacePasst | None = None
    """Removed; see passtBinding."""
    passtBinding: InterfacePasstBinding | None = None
    """passt binding: an unprivileged user-space network stack."""
    pciAddress: str | None = None
    """PCI address in the guest."""
    portRanges: list[PortRange] | None = None
    """Port ranges that are forwarded to the guest."""
    ports: list[Port] | None = None
    """Ports that are forwarded to the guest; all when absent."""
    slirp: DeprecatedInterfaceSlirp | None = None
    """Removed."""
    sriov: InterfaceSRIOV | None = None
    """SR-IOV binding: passes a virtual function through to the guest."""
    state: Literal["up", "down", "absent"] | None = None
    """Link state: up or down; absent unplugs the interface."""
    tag: str | None = None
    """Tag of the interface in the guest's device metadata."""


def pod_interface(network: str) -> str:
    """The name in the pod of a secondary network's interface: never too long, and derived as in KubeVirt."""
    return "pod" + hashlib.sha256(network.encode()).hexdigest()[:11]
