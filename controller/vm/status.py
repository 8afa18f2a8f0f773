"""A VM's status, derived from its VMI: printableStatus, conditions, observedGeneration. Pure."""

from collections.abc import Callable, Sequence

from api import conditions, defaults, names
from api.errors import Fault
from api.k8s.meta import Json
from api.kubevirt.vm import VirtualMachine, VirtualMachineStatus
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from controller.vm.run_strategy import RunAction, RunDecision
from controller.vmi import pod_status
from controller.vmi.status import status_of

NAMED_FIELDS = 10
"""Maximum number of changed fields named in condition RestartRequired."""
NO_SNAPSHOT = "snapshots are not supported in this version"


_UNKNOWN = frozenset({names.REASON_NODE_NOT_READY, names.REASON_LAUNCHER_NOT_ENDED})
"""Reasons of Ready=False that mean that the guest's state is unknown."""


def _deleting(vmi: VirtualMachineInstance | None) -> bool:
    return vmi is not None and vmi.metadata.deletionTimestamp is not None


def _reason(vmi: VirtualMachineInstance | None, type: str) -> str | None:
    """The reason of a condition if its status is False."""
    found = conditions.find(status_of(vmi).conditions, type) if vmi else None
    return found.reason if found is not None and found.status == names.FALSE else None


def printable_status(
    vm: VirtualMachine,
    vmi: VirtualMachineInstance | None,
    decision: RunDecision | None,
) -> str:
    """printableStatus: the first rule that matches, in KubeVirt's order."""
    phase = phase_of(vmi)
    live = vmi is not None and phase not in names.FINAL_PHASES
    status = status_of(vmi) if vmi else None
    sync_reason = _reason(vmi, names.CONDITION_SYNCHRONIZED) if live else None
    scheduling_reason = _reason(vmi, names.CONDITION_POD_SCHEDULED) if live else None
    migration = status.migrationState if status else None
    rules: Sequence[tuple[str, Callable[[], bool]]] = (
        (names.STATUS_TERMINATING, lambda: vm.metadata.deletionTimestamp is not None),
        (names.STATUS_STOPPING, lambda: _deleting(vmi)),
        (names.STATUS_UNKNOWN, lambda: live and _reason(vmi, names.CONDITION_READY) in _UNKNOWN),
        (names.STATUS_MIGRATING, lambda: bool(migration and not migration.completed and migration.startTimestamp)),
        (names.STATUS_PAUSED, lambda: bool(status and conditions.holds(status.conditions, names.CONDITION_PAUSED))),
        (names.STATUS_RUNNING, lambda: phase == names.PHASE_RUNNING),
        (names.STATUS_PVC_NOT_FOUND, lambda: sync_reason == names.REASON_FAILED_PVC_NOT_FOUND),
        (names.STATUS_WAITING_FOR_VOLUME, lambda: scheduling_reason == pod_status.REASON_WAITING_FOR_VOLUME),
        (names.STATUS_UNSCHEDULABLE, lambda: scheduling_reason is not None),
        (names.STATUS_ERR_IMAGE_PULL, lambda: sync_reason in names.REASONS_NO_IMAGE),
        (names.STATUS_IMAGE_PULL_BACKOFF, lambda: sync_reason == names.REASON_IMAGE_PULL_BACKOFF),
        (names.STATUS_STARTING, lambda: live or (decision is not None and decision.want is RunAction.START)),
        (names.STATUS_CRASH_LOOP, lambda: decision is not None and decision.want is RunAction.WAIT),
        (
            names.STATUS_STARTING,
            lambda: (
                vmi is not None
                and decision is not None
                and decision.want is RunAction.STOP
                and defaults.run_strategy(vm) == names.RUN_ALWAYS
            ),
        ),
        (names.STATUS_STOPPED, lambda: True),
    )
    return next(name for name, matches in rules if matches())


def wanted_conditions(
    vmi: VirtualMachineInstance | None,
    faults: Sequence[Fault],
    foreign: bool,
    waiting: Sequence[str] = (),
) -> list[Json]:
    """The conditions that the VM should have now. The caller keeps or drops other types.

    `foreign`: the VMI of this name has another owner. `waiting`: changed fields below spec.template that take effect
    at the next start.
    """
    return [
        condition
        for condition in (
            _ready(vmi),
            _failure(vmi, faults, foreign),
            _paused(vmi),
            _restart_required(waiting),
        )
        if condition is not None
    ]


OWNED = (names.CONDITION_READY, names.CONDITION_FAILURE, names.CONDITION_PAUSED, names.CONDITION_RESTART_REQUIRED)


def _ready(vmi: VirtualMachineInstance | None) -> Json:
    if vmi is None:
        return conditions.make(names.CONDITION_READY, False, names.REASON_VMI_NOT_EXISTS, "The VM is not running")
    phase = phase_of(vmi)
    found = conditions.find(status_of(vmi).conditions, names.CONDITION_READY)
    if _deleting(vmi) and found is not None and found.reason == names.REASON_LAUNCHER_NOT_ENDED:
        return conditions.make(names.CONDITION_READY, False, found.reason, found.message or "")
    if _deleting(vmi) or phase in names.FINAL_PHASES:
        return conditions.make(
            names.CONDITION_READY,
            False,
            names.REASON_GUEST_NOT_RUNNING,
            "The guest has stopped"
            if phase in names.FINAL_PHASES and not _deleting(vmi)
            else "The guest is being stopped",
        )
    lost = found is not None and found.reason in _UNKNOWN
    if (phase != names.PHASE_RUNNING and not lost) or found is None:
        return conditions.make(
            names.CONDITION_READY, False, names.REASON_GUEST_NOT_RUNNING, "The guest is not running yet"
        )
    ready = found.status == names.TRUE
    return conditions.make(names.CONDITION_READY, ready, found.reason or "Ready", found.message or "")


def _failure(vmi: VirtualMachineInstance | None, faults: Sequence[Fault], foreign: bool) -> Json | None:
    """The Failure condition; None while there is no failure."""
    if foreign:
        message = "A VirtualMachineInstance with this name exists and has another owner: delete it or rename the VM"
        return conditions.make(names.CONDITION_FAILURE, True, "NameTaken", message)
    if faults:
        return conditions.make(names.CONDITION_FAILURE, True, "InvalidSpec", "; ".join(map(str, faults)))
    synchronized = conditions.find(status_of(vmi).conditions, names.CONDITION_SYNCHRONIZED) if vmi else None
    if synchronized is not None and synchronized.status == names.FALSE and not _deleting(vmi):
        return conditions.make(
            names.CONDITION_FAILURE, True, synchronized.reason or names.REASON_SYNC_FAILED, synchronized.message or ""
        )
    if vmi is not None and phase_of(vmi) == names.PHASE_FAILED and not _deleting(vmi):
        ready = conditions.find(status_of(vmi).conditions, names.CONDITION_READY)
        message = (ready.message if ready else None) or "The VM has failed"
        return conditions.make(names.CONDITION_FAILURE, True, status_of(vmi).reason or "Failed", message)
    return None


def _paused(vmi: VirtualMachineInstance | None) -> Json | None:
    found = conditions.find(status_of(vmi).conditions, names.CONDITION_PAUSED) if vmi else None
    if found is None or found.status != names.TRUE or _deleting(vmi):
        return None
    return conditions.make(names.CONDITION_PAUSED, True, found.reason or "Paused", found.message or "")


def _restart_required(waiting: Sequence[str]) -> Json | None:
    if not waiting:
        return None
    message = (
        f"Changed in spec.template since the VM was started: {listed(waiting)}. Restart the VM to apply the change"
    )
    return conditions.make(names.CONDITION_RESTART_REQUIRED, True, "TemplateChanged", message)


def listed(fields: Sequence[str]) -> str:
    """Field names joined for a message, at most NAMED_FIELDS of them."""
    more = f" and {len(fields) - NAMED_FIELDS} more" if len(fields) > NAMED_FIELDS else ""
    return ", ".join(fields[:NAMED_FIELDS]) + more


def observed_generation(vm: VirtualMachine, vmi: VirtualMachineInstance | None, is_settled: bool) -> int | None:
    """The VM's generation if it has taken full effect (`is_settled`), else the one that the VMI was created from."""
    text = (vmi.metadata.annotations or {}).get(names.ANNOTATION_GENERATION, "") if vmi and not is_settled else ""
    return int(text) if text.isdigit() else vm.metadata.generation


def snapshot_statuses(vm: VirtualMachine) -> list[Json] | None:
    """One entry per volume. Snapshots are not supported, so none is enabled."""
    template = vm.spec.template.spec
    volumes = (template.volumes if template else None) or []
    return [{"name": volume.name, "enabled": False, "reason": NO_SNAPSHOT} for volume in volumes] or None


def current(vm: VirtualMachine) -> VirtualMachineStatus:
    """The VM's status, or an empty one."""
    return vm.status or VirtualMachineStatus()
