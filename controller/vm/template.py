"""A VM's template against the VMI that was made from it: what can be done now, and what needs a restart. Pure.

On the VMI stands a hash for every section of the template that it was made from. Only sections that somebody has
written anew since then are compared, by what they mean with their defaults: so neither a new default of the
installation or of a later hyperlet asks for a restart, nor another order or spelling.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from api import defaults, names
from api.kubevirt.configuration import KubeVirtConfiguration, NetworkConfiguration
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec
from controller.launcher_pod import metadata_propagation
from controller.vm import semantic_diff
from controller.vmi import nic_hotplug
from controller.vmi.status import phase_of

_NICS = frozenset({"networks", "domain.devices.interfaces", "domain.devices.autoattachPodInterface"})
"""Sections that controller.vmi.nic_hotplug compares with what the VMI has by now."""
_HASH_DIGITS = 12


@dataclass(frozen=True)
class TemplateDifference:
    """What a changed template asks for."""

    vmi: VirtualMachineInstance
    """The VMI as it was compared: with its defaults."""
    nics: nic_hotplug.NicChange
    """What becomes of its network cards now."""
    metadata: metadata_propagation.MetadataChange
    """What becomes of its labels and annotations now."""
    waiting: tuple[str, ...]
    """Fields below spec.template.spec that take effect at the next start."""

    @property
    def late(self) -> tuple[str, ...]:
        """All that takes effect at the next start, below spec.template."""
        return (*(f"spec.{field}" for field in self.waiting), *(f"metadata.{key}" for key in self.metadata.waiting))

    @property
    def is_settled(self) -> bool:
        """Whether the VMI is all that the template asks for."""
        return not self.late and not self.metadata.metadata and self.nics.spec == self.vmi.spec


def difference(
    vm: VirtualMachine, vmi: VirtualMachineInstance | None, config: KubeVirtConfiguration | None
) -> TemplateDifference | None:
    """How a VM's template differs from its running VMI; None where nothing runs that could differ."""
    written = vm.spec.template.spec
    if vmi is None or written is None or vmi.metadata.deletionTimestamp or phase_of(vmi) in names.FINAL_PHASES:
        return None
    wanted = defaults.default_vmi_spec(written, vmi.metadata, config=_as_started(vmi.spec, config))
    defaulted = replace(vmi, spec=defaults.default_vmi_spec(vmi.spec, vmi.metadata, config=config))
    cards = nic_hotplug.change(defaulted, wanted, written)
    made_from = (vmi.metadata.annotations or {}).get(names.ANNOTATION_TEMPLATE)
    waiting = [*cards.waiting, *_sections(written, made_from, defaulted.spec, wanted)]
    metadata = metadata_propagation.to_vmi(vm.spec.template.metadata, vmi)
    return TemplateDifference(defaulted, cards, metadata, tuple(dict.fromkeys(waiting)))


def _as_started(spec: VirtualMachineInstanceSpec, config: KubeVirtConfiguration | None) -> KubeVirtConfiguration:
    """The configuration, with the binding on the pod network that was the default when the VM was started."""
    config = config or KubeVirtConfiguration()
    on_pod = {network.name for network in spec.networks or () if network.pod is not None}
    for nic in spec.domain.devices.interfaces or ():
        if nic.name in on_pod:
            settings = config.network or NetworkConfiguration()
            binding = "bridge" if nic.bridge is not None else "masquerade"
            return replace(config, network=replace(settings, defaultNetworkInterface=binding))
    return config


def _sections(
    written: VirtualMachineInstanceSpec,
    made_from: str | None,
    now: VirtualMachineInstanceSpec,
    wanted: VirtualMachineInstanceSpec,
) -> Iterator[str]:
    if made_from == hashes(written):
        return
    before, after = _parsed(made_from), _parsed(hashes(written))
    mine, theirs = sections(now), sections(wanted)
    for name in sorted({*before, *after} if before else {*mine, *theirs}):
        if name not in _NICS and (not before or before.get(name) != after.get(name)):
            for path in semantic_diff.differences(mine.get(name), theirs.get(name), name.rpartition(".")[2]):
                yield name + path


def hashes(spec: VirtualMachineInstanceSpec) -> str:
    """`section=hash,...` of a template as it is written: the VMI's annotation hyperlet/template-hash."""
    found = sections(spec)
    return ",".join(f"{name}={_hash(found[name])}" for name in sorted(found))


def _hash(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:_HASH_DIGITS]


def _parsed(text: str | None) -> Mapping[str, str]:
    """The hashes in an annotation; none of one that somebody else has written, or an earlier version."""
    pairs = [entry.partition("=") for entry in (text or "").split(",")]
    return {name: value for name, equals, value in pairs if equals}


def sections(spec: VirtualMachineInstanceSpec) -> dict[str, Any]:
    """The parts of a spec as plain data: its fields, those of `domain` and those of `domain.devices`."""
    plain: dict[str, Any] = msgspec.to_builtins(spec)
    domain = plain.pop("domain", {})
    devices = domain.pop("devices", {})
    return {
        **plain,
        **{f"domain.{name}": value for name, value in domain.items()},
        **{f"domain.devices.{name}": value for name, value in devices.items()},
    }
