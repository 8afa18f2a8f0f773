"""Plan for one VMI and its launcher pod: create, hand over to the handler, record the end (docs/architecture.md).

A status has one writer at a time: the controller writes phases up to Scheduling, the handler Scheduled and Running.
When the pod has ended, the handler has END_SECONDS to report the result; after that, or while the node does not
respond, the controller writes it. Pure.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from api import conditions, defaults, names
from api.errors import Fault
from api.k8s.meta import Json, format_time, parse_time
from api.k8s.objects import PersistentVolumeClaim, Pod, PodDisruptionBudget
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from api.launcher_pods import END_PHASES, has_ended, is_running, may_run_qemu
from api.schema.codec import to_dict
from controller import merge_patch
from controller.actions import Action, Concurrently, Create, Delete, Patch, RecordEvent
from controller.cache.node_health import LOST_SECONDS
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import metadata_propagation, resources, user_namespaces
from controller.launcher_pod import networks as pod_networks
from controller.launcher_pod import pod as pods
from controller.launcher_pod import volumes as pod_volumes
from controller.launcher_pod.networks import Definitions
from controller.vmi import evidence, pod_status
from controller.vmi import status as vmi_status
from controller.vmi.evidence import Evidence
from controller.vmi.status import status_of, transition
from kit.reconcile import RequeueAfter

END_SECONDS = 2.0
"""Time for the handler to report how the VM ended."""
IDLE_SECONDS = 15.0
"""Grace for a launcher after its VMI has ended: one that has run a guest exits by itself."""
WARNING_SECONDS = 5.0
"""Warning Events of a pod are ignored until it has been bound this long: a failed mount often succeeds on retry."""
AWAIT_SECONDS = 3.0
"""Time to wait for evidence of a pod's end before the VMI reports the wait: a healthy handler needs two seconds."""
OVERDUE_SECONDS = 30.0
"""A pod that exceeds its grace period by this much is on a node whose kubelet does not respond."""
FENCE_SECONDS = 10.0
"""Requeue interval while the grace period of a deleted Node's pods runs."""
OWN_CONDITIONS = frozenset({names.PHASE_UNSET, names.PHASE_PENDING, names.PHASE_SCHEDULING})
REASON_INVALID = "InvalidSpec"
REASON_EMULATED = "EmulationInsteadOfKVM"
REASON_HOST_USERS = "NoUserNamespace"


@dataclass(frozen=True)
class ObservedVmi:
    """Input of `plan`."""

    vmi: VirtualMachineInstance
    now: datetime
    pod: Pod | None = None
    claims: Mapping[str, PersistentVolumeClaim] = field(default_factory=dict)
    definitions: Definitions = field(default_factory=dict)
    """Existing NetworkAttachmentDefinitions referenced by the VMI, by namespace/name."""
    knows_definitions: bool = True
    """Whether the API server serves NetworkAttachmentDefinitions."""
    settings: ControllerSettings = field(default_factory=ControllerSettings)
    faults: Sequence[Fault] = ()
    warning: tuple[str, str] | None = None
    """Reason and message of the latest Warning Event about the pod."""
    node_silent_for: float | None = None
    """Seconds since the last heartbeat of the node's handler while the node is not Ready; None: node is healthy."""
    bound_for: float = 0.0
    """Seconds since the pod was first seen bound to a node."""
    ended_for: float = 0.0
    """Seconds since the pod was first seen terminated or deleted."""
    host_users: bool = False
    """An earlier pod of this VMI name could not start in a user namespace: create the pod without one."""
    strays: Sequence[Pod] = ()
    """Pods created for earlier VMIs of this name, whatever their labels and owner references are now."""
    evidence: Evidence = field(default_factory=Evidence)

    @cached_property
    def unproven(self) -> Mapping[str, str]:
        """Pods whose QEMU may still be running, by UID, with their node. The Pod may be deleted or in phase Failed."""
        found = {pod.metadata.uid or "": pod for pod in (self.pod, *self.strays) if pod is not None}
        return evidence.unproven(self.vmi, found, self.evidence)

    @cached_property
    def is_over(self) -> bool:
        """Whether no QEMU of this VMI is running: proven ended, or never started (none starts before the hand-over)."""
        if self.unproven:
            return False
        if self.pod is None or self.pod.status.phase in END_PHASES:
            return True
        # The Pod exists and has not terminated, but fencing proves that its QEMU has.
        return self.pod.metadata.uid in may_run_qemu(self.vmi)

    @cached_property
    def defaulted(self) -> VirtualMachineInstance:
        """The VMI with its defaults."""
        return defaults.default_vmi(self.vmi, config=self.settings.configuration)


def plan(seen: ObservedVmi) -> list[Action | RequeueAfter]:
    """The next actions for one VMI."""
    return list(_plan(seen))


def _plan(seen: ObservedVmi) -> Iterator[Action | RequeueAfter]:
    phase, pod = phase_of(seen.vmi), seen.pod
    over = phase in names.FINAL_PHASES
    if seen.vmi.metadata.deletionTimestamp:
        yield from _delete(seen, over)
    elif phase not in OWN_CONDITIONS and (restored := _restore_protection(seen)):
        yield restored
    elif over:
        yield from _delete_pod(seen, phase)
    elif pod is None and phase in (names.PHASE_UNSET, names.PHASE_PENDING):
        yield from _create(seen)
    elif phase in OWN_CONDITIONS and pod is not None and (why := user_namespaces.failure(pod, seen.warning)):
        yield from _without_namespace(seen, pod, why)
    elif seen.is_over:
        yield from _conclude(seen)
    elif pod is None or pod.status.phase in END_PHASES:
        yield from _await_evidence(seen)
    elif phase in OWN_CONDITIONS:
        yield from _progress(seen, pod)
        yield from metadata_propagation.to_pod(seen.vmi, pod)
    else:
        yield from _gate(seen, pod)
        yield from pod_networks.update_annotation(seen.defaulted, pod)
        yield from _watch_claims(seen)
        yield from _watch_node(seen)
        yield from metadata_propagation.to_pod(seen.vmi, pod)


def _restore_protection(seen: ObservedVmi) -> Patch | None:
    """Restores what prevents a second copy of the VM, if it was removed: the finalizer, the pod's entry in activePods,
    and the node label that the handler selects VMIs by.

    Before the hand-over nothing depends on them, and the next write sets them.
    """
    vmi, pod, node = seen.vmi, seen.pod, status_of(seen.vmi).nodeName
    metadata, status, known = _with_finalizer(vmi), {}, may_run_qemu(vmi)
    if (
        pod is not None
        and is_running(pod)
        # The handler takes the entry off when it finds nothing left of a pod whose status is stale.
        and pod.status.phase not in END_PHASES
        and phase_of(vmi) not in names.FINAL_PHASES
        and pod.metadata.uid not in known
    ):
        status = {"activePods": {pod.metadata.uid: pod.spec.nodeName}}
    if node and (known or status) and (vmi.metadata.labels or {}).get(names.LABEL_NODE_NAME) != node:
        metadata["labels"] = {names.LABEL_NODE_NAME: node}
    return (
        _patch(vmi, status, {"resourceVersion": vmi.metadata.resourceVersion, **metadata})
        if metadata or status
        else None
    )


# ---- before the pod exists -------------------------------------------------------------------------------------------


def _create(seen: ObservedVmi) -> Iterator[Action | RequeueAfter]:
    living = [pod for pod in seen.strays if evidence.may_still_run(pod, seen.evidence)]
    if living or seen.unproven:
        yield from _await_other_pods(seen, living)
        return
    missing = [name for name in pod_volumes.claim_names(seen.vmi.spec) if name not in seen.claims]
    networks = pod_networks.problems(seen.vmi, seen.definitions, seen.knows_definitions)
    if seen.faults:
        message = "; ".join(map(str, seen.faults))
        yield from refused(seen.vmi, REASON_INVALID, message, seen.now)
    elif missing:
        message = f"PersistentVolumeClaim {', '.join(missing)} not found in namespace {seen.vmi.metadata.namespace}"
        yield from refused(seen.vmi, names.REASON_FAILED_PVC_NOT_FOUND, message, seen.now)
    elif networks:
        yield from refused(seen.vmi, names.REASON_NETWORK_NOT_FOUND, "; ".join(networks), seen.now)
    else:
        budget = pods.disruption_budget(seen.defaulted)
        if budget is not None:
            yield Create(PodDisruptionBudget, budget)
        made = pods.launcher_pod(seen.defaulted, seen.settings, seen.claims, seen.definitions, seen.host_users)
        yield Create(Pod, made)


def _await_other_pods(seen: ObservedVmi, living: Sequence[Pod]) -> Iterator[Action | RequeueAfter]:
    """Waits for the pods of earlier VMIs of this name, and deletes those whose VMI no longer exists.

    They are recorded in activePods like the VMI's own pod: deleting a Pod object does not prove that its processes
    ended. nodeName makes the handler of one node at a time look for them, starting with nodes whose Pod is deleted.
    """
    vmi, status = seen.vmi, status_of(seen.vmi)
    there = {pod.metadata.uid or "": pod.spec.nodeName or "" for pod in living}
    known = may_run_qemu(vmi)
    node = next(iter(sorted(set(seen.unproven.values()) - set(there.values())) or sorted(there.values())), None)
    awaited = {**seen.unproven, **there}
    where = ", ".join(f"{_named(uid, living)} on node {at}" for uid, at in sorted(awaited.items()))
    message = f"An earlier VirtualMachineInstance of this name may still be running: {where}. {_remedy(vmi)}"
    wanted = [
        _not_ready("The launcher pod does not exist yet"),
        conditions.make(names.CONDITION_SYNCHRONIZED, False, names.REASON_LAUNCHER_NOT_ENDED, message),
    ]
    stamp = format_time(seen.now)
    merged = conditions.merged(status.conditions, wanted, (), stamp)
    new_pods = {uid: at for uid, at in there.items() if known.get(uid) != at}
    step, changed = transition(vmi, names.PHASE_PENDING, stamp), conditions.differ(status.conditions, merged)
    if step or new_pods or changed or status.nodeName != node:
        metadata = {**_with_finalizer(vmi), "labels": {names.LABEL_NODE_NAME: node}}
        metadata["resourceVersion"] = vmi.metadata.resourceVersion
        changes = {**step, "conditions": merged, "activePods": {**known, **there}, "nodeName": node}
        yield _patch(vmi, changes, metadata)
        if changed:
            yield RecordEvent(vmi, names.REASON_LAUNCHER_NOT_ENDED, message, "Warning")
    yield from (_remove(pod, None) for pod in seen.strays if not pod.metadata.deletionTimestamp)
    if seen.evidence.fences:
        yield RequeueAfter(FENCE_SECONDS)


def _named(uid: str, pods: Sequence[Pod]) -> str:
    found = next((pod for pod in pods if pod.metadata.uid == uid), None)
    return f"pod {found.metadata.name}" if found else f"deleted pod (UID {uid})"


def _remedy(vmi: VirtualMachineInstance) -> str:
    return (
        "Waiting for the node's kubelet or handler to report that it has ended. If the node is powered off, taint it "
        "with node.kubernetes.io/out-of-service or delete the Node. If you verified that QEMU of this VM is not "
        f"running there, run: hyperctl fence -n {vmi.metadata.namespace} {vmi.metadata.name}"
    )


def refused(vmi: VirtualMachineInstance, reason: str, message: str, now: datetime) -> Iterator[Action]:
    """Reports once, as a condition and an Event, why the pod cannot be created."""
    stamp, status = format_time(now), status_of(vmi)
    wanted = [
        _not_ready("The launcher pod does not exist yet"),
        conditions.make(names.CONDITION_SYNCHRONIZED, False, reason, message),
    ]
    merged = conditions.merged(status.conditions, wanted, (), stamp)
    step, metadata, changed = (
        transition(vmi, names.PHASE_PENDING, stamp),
        _with_finalizer(vmi),
        conditions.differ(status.conditions, merged),
    )
    if step or metadata or changed:
        yield _patch(vmi, {**step, "conditions": merged}, metadata)
    if step or changed:
        yield RecordEvent(vmi, reason, message, "Warning")


# ---- until the hand-over ---------------------------------------------------------------------------------------------


def _progress(seen: ObservedVmi, pod: Pod) -> Iterator[Action | RequeueAfter]:
    if pod.metadata.deletionTimestamp and pod.spec.nodeName:
        # The pod is terminating: after a hand-over the guest would start only to be shut down.
        return
    if not pod.spec.nodeName and seen.settings.emulated and resources.asks_for_kvm(pod):
        yield from _recreate_pod(seen.vmi, pod, format_time(seen.now))
        return
    vmi, status, stamp = seen.vmi, status_of(seen.vmi), format_time(seen.now)
    running = is_running(pod)
    known = conditions.find(status.conditions, names.CONDITION_SYNCHRONIZED)
    lasting = seen.bound_for >= WARNING_SECONDS
    problems = [] if running else pod_status.startup_problems(pod, vmi.spec, seen.claims, seen.warning, lasting, known)
    merged = conditions.merged(
        status.conditions,
        [_not_ready("The guest is not running yet"), *problems],
        (names.CONDITION_SYNCHRONIZED, names.CONDITION_POD_SCHEDULED),
        stamp,
    )
    step = transition(vmi, names.PHASE_SCHEDULED if running else names.PHASE_SCHEDULING, stamp)
    metadata = _with_finalizer(vmi)
    # The gateway has applied them already, unless none was running when the VMI was created.
    spec = merge_patch.difference(to_dict(vmi.spec), to_dict(seen.defaulted.spec)) if step else {}
    if spec:
        metadata["resourceVersion"] = vmi.metadata.resourceVersion
    if step or metadata or conditions.differ(status.conditions, merged):
        facts = vmi_status.facts(seen.defaulted, pod, seen.claims, seen.settings)
        changes: Json = {**facts, **step, "conditions": merged}
        if running or status.nodeName:
            # Before the hand-over nodeName may still be the node of an earlier VMI that was waited for.
            node = pod.spec.nodeName if running else None
            changes["nodeName"] = node
            metadata = {**metadata, "labels": {names.LABEL_NODE_NAME: node}}
        yield Concurrently((_patch(vmi, changes, metadata, spec), *_gate(seen, pod)))
        yield from pod_networks.update_annotation(seen.defaulted, pod)
        yield from (
            RecordEvent(vmi, problem["reason"], problem["message"], "Warning")
            for problem in problems
            if _is_changed(status.conditions, problem)
        )
    else:
        yield from _gate(seen, pod)
        yield from pod_networks.update_annotation(seen.defaulted, pod)
    if seen.warning and not running and seen.bound_for < WARNING_SECONDS:
        yield RequeueAfter(WARNING_SECONDS - seen.bound_for)


def _recreate_pod(vmi: VirtualMachineInstance, pod: Pod, stamp: str) -> Iterator[Action]:
    """Recreates a pending pod that requests KVM: no node offers KVM (any more), and emulation is allowed.

    The phase is set back to Pending first: in a later phase, a VMI without a pod counts as failed.
    """
    yield from _back_to_pending(vmi, stamp)
    if transition(vmi, names.PHASE_PENDING, stamp):
        yield RecordEvent(
            vmi, REASON_EMULATED, "No node offers KVM: recreating the launcher pod for software emulation"
        )
    if not pod.metadata.deletionTimestamp:
        # With a resourceVersion precondition: the pod may have been bound, and its guest started, meanwhile.
        yield replace(_remove(pod, 0), version=pod.metadata.resourceVersion)


def _back_to_pending(vmi: VirtualMachineInstance, stamp: str) -> Iterator[Action]:
    step = transition(vmi, names.PHASE_PENDING, stamp)
    if step:
        yield _patch(vmi, step, {"resourceVersion": vmi.metadata.resourceVersion})


def _without_namespace(seen: ObservedVmi, pod: Pod, why: str) -> Iterator[Action]:
    """Recreates a pod that cannot start in a user namespace, without one. None of its containers has run."""
    stamp = format_time(seen.now)
    yield from _back_to_pending(seen.vmi, stamp)
    if not pod.metadata.deletionTimestamp:
        yield replace(_remove(pod, None), version=pod.metadata.resourceVersion)
        message = f"The launcher pod cannot start in a user namespace; recreating it without one: {why}"
        yield RecordEvent(seen.vmi, REASON_HOST_USERS, message, "Warning")


def _is_changed(known: Sequence[Any] | None, problem: Json) -> bool:
    before = conditions.find(known, problem["type"])
    return "message" in problem and (before is None or before.reason != problem["reason"])


def _gate(seen: ObservedVmi, pod: Pod) -> Iterator[Action]:
    """Sets the pod's readiness gate: True unless the guest is paused.

    It is set as soon as the pod is bound, so that the pod becomes Ready together with its containers. If it were set
    later, the kubelet would notice it with a delay of up to a second (measured, Kubernetes 1.36), and Services would
    route to the guest that much later. It is not set earlier: a status change during scheduling makes the scheduler
    start over.
    """
    if not pod.spec.nodeName:
        return
    paused = _is_paused(seen.vmi)
    wanted = names.FALSE if paused else names.TRUE
    gate = conditions.find(pod.status.conditions, names.READINESS_GATE)
    # A readiness gate without a condition counts as False.
    if pod.metadata.deletionTimestamp or wanted == (gate.status if gate is not None else names.FALSE):
        return
    stamp = format_time(seen.now)
    condition = {
        "type": names.READINESS_GATE,
        "status": wanted,
        "lastTransitionTime": stamp,
        "reason": "Paused" if paused else "NotPaused",
    }
    yield Patch(
        Pod,
        pod.metadata.namespace or "",
        pod.metadata.name or "",
        {"status": {"conditions": [condition]}},
        subresource="status",
        patch_kind="strategic",
    )


def _is_paused(vmi: VirtualMachineInstance) -> bool:
    starts_paused = vmi.spec.startStrategy == "Paused" and phase_of(vmi) != names.PHASE_RUNNING
    return starts_paused or conditions.holds(status_of(vmi).conditions, names.CONDITION_PAUSED)


# ---- while the handler owns the status -------------------------------------------------------------------------------


def _watch_claims(seen: ObservedVmi) -> Iterator[Action]:
    """Updates claim capacities in volumeStatus, from which handler and launcher resize the guest's disks."""
    entries = vmi_status.grown(seen.vmi, seen.claims)
    if entries is not None:
        # A merge patch replaces the whole list, hence the resourceVersion precondition.
        yield _patch(seen.vmi, {"volumeStatus": entries}, {"resourceVersion": seen.vmi.metadata.resourceVersion})


def _watch_node(seen: ObservedVmi) -> Iterator[Action | RequeueAfter]:
    """Reports an unknown guest state while neither kubelet nor handler of the node responds.

    Nothing else is done: the guest may still be running there, and a second copy would corrupt its disks. An
    administrator who knows that the node is off taints or deletes the Node (docs/nodes.md).
    """
    vmi, name = seen.vmi, status_of(seen.vmi).nodeName
    known = conditions.find(status_of(vmi).conditions, names.CONDITION_READY)
    marked = known is not None and known.reason == names.REASON_NODE_NOT_READY
    if seen.node_silent_for is None:
        if marked and phase_of(vmi) == names.PHASE_SCHEDULED:
            yield _ready_patch(seen, _not_ready("The guest is not running yet"))
    elif seen.node_silent_for < LOST_SECONDS:
        yield RequeueAfter(LOST_SECONDS - seen.node_silent_for)
    elif not marked:
        message = f"Node {name} is not responding: guest state unknown. It is not restarted on another node meanwhile"
        yield _ready_patch(seen, conditions.make(names.CONDITION_READY, False, names.REASON_NODE_NOT_READY, message))
        yield RecordEvent(vmi, names.REASON_NODE_NOT_READY, message, "Warning")


def _ready_patch(seen: ObservedVmi, ready: Json) -> Patch:
    """Replaces condition Ready. The whole list is written, hence the resourceVersion precondition."""
    merged = conditions.merged(status_of(seen.vmi).conditions, [ready], (), format_time(seen.now))
    return _patch(seen.vmi, {"conditions": merged}, {"resourceVersion": seen.vmi.metadata.resourceVersion})


# ---- the end ---------------------------------------------------------------------------------------------------------


def _await_evidence(seen: ObservedVmi) -> Iterator[Action | RequeueAfter]:
    """The pod is deleted or Failed, but nothing proves that its QEMU has ended: reports that, and what would."""
    if seen.ended_for < AWAIT_SECONDS:
        yield RequeueAfter(AWAIT_SECONDS - seen.ended_for)
        return
    yield from _report_awaited(seen)
    if seen.evidence.fences:
        yield RequeueAfter(FENCE_SECONDS)


def _report_awaited(seen: ObservedVmi) -> Iterator[Action]:
    vmi, pod = seen.vmi, seen.pod
    if pod is None or (seen.unproven and pod.metadata.uid not in seen.unproven):
        where = ", ".join(sorted(set(seen.unproven.values())))
        what = f"The launcher pod was deleted, but QEMU may still be running on node {where}"
    elif pod.status.phase in END_PHASES:
        why = f" ({pod.status.reason})" if pod.status.reason else ""
        what = f"Pod {pod.metadata.name} is {pod.status.phase}{why}, but node {pod.spec.nodeName} has not reported that"
        what += " its containers have terminated"
    else:
        what = f"Pod {pod.metadata.name} on node {pod.spec.nodeName} is terminating"
    ready = conditions.make(names.CONDITION_READY, False, names.REASON_LAUNCHER_NOT_ENDED, f"{what}. {_remedy(vmi)}")
    known = conditions.find(status_of(vmi).conditions, names.CONDITION_READY)
    if known is None or (known.reason, known.message) != (ready["reason"], ready["message"]):
        yield _ready_patch(seen, ready)
        yield RecordEvent(vmi, ready["reason"], ready["message"], "Warning")


def _conclude(seen: ObservedVmi) -> Iterator[Action | RequeueAfter]:
    """Writes the result of a VM whose pod has terminated or was deleted, unless the handler reports it in time."""
    if phase_of(seen.vmi) not in OWN_CONDITIONS and seen.ended_for < END_SECONDS:
        yield RequeueAfter(END_SECONDS - seen.ended_for)
        return
    end = pod_status.disruption_cause(pod_status.end_of(seen.pod), seen.vmi, seen.pod, seen.warning)
    yield _patch(seen.vmi, _ended(seen, end), {"resourceVersion": seen.vmi.metadata.resourceVersion})
    if end.phase == names.PHASE_FAILED:
        yield RecordEvent(seen.vmi, end.reason, end.message, "Warning")


def _delete_pod(seen: ObservedVmi, phase: str) -> Iterator[Action | RequeueAfter]:
    """Deletes the launcher of a VMI that failed before its guest ran. Terminated pods stay, for their log."""
    pod = seen.pod
    if pod is None or has_ended(pod) or pod.metadata.deletionTimestamp:
        return
    at = vmi_status.reached_at(seen.vmi, phase)
    left = IDLE_SECONDS - (seen.now - parse_time(at)).total_seconds() if at else 0.0
    yield RequeueAfter(left) if left > 0 else _remove(pod, None)


def _ended(seen: ObservedVmi, end: pod_status.VmEnd) -> Json:
    stamp = format_time(seen.now)
    ready = conditions.make(names.CONDITION_READY, False, names.REASON_GUEST_NOT_RUNNING, end.message)
    gone = (names.CONDITION_AGENT_CONNECTED, names.CONDITION_PAUSED, names.CONDITION_POD_SCHEDULED)
    merged = conditions.merged(status_of(seen.vmi).conditions, [ready], gone, stamp)
    ended: Json = {**transition(seen.vmi, end.phase, stamp), "reason": end.reason, "conditions": merged}
    # Reached only with evidence that every listed pod has ended.
    return {**ended, "activePods": dict.fromkeys(listed)} if (listed := may_run_qemu(seen.vmi)) else ended


def _delete(seen: ObservedVmi, over: bool) -> Iterator[Action | RequeueAfter]:
    vmi, pod = seen.vmi, seen.pod
    if not seen.is_over:
        if pod is not None and not has_ended(pod):
            grace, left = _grace(vmi, pod), pod.metadata.deletionGracePeriodSeconds
            if not pod.metadata.deletionTimestamp or (grace is not None and left is not None and grace < left):
                yield _remove(pod, grace)
        yield from _explain_deletion(seen)
        return
    if names.FINALIZER_VMI not in (vmi.metadata.finalizers or ()):
        return
    if pod is None:
        yield _patch(vmi, None, _without_finalizer(vmi))
    elif not has_ended(pod):
        # Fenced, not reported by the kubelet. Delete the Pod first: the next VMI would wait for it.
        yield _remove(pod, 0)
        yield _patch(vmi, None if over else _ended(seen, pod_status.end_of(pod)), _without_finalizer(vmi))
    else:
        # An unreported end goes into the same write. The kubelet deletes the Pod object, within a second of its
        # containers' termination (measured, Kubernetes 1.36).
        yield _patch(vmi, None if over else _ended(seen, pod_status.end_of(pod)), _without_finalizer(vmi))
        if not pod.metadata.deletionTimestamp:
            yield _remove(pod, None)


def _explain_deletion(seen: ObservedVmi) -> Iterator[Action | RequeueAfter]:
    """Reports what the deletion waits for, unless it is just the guest's shutdown."""
    vmi, pod = seen.vmi, seen.pod
    if pod is None or pod.status.phase in END_PHASES:
        yield from _await_evidence(seen)
        return
    ends = parse_time(pod.metadata.deletionTimestamp) if pod.metadata.deletionTimestamp else None
    late = (seen.now - ends).total_seconds() - OVERDUE_SECONDS if ends else None
    orphaned = all(owner.uid != vmi.metadata.uid for owner in pod.metadata.ownerReferences or ())
    if orphaned or (late is not None and late >= 0):
        yield from _report_awaited(seen)
    elif late is not None:
        yield RequeueAfter(-late)


def _grace(vmi: VirtualMachineInstance, pod: Pod) -> int | None:
    """Grace period in seconds for deleting the pod; None: the pod's own."""
    made_with, wanted = pod.spec.terminationGracePeriodSeconds, pods.pod_grace_seconds(vmi.spec)
    if made_with is None or wanted == made_with:
        return None
    # The VMI's period was shortened after the launcher was started with the old one, so the kubelet has to enforce it.
    # Never 0: that deletes the Pod object while its containers still run.
    return wanted if wanted > made_with else max(1, pods.grace_seconds(vmi.spec))


def _remove(pod: Pod, grace: int | None) -> Delete:
    return Delete(Pod, pod.metadata.namespace or "", pod.metadata.name or "", pod.metadata.uid or "", grace)


# ---- patches ---------------------------------------------------------------------------------------------------------


def _not_ready(message: str) -> Json:
    return conditions.make(names.CONDITION_READY, False, names.REASON_GUEST_NOT_RUNNING, message)


def _with_finalizer(vmi: VirtualMachineInstance) -> Json:
    """Metadata that adds the finalizer if it is missing, with a resourceVersion: the patch replaces the whole list."""
    finalizers = vmi.metadata.finalizers or []
    if names.FINALIZER_VMI in finalizers:
        return {}
    return {"finalizers": [*finalizers, names.FINALIZER_VMI], "resourceVersion": vmi.metadata.resourceVersion}


def _without_finalizer(vmi: VirtualMachineInstance) -> Json:
    rest = [name for name in vmi.metadata.finalizers or () if name != names.FINALIZER_VMI]
    return {"finalizers": rest or None, "resourceVersion": vmi.metadata.resourceVersion}


def _patch(vmi: VirtualMachineInstance, status: Json | None, metadata: Json, spec: Json | None = None) -> Patch:
    """A patch with a UID precondition, so that it cannot hit a later VMI of the same name."""
    body: Json = {"metadata": {"uid": vmi.metadata.uid, **metadata}}
    if spec:
        body["spec"] = spec
    if status:
        body["status"] = status
    return Patch(VirtualMachineInstance, vmi.metadata.namespace or "", vmi.metadata.name or "", body)
