"""start, stop and restart of a VM: the patches, by run strategy. Pure; `vm` applies them.

Behaviour, conflicts and messages are those of KubeVirt's virt-api (pkg/virt-api/rest/lifecycle.go). Requests to the
controller are in `status.stateChangeRequests`, see `controller/vm/run_strategy.py`.
"""

from dataclasses import dataclass
from typing import Literal

from api import defaults, names
from api.k8s.meta import Json
from api.kubevirt.vm import VirtualMachine, VirtualMachineStatus
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from gateway.http import status
from gateway.subresources.options import RestartOptions, StartOptions, StopOptions

NOT_RUNNING = "VM is not running"
REQUEST_PENDING = "unable to complete request: stop/start already underway"
PAUSED = {"paused": "true"}
"""`data` of a Start request: the VMI starts paused."""


@dataclass(frozen=True)
class VmPatch:
    """A merge patch of the VM, of its status, or of its VMI's spec."""

    target: Literal["vm", "vm/status", "vmi"]
    patch: Json


def start(vm: VirtualMachine, vmi: VirtualMachineInstance | None, options: StartOptions) -> list[VmPatch]:
    """Patches that start the VM. Raises StatusError (409) when it is running, or its run strategy forbids it."""
    if vmi is not None and phase_of(vmi) not in (*names.FINAL_PHASES, names.PHASE_UNKNOWN, names.PHASE_UNSET):
        raise _conflict(vm, "VM is already running")
    strategy = defaults.run_strategy(vm)
    begin = _start_request(options)
    if strategy == names.RUN_HALTED:
        running = VmPatch("vm", _run(vm, True))
        # The request first: the controller keeps it until the VM is to run, and then creates a paused VMI.
        return [_requests([begin]), running] if options.paused else [running]
    if strategy not in (names.RUN_MANUAL, names.RUN_RERUN_ON_FAILURE):
        raise _conflict(vm, f"{strategy} does not support manual start requests")
    _require_no_pending_request(vm)
    if vmi is None or phase_of(vmi) not in names.FINAL_PHASES:
        return [_requests([begin])]
    if strategy == names.RUN_RERUN_ON_FAILURE and phase_of(vmi) == names.PHASE_FAILED:
        raise _conflict(vm, f"{strategy} does not support starting VM from failed state")
    return [_requests([_stop_request(vmi), begin])]


def stop(vm: VirtualMachine, vmi: VirtualMachineInstance | None, options: StopOptions) -> list[VmPatch]:
    """Patches that stop the VM. Raises StatusError (409) when it is not running, or is stopping in that time."""
    strategy = defaults.run_strategy(vm)
    runs = vmi is not None and phase_of(vmi) not in names.FINAL_PHASES
    hurry = [_grace(options.gracePeriod)] if runs and options.gracePeriod is not None else []
    if strategy in (names.RUN_ALWAYS, names.RUN_ONCE):
        return [*hurry, VmPatch("vm", _run(vm, False))]
    if vmi is None or not runs:
        raise _conflict(vm, NOT_RUNNING)
    if strategy == names.RUN_HALTED:
        before = vmi.spec.terminationGracePeriodSeconds
        if options.gracePeriod is None or (before is not None and options.gracePeriod >= before):
            raise _conflict(vm, f"{strategy} only supports manual stop requests with a shorter graceperiod")
    return [*hurry, _requests([_stop_request(vmi)])]


def restart(vm: VirtualMachine, vmi: VirtualMachineInstance | None, options: RestartOptions) -> list[VmPatch]:
    """Patches that restart the VM. Raises StatusError: 400 for a grace period, 409 when it is not running."""
    if options.gracePeriodSeconds is not None and options.gracePeriodSeconds > 0:
        raise status.bad_request("For force restart, only gracePeriod=0 is supported for now")
    if options.gracePeriodSeconds is not None and options.gracePeriodSeconds < 0:
        raise status.bad_request("gracePeriod has to be greater or equal to 0")
    strategy = defaults.run_strategy(vm)
    if strategy in (names.RUN_HALTED, names.RUN_ONCE):
        raise _conflict(vm, f"RunStategy {strategy} does not support manual restart requests")
    if vmi is None:
        raise _conflict(vm, f"{NOT_RUNNING}: {names.RUN_HALTED}")
    _require_no_pending_request(vm)
    hurry = [_grace(0)] if options.gracePeriodSeconds == 0 and phase_of(vmi) not in names.FINAL_PHASES else []
    return [*hurry, _requests([_stop_request(vmi), {"action": names.ACTION_START}])]


def _conflict(vm: VirtualMachine, why: str) -> status.StatusError:
    return status.conflict(names.KIND_VM, vm.metadata.name or "", why)


def _require_no_pending_request(vm: VirtualMachine) -> None:
    if (vm.status or VirtualMachineStatus()).stateChangeRequests:
        raise _conflict(vm, REQUEST_PENDING)


def _start_request(options: StartOptions) -> Json:
    return {"action": names.ACTION_START, **({"data": PAUSED} if options.paused else {})}


def _stop_request(vmi: VirtualMachineInstance) -> Json:
    return {"action": names.ACTION_STOP, "uid": vmi.metadata.uid}


def _requests(requests: list[Json]) -> VmPatch:
    """Replaces all requests; a previous start failure is reset, so that the new request is not delayed."""
    return VmPatch("vm/status", {"status": {"stateChangeRequests": requests, "startFailure": None}})


def _run(vm: VirtualMachine, running: bool) -> Json:
    """The spec change, in the field that the VM uses: runStrategy or running."""
    if vm.spec.runStrategy is not None:
        return {"spec": {"runStrategy": names.RUN_ALWAYS if running else names.RUN_HALTED}}
    return {"spec": {"running": running}}


def _grace(seconds: int) -> VmPatch:
    return VmPatch("vmi", {"spec": {"terminationGracePeriodSeconds": seconds}})
