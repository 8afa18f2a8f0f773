"""The attachment that an ADD of cnv-bridge must create, from configuration and environment. Pure."""

import secrets
from dataclasses import dataclass

from cni import errors, spec
from cni.errors import CniError
from cni.host import host_name
from cni.invocation import Invocation, interface_fault
from cni.spec import BridgeConf

BRIDGE = "cni0"
_BACKENDS = (None, "", "nftables", "iptables")


@dataclass(frozen=True)
class DesiredAttachment:
    """The desired attachment. `mtu` 0: that of the bridge. `native` 0 and no `tagged`: the bridge's default VLAN."""

    network: str
    version: str
    bridge: str
    outside: str
    mtu: int
    mac: str
    native: int
    tagged: frozenset[int]
    keep_default_vlan: bool
    guard: bool
    hairpin: bool
    isolated: bool
    promiscuous: bool
    gateway: bool
    default_gateway: bool
    force_address: bool
    masquerade: bool
    dad: bool
    up: bool
    ipam: str

    @property
    def vlans(self) -> bool:
        """Whether the port has VLANs configured."""
        return bool(self.native or self.tagged)


def desired_attachment(conf: BridgeConf, call: Invocation) -> DesiredAttachment:
    """Validate the configuration. Raises CniError (7) for inconsistent or out-of-range values."""
    bridge = conf.bridge or BRIDGE
    if fault := interface_fault(bridge):
        raise CniError(errors.CONFIG, f"$.bridge: {bridge[:40]!r} {fault}")
    if conf.mtu and conf.mtu < 68:
        raise CniError(errors.CONFIG, f"$.mtu: {conf.mtu} is less than the minimum of 68")
    if conf.hairpinMode and conf.promiscMode:
        raise CniError(errors.CONFIG, "$.hairpinMode and $.promiscMode exclude each other")
    if conf.ipMasqBackend not in _BACKENDS:
        raise CniError(errors.CONFIG, f"$.ipMasqBackend: {conf.ipMasqBackend[:40]!r} is not nftables or iptables")
    ipam = ipam_type(conf)
    if conf.disableContainerInterface and ipam:
        raise CniError(errors.CONFIG, "$.disableContainerInterface: cannot be combined with ipam")
    return DesiredAttachment(
        network=conf.name or "",
        version=conf.cniVersion or "",
        bridge=bridge,
        outside=host_name(conf.name or "", call.container, call.interface),
        mtu=conf.mtu or 0,
        mac=mac_of(conf, call),
        native=conf.vlan or 0,
        tagged=trunk(conf),
        keep_default_vlan=conf.preserveDefaultVlan is not False,
        guard=bool(conf.macspoofchk),
        hairpin=bool(conf.hairpinMode),
        isolated=bool(conf.portIsolation),
        promiscuous=bool(conf.promiscMode),
        gateway=bool(conf.isGateway or conf.isDefaultGateway),
        default_gateway=bool(conf.isDefaultGateway),
        force_address=bool(conf.forceAddress),
        masquerade=bool(conf.ipMasq),
        dad=bool(conf.enabledad),
        up=not conf.disableContainerInterface,
        ipam=ipam,
    )


def ipam_type(conf: BridgeConf) -> str:
    """The IPAM plugin's type; empty for none (`{}`, absent). Raises CniError (7)."""
    kind = (conf.ipam or {}).get("type") or ""
    if not isinstance(kind, str) or "/" in kind or "\0" in kind or kind in (".", ".."):
        raise CniError(errors.CONFIG, f"$.ipam.type: {str(kind)[:40]!r} is not the name of a plugin")
    return kind


def mac_of(conf: BridgeConf, call: Invocation) -> str:
    """The container interface's MAC: the last one set of CNI_ARGS, args.cni and runtimeConfig; empty if none is."""
    found = ""
    if value := call.arguments.get("MAC"):
        found = spec.mac(value, "CNI_ARGS: MAC")
    if conf.args and conf.args.cni and conf.args.cni.mac:
        found = spec.mac(conf.args.cni.mac, "$.args.cni.mac")
    if conf.runtimeConfig and conf.runtimeConfig.mac:
        found = spec.mac(conf.runtimeConfig.mac, "$.runtimeConfig.mac")
    return found


def trunk(conf: BridgeConf) -> frozenset[int]:
    """The tagged VLANs. Raises CniError (7)."""
    found: set[int] = set()
    for position, each in enumerate(conf.vlanTrunk or []):
        where = f"$.vlanTrunk[{position}]"
        if (each.minID is None) != (each.maxID is None):
            raise CniError(errors.CONFIG, f"{where}: minID and maxID must be set together")
        if each.minID is None and each.id is None:
            raise CniError(errors.CONFIG, f"{where}: minID and maxID, or id: required")
        if each.minID is not None and each.maxID is not None:
            if each.minID > each.maxID:
                raise CniError(errors.CONFIG, f"{where}: minID {each.minID} is greater than maxID {each.maxID}")
            found.update(range(each.minID, each.maxID + 1))
        if each.id is not None:
            found.add(each.id)
    found.discard(conf.vlan or 0)
    return frozenset(found)


def random_mac() -> str:
    """A random locally administered MAC."""
    return "02:" + secrets.token_bytes(5).hex(":")


def port_mac() -> str:
    """A MAC for a host interface: a high one, since a bridge takes over the lowest MAC of its ports."""
    return "fe:" + secrets.token_bytes(5).hex(":")
