"""Defaults that admission stores in the spec of an object. Pure.

A VM stores the defaults that must not change later: machine type, architecture, CPU model and network. Lists set by
the user are not changed (GitOps tools would report a permanent difference), and identities (MAC addresses, firmware
UUID) are not stored in a VM, because VMs are copied. A VMI stores all defaults.
"""

from typing import Any

from api import defaults, names
from api.k8s.meta import ObjectMeta
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec
from api.schema.codec import to_dict

Json = dict[str, Any]


def vm_spec(vm: VirtualMachine, configuration: KubeVirtConfiguration) -> Json:
    """The fields that a VM's spec must have."""
    spec = vm.spec
    wanted: Json = {}
    if spec.runStrategy is None and spec.running is None:
        wanted["runStrategy"] = names.RUN_HALTED
    if spec.template.spec is not None:
        wanted["template"] = {"spec": _machine(spec.template.spec, configuration)}
    return wanted


def _machine(spec: VirtualMachineInstanceSpec, configuration: KubeVirtConfiguration) -> Json:
    whole = to_dict(defaults.default_vmi_spec(spec, ObjectMeta(), config=configuration))
    # Keep the value as written; only the VMI gets the upstream type for another distribution's machine type.
    written = spec.domain.machine.type if spec.domain.machine else None
    domain: Json = {"machine": {"type": written or whole["domain"]["machine"]["type"]}}
    if configuration.cpuModel is not None:
        domain["cpu"] = {"model": whole["domain"]["cpu"]["model"]}
    wanted: Json = {"architecture": whole["architecture"], "domain": domain}
    if not spec.networks and not spec.domain.devices.interfaces and whole.get("networks"):
        interfaces = whole["domain"]["devices"]["interfaces"]
        domain["devices"] = {"interfaces": [_anonymous(interface) for interface in interfaces]}
        wanted["networks"] = whole["networks"]
    return wanted


def _anonymous(interface: Json) -> Json:
    return {key: value for key, value in interface.items() if key != "macAddress"}


def vmi_spec(vmi: VirtualMachineInstance, configuration: KubeVirtConfiguration) -> Json:
    """A VMI's spec with all defaults. Its namespace must be known: identities are derived from it."""
    whole = to_dict(defaults.default_vmi_spec(vmi.spec, vmi.metadata, config=configuration))
    if not vmi.metadata.name:
        _forget_identity(whole)
    return whole


def _forget_identity(spec: Json) -> None:
    """Drops identities derived from the name of an object with generateName; the controller derives them later."""
    spec["domain"].get("firmware", {}).pop("uuid", None)
    for interface in spec["domain"]["devices"].get("interfaces", ()):
        interface.pop("macAddress", None)
