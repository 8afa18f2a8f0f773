"""NIC hot-plug: which interface changes of a VM's template are applied to the running VMI. Pure.

Interfaces with bridge binding on a Multus network are plugged and unplugged live; link state changes live. An
unplugged interface first gets state `absent` in the VMI. When the handler no longer reports it, interface and network
are removed from the VMI, and from the VM's template if they are absent there. Other changes need a restart.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from api import names
from api.kubevirt.networks import Interface, Network
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec, phase_of
from controller.vm import semantic_diff
from controller.vmi.status import status_of

ABSENT = "absent"
_PLUGGABLE_MODELS = frozenset({"virtio", "e1000e"})
"""PCI Express models. Conventional PCI models share a PCI bridge that does not support hot-plug."""

Nic = tuple[Interface, Network]


@dataclass(frozen=True)
class NicChange:
    """Result of comparing a VMI's interfaces with the template's."""

    spec: VirtualMachineInstanceSpec
    """The VMI's spec with its new interfaces and networks."""
    waiting: Sequence[str]
    """Fields of the template that take effect at the next start."""
    gone: frozenset[str]
    """Names of interfaces with state `absent` that are unplugged."""


def without(spec: VirtualMachineInstanceSpec, gone: Collection[str]) -> VirtualMachineInstanceSpec:
    """The spec without the interfaces named in `gone` and their networks."""
    if not gone:
        return spec
    interfaces = [each for each in spec.domain.devices.interfaces or () if each.name not in gone]
    networks = [each for each in spec.networks or () if each.name not in gone]
    return _with(spec, interfaces, networks)


def _with(
    spec: VirtualMachineInstanceSpec, interfaces: list[Interface], networks: list[Network]
) -> VirtualMachineInstanceSpec:
    devices = replace(spec.domain.devices, interfaces=interfaces or None)
    if not interfaces and not networks:
        # Without interfaces and networks, defaulting would attach the pod network. Prevent that after the last unplug.
        devices = replace(devices, autoattachPodInterface=False)
    return replace(spec, domain=replace(spec.domain, devices=devices), networks=networks or None)


def merge_patch(spec: VirtualMachineInstanceSpec) -> dict[str, Any]:
    """The merge patch that sets a spec's interfaces and networks to those of `spec`."""
    devices = spec.domain.devices
    device_patch: dict[str, Any] = {"interfaces": msgspec.to_builtins(devices.interfaces)}
    if devices.autoattachPodInterface is not None:
        device_patch["autoattachPodInterface"] = devices.autoattachPodInterface
    return {"networks": msgspec.to_builtins(spec.networks), "domain": {"devices": device_patch}}


def absent(spec: VirtualMachineInstanceSpec) -> frozenset[str]:
    """Names of the interfaces with state `absent`."""
    return frozenset(each.name for each in spec.domain.devices.interfaces or () if each.state == ABSENT)


def change(
    vmi: VirtualMachineInstance, template: VirtualMachineInstanceSpec, written: VirtualMachineInstanceSpec
) -> NicChange:
    """How a VMI's interfaces change when its template has changed. `vmi` has its defaults applied.

    `template` is the template with defaults applied, `written` the template as the user wrote it.
    """
    now, wanted = _nics(vmi.spec), _nics(template)
    waiting: list[str] = []
    nics: dict[str, Nic] = {}
    for name, pair in now.items():
        nics[name], fields = _kept(pair, wanted.get(name))
        waiting += fields
    for name, pair in wanted.items():
        if name not in now and pair[0].state != ABSENT:
            if _is_pluggable(pair) and not vmi.spec.domain.devices.disableHotplug:
                nics[name] = pair
            else:
                waiting.append(f"domain.devices.interfaces[{name}]")
    gone = frozenset(name for name, (nic, _) in nics.items() if nic.state == ABSENT and _is_out(vmi, name))
    left = {name: pair for name, pair in nics.items() if name not in gone}
    # Keep the VMI's order of networks, which may differ from that of the interfaces, to avoid a needless write.
    networks = [network for network in vmi.spec.networks or () if network.name in left]
    networks += [network for name, (_, network) in left.items() if name not in now]
    spec = _with(vmi.spec, [nic for nic, _ in left.values()], networks)
    # Absent interfaces that only the template has were never plugged in, or were removed in an earlier round.
    return NicChange(spec, waiting, gone | {name for name in absent(written) if name not in nics})


def _nics(spec: VirtualMachineInstanceSpec) -> dict[str, Nic]:
    networks = {network.name: network for network in spec.networks or ()}
    return {nic.name: (nic, networks[nic.name]) for nic in spec.domain.devices.interfaces or () if nic.name in networks}


def _kept(pair: Nic, wanted: Nic | None) -> tuple[Nic, list[str]]:
    """The new state of an interface that the VMI has, and the changed fields that take effect at the next start."""
    (nic, network), path = pair, f"domain.devices.interfaces[{pair[0].name}]"
    if wanted is None or wanted[0].state == ABSENT:
        if not _is_pluggable(pair):
            return pair, [path if wanted is None else f"{path}.state"]
        return (replace(nic, state=ABSENT), network), []
    new, new_network = wanted
    fields = [
        f"{path}{field}" for field in semantic_diff.differences(replace(nic, state=None), replace(new, state=None))
    ]
    fields += [f"networks[{nic.name}]{field}" for field in semantic_diff.differences(network, new_network)]
    state = nic.state if (nic.state or "up") == (new.state or "up") else new.state
    if state != nic.state and nic.sriov is not None:
        return pair, [*fields, f"{path}.state"]
    return (replace(nic, state=state), network), fields


def _is_pluggable(pair: Nic) -> bool:
    nic, network = pair
    place = network.multus is not None and nic.bridge is not None and nic.pciAddress is None
    return place and (nic.model or "virtio") in _PLUGGABLE_MODELS


def _is_out(vmi: VirtualMachineInstance, name: str) -> bool:
    """Whether the guest does not have the interface: the handler does not report it, or no guest has started."""
    phase = phase_of(vmi)
    if phase in (names.PHASE_UNSET, names.PHASE_PENDING):
        return True
    return phase == names.PHASE_RUNNING and name not in {each.name for each in status_of(vmi).interfaces or ()}
