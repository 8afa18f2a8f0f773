"""Plans the next actions for one VMI of this node. Pure.

The controller hands a VMI over by phase Scheduled with this node's name; from then until its pod has ended, the handler
manages it. The pod is identified by the UID that the controller recorded: labels and owner references can be set by
users and prove nothing.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from api import disruption, names, network_attachments
from api.errors import LauncherUnavailable
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from api.launcher_pods import END_PHASES, may_run_qemu
from api.schema import codec
from handler.launchers.reports import LauncherState
from handler.vmi import status as vmi_status
from handler.vmi import sync_request
from handler.vmi.node_setup import NodeResources
from handler.vmi.status import Problem, StatusFacts, StatusPatch
from kit.reconcile import RequeueAfter
from protos import launcher_pb2 as pb

CONFIRM_SECONDS = 1.0
"""Interval between two searches for processes of a pod: one search may miss a child that was just forked."""
COALESCE_SECONDS = 2.0
"""Delay for writing unimportant changes, to combine them with others."""
SILENCE_SECONDS = 20.0
"""Silence of a launcher (starting, or its server restarting) that is tolerated before the VMI reports it."""
UNPLUG_SECONDS = 20.0
"""Interval between requests to a guest to release a NIC."""
CAUSE_SECONDS = 10.0
"""Time for kubelet to report why it ended a pod."""
LOST_SECONDS = 15.0
"""Time for a restarted launcher server to find its VM."""


@dataclass(frozen=True)
class ObservedLauncher:
    """Input of the plan for a VMI."""

    vmi: VirtualMachineInstance
    pod: Pod | None
    now: datetime
    clock: float = 0.0
    state: LauncherState | None = None
    state_seconds: float = 0.0
    """Seconds since the last change of the launcher's state."""
    silent_seconds: float = 0.0
    silence: str = ""
    cut_off: str = ""
    """Why the launcher is silent, if it exceeded its frame budget."""
    resources: NodeResources | None = None
    synced: str = ""
    synced_at: float = 0.0
    busy: bool = False
    trouble: Problem | None = None
    retry_at: float = 0.0
    tried: str = ""
    """Setup key of the last failed attempt: a changed key is tried at once."""
    minor_since: float = 0.0
    kvm: str = ""
    unreported: frozenset[str] = frozenset()
    """UIDs of this node's pods of the VMI whose end no kubelet will report: their objects are deleted, or are Failed
    without the containers' end."""
    empty: frozenset[str] = frozenset()
    """Those found without processes twice in a row."""

    @property
    def phase(self) -> str:
        """The VMI's phase."""
        return phase_of(self.vmi)


EventText = tuple[str, str, Literal["Normal", "Warning"]]
"""Reason, message and type of an Event."""


@dataclass(frozen=True)
class SetUp:
    """Set up the node for the VM; with `sync`, call the launcher's Sync."""

    sync: bool


@dataclass(frozen=True)
class PatchVmi:
    """Patch the VMI, then record Events."""

    patch: StatusPatch
    events: tuple[EventText, ...] = ()


@dataclass(frozen=True)
class RecordEventOnce:
    """Record an Event once per pod."""

    event: EventText


@dataclass(frozen=True)
class DeferWrite:
    """Remember since when an unimportant change waits to be written; 0: none does."""

    since: float


Action = SetUp | PatchVmi | RecordEventOnce | DeferWrite


def plan(seen: ObservedLauncher) -> list[Action | RequeueAfter]:
    """What to do next for one VMI."""
    return list(_plan(seen))


def _plan(seen: ObservedLauncher) -> Iterator[Action | RequeueAfter]:
    if seen.unreported:
        yield from _confirm(seen)
    state = seen.state
    # Without a pod, or before the hand-over, the controller is responsible.
    if seen.pod is None or seen.phase not in (names.PHASE_SCHEDULED, names.PHASE_RUNNING):
        return
    if state is not None and state.ended:
        yield from _end(seen, state)
    elif seen.pod.status.phase in END_PHASES:
        return  # the launcher could not report its end: the controller reads the termination message
    elif seen.vmi.metadata.deletionTimestamp:
        return  # the guest is shutting down; intermediate states are not written
    elif seen.pod.metadata.deletionTimestamp:
        yield from _disrupted(seen, seen.pod)
    elif seen.silent_seconds > 0:
        yield from _silent(seen)
    elif state is not None:
        yield from _drive(seen, state)


def _confirm(seen: ObservedLauncher) -> Iterator[Action | RequeueAfter]:
    """Report to the controller that a pod has no processes left: only then may the VM be restarted."""
    if ended := sorted(seen.unreported & seen.empty):
        body = {"metadata": {"uid": seen.vmi.metadata.uid}, "status": {"activePods": dict.fromkeys(ended)}}
        yield PatchVmi(StatusPatch(body, urgent=True))
    else:
        yield RequeueAfter(CONFIRM_SECONDS)


def _disrupted(seen: ObservedLauncher, pod: Pod) -> Iterator[Action | RequeueAfter]:
    """The pod is being terminated without the VMI's consent: report why, once, while the guest shuts down."""
    cause = disruption.cause(pod)
    patch = vmi_status.disrupted(seen.vmi, cause, seen.now) if cause is not None else None
    if cause is not None and patch is not None:
        yield PatchVmi(patch, ((cause.reason, f"{cause.message}; the guest is being shut down", "Warning"),))


def _end(seen: ObservedLauncher, state: LauncherState) -> Iterator[Action | RequeueAfter]:
    cause = None
    if (
        seen.pod is not None
        and state.reason in disruption.ANNOUNCED_REASONS
        and not seen.vmi.metadata.deletionTimestamp
    ):
        # The kubelet reports the cause only after the containers have ended.
        cause = disruption.cause(seen.pod)
        if cause is None and seen.pod.status.phase in END_PHASES:
            return  # no cause reported: the controller, which watches its Events, reports the end
        if cause is None and seen.state_seconds < CAUSE_SECONDS:
            yield RequeueAfter(CAUSE_SECONDS - seen.state_seconds + 0.1)
            return
        cause = cause or disruption.last_cause(seen.vmi, seen.pod)
    patch = vmi_status.ended(seen.vmi, state, seen.now, cause)
    if patch is None:
        return
    if cause is not None:
        event: EventText = (cause.reason, f"The virtual machine ended: {cause.message}", "Warning")
    elif state.state == pb.DOMAIN_STATE_CRASHED:
        event = (
            names.REASON_CRASHED,
            f"The virtual machine ended: {state.message or state.reason or 'it crashed'}",
            "Warning",
        )
    else:
        event = (names.REASON_STOPPED, f"The virtual machine ended: {state.message or 'the guest shut down'}", "Normal")
    if seen.vmi.metadata.deletionTimestamp:
        # The controller will write the end together with the finalizer: one write instead of two.
        yield RecordEventOnce(event)
    else:
        yield PatchVmi(patch, (event,))


def _silent(seen: ObservedLauncher) -> Iterator[Action | RequeueAfter]:
    if seen.cut_off:
        yield from _with_event(seen, Problem(names.REASON_LAUNCHER_CUT_OFF, seen.cut_off))
    elif seen.silent_seconds < SILENCE_SECONDS:
        yield RequeueAfter(SILENCE_SECONDS - seen.silent_seconds + 0.1)
    else:
        trouble = Problem(LauncherUnavailable.reason, seen.silence or "the launcher does not answer")
        yield from _with_event(seen, trouble)


def _drive(seen: ObservedLauncher, state: LauncherState) -> Iterator[Action | RequeueAfter]:
    if seen.trouble is not None and seen.trouble.permanent:
        yield from _with_event(seen, seen.trouble)
        return
    lost = seen.phase == names.PHASE_RUNNING and state.state == pb.DOMAIN_STATE_NONE
    if lost:
        # It was running: only the controller may start it a second time.
        if seen.state_seconds < LOST_SECONDS:
            yield RequeueAfter(LOST_SECONDS - seen.state_seconds + 0.1)
        else:
            yield from _with_event(
                seen, Problem("Lost", "the launcher has lost the domain of the running virtual machine")
            )
        return
    needs_sync = (seen.phase == names.PHASE_SCHEDULED and not state.runs) or _is_out_of_date(seen, state)
    waits = seen.resources is not None and bool(seen.resources.pending)
    if not seen.busy and (seen.resources is None or needs_sync or waits or _is_unplugged(seen.resources, state)):
        assert seen.pod is not None
        if seen.clock >= seen.retry_at or seen.tried != setup_key(seen.vmi, seen.pod):
            yield SetUp(needs_sync)
        else:
            yield RequeueAfter(seen.retry_at - seen.clock + 0.01)
    if seen.resources is not None and seen.resources.made.going:
        yield RequeueAfter(UNPLUG_SECONDS)
    # The NoProgress error is resolved: the VM is running.
    is_over = state.runs and seen.trouble is not None and seen.trouble.reason == names.REASON_NO_PROGRESS
    trouble = None if is_over else seen.trouble
    if state.runs and seen.resources is not None:
        # A change that a running VM cannot take must not block its status updates.
        yield from _run(seen, state, seen.pod, seen.resources, trouble)
    elif trouble is not None:
        yield from _with_event(seen, trouble)


def _is_out_of_date(seen: ObservedLauncher, state: LauncherState) -> bool:
    """Whether Sync has to be called again."""
    assert seen.pod is not None
    if seen.synced == "":
        # This process has not called Sync. An earlier handler may have ended between a change and its Sync.
        return state.runs and (_nics_differ(seen.vmi, state) or _claims_differ(seen.vmi, state))
    if seen.synced != digest(seen.vmi, seen.pod):
        return True
    # A booting guest misses unplug requests: repeat them.
    going = seen.resources.made.going if seen.resources else ()
    return bool(going) and seen.clock - seen.synced_at >= UNPLUG_SECONDS


def _nics_differ(vmi: VirtualMachineInstance, state: LauncherState) -> bool:
    return bool(state.nics) and sync_request.links(vmi) != {nic.name: nic.link_up for nic in state.nics}


def _claims_differ(vmi: VirtualMachineInstance, state: LauncherState) -> bool:
    known = sync_request.capacities(vmi)
    return any(known.get(disk.volume, "") != disk.capacity for disk in state.disks)


def _is_unplugged(resources: NodeResources, state: LauncherState) -> bool:
    """Whether the launcher has released interfaces whose devices were kept for it."""
    return state.runs and not set(resources.made.going) <= {nic.name for nic in state.nics}


def _run(
    seen: ObservedLauncher, state: LauncherState, pod: Pod | None, resources: NodeResources, trouble: Problem | None
) -> Iterator[Action | RequeueAfter]:
    assert pod is not None
    if any(item.state and item.state.terminated for item in pod.status.containerStatuses or ()):
        return  # its final report is pending
    patch = vmi_status.running(
        seen.vmi, StatusFacts(state, pod, resources.made, seen.kvm, resources.told, trouble), seen.now
    )
    if patch is None:
        if seen.minor_since:
            yield DeferWrite(0.0)
    elif patch.urgent or (seen.minor_since and seen.clock - seen.minor_since >= COALESCE_SECONDS):
        yield PatchVmi(patch, tuple(_pending_changes(seen, state, trouble)))
        yield DeferWrite(0.0)
    else:
        since = seen.minor_since or seen.clock
        yield DeferWrite(since)
        yield RequeueAfter(since + COALESCE_SECONDS - seen.clock + 0.05)


def _pending_changes(seen: ObservedLauncher, state: LauncherState, trouble: Problem | None) -> Iterator[EventText]:
    if trouble is not None and not _has(seen.vmi, names.CONDITION_SYNCHRONIZED, trouble.reason):
        yield (trouble.reason, trouble.message, "Warning")
    if seen.phase == names.PHASE_SCHEDULED:
        yield (names.REASON_STARTED, "The virtual machine is running", "Normal")
    if state.state == pb.DOMAIN_STATE_IO_ERROR and not _has(
        seen.vmi, names.CONDITION_PAUSED, names.REASON_PAUSED_IO_ERROR
    ):
        yield (
            names.REASON_PAUSED_IO_ERROR,
            f"The virtual machine is paused: {state.message or 'a disk failed or is full'}",
            "Warning",
        )


def _with_event(seen: ObservedLauncher, trouble: Problem) -> Iterator[Action | RequeueAfter]:
    patch = vmi_status.failing(seen.vmi, trouble, seen.now)
    if patch is None:
        return
    known = _has(seen.vmi, names.CONDITION_SYNCHRONIZED, trouble.reason) and not trouble.permanent
    yield PatchVmi(patch, () if known else ((trouble.reason, trouble.message, "Warning"),))


def _has(vmi: VirtualMachineInstance, type: str, reason: str) -> bool:
    conditions = (vmi.status.conditions if vmi.status else None) or ()
    return any(item.type == type and item.reason == reason for item in conditions)


def digest(vmi: VirtualMachineInstance, pod: Pod) -> str:
    """Fingerprint of the inputs of Sync: the spec, the pod's networks annotation, the claims' capacities."""
    networks = (pod.metadata.annotations or {}).get(network_attachments.ANNOTATION_NETWORKS) or ""
    parts = (codec.encode(vmi.spec), networks.encode(), codec.encode(sync_request.capacities(vmi)))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def setup_key(vmi: VirtualMachineInstance, pod: Pod) -> str:
    """Fingerprint of the inputs of setup: `digest`, and the pod's network-status annotation."""
    told = (pod.metadata.annotations or {}).get(network_attachments.ANNOTATION_STATUS) or ""
    return f"{digest(vmi, pod)}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def is_active(vmi: VirtualMachineInstance, pod: Pod) -> bool:
    """Whether the controller has handed the VMI over to this pod, on this node.

    Only the controller can write that, while users can create pods that look like the VMI's. It is written before QEMU
    starts, so the controller always knows where the VM may run.
    """
    return bool(pod.spec.nodeName) and may_run_qemu(vmi).get(pod.metadata.uid or "") == pod.spec.nodeName


def has_started(pod: Pod) -> bool:
    """Whether the launcher's container is running."""
    return any(
        item.name == names.COMPUTE_CONTAINER and item.state and item.state.running
        for item in pod.status.containerStatuses or ()
    )
