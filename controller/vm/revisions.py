"""ControllerRevisions of VMs: the spec that each VMI was created from, referenced by the VMI's status. Pure.

As in KubeVirt: name `revision-start-vm-<VM's UID>-<generation>`, data `{"spec": <the VM's spec>}`, owned by the VM.
Backup tools read from it the spec that a running VM was started with. A start with an unchanged template reuses the
existing revision and needs no extra call.
"""

import hashlib
import json
from collections.abc import Collection, Iterator

import msgspec

from api import names
from api.k8s import owners
from api.k8s.meta import Json
from api.k8s.objects import ControllerRevision
from api.kubevirt.vm import VirtualMachine
from controller.actions import Action, Create, Delete

HISTORY = 5
"""Number of revisions kept for one VM."""
_HASH_DIGITS = 16
_PREFIX = "revision-start-vm-"


def name_of(vm: VirtualMachine, known: Collection[ControllerRevision]) -> str:
    """The name of the revision of the VM's current template."""
    found = _present(vm, known)
    return (found.metadata.name if found else None) or _name(vm)


def keep(vm: VirtualMachine, known: Collection[ControllerRevision], in_use: str | None = None) -> Iterator[Action]:
    """Creates the revision of the VM's template if it does not exist, and deletes the oldest ones beyond HISTORY.

    `known`: the VM's revisions. `in_use`: the name of one that must not be deleted.
    """
    if _present(vm, known) is not None:
        return
    yield Create(ControllerRevision, _revision(vm))
    old = sorted((each for each in known if each.metadata.name != in_use), key=lambda each: each.revision or 0)
    for each in old[: max(0, len(known) + 1 - HISTORY)]:
        meta = each.metadata
        yield Delete(ControllerRevision, meta.namespace or "", meta.name or "", meta.uid or "")


def owner_uid(revision: ControllerRevision) -> str | None:
    """The UID of the VM that a revision belongs to."""
    owner = owners.controller_of(revision.metadata)
    return owner.uid if owner is not None and owner.kind == names.KIND_VM else None


def _present(vm: VirtualMachine, known: Collection[ControllerRevision]) -> ControllerRevision | None:
    wanted, prefix = _hash(vm), f"{_PREFIX}{vm.metadata.uid}-"
    for each in known:
        meta = each.metadata
        if (meta.labels or {}).get(names.LABEL_TEMPLATE) == wanted and (meta.name or "").startswith(prefix):
            return each
    return None


def _name(vm: VirtualMachine) -> str:
    return f"{_PREFIX}{vm.metadata.uid}-{vm.metadata.generation or 0}"


def _hash(vm: VirtualMachine) -> str:
    text = msgspec.json.encode(vm.spec.template, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:_HASH_DIGITS]


def _revision(vm: VirtualMachine) -> Json:
    meta = vm.metadata
    return {
        "metadata": {
            "name": _name(vm),
            "namespace": meta.namespace,
            "labels": {names.LABEL_MANAGED_BY: names.FIELD_MANAGER, names.LABEL_TEMPLATE: _hash(vm)},
            "ownerReferences": [owners.reference(names.KIND_VM, meta)],
        },
        "data": _as_go_writes_it({"spec": msgspec.to_builtins(vm.spec)}),
        "revision": meta.generation or 0,
    }


def _as_go_writes_it(data: Json) -> msgspec.Raw:
    """JSON as Go's encoding/json writes it: sorted keys, no white space, five characters escaped.

    A revision's data is immutable, and the API server compares bytes. A strategic merge patch of the metadata, as the
    garbage collector sends for `kubectl delete vm --cascade=orphan`, re-encodes the data in this form.
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return msgspec.Raw(text.encode())
