"""The JSON patch of the mutating webhook: defaults, the controller's finalizer, and restored finalizers.

Adding the finalizer here saves the controller a write. Nothing is refused here: objects that do not decode are left to
validation.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from api.errors import InvalidObject
from api.k8s.meta import Json
from api.kinds.kind import Kind
from api.kubevirt.configuration import KubeVirtConfiguration
from api.schema.codec import decode
from gateway.admission.json_patch import Operation, additions
from gateway.admission.review import AdmissionRequest


def completed(kind: Kind, request: AdmissionRequest, configuration: KubeVirtConfiguration) -> list[Operation]:
    """The patch that adds the kind's defaults to a created object, or to one with a changed spec."""
    document, old = request.object or {}, request.oldObject
    if kind.defaults is None or (old is not None and (kind.fixed_spec or old.get("spec") == document.get("spec"))):
        return []
    try:
        obj: Any = decode(kind.struct, document)
    except InvalidObject:
        return []
    if obj.metadata.namespace is None and request.namespace is not None:
        metadata = msgspec.structs.replace(obj.metadata, namespace=request.namespace)
        obj = msgspec.structs.replace(obj, metadata=metadata)
    operations = list(additions(document["spec"], kind.defaults(obj, configuration), "/spec"))
    ignored = kind.supported.ignored(document["spec"]) if kind.supported else ()
    operations += [{"op": "remove", "path": f"/spec/{field}"} for field in ignored]
    return operations if old is not None else [*operations, *_guarded(document, kind.finalizer)]


def _guarded(document: Json, finalizer: str) -> Iterator[Operation]:
    metadata = document.get("metadata")
    present = (metadata or {}).get("finalizers") or []
    if finalizer and metadata is not None and finalizer not in present:
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
