"""Defaults that admission stores in objects.

A VM stores the defaults that must not change later: machine type, architecture, CPU model and network. Lists set by
the user are not changed (GitOps tools would report a permanent difference), and identities (MAC addresses, firmware
UUID) are not stored in a VM, because VMs are copied. A VMI stores all defaults. Both get the controller's finalizer,
which saves the controller a write. Nothing is refused here: objects that do not decode are left to validation.
"""

from collections.abc import Iterator

from api import defaults, names
from api.errors import InvalidObject
from api.k8s.meta import Json, ObjectMeta
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec
from api.schema.codec import decode, to_dict
from api.validation.unsupported import ignorable_matchers
from gateway.admission.json_patch import Operation, additions
from gateway.admission.review import AdmissionRequest


def vm(request: AdmissionRequest, configuration: KubeVirtConfiguration) -> list[Operation]:
    """The patch for a created VirtualMachine, or one with a changed spec."""
    document, old = request.object or {}, request.oldObject
    if old is not None and old.get("spec") == document.get("spec"):
        return []
    try:
        spec = decode(VirtualMachine, document).spec
    except InvalidObject:
        return []
    wanted: Json = {}
    if spec.runStrategy is None and spec.running is None:
        wanted["runStrategy"] = names.RUN_HALTED
    if spec.template.spec is not None:
        wanted["template"] = {"spec": _machine(spec.template.spec, configuration)}
    operations = list(additions(document["spec"], wanted, "/spec"))
    operations += [{"op": "remove", "path": f"/spec/{field}"} for field in ignorable_matchers(document["spec"])]
    return operations if old is not None else [*operations, *_guarded(document, names.FINALIZER_VM)]


def _guarded(document: Json, finalizer: str) -> Iterator[Operation]:
    metadata = document.get("metadata")
    present = (metadata or {}).get("finalizers") or []
    if metadata is not None and finalizer not in present:
        yield {"op": "add", "path": "/metadata/finalizers", "value": [*present, finalizer]}


def restored(request: AdmissionRequest, finalizers: frozenset[str]) -> list[Operation]:
    """Restores finalizers that an update drops from an object without deletionTimestamp.

    A manifest for `kubectl replace` need not contain them, but their removal is refused
    (manifests/policies-ownership.yaml).
    """
    new, old = (request.object or {}).get("metadata"), (request.oldObject or {}).get("metadata")
    if not isinstance(new, dict) or not isinstance(old, dict) or old.get("deletionTimestamp"):
        return []
    present = new.get("finalizers") or []
    missing = [each for each in old.get("finalizers") or () if each in finalizers and each not in present]
    return [{"op": "add", "path": "/metadata/finalizers", "value": [*present, *missing]}] if missing else []


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


def vmi(request: AdmissionRequest, configuration: KubeVirtConfiguration) -> list[Operation]:
    """The patch for a created VirtualMachineInstance: all defaults, and no user-supplied status."""
    document = request.object or {}
    if request.oldObject is not None:
        return []
    try:
        seen = decode(VirtualMachineInstance, document)
    except InvalidObject:
        return []
    metadata = seen.metadata
    if metadata.namespace is None and request.namespace is not None:
        document = {**document, "metadata": {**document["metadata"], "namespace": request.namespace}}
        seen = decode(VirtualMachineInstance, document)
    whole = to_dict(defaults.default_vmi_spec(seen.spec, seen.metadata, config=configuration))
    if not metadata.name:
        _forget_identity(whole)
    return [*additions(document["spec"], whole, "/spec"), *_guarded(document, names.FINALIZER_VMI)]


def _forget_identity(spec: Json) -> None:
    """Drops identities derived from the name of an object with generateName; the controller derives them later."""
    spec["domain"].get("firmware", {}).pop("uuid", None)
    for interface in spec["domain"]["devices"].get("interfaces", ()):
        interface.pop("macAddress", None)
