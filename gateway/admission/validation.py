"""Validation of the admitted kinds."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from api import bridges, names
from api.errors import MAX_FAULTS, Fault, InvalidObject
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema.codec import decode
from api.schema.shape import knows, struct_shape, unknown_fields
from api.validation import validate
from gateway.admission import ownership
from gateway.admission.review import AdmissionRequest

ANNOTATION_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
DIFFERENCES = 20
"""Maximum number of reported paths of a changed immutable spec."""


def vm(request: AdmissionRequest, configuration: KubeVirtConfiguration) -> Iterator[Fault]:
    """Faults of a VirtualMachine, whose spec is mutable."""
    new, old = request.object or {}, request.oldObject
    yield from _spec_faults(new, old, configuration)
    if not ownership.is_administrator(request):
        yield from ownership.metadata_faults(new.get("metadata"), (old or {}).get("metadata"))
        path = "spec.template.metadata"
        yield from ownership.metadata_faults(_at(new, path), _at(old, path), path)


def vmi(request: AdmissionRequest, configuration: KubeVirtConfiguration) -> Iterator[Fault]:
    """Faults of a VirtualMachineInstance, whose spec may only be changed by the controller."""
    new, old = request.object or {}, request.oldObject
    if old is None:
        yield from validate.validate_document(new, configuration)
    else:
        yield from _fixed(new, old, "change spec.template of its VirtualMachine, or delete the VirtualMachineInstance")
    if not ownership.is_administrator(request):
        yield from ownership.metadata_faults(new.get("metadata"), (old or {}).get("metadata"))
        yield from ownership.status_faults(new, old)


def migration(request: AdmissionRequest, configuration: KubeVirtConfiguration) -> Iterator[Fault]:
    """Faults of a VirtualMachineInstanceMigration, whose spec is immutable."""
    new, old = request.object or {}, request.oldObject
    if old is None:
        yield from validate.validate_document(new, configuration)
    else:
        yield from _fixed(new, old, "create another VirtualMachineInstanceMigration")
    if not ownership.is_administrator(request):
        yield from ownership.metadata_faults(new.get("metadata"), (old or {}).get("metadata"))


def kubevirt(request: AdmissionRequest, configuration: KubeVirtConfiguration) -> Iterator[Fault]:
    """Faults of the KubeVirt object."""
    new, old = request.object or {}, request.oldObject
    spec_faults = list(_spec_faults(new, old, configuration))
    yield from spec_faults
    if not spec_faults and _annotations(new) != _annotations(old):
        yield from bridges.faults(_annotations(new))


def _annotations(document: dict[str, Any] | None) -> dict[str, str]:
    found = _at(document, "metadata.annotations")
    return {key: str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def vm_warnings(request: AdmissionRequest, configuration: KubeVirtConfiguration) -> list[str]:
    """Warnings about a valid VirtualMachine."""
    new, old = request.object or {}, request.oldObject or {}
    if new.get("spec") == old.get("spec"):
        return []
    try:
        return validate.warnings(decode(VirtualMachine, new), configuration)
    except InvalidObject:
        return []


def vmi_warnings(request: AdmissionRequest, configuration: KubeVirtConfiguration) -> list[str]:
    """Warnings about a valid VirtualMachineInstance on creation."""
    if request.oldObject is not None:
        return []
    try:
        return validate.vmi_warnings(decode(VirtualMachineInstance, request.object or {}), configuration)
    except InvalidObject:
        return []


def dropped_fields(request: AdmissionRequest) -> Iterator[Fault]:
    """Unknown fields in the last applied manifest.

    The API server prunes them before webhooks are called; the last-applied annotation of `kubectl apply` still
    contains them.
    """
    text = applied(request.object)
    cls = validate.KINDS.get(request.kind.kind)
    if text is None or cls is None or text == applied(request.oldObject):
        return
    try:
        manifest = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return  # the annotation was not written by kubectl
    shape = struct_shape(cls)
    if not knows(shape, manifest):
        yield from islice(unknown_fields(shape, manifest), MAX_FAULTS)


def applied(document: dict[str, Any] | None) -> str | None:
    """The last manifest of `kubectl apply` and compatible tools, as JSON."""
    text = _at(document, "metadata.annotations")
    text = text.get(ANNOTATION_APPLIED) if isinstance(text, dict) else None
    return text if isinstance(text, str) else None


def _spec_faults(
    new: dict[str, Any], old: dict[str, Any] | None, configuration: KubeVirtConfiguration
) -> Iterator[Fault]:
    """Faults of a new or changed spec.

    An unchanged spec that a newer version would refuse must not block changes of labels and finalizers.
    """
    if old is None or new.get("spec") != old.get("spec"):
        yield from validate.validate_document(new, configuration)


def _fixed(new: dict[str, Any], old: dict[str, Any], remedy: str) -> Iterator[Fault]:
    for index, path in enumerate(differences(new.get("spec"), old.get("spec"), "spec")):
        if index == DIFFERENCES:
            return
        yield Fault(path, names.FAULT_FORBIDDEN, f"field is immutable: {remedy}")


def differences(new: Any, old: Any, path: str) -> Iterator[str]:
    """Paths at which two documents differ."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key in sorted(new.keys() | old.keys()):
            yield from differences(new.get(key), old.get(key), f"{path}.{key}")
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for index, (new_entry, old_entry) in enumerate(zip(new, old, strict=True)):
            yield from differences(new_entry, old_entry, f"{path}[{index}]")
    elif new != old:
        yield path


def _at(document: dict[str, Any] | None, path: str) -> Any:
    value: Any = document
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
