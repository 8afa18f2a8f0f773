"""Write protection of labels, annotations, finalizers and status that hyperlet's components rely on.

A VMI has no status subresource, so a user who may update VMIs could also change the status; handlers select their VMIs
by label. Both may only be written by the components, regardless of RBAC.
"""

from collections.abc import Iterator
from typing import Any

from api import names
from api.errors import Fault
from api.kinds.catalog import CATALOG
from gateway.admission.review import AdmissionRequest

HANDLER = names.HANDLER_ACCOUNT
COMPONENTS = ("hyperlet-controller", "hyperlet-gateway", HANDLER)
ADMINISTRATORS = "system:masters"
"""Exempt, for repairs: this group could remove the webhook anyway."""

FINALIZERS = CATALOG.finalizers()
NODE_NAME = "authentication.kubernetes.io/node-name"
"""Key in the user's extra values with the node of a bound token."""
_OWNED = "is managed by hyperlet"
_REPORTED = ("labels", "annotations", "finalizers", "ownerReferences")


def is_component(request: AdmissionRequest, namespace: str) -> bool:
    """Whether the request is from hyperlet's controller or gateway. `namespace` is hyperlet's."""
    prefix = f"system:serviceaccount:{namespace}:"
    user = request.userInfo.username
    return user.startswith(prefix) and user.removeprefix(prefix) in COMPONENTS


def is_handler(request: AdmissionRequest, namespace: str) -> bool:
    """Whether the request uses a handler's service account."""
    return request.userInfo.username == f"system:serviceaccount:{namespace}:{HANDLER}"


def handler_faults(request: AdmissionRequest) -> Iterator[Fault]:
    """A Fault for every write that a handler does not need: all handlers share an account, and a token may be stolen.

    Handlers write the status of VMIs on their own node, which is in the token, and nothing else.
    """
    new, old = request.object or {}, request.oldObject
    if old is None or request.kind.kind != names.KIND_VMI:
        yield Fault("", names.FAULT_FORBIDDEN, "handlers may only write the status of VirtualMachineInstances")
        return
    if new.get("spec") != old.get("spec"):
        yield Fault("spec", names.FAULT_FORBIDDEN, "handlers must not change VirtualMachineInstances")
    for field in _REPORTED:
        if _field(new, "metadata", field) != _field(old, "metadata", field):
            yield Fault(f"metadata.{field}", names.FAULT_FORBIDDEN, "handlers must not change VirtualMachineInstances")
    nodes = (request.userInfo.extra or {}).get(NODE_NAME) or []
    yield from _active_pods_faults(_field(new, "status", "activePods"), _field(old, "status", "activePods"), nodes)
    for document in (old, new):
        # A token that is not bound to a pod has no node and may not write.
        if [_field(document, "status", "nodeName")] != nodes:
            yield Fault(
                "status.nodeName",
                names.FAULT_FORBIDDEN,
                "a handler may only write VirtualMachineInstances of its own node",
            )
            return


def _active_pods_faults(new: Any, old: Any, nodes: list[str]) -> Iterator[Fault]:
    """A handler may remove pods of its own node without processes, and add none."""
    now, before = _map({"pods": new}, "pods"), _map({"pods": old}, "pods")
    if any(before.get(uid) != node for uid, node in now.items()):
        yield Fault("status.activePods", names.FAULT_FORBIDDEN, "may only be written by the controller")
    elif any([node] != nodes for uid, node in before.items() if uid not in now):
        yield Fault("status.activePods", names.FAULT_FORBIDDEN, "a handler may only remove pods of its own node")


def is_administrator(request: AdmissionRequest) -> bool:
    """Whether the user is in system:masters."""
    return ADMINISTRATORS in (request.userInfo.groups or ())


def metadata_faults(new: Any, old: Any, path: str = "metadata") -> Iterator[Fault]:
    """A Fault for every changed label and annotation managed by hyperlet.

    Also for removal of hyperlet's finalizer from an object that is being deleted.
    """
    for field, owned in (("labels", names.OWNED_LABELS), ("annotations", names.OWNED_ANNOTATIONS)):
        new_map, old_map = _map(new, field), _map(old, field)
        for key in sorted(owned & (new_map.keys() | old_map.keys())):
            if new_map.get(key) != old_map.get(key):
                yield Fault(f"{path}.{field}.{key}", names.FAULT_FORBIDDEN, _OWNED)
    if _map({"old": old}, "old").get("deletionTimestamp"):
        # Before deletion a replaced manifest may omit it: the controller adds it again.
        for name in sorted(FINALIZERS & (_set(old, "finalizers") - _set(new, "finalizers"))):
            yield Fault(
                f"{path}.finalizers",
                names.FAULT_FORBIDDEN,
                f"{name} must not be removed: hyperlet removes it after cleanup",
            )


def status_faults(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Fault]:
    """A Fault for a status written by a user."""
    if (new.get("status") or {}) != ((old or {}).get("status") or {}):
        yield Fault("status", names.FAULT_FORBIDDEN, _OWNED)


def _field(document: dict[str, Any], part: str, field: str) -> Any:
    """The value of a field; None when absent or empty."""
    return _map({part: document.get(part)}, part).get(field) or None


def _map(metadata: Any, field: str) -> dict[str, Any]:
    value = metadata.get(field) if isinstance(metadata, dict) else None
    return value if isinstance(value, dict) else {}


def _set(metadata: Any, field: str) -> set[str]:
    value = metadata.get(field) if isinstance(metadata, dict) else None
    return {entry for entry in value if isinstance(entry, str)} if isinstance(value, list) else set()
