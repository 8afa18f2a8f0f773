"""Validation of the admitted kinds."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from api import names
from api.errors import MAX_FAULTS, Fault, InvalidObject
from api.kinds.kind import Kind
from api.kubevirt.configuration import KubeVirtConfiguration
from api.schema.codec import decode
from api.schema.shape import knows, struct_shape, unknown_fields
from api.validation.document import kind_faults
from gateway.admission import ownership
from gateway.admission.review import AdmissionRequest

ANNOTATION_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
DIFFERENCES = 20
"""Maximum number of reported paths of a changed immutable spec."""


def faults(kind: Kind, request: AdmissionRequest, configuration: KubeVirtConfiguration) -> Iterator[Fault]:
    """Faults of a new or changed object, and of changes to what hyperlet owns.

    An unchanged spec that a newer version would refuse must not block changes of labels and finalizers.
    """
    new, old = request.object or {}, request.oldObject
    if old is None or (not kind.fixed_spec and new.get("spec") != old.get("spec")):
        yield from kind_faults(kind, new, configuration)
    elif kind.fixed_spec:
        yield from _fixed(new, old, kind.fixed_spec)
    elif kind.annotation_faults is not None and _annotations(new) != _annotations(old):
        yield from kind.annotation_faults(_annotations(new))
    if ownership.is_administrator(request):
        return
    for path in kind.owned_metadata:
        yield from ownership.metadata_faults(_at(new, path), _at(old, path), path)
    if not kind.has_status:
        yield from ownership.status_faults(new, old)


def _annotations(document: dict[str, Any] | None) -> dict[str, str]:
    found = _at(document, "metadata.annotations")
    return {key: str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def warnings(kind: Kind, request: AdmissionRequest, configuration: KubeVirtConfiguration) -> list[str]:
    """Warnings about a valid object with a new or changed spec."""
    new, old = request.object or {}, request.oldObject or {}
    if kind.warn is None or new.get("spec") == old.get("spec"):
        return []
    try:
        return kind.warn(decode(kind.struct, new), configuration)
    except InvalidObject:
        return []


def dropped_fields(kind: Kind, request: AdmissionRequest) -> Iterator[Fault]:
    """Unknown fields in the last applied manifest.

    The API server prunes them before webhooks are called; the last-applied annotation of `kubectl apply` still
    contains them.
    """
    text = applied(request.object)
    if text is None or text == applied(request.oldObject):
        return
    try:
        manifest = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return  # the annotation was not written by kubectl
    shape = struct_shape(kind.struct)
    if not knows(shape, manifest):
        yield from islice(unknown_fields(shape, manifest), MAX_FAULTS)


def applied(document: dict[str, Any] | None) -> str | None:
    """The last manifest of `kubectl apply` and compatible tools, as JSON."""
    text = _at(document, "metadata.annotations")
    text = text.get(ANNOTATION_APPLIED) if isinstance(text, dict) else None
    return text if isinstance(text, str) else None


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
