"""Run strategies: whether to start or stop the VMI, given requests in the VM's status and earlier failures. Pure.

Semantics: the KubeVirt user guide, "Run Strategies". State is kept in the VM's status: `runStrategy` (the last one
acted upon), `stateChangeRequests`, `startFailure`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from api import defaults, names
from api.k8s.meta import format_time, parse_time
from api.kubevirt.vm import (
    VirtualMachine,
    VirtualMachineStartFailure,
    VirtualMachineStateChangeRequest,
    VirtualMachineStatus,
)
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from controller.vmi.status import reached_at
from kit import backoff

FIRST_DELAY = 10
"""Seconds before the second consecutive restart; doubled each time."""
LONGEST_DELAY = 300
STABLE_SECONDS = 300
"""A run of this length resets the failure count."""


class RunAction(Enum):
    """What to do with the VMI."""

    NOTHING = "nothing"
    START = "start"
    STOP = "stop"
    WAIT = "wait"
    """Start, but not before `retryAfterTimestamp`."""


@dataclass(frozen=True)
class RunDecision:
    """The decision, and the state to write to the VM's status before it is executed."""

    want: RunAction
    requests: tuple[VirtualMachineStateChangeRequest, ...] = ()
    """The requests that remain."""
    failure: VirtualMachineStartFailure | None = None
    """status.startFailure as it should be."""
    wait_seconds: float = 0.0


def decide(
    vm: VirtualMachine, vmi: VirtualMachineInstance | None, now: datetime, is_outdated: bool = False
) -> RunDecision:
    """The decision for a VM that is not being deleted. `vmi` is the VM's own, which may be terminating.

    `is_outdated`: the guest has not started, and the template has changed since the VMI was created: recreate it.
    """
    status = vm.status or VirtualMachineStatus()
    requests = tuple(request for request in status.stateChangeRequests or () if _is_current(request, vmi))
    stop = any(request.action == names.ACTION_STOP for request in requests)
    start = any(request.action == names.ACTION_START for request in requests)
    failure = failure_after(status.startFailure, vmi, now)
    if vmi is not None:
        found = _with_vmi(vm, vmi, requests, failure, stop, start)
        outdated = is_outdated and found.want is RunAction.NOTHING and not vmi.metadata.deletionTimestamp
        return _renewal(vm, vmi, found) if outdated else found
    return _without_vmi(vm, status, requests, failure, start, now)


def _renewal(vm: VirtualMachine, vmi: VirtualMachineInstance, found: RunDecision) -> RunDecision:
    """Stops the VMI and starts a new one. Strategies other than Always need requests for that, as a restart does."""
    if defaults.run_strategy(vm) == names.RUN_ALWAYS:
        return RunDecision(RunAction.STOP, found.requests, found.failure)
    template = vm.spec.template.spec
    was_asked = template is None or template.startStrategy != vmi.spec.startStrategy
    paused = {"paused": "true"} if vmi.spec.startStrategy == "Paused" and was_asked else None
    requests = (
        VirtualMachineStateChangeRequest(action=names.ACTION_STOP, uid=vmi.metadata.uid),
        VirtualMachineStateChangeRequest(action=names.ACTION_START, data=paused),
    )
    return RunDecision(RunAction.STOP, requests, found.failure)


def starts_paused(vm: VirtualMachine) -> bool:
    """Whether the next VMI is created with startStrategy Paused."""
    return any(map(_pauses, (vm.status or VirtualMachineStatus()).stateChangeRequests or ()))


def _pauses(request: VirtualMachineStateChangeRequest) -> bool:
    return request.action == names.ACTION_START and (request.data or {}).get("paused") == "true"


def _is_current(request: VirtualMachineStateChangeRequest, vmi: VirtualMachineInstance | None) -> bool:
    """Whether the request is still pending. A Stop names a VMI, and is done when that VMI is deleted."""
    if request.action == names.ACTION_STOP:
        return vmi is not None and request.uid in (None, "", vmi.metadata.uid)
    return request.action == names.ACTION_START


def _with_vmi(
    vm: VirtualMachine,
    vmi: VirtualMachineInstance,
    requests: tuple[VirtualMachineStateChangeRequest, ...],
    failure: VirtualMachineStartFailure | None,
    stop: bool,
    start: bool,
) -> RunDecision:
    strategy, phase = defaults.run_strategy(vm), phase_of(vmi)
    over, failed = phase in names.FINAL_PHASES, phase == names.PHASE_FAILED
    stay = requests
    if start and not stop and not over:
        # The VMI exists already: drop the Start requests.
        stay = tuple(request for request in requests if request.action != names.ACTION_START)
    if strategy == names.RUN_ALWAYS:
        end = stop or over
    elif strategy == names.RUN_RERUN_ON_FAILURE:
        end = stop or over
        if failed and not start:
            stay = (*stay, VirtualMachineStateChangeRequest(action=names.ACTION_START))
    elif strategy in (names.RUN_MANUAL, names.RUN_ONCE):
        # Keep a finished VMI, which shows how it ended, until the next start.
        end = stop or (over and start)
    else:
        end = True
    if vmi.metadata.deletionTimestamp or not end:
        return RunDecision(RunAction.NOTHING, stay, failure)
    return RunDecision(RunAction.STOP, stay, failure)


def _without_vmi(
    vm: VirtualMachine,
    status: VirtualMachineStatus,
    requests: tuple[VirtualMachineStateChangeRequest, ...],
    failure: VirtualMachineStartFailure | None,
    start: bool,
    now: datetime,
) -> RunDecision:
    strategy = defaults.run_strategy(vm)
    if strategy == names.RUN_ALWAYS:
        wanted = True
    elif strategy in (names.RUN_RERUN_ON_FAILURE, names.RUN_ONCE):
        # Start once after a change to this strategy, then only on request.
        wanted = start or status.runStrategy != strategy
    else:
        wanted = start and strategy == names.RUN_MANUAL
    if not wanted:
        # Drop failures and requests of a VM that is not to run. Exception: a request to start paused precedes the
        # change of the spec to Always and determines how the VMI is created then.
        kept = tuple(filter(_pauses, requests)) if strategy == names.RUN_HALTED else ()
        return RunDecision(RunAction.NOTHING, kept, None if strategy != names.RUN_RERUN_ON_FAILURE else failure)
    seconds = remaining(failure, now)
    if seconds > 0:
        return RunDecision(RunAction.WAIT, requests, failure, seconds)
    return RunDecision(RunAction.START, requests, failure)


# ---- failures and back-off -------------------------------------------------------------------------------------------


def failure_after(
    failure: VirtualMachineStartFailure | None,
    vmi: VirtualMachineInstance | None,
    now: datetime,
) -> VirtualMachineStartFailure | None:
    """status.startFailure with the VMI's end counted, if it has ended; None after a run of STABLE_SECONDS."""
    if vmi is None:
        return failure
    ran = _ran_seconds(vmi, now)
    if phase_of(vmi) not in names.FINAL_PHASES:
        return None if ran >= STABLE_SECONDS else failure
    if vmi.metadata.deletionTimestamp and (failure is None or failure.lastFailedVMIUID != vmi.metadata.uid):
        # The end was requested by deleting the VMI.
        return failure
    if failure is not None and failure.lastFailedVMIUID == vmi.metadata.uid:
        return failure
    before = 0 if ran >= STABLE_SECONDS or failure is None else failure.consecutiveFailCount or 0
    count = before + 1
    retry = now + timedelta(seconds=delay(count, reached_at(vmi, names.PHASE_RUNNING) is not None))
    return VirtualMachineStartFailure(
        consecutiveFailCount=count, lastFailedVMIUID=vmi.metadata.uid, retryAfterTimestamp=format_time(retry)
    )


def delay(count: int, has_run: bool) -> int:
    """Seconds before the next start after `count` consecutive ends. After a run, the first restart is immediate."""
    failures = count - 1 if has_run else count
    return int(backoff.delay(failures, FIRST_DELAY, LONGEST_DELAY)) if failures > 0 else 0


def remaining(failure: VirtualMachineStartFailure | None, now: datetime) -> float:
    """Seconds until the next start is due, at least 0."""
    if failure is None or failure.retryAfterTimestamp is None:
        return 0.0
    return max(0.0, (parse_time(failure.retryAfterTimestamp) - now).total_seconds())


def stable_in(vmi: VirtualMachineInstance | None, now: datetime) -> float | None:
    """Seconds until a running VMI has run for STABLE_SECONDS; None if it is not running."""
    if vmi is None or phase_of(vmi) != names.PHASE_RUNNING:
        return None
    return max(0.0, STABLE_SECONDS - _ran_seconds(vmi, now))


def _ran_seconds(vmi: VirtualMachineInstance, now: datetime) -> float:
    started = reached_at(vmi, names.PHASE_RUNNING)
    if started is None:
        return 0.0
    ended = next(filter(None, (reached_at(vmi, phase) for phase in names.FINAL_PHASES)), None)
    return ((parse_time(ended) if ended else now) - parse_time(started)).total_seconds()
