"""Network cards of a running VM: what of a changed template can be done while the guest runs. Pure.

A card that joins a multus network by a bridge is plugged in and out, and links are put up and down. What is unplugged
becomes `absent` in the VMI first; when the handler no longer reports it, card and network leave the VMI, and the VM's
template if it is absent there. Everything else waits for the next start.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from api import defaults, names
from api.kubevirt.networks import Interface, Network
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec
from controller.vm import semantic_diff
from controller.vmi.status import phase_of, status_of

ABSENT = "absent"
_PLUGGABLE_MODELS = frozenset({"virtio", "e1000e"})
"""PCI Express cards: older ones share a bridge that takes nothing while the guest runs."""

Nic = tuple[Interface, Network]


@dataclass(frozen=True)
class NicChange:
    """What a VMI's cards become."""

    spec: VirtualMachineInstanceSpec
    """The VMI's spec with its new cards."""
    waiting: Sequence[str]
    """Fields of the template that take effect at the next start."""
    gone: frozenset[str]
    """Cards that were to be absent, and are."""


def without(spec: VirtualMachineInstanceSpec, gone: Collection[str]) -> VirtualMachineInstanceSpec:
    """The spec without some cards and their networks."""
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
        # A VM that says nothing of networks joins the pod's: the last card that is unplugged must not bring that about.
        devices = replace(devices, autoattachPodInterface=False)
    return replace(spec, domain=replace(spec.domain, devices=devices), networks=networks or None)


def merge_patch(spec: VirtualMachineInstanceSpec) -> dict[str, Any]:
    """What gives a stored spec the cards of this one: lists are replaced whole."""
    devices = spec.domain.devices
    cards: dict[str, Any] = {"interfaces": msgspec.to_builtins(devices.interfaces)}
    if devices.autoattachPodInterface is not None:
        cards["autoattachPodInterface"] = devices.autoattachPodInterface
    return {"networks": msgspec.to_builtins(spec.networks), "domain": {"devices": cards}}


def without_defaults(vmi: VirtualMachineInstance, defaulted: VirtualMachineInstance) -> dict[str, Any]:
    """The patch for a VMI whose cards depend on the installation's defaults, which the handler does not know."""
    plain, spec = defaults.default_vmi(vmi).spec, defaulted.spec
    same = plain.networks == spec.networks and plain.domain.devices.interfaces == spec.domain.devices.interfaces
    return {} if same else merge_patch(spec)


def absent(spec: VirtualMachineInstanceSpec) -> frozenset[str]:
    """Names of the cards that are to be absent."""
    return frozenset(each.name for each in spec.domain.devices.interfaces or () if each.state == ABSENT)


def change(
    vmi: VirtualMachineInstance, template: VirtualMachineInstanceSpec, written: VirtualMachineInstanceSpec
) -> NicChange:
    """What becomes of a VMI's cards when its template has changed. `vmi` has its defaults applied.

    `template` is the template with its defaults, as a VMI made now would have it; `written` the template as it stands.
    """
    now, wanted = _nics(vmi.spec), _nics(template)
    waiting: list[str] = []
    cards: dict[str, Nic] = {}
    for name, card in now.items():
        after, words = _kept(card, wanted.get(name))
        cards[name] = after
        waiting += words
    for name, card in wanted.items():
        if name not in now and card[0].state != ABSENT:
            if _is_pluggable(card) and not vmi.spec.domain.devices.disableHotplug:
                cards[name] = card
            else:
                waiting.append(f"domain.devices.interfaces[{name}]")
    gone = frozenset(name for name, (nic, _) in cards.items() if nic.state == ABSENT and _is_out(vmi, name))
    left = {name: card for name, card in cards.items() if name not in gone}
    # Networks stay in their own order, which need not be that of the cards: what is the same is not written.
    networks = [network for network in vmi.spec.networks or () if network.name in left]
    networks += [network for name, (_, network) in left.items() if name not in now]
    spec = _with(vmi.spec, [nic for nic, _ in left.values()], networks)
    # What the template alone still has was never plugged in, or has left the VMI in an earlier round.
    return NicChange(spec, waiting, gone | {name for name in absent(written) if name not in cards})


def _nics(spec: VirtualMachineInstanceSpec) -> dict[str, Nic]:
    networks = {network.name: network for network in spec.networks or ()}
    return {nic.name: (nic, networks[nic.name]) for nic in spec.domain.devices.interfaces or () if nic.name in networks}


def _kept(card: Nic, wanted: Nic | None) -> tuple[Nic, list[str]]:
    """A card that the VMI has, as it is to be now, and the fields that have to wait."""
    (nic, network), path = card, f"domain.devices.interfaces[{card[0].name}]"
    if wanted is None or wanted[0].state == ABSENT:
        if not _is_pluggable(card):
            return card, [path if wanted is None else f"{path}.state"]
        return (replace(nic, state=ABSENT), network), []
    new, new_network = wanted
    words = [
        f"{path}{field}" for field in semantic_diff.differences(replace(nic, state=None), replace(new, state=None))
    ]
    words += [f"networks[{nic.name}]{field}" for field in semantic_diff.differences(network, new_network)]
    state = nic.state if (nic.state or "up") == (new.state or "up") else new.state
    if state != nic.state and nic.sriov is not None:
        return card, [*words, f"{path}.state"]
    return (replace(nic, state=state), network), words


def _is_pluggable(card: Nic) -> bool:
    nic, network = card
    place = network.multus is not None and nic.bridge is not None and nic.pciAddress is None
    return place and (nic.model or "virtio") in _PLUGGABLE_MODELS


def _is_out(vmi: VirtualMachineInstance, name: str) -> bool:
    """Whether the guest has a card no longer: by the handler's word, or because there is no guest yet."""
    phase = phase_of(vmi)
    if phase in (names.PHASE_UNSET, names.PHASE_PENDING):
        return True
    return phase == names.PHASE_RUNNING and name not in {each.name for each in status_of(vmi).interfaces or ()}
