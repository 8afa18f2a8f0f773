"""Compares a VM's template with the running VMI: what can be applied live, and what requires a restart. Pure.

The VMI's annotation holds a hash of each section of the template that it was created from. Only sections that changed
since then are compared, semantically and with defaults applied. So neither changed defaults (of the KubeVirt CR or a
later version of hyperlet) nor another order or spelling require a restart.
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
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec, phase_of
from controller.launcher_pod import metadata_propagation
from controller.vm import semantic_diff
from controller.vmi import nic_hotplug

_NICS = frozenset({"networks", "domain.devices.interfaces", "domain.devices.autoattachPodInterface"})
"""Sections that controller.vmi.nic_hotplug compares instead."""
_HASH_DIGITS = 12


@dataclass(frozen=True)
class TemplateDifference:
    """Difference between a VM's template and its running VMI."""

    vmi: VirtualMachineInstance
    """The VMI, with defaults applied."""
    nics: nic_hotplug.NicChange
    """Changes of interfaces to apply now."""
    metadata: metadata_propagation.MetadataChange
    """Changes of labels and annotations to apply now."""
    waiting: tuple[str, ...]
    """Fields below spec.template.spec that take effect at the next start."""

    @property
    def late(self) -> tuple[str, ...]:
        """All fields below spec.template that take effect at the next start."""
        return (*(f"spec.{field}" for field in self.waiting), *(f"metadata.{key}" for key in self.metadata.waiting))

    @property
    def is_settled(self) -> bool:
        """Whether the VMI matches the template."""
        return not self.late and not self.metadata.metadata and self.nics.spec == self.vmi.spec


def difference(
    vm: VirtualMachine, vmi: VirtualMachineInstance | None, config: KubeVirtConfiguration | None
) -> TemplateDifference | None:
    """How a VM's template differs from its running VMI; None if no VMI is running."""
    written = vm.spec.template.spec
    if vmi is None or written is None or vmi.metadata.deletionTimestamp or phase_of(vmi) in names.FINAL_PHASES:
        return None
    wanted = defaults.default_vmi_spec(written, vmi.metadata, config=_as_started(vmi.spec, config))
    defaulted = replace(vmi, spec=defaults.default_vmi_spec(vmi.spec, vmi.metadata, config=config))
    nics = nic_hotplug.change(defaulted, wanted, written)
    made_from = (vmi.metadata.annotations or {}).get(names.ANNOTATION_TEMPLATE)
    waiting = [*nics.waiting, *_sections(written, made_from, defaulted.spec, wanted)]
    metadata = metadata_propagation.to_vmi(vm.spec.template.metadata, vmi)
    return TemplateDifference(defaulted, nics, metadata, tuple(dict.fromkeys(waiting)))


def _as_started(spec: VirtualMachineInstanceSpec, config: KubeVirtConfiguration | None) -> KubeVirtConfiguration:
    """`config` with the VMI's binding on the pod network as default: the default may have changed since the start."""
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
    """`section=hash,...` of a template without defaults: the value of the VMI's annotation hyperlet/template-hash."""
    found = sections(spec)
    return ",".join(f"{name}={_hash(found[name])}" for name in sorted(found))


def _hash(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:_HASH_DIGITS]


def _parsed(text: str | None) -> Mapping[str, str]:
    """The hashes by section; empty if the annotation is missing or in another format."""
    pairs = [entry.partition("=") for entry in (text or "").split(",")]
    return {name: value for name, equals, value in pairs if equals}


def sections(spec: VirtualMachineInstanceSpec) -> dict[str, Any]:
    """The sections of a spec as plain data: its fields, those of `domain` and those of `domain.devices`."""
    plain: dict[str, Any] = msgspec.to_builtins(spec)
    domain = plain.pop("domain", {})
    devices = domain.pop("devices", {})
    return {
        **plain,
        **{f"domain.{name}": value for name, value in domain.items()},
        **{f"domain.devices.{name}": value for name, value in devices.items()},
    }
