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
    """The network that every pod has."""

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
    """A network that network cards join."""

    name: str
    """Name by which an interface joins it."""
    multus: MultusNetwork | None = None
    """A secondary network, by its NetworkAttachmentDefinition."""
    pod: PodNetwork | None = None
    """The network that every pod has."""
    resourceClaim: ClaimRequest | None = None
    """A network device from a resource claim."""


class PluginBinding(Struct):
    """Joining by a plugin."""

    name: str
    """Name of the plugin in the installation's configuration."""


class InterfaceBridge(Struct):
    """Joining by a bridge."""


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
    """No longer there."""


class InterfaceMasquerade(Struct):
    """Joining behind network address translation."""


class DeprecatedInterfacePasst(Struct):
    """No longer there."""


class InterfacePasstBinding(Struct):
    """Joining by a user-space process."""


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
    """No longer there."""


class InterfaceSRIOV(Struct):
    """Joining by a virtual function of the host's card."""


class Interface(Struct):
    """A network card. It joins the network of the same name."""

    name: str
    """Name of the network it joins."""
    acpiIndex: UInt32 | None = None
    """Number from which the guest derives the card's name."""
    binding: PluginBinding | None = None
    """Joins the network by a plugin of the installation."""
    bootOrder: Positive32 | None = None
    """Place in the order in which devices are tried for booting; 1 comes first."""
    bridge: InterfaceBridge | None = None
    """Joins by a bridge: the guest takes over the pod's address."""
    dhcpOptions: DHCPOptions | None = None
    """Additional DHCP options for the guest."""
    macAddress: str | None = None
    """MAC address; derived from the VM when absent, so that it stays."""
    macvtap: DeprecatedInterfaceMacvtap | None = None
    """No longer there."""
    masquerade: InterfaceMasquerade | None = None
    """Joins behind network address translation: the guest has a private address, the pod's address is in front."""
    model: Literal["virtio", "e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139"] | None = None
    """Kind of the card: virtio (when absent), e1000, e1000e, rtl8139, ne2k_pci or pcnet."""
    passt: DeprecatedInterfacePasst | None = None
    """No longer there; see passtBinding."""
    passtBinding: InterfacePasstBinding | None = None
    """Joins by a user-space process, without privileges."""
    pciAddress: str | None = None
    """Place on the guest's PCI bus."""
    portRanges: list[PortRange] | None = None
    """Port ranges that are forwarded to the guest."""
    ports: list[Port] | None = None
    """Ports that are forwarded to the guest; all when absent."""
    slirp: DeprecatedInterfaceSlirp | None = None
    """No longer there."""
    sriov: InterfaceSRIOV | None = None
    """Hands a virtual function of the host's card to the guest."""
    state: Literal["up", "down", "absent"] | None = None
    """up, down or absent."""
    tag: str | None = None
    """Word that the guest finds in its metadata for this card."""


def pod_interface(network: str) -> str:
    """The name in the pod of a secondary network's interface: never too long, and derived as in KubeVirt."""
    return "pod" + hashlib.sha256(network.encode()).hexdigest()[:11]
