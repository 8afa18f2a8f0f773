"""Who may set what: labels, annotations, finalizers and status that hyperlet's own components rely on.

A VMI has no status subresource, so whoever may edit VMIs reaches its status too; a node's handler finds its VMIs by
label. Both belong to the components, whoever has the right to write the object.
"""

from collections.abc import Iterator
from typing import Any

from api import names
from api.errors import Fault
from gateway.admission.review import AdmissionRequest

HANDLER = names.HANDLER_ACCOUNT
COMPONENTS = ("hyperlet-controller", "hyperlet-gateway", HANDLER)
ADMINISTRATORS = "system:masters"
"""May everything anyway, the removal of this webhook included: for repairs."""

FINALIZERS = frozenset({names.FINALIZER_VM, names.FINALIZER_VMI, names.FINALIZER_MIGRATION})
NODE_NAME = "authentication.kubernetes.io/node-name"
"""What the API server knows of a token's node, in the user's extra values."""
_OWNED = "is managed by hyperlet"
_REPORTED = ("labels", "annotations", "finalizers", "ownerReferences")


def is_component(request: AdmissionRequest, namespace: str) -> bool:
    """Whether the change is one of hyperlet's own. `namespace` is where hyperlet runs."""
    prefix = f"system:serviceaccount:{namespace}:"
    user = request.userInfo.username
    return user.startswith(prefix) and user.removeprefix(prefix) in COMPONENTS


def is_handler(request: AdmissionRequest, namespace: str) -> bool:
    """Whether the change comes from a handler, or from somebody with a handler's token."""
    return request.userInfo.username == f"system:serviceaccount:{namespace}:{HANDLER}"


def handler_faults(request: AdmissionRequest) -> Iterator[Fault]:
    """A Fault for what no handler has to write: all handlers share one account, and one node's token may be stolen.

    They report on instances of their own node, which the token says, and change nothing else of them.
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
    theirs = (request.userInfo.extra or {}).get(NODE_NAME) or []
    yield from _active_pods_faults(_field(new, "status", "activePods"), _field(old, "status", "activePods"), theirs)
    for document in (old, new):
        # A token of no pod, so of no node, writes nothing.
        if [_field(document, "status", "nodeName")] != theirs:
            yield Fault(
                "status.nodeName",
                names.FAULT_FORBIDDEN,
                "a handler may only write VirtualMachineInstances of its own node",
            )
            return


def _active_pods_faults(new: Any, old: Any, nodes: list[str]) -> Iterator[Fault]:
    """A handler takes off pods of its own node that it found no process of, and adds none."""
    now, before = _map({"pods": new}, "pods"), _map({"pods": old}, "pods")
    if any(before.get(uid) != node for uid, node in now.items()):
        yield Fault("status.activePods", names.FAULT_FORBIDDEN, "may only be written by the controller")
    elif any([node] != nodes for uid, node in before.items() if uid not in now):
        yield Fault("status.activePods", names.FAULT_FORBIDDEN, "a handler may only remove pods of its own node")


def is_administrator(request: AdmissionRequest) -> bool:
    """Whether a person asks who may do everything in the cluster."""
    return ADMINISTRATORS in (request.userInfo.groups or ())


def metadata_faults(new: Any, old: Any, path: str = "metadata") -> Iterator[Fault]:
    """A Fault for every label and annotation of ours that differs from what the object had.

    And for a finalizer of ours that is taken off an object that is being deleted.
    """
    for field, owned in (("labels", names.OWNED_LABELS), ("annotations", names.OWNED_ANNOTATIONS)):
        ours, theirs = _map(new, field), _map(old, field)
        for key in sorted(owned & (ours.keys() | theirs.keys())):
            if ours.get(key) != theirs.get(key):
                yield Fault(f"{path}.{field}.{key}", names.FAULT_FORBIDDEN, _OWNED)
    if _map({"old": old}, "old").get("deletionTimestamp"):
        # Before that a manifest that is written anew may well leave it out: the controller puts it on again.
        for name in sorted(FINALIZERS & (_set(old, "finalizers") - _set(new, "finalizers"))):
            yield Fault(
                f"{path}.finalizers",
                names.FAULT_FORBIDDEN,
                f"{name} must not be removed: hyperlet removes it after cleanup",
            )


def status_faults(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[Fault]:
    """A Fault if somebody else than hyperlet writes a status."""
    if (new.get("status") or {}) != ((old or {}).get("status") or {}):
        yield Fault("status", names.FAULT_FORBIDDEN, _OWNED)


def _field(document: dict[str, Any], part: str, field: str) -> Any:
    """A field's value, None when it is absent or empty."""
    return _map({part: document.get(part)}, part).get(field) or None


def _map(metadata: Any, field: str) -> dict[str, Any]:
    value = metadata.get(field) if isinstance(metadata, dict) else None
    return value if isinstance(value, dict) else {}


def _set(metadata: Any, field: str) -> set[str]:
    value = metadata.get(field) if isinstance(metadata, dict) else None
    return {entry for entry in value if isinstance(entry, str)} if isinstance(value, list) else set()
