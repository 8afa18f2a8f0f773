"""Plan for one VM: create and delete its VMI according to the run strategy, and derive the VM's status. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from api import conditions, defaults, names
from api.errors import Fault
from api.k8s import owners
from api.k8s.meta import Json, ObjectMeta, format_time
from api.k8s.objects import ControllerRevision
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from controller.actions import Action, Create, Delete, Patch, RecordEvent
from controller.launcher_pod import metadata_propagation
from controller.launcher_pod.pod import label_value
from controller.vm import revisions, template
from controller.vm import status as vm_status
from controller.vm.run_strategy import RunAction, RunDecision, decide, stable_in, starts_paused
from controller.vmi import nic_hotplug
from kit.reconcile import RequeueAfter

NOT_STARTED = frozenset({names.PHASE_UNSET, names.PHASE_PENDING, names.PHASE_SCHEDULING})
"""Phases before the hand-over to a launcher."""
FINALIZER_ORPHAN = "orphan"
"""Kubernetes sets it on an object deleted with `--cascade=orphan` until owner references to it have been removed."""


@dataclass(frozen=True)
class ObservedVm:
    """Input of `plan`."""

    vm: VirtualMachine
    now: datetime
    vmi: VirtualMachineInstance | None = None
    """The VMI with the VM's name, whatever its owner."""
    revisions: Sequence[ControllerRevision] = ()
    """The VM's ControllerRevisions."""
    faults: Sequence[Fault] = ()
    configuration: KubeVirtConfiguration | None = None

    @property
    def own(self) -> VirtualMachineInstance | None:
        """The VMI if this VM controls it, by UID."""
        return self.vmi if self.vmi is not None and owners.controls(self.vm.metadata, self.vmi.metadata) else None

    @cached_property
    def difference(self) -> template.TemplateDifference | None:
        """How the template differs from the running VMI; None while the template is invalid."""
        return None if self.faults else template.difference(self.vm, self.own, self.configuration)

    @property
    def is_outdated(self) -> bool:
        """Whether the VMI has not run a guest and was created from an older template: it is then recreated."""
        return self.difference is not None and bool(self.difference.late) and _never_ran(self.difference.vmi)


def _never_ran(vmi: VirtualMachineInstance) -> bool:
    """Whether the guest has not started: the VMI was not handed over, or its launcher fails to start the guest."""
    phase = phase_of(vmi)
    trouble = conditions.find((vmi.status.conditions if vmi.status else None), names.CONDITION_SYNCHRONIZED)
    stuck = trouble is not None and trouble.status == names.FALSE
    return phase in NOT_STARTED or (phase == names.PHASE_SCHEDULED and stuck)


def is_ownerless(vmi: VirtualMachineInstance) -> bool:
    """Whether a VMI has no controller and is not being deleted: a VM of its name adopts it, as in KubeVirt."""
    return owners.controller_of(vmi.metadata) is None and not vmi.metadata.deletionTimestamp


def plan(seen: ObservedVm) -> list[Action | RequeueAfter]:
    """The next actions for one VM."""
    return list(_plan(seen))


def _plan(seen: ObservedVm) -> Iterator[Action | RequeueAfter]:
    vm, own = seen.vm, seen.own
    if vm.metadata.deletionTimestamp:
        yield from _delete(seen)
        return
    if names.FINALIZER_VM not in (vm.metadata.finalizers or ()):
        finalizers = [*(vm.metadata.finalizers or ()), names.FINALIZER_VM]
        yield _patch(vm, {"metadata": {"finalizers": finalizers, "resourceVersion": vm.metadata.resourceVersion}})
    if seen.vmi is not None and is_ownerless(seen.vmi):
        yield from _adopt(vm, seen.vmi)
        return
    decision = decide(vm, own, seen.now, seen.is_outdated)
    blocked = bool(seen.faults) or (seen.vmi is not None and own is None)
    if decision.want is RunAction.START and not blocked:
        # The next round follows immediately and writes the status: one write instead of two.
        yield from revisions.keep(vm, seen.revisions)
        revision = revisions.name_of(vm, seen.revisions)
        yield Create(VirtualMachineInstance, instance(vm, seen.configuration, seen.now, revision))
        yield RecordEvent(vm, names.REASON_CREATED, f"Created virtual machine instance {vm.metadata.name}")
    elif decision.want is RunAction.STOP and own is not None and not _must_note(vm, decision):
        yield from _stop(seen, own)
    else:
        yield from _status_actions(seen, decision)
        if decision.want is RunAction.STOP and own is not None:
            yield from _stop(seen, own)
        else:
            yield from _apply_live_changes(seen)
    yield from _requeue(seen, decision)


def _adopt(vm: VirtualMachine, vmi: VirtualMachineInstance) -> Iterator[Action]:
    """Adopts a VMI without an owner: its VM was deleted with `--cascade=orphan`, or it was created by a user.

    With a resourceVersion precondition: a VMI that is deleted or adopted meanwhile is reconciled again.
    """
    meta = vmi.metadata
    references = [*msgspec.to_builtins(meta.ownerReferences or []), owners.reference(names.KIND_VM, vm.metadata)]
    body = {"metadata": {"uid": meta.uid, "resourceVersion": meta.resourceVersion, "ownerReferences": references}}
    yield Patch(VirtualMachineInstance, meta.namespace or "", meta.name or "", body)
    yield RecordEvent(vm, names.REASON_ADOPTED, f"Adopted virtual machine instance {meta.name}, which had no owner")


def _stop(seen: ObservedVm, own: VirtualMachineInstance) -> Iterator[Action]:
    meta, message = own.metadata, f"Deleted virtual machine instance {own.metadata.name}"
    version = None
    if seen.is_outdated and seen.difference is not None:
        # With a resourceVersion precondition: the guest may have been started meanwhile.
        version = meta.resourceVersion
        message += f", which has not started yet: {vm_status.listed(seen.difference.late)} in spec.template changed"
    elif phase_of(own) == names.PHASE_FAILED and own.status is not None:
        ready = conditions.find(own.status.conditions, names.CONDITION_READY)
        cause = ": ".join(filter(None, (own.status.reason, ready.message if ready else None)))
        message += f", which has failed: {cause}"
    yield Delete(VirtualMachineInstance, meta.namespace or "", meta.name or "", meta.uid or "", version=version)
    yield RecordEvent(seen.vm, names.REASON_DELETED, message)


def _must_note(vm: VirtualMachine, decision: RunDecision) -> bool:
    """Whether the decision must be written to the VM's status before the VMI is deleted."""
    status = vm_status.current(vm)
    return decision.failure != status.startFailure or list(decision.requests) != (status.stateChangeRequests or [])


def _requeue(seen: ObservedVm, decision: RunDecision) -> Iterator[RequeueAfter]:
    if decision.want is RunAction.WAIT:
        yield RequeueAfter(decision.wait_seconds + 0.1)
    elif decision.failure is not None and (seconds := stable_in(seen.own, seen.now)) is not None:
        yield RequeueAfter(seconds + 1)


def _delete(seen: ObservedVm) -> Iterator[Action]:
    vm, own = seen.vm, seen.own
    if names.FINALIZER_VM not in (vm.metadata.finalizers or ()):
        return
    if own is not None and FINALIZER_ORPHAN not in (vm.metadata.finalizers or ()):
        if not own.metadata.deletionTimestamp:
            # With a resourceVersion precondition: the garbage collector may have orphaned it meanwhile.
            meta = own.metadata
            yield Delete(
                VirtualMachineInstance,
                meta.namespace or "",
                meta.name or "",
                meta.uid or "",
                version=meta.resourceVersion,
            )
        yield from _status_actions(seen, RunDecision(RunAction.NOTHING))
        return
    rest = [name for name in vm.metadata.finalizers or () if name != names.FINALIZER_VM]
    yield _patch(vm, {"metadata": {"finalizers": rest or None, "resourceVersion": vm.metadata.resourceVersion}})


def _apply_live_changes(seen: ObservedVm) -> Iterator[Action]:
    """Applies template changes to the running VMI's interfaces, labels and annotations, as far as is possible live."""
    found = seen.difference
    if found is None:
        return
    meta, moved = found.vmi.metadata, found.nics.spec != found.vmi.spec
    if moved or found.metadata.metadata:
        body: Json = {"metadata": {"uid": meta.uid, **found.metadata.metadata}}
        if moved:
            body["metadata"]["resourceVersion"] = meta.resourceVersion
            body["spec"] = nic_hotplug.merge_patch(found.nics.spec)
        yield Patch(VirtualMachineInstance, meta.namespace or "", meta.name or "", body)
    written = seen.vm.spec.template.spec
    if written is not None and (gone := found.nics.gone & nic_hotplug.absent(written)):
        # The interface has been unplugged: remove it from the template, so that the next start does not repeat it.
        body = {
            "metadata": {"uid": seen.vm.metadata.uid, "resourceVersion": seen.vm.metadata.resourceVersion},
            "spec": {"template": {"spec": nic_hotplug.merge_patch(nic_hotplug.without(written, gone))}},
        }
        yield _patch(seen.vm, body)


# ---- the VMI ---------------------------------------------------------------------------------------------------------


def instance(
    vm: VirtualMachine, configuration: KubeVirtConfiguration | None, now: datetime, revision: str | None = None
) -> Json:
    """The VMI to create: the template with defaults applied, the finalizer and phase Pending.

    `revision` is the name of the ControllerRevision that holds the VM's spec. Interfaces with state `absent` are left
    out; the next round removes them from the template.
    """
    (labels, annotations), spec = metadata_propagation.for_vmi(vm.spec.template.metadata), vm.spec.template.spec
    meta = ObjectMeta(
        name=vm.metadata.name,
        namespace=vm.metadata.namespace,
        finalizers=[names.FINALIZER_VMI],
        labels={**labels, names.LABEL_VM_NAME: label_value(vm.metadata.name or "")},
        annotations={
            **annotations,
            **metadata_propagation.record(labels, annotations),
            names.ANNOTATION_GENERATION: str(vm.metadata.generation or 0),
            **({names.ANNOTATION_TEMPLATE: template.hashes(spec)} if spec else {}),
        },
    )
    if spec is not None and starts_paused(vm):
        spec = msgspec.structs.replace(spec, startStrategy="Paused")
    # Set the owner before applying defaults: MAC addresses are derived from it.
    document = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND_VMI,
        "metadata": {**msgspec.to_builtins(meta), "ownerReferences": [owners.reference(names.KIND_VM, vm.metadata)]},
        "spec": msgspec.to_builtins(nic_hotplug.without(spec, nic_hotplug.absent(spec)) if spec else spec),
    }
    whole = defaults.default_vmi(msgspec.convert(document, VirtualMachineInstance), config=configuration)
    stamp = format_time(now)
    body: Json = msgspec.to_builtins(whole)
    body["status"] = {
        "phase": names.PHASE_PENDING,
        "phaseTransitionTimestamps": [{"phase": names.PHASE_PENDING, "phaseTransitionTimestamp": stamp}],
        **({"virtualMachineRevisionName": revision} if revision else {}),
    }
    return body


# ---- the status ------------------------------------------------------------------------------------------------------


def _status_actions(seen: ObservedVm, decision: RunDecision) -> Iterator[Action]:
    """The status patch, if anything has changed."""
    vm, old = seen.vm, vm_status.current(seen.vm)
    foreign = _is_taken(seen) and decision.want is not RunAction.NOTHING
    faults = seen.faults if not vm.metadata.deletionTimestamp else ()
    waiting = seen.difference.late if seen.difference else ()
    wanted = vm_status.wanted_conditions(seen.own, faults, foreign, waiting)
    drop = set(vm_status.OWNED)
    if decision.failure is not None and phase_of(seen.own) != names.PHASE_RUNNING:
        # Keep the cause of the failure visible until the next start has succeeded.
        drop.discard(names.CONDITION_FAILURE)
    merged = conditions.merged(old.conditions, wanted, drop, format_time(seen.now))
    new = _status(seen, decision)
    changed = {key: value for key, value in new.items() if value != _old_value(old, key)}
    if conditions.differ(old.conditions, merged):
        changed["conditions"] = merged
    if changed:
        yield _patch(vm, {"metadata": {"uid": vm.metadata.uid}, "status": changed}, "status")
    failure = next((c for c in wanted if c["type"] == names.CONDITION_FAILURE), None)
    known = conditions.find(old.conditions, names.CONDITION_FAILURE)
    if failure and (faults or foreign) and (known is None or known.message != failure.get("message")):
        yield RecordEvent(vm, failure["reason"], failure["message"], "Warning")


def _status(seen: ObservedVm, decision: RunDecision) -> Json:
    vm, own = seen.vm, seen.own
    blocked = bool(seen.faults) or (seen.vmi is not None and own is None)
    shown = RunDecision(RunAction.NOTHING) if blocked and decision.want is RunAction.START else decision
    live = own is not None and not own.metadata.deletionTimestamp
    ready = live and any(
        c["type"] == names.CONDITION_READY and c["status"] == names.TRUE
        for c in vm_status.wanted_conditions(own, (), False)
    )
    return {
        # Absent rather than false, as in KubeVirt: clients wait for the fields to disappear.
        "created": own is not None or None,
        "ready": ready or None,
        "printableStatus": vm_status.printable_status(vm, own, shown),
        "desiredGeneration": vm.metadata.generation,
        "observedGeneration": vm_status.observed_generation(vm, own, _is_settled(seen, decision)),
        "runStrategy": _handled_requests(seen, decision),
        "stateChangeRequests": [msgspec.to_builtins(request) for request in decision.requests] or None,
        "startFailure": _builtins(decision.failure),
        "volumeSnapshotStatuses": vm_status.snapshot_statuses(vm),
    }


def _is_settled(seen: ObservedVm, decision: RunDecision) -> bool:
    """Whether the VM's spec has taken full effect on its VMI."""
    if seen.faults or decision.want is RunAction.STOP or (seen.own is not None and seen.own.metadata.deletionTimestamp):
        return False
    return seen.difference is None or seen.difference.is_settled


def _handled_requests(seen: ObservedVm, decision: RunDecision) -> str | None:
    """The run strategy last acted upon: not the current one while the start that it requires is pending."""
    if seen.own is None and decision.want in (RunAction.START, RunAction.WAIT):
        return vm_status.current(seen.vm).runStrategy
    return defaults.run_strategy(seen.vm)


def _is_taken(seen: ObservedVm) -> bool:
    """Whether a VMI with the VM's name has another owner and is not being deleted."""
    return seen.vmi is not None and seen.own is None and not seen.vmi.metadata.deletionTimestamp


def refused(vm: VirtualMachine, message: str, now: datetime) -> Iterator[Action]:
    """Reports once, as condition Failure and an Event, why the VMI could not be created."""
    old = vm_status.current(vm)
    failure = conditions.make(names.CONDITION_FAILURE, True, names.REASON_FAILED_CREATE, message)
    merged = conditions.merged(old.conditions, [failure], (), format_time(now))
    if conditions.differ(old.conditions, merged):
        yield _patch(vm, {"metadata": {"uid": vm.metadata.uid}, "status": {"conditions": merged}}, "status")
        yield RecordEvent(vm, names.REASON_FAILED_CREATE, message, "Warning")


def _builtins(failure: Any) -> Json | None:
    return msgspec.to_builtins(failure) if failure is not None else None


def _old_value(old: Any, key: str) -> Any:
    value = getattr(old, key)
    return msgspec.to_builtins(value) if value is not None else None


def _patch(vm: VirtualMachine, body: Json, subresource: str | None = None) -> Patch:
    return Patch(VirtualMachine, vm.metadata.namespace or "", vm.metadata.name or "", body, subresource)
