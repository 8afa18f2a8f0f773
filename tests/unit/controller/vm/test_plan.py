"""The plan for a VM on complete snapshots: run strategies, restarts, status."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from api import names
from api.errors import Fault
from api.k8s.meta import format_time
from api.k8s.objects import ControllerRevision
from api.kubevirt.vm import VirtualMachine, VirtualMachineStartFailure, VirtualMachineStatus
from api.kubevirt.vmi import VirtualMachineInstance
from controller.actions import Create, Delete, Patch, RecordEvent
from controller.vm import revisions, run_strategy, template
from controller.vm.plan import ObservedVm, plan, refused
from controller.vm.run_strategy import RunAction, decide
from kit.reconcile import RequeueAfter
from tests.unit.controller.objects import LONG_AGO, NOW, SPEC, STAMP, vm, vmi

START = {"action": "Start"}
RAN = {"Pending": LONG_AGO, "Running": LONG_AGO}


def ago(seconds: float) -> str:
    return format_time(NOW - timedelta(seconds=seconds))


def mine(phase: str = "Running", **more: Any) -> VirtualMachineInstance:
    ran = {"Pending": LONG_AGO, "Running": ago(100)}
    if phase in names.FINAL_PHASES:
        ran[phase] = STAMP
    return vmi(phase, owner="vm-uid", stamps=more.pop("stamps", ran), **more)


def see(machine: VirtualMachine, instance: VirtualMachineInstance | None = None, **more: Any) -> list[Any]:
    # A template that was started before. For new templates: tests/unit/controller/vm/test_revisions.py.
    made = [each.obj for each in revisions.keep(machine, []) if isinstance(each, Create)]
    more.setdefault("revisions", msgspec.convert(made, list[ControllerRevision]))
    return plan(ObservedVm(vm=machine, vmi=instance, now=NOW, **more))


def kinds(actions: list[Any]) -> list[str]:
    """The actions on VMIs, without Events and status patches."""
    return [type(action).__name__ for action in actions if isinstance(action, (Create, Delete))]


def made(actions: list[Any]) -> dict[str, Any]:
    """The spec of the VMI that is created."""
    (create,) = [action for action in actions if isinstance(action, Create)]
    spec: dict[str, Any] = create.obj["spec"]
    return spec


def told(actions: list[Any]) -> dict[str, Any]:
    """The status patch."""
    (patch,) = [action for action in actions if isinstance(action, Patch) and action.subresource == "status"]
    status: dict[str, Any] = patch.patch["status"]
    return status


def after(machine: VirtualMachine, instance: VirtualMachineInstance | None = None, **more: Any) -> VirtualMachine:
    """The VM with the status patch of its plan applied."""
    for action in see(machine, instance, **more):
        if isinstance(action, Patch) and action.subresource == "status":
            old = msgspec.to_builtins(machine.status or VirtualMachineStatus())
            status = {key: value for key, value in {**old, **action.patch["status"]}.items() if value is not None}
            machine = msgspec.structs.replace(machine, status=msgspec.convert(status, VirtualMachineStatus))
    return machine


# ---- run strategies: (strategy, VMI's phase or None, requests, status.runStrategy) -> what happens to the VMI

TABLE = [
    ("Always", None, [], None, ["Create"]),
    (True, None, [], None, ["Create"]),
    ("Always", "Running", [], "Always", []),
    ("Always", "Succeeded", [], "Always", ["Delete"]),
    ("Always", "Failed", [], "Always", ["Delete"]),
    ("Always", "Running", [{"action": "Stop", "uid": "vmi-uid"}], "Always", ["Delete"]),
    ("Always", "Running", [{"action": "Stop", "uid": "an-earlier-one"}], "Always", []),
    ("Halted", None, [], None, []),
    (False, None, [START], None, []),
    ("Halted", "Running", [], "Always", ["Delete"]),
    ("Halted", "Succeeded", [], "Halted", ["Delete"]),
    ("Manual", None, [], "Halted", []),
    ("Manual", None, [START], "Manual", ["Create"]),
    ("Manual", "Running", [], "Manual", []),
    ("Manual", "Running", [{"action": "Stop", "uid": "vmi-uid"}], "Manual", ["Delete"]),
    ("Manual", "Running", [{"action": "Stop", "uid": "vmi-uid"}, START], "Manual", ["Delete"]),
    ("Manual", "Failed", [], "Manual", []),
    ("Manual", "Succeeded", [START], "Manual", ["Delete"]),
    ("RerunOnFailure", None, [], "Halted", ["Create"]),
    ("RerunOnFailure", None, [], None, ["Create"]),
    ("RerunOnFailure", None, [], "RerunOnFailure", []),
    ("RerunOnFailure", None, [START], "RerunOnFailure", ["Create"]),
    ("RerunOnFailure", "Running", [], "RerunOnFailure", []),
    ("RerunOnFailure", "Failed", [], "RerunOnFailure", ["Delete"]),
    ("RerunOnFailure", "Succeeded", [], "RerunOnFailure", ["Delete"]),
    ("Once", None, [], "Halted", ["Create"]),
    ("Once", None, [], "Once", []),
    ("Once", "Succeeded", [], "Once", []),
    ("Once", "Failed", [], "Once", []),
    ("Once", "Running", [{"action": "Stop", "uid": "vmi-uid"}], "Once", ["Delete"]),
]


@pytest.mark.parametrize("strategy, phase, requests, acted, expected", TABLE)
def test_run_strategy_decision(
    strategy: str | bool,
    phase: str | None,
    requests: list[Any],
    acted: str | None,
    expected: list[str],
) -> None:
    machine = vm(run=strategy, stateChangeRequests=requests, **({"runStrategy": acted} if acted else {}))
    assert kinds(see(machine, mine(phase) if phase else None)) == expected


@pytest.mark.parametrize("strategy", ["Always", "Halted", "Manual", "RerunOnFailure", "Once"])
def test_terminating_vmi_is_not_deleted_again(strategy: str) -> None:
    assert kinds(see(vm(run=strategy), mine("Running", deleting=True))) == []


def test_rerun_on_failure_restarts_only_failed_vmi() -> None:
    failed = after(vm(run="RerunOnFailure", runStrategy="RerunOnFailure"), mine("Failed"))
    assert kinds(see(failed, mine("Failed"))) == ["Delete"]
    assert kinds(see(failed)) == ["Create"]
    finished = after(vm(run="RerunOnFailure", runStrategy="RerunOnFailure"), mine("Succeeded"))
    assert kinds(see(finished)) == []


def test_deleted_event_names_cause_of_failure() -> None:
    why = {"type": "Ready", "status": "False", "reason": "GuestNotRunning", "message": "the launcher pod was evicted"}
    failed = mine("Failed", reason="EvictionByEvictionAPI", conditions=[why])
    (said,) = [each for each in see(vm(run="RerunOnFailure", runStrategy="RerunOnFailure"), failed)
               if isinstance(each, RecordEvent)]  # fmt: skip
    assert said.message.endswith("which has failed: EvictionByEvictionAPI: the launcher pod was evicted")


def test_start_request_is_dropped_when_vmi_exists() -> None:
    started = after(vm(run="Manual", stateChangeRequests=[START]), mine("Pending", stamps={}))
    assert started.status and started.status.stateChangeRequests is None


def test_restart_keeps_start_request() -> None:
    requests = [{"action": "Stop", "uid": "vmi-uid"}, START]
    stopping = after(vm(run="Manual", stateChangeRequests=requests), mine("Running", deleting=True))
    assert kinds(see(stopping)) == ["Create"]


# ---- restarts


def test_start_failure_is_written_before_vmi_is_deleted() -> None:
    actions = see(vm(), mine("Failed"))
    order = [type(action).__name__ for action in actions if isinstance(action, (Patch, Delete))]
    assert order == ["Patch", "Delete"]
    assert told(actions)["startFailure"] == {
        "consecutiveFailCount": 1,
        "lastFailedVMIUID": "vmi-uid",
        "retryAfterTimestamp": STAMP,
    }


def test_failure_of_vmi_is_counted_once() -> None:
    noted = after(vm(), mine("Failed"))
    assert kinds(see(noted, mine("Failed"))) == ["Delete"]
    assert not [action for action in see(noted, mine("Failed")) if isinstance(action, Patch)]


@pytest.mark.parametrize(
    "count, has_run, seconds",
    [
        (1, True, 0),
        (2, True, 10),
        (3, True, 20),
        (6, True, 160),
        (7, True, 300),
        (50, True, 300),
        (1, False, 10),
        (2, False, 20),
        (5, False, 160),
        (6, False, 300),
    ],
)
def test_restart_delay_doubles_up_to_five_minutes(count: int, has_run: bool, seconds: int) -> None:
    assert run_strategy.delay(count, has_run) == seconds


def test_back_off_is_reported_with_cause() -> None:
    ready = {"type": "Ready", "status": "False", "reason": "x", "message": "QEMU was killed"}
    machine = vm(startFailure={"consecutiveFailCount": 2, "lastFailedVMIUID": "u", "retryAfterTimestamp": ago(100)})
    failed = mine(
        "Failed", uid="second", stamps={"Running": ago(9), "Failed": STAMP}, conditions=[ready], reason="Crashed"
    )
    waiting = after(after(machine, failed))
    assert waiting.status and waiting.status.printableStatus == "CrashLoopBackOff"
    failure = next(c for c in waiting.status.conditions or [] if c.type == "Failure")
    assert (failure.reason, failure.message) == ("Crashed", "QEMU was killed")
    (again,) = see(waiting)
    assert isinstance(again, RequeueAfter) and 20 <= again.seconds <= 20.2
    due = plan(ObservedVm(vm=waiting, now=NOW + timedelta(seconds=21)))
    assert VirtualMachineInstance in [action.kind for action in due if isinstance(action, Create)]


def test_run_of_five_minutes_resets_failure_count() -> None:
    failure = VirtualMachineStartFailure(consecutiveFailCount=7, lastFailedVMIUID="u", retryAfterTimestamp=LONG_AGO)
    stable = mine("Failed", stamps={"Running": ago(301), "Failed": STAMP})
    counted = run_strategy.failure_after(failure, stable, NOW)
    assert counted and counted.consecutiveFailCount == 1
    assert run_strategy.failure_after(failure, mine(stamps={"Running": ago(301)}), NOW) is None
    assert run_strategy.failure_after(failure, mine(stamps={"Running": ago(299)}), NOW) is failure


def test_requested_stop_is_not_counted_as_failure() -> None:
    assert run_strategy.failure_after(None, mine("Succeeded", deleting=True), NOW) is None
    assert run_strategy.failure_after(None, mine("Failed", deleting=True), NOW) is None


def test_halted_vm_drops_failures() -> None:
    failure = {"consecutiveFailCount": 3, "lastFailedVMIUID": "u", "retryAfterTimestamp": "2027-01-01T00:00:00Z"}
    assert told(see(vm(run="Halted", startFailure=failure)))["startFailure"] is None


def test_run_strategy_is_not_recorded_while_start_is_pending() -> None:
    failure = {"consecutiveFailCount": 3, "lastFailedVMIUID": "u", "retryAfterTimestamp": "2027-01-01T00:00:00Z"}
    waiting = after(vm(run="RerunOnFailure", runStrategy="Halted", startFailure=failure))
    assert decide(waiting, None, NOW).want is RunAction.WAIT


# ---- creation of the VMI


def test_vmi_is_template_with_defaults_finalizer_and_phase_pending() -> None:
    (create,) = [action for action in see(vm(generation=3)) if isinstance(action, Create)]
    made = create.obj
    assert made["metadata"]["finalizers"] == [names.FINALIZER_VMI]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "vm-uid"
    assert made["metadata"]["annotations"][names.ANNOTATION_GENERATION] == "3"
    assert made["status"]["phase"] == "Pending"
    assert made["spec"]["domain"]["machine"]["type"] == "q35"
    assert "uid" not in made["metadata"] and "resourceVersion" not in made["metadata"]


def test_create_and_delete_rounds_write_no_status() -> None:
    assert not [action for action in see(vm()) if isinstance(action, Patch)]
    assert not [action for action in see(vm(run="Halted"), mine()) if isinstance(action, Patch)]


def test_vmi_with_other_owner_is_kept_and_reported() -> None:
    actions = see(vm(), vmi("Running", owner="another"))
    assert kinds(actions) == []
    assert told(actions)["conditions"][-1]["reason"] == "NameTaken"
    # A terminating VMI is waited for.
    assert "Failure" not in [c["type"] for c in told(see(vm(), vmi("Running", owner="x", deleting=True)))["conditions"]]


@pytest.mark.parametrize("run", ["Always", "Halted", "Manual"])
def test_vmi_without_owner_is_adopted(run: str) -> None:
    """As in KubeVirt, for every run strategy; the strategy is applied in the next round."""
    adopt, event = see(vm(run=run), vmi("Running"))
    assert isinstance(adopt, Patch) and adopt.kind is VirtualMachineInstance
    assert adopt.patch == {
        "metadata": {
            "uid": "vmi-uid",
            "resourceVersion": "7",
            "ownerReferences": [
                {
                    "apiVersion": "kubevirt.io/v1",
                    "kind": "VirtualMachine",
                    "name": "web",
                    "uid": "vm-uid",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        }
    }
    assert isinstance(event, RecordEvent) and event.reason == names.REASON_ADOPTED


def test_adoption_keeps_non_controller_owners() -> None:
    owned = vmi("Running", owner="somebody")
    reference = msgspec.structs.replace(owned.metadata.ownerReferences[0], controller=None)  # type: ignore[index]
    owned = msgspec.structs.replace(
        owned, metadata=msgspec.structs.replace(owned.metadata, ownerReferences=[reference])
    )
    patch = see(vm(), owned)[0]
    assert [each["uid"] for each in patch.patch["metadata"]["ownerReferences"]] == ["somebody", "vm-uid"]


def test_no_adoption_if_vm_or_vmi_is_being_deleted() -> None:
    assert not [each for each in see(vm(deleting=True), vmi("Running")) if isinstance(each, RecordEvent)]
    (patch,) = see(vm(deleting=True), vmi("Running"))
    assert patch.patch["metadata"] == {"finalizers": None, "resourceVersion": "5"}
    assert not [each for each in see(vm(), vmi("Running", deleting=True)) if isinstance(each, RecordEvent)]


@pytest.mark.parametrize("owner", ["vm-uid", ""])
def test_vm_deleted_with_orphan_keeps_vmi(owner: str) -> None:
    """Before and after the garbage collector has removed the owner reference."""
    orphaning = vm(deleting=True)
    orphaning.metadata.finalizers.append("orphan")  # type: ignore[union-attr]
    (patch,) = see(orphaning, vmi("Running", owner=owner))
    assert patch.kind is VirtualMachine and patch.patch["metadata"]["finalizers"] == ["orphan"]


def test_vmi_is_deleted_with_resource_version_precondition() -> None:
    """The garbage collector may have orphaned it meanwhile; only the resourceVersion detects that."""
    delete = next(each for each in see(vm(deleting=True), mine()) if isinstance(each, Delete))
    assert (delete.uid, delete.version) == ("vmi-uid", "7")


def test_invalid_vm_is_not_started_and_reports_all_faults() -> None:
    faults = [Fault("spec.template.spec.a", "FieldValueInvalid", "bad"), Fault("spec.template.spec.b", "x", "worse")]
    actions = see(vm(run="RerunOnFailure"), faults=faults)
    status = told(actions)
    assert kinds(actions) == [] and status["printableStatus"] == "Stopped"
    failure = next(c for c in status["conditions"] if c["type"] == "Failure")
    assert failure["message"] == "spec.template.spec.a: bad; spec.template.spec.b: worse"
    assert [action.message for action in actions if isinstance(action, RecordEvent)] == [failure["message"]]
    broken = after(vm(run="RerunOnFailure"), faults=faults)
    assert not [action for action in see(broken, faults=faults) if not isinstance(action, RequeueAfter)], (
        "reported twice"
    )
    assert kinds(see(broken)) == ["Create"], "the corrected VM does not start"


def test_invalid_change_does_not_stop_running_vm() -> None:
    assert kinds(see(vm(), mine(), faults=[Fault("spec.x", "x", "bad")])) == []


def test_refused_vmi_is_reported_once() -> None:
    patch, event = refused(vm(), "exceeded quota: q", NOW)
    assert isinstance(patch, Patch) and isinstance(event, RecordEvent)
    status = msgspec.convert(patch.patch["status"], VirtualMachineStatus)
    assert not list(refused(msgspec.structs.replace(vm(), status=status), "exceeded quota: q", NOW))


def test_vm_on_unresponsive_node_is_unknown_and_not_restarted() -> None:
    lost = {"type": "Ready", "status": "False", "reason": "NodeNotReady", "message": "Node node1 is silent"}
    for phase in ("Scheduled", "Running"):
        actions = see(vm(), mine(phase, conditions=[lost]))
        status = told(actions)
        assert status["printableStatus"] == "Unknown" and kinds(actions) == []
        ready = next(c for c in status["conditions"] if c["type"] == "Ready")
        assert (ready["status"], ready["reason"], ready["message"]) == ("False", "NodeNotReady", "Node node1 is silent")
    paused = {"type": "Paused", "status": "True", "reason": "PausedByUser"}
    assert told(see(vm(), mine(conditions=[lost, paused])))["printableStatus"] == "Unknown", "it was paused"
    assert told(see(vm(), mine("Failed", conditions=[lost])))["printableStatus"] != "Unknown"


# ---- deletion of the VM


def test_deleted_vm_waits_for_vmi() -> None:
    machine = vm(deleting=True)
    assert kinds(see(machine, mine())) == ["Delete"]
    assert told(see(machine, mine(deleting=True)))["printableStatus"] == "Terminating"
    (last,) = see(machine)
    assert last.patch["metadata"]["finalizers"] is None and last.subresource is None
    (last,) = see(machine, vmi("Running", owner="another"))
    assert last.patch["metadata"]["finalizers"] is None, "a VMI with another owner is not deleted"


def test_finalizer_is_added_with_resource_version_precondition() -> None:
    first = see(vm(run="Halted", finalizer=False))[0]
    assert first.patch["metadata"] == {"finalizers": [names.FINALIZER_VM], "resourceVersion": "5"}


# ---- status


def sick(kind: str, reason: str, message: str = "m") -> dict[str, Any]:
    return {"type": kind, "status": "False", "reason": reason, "message": message}


SHOWN = [
    ("Terminating", {"deleting": True}, mine()),
    ("Stopping", {"run": "Halted"}, mine(deleting=True)),
    ("Migrating", {}, mine(migrationState={"startTimestamp": STAMP})),
    ("Paused", {}, mine(conditions=[{"type": "Paused", "status": "True"}])),
    ("Running", {}, mine()),
    ("ErrorPvcNotFound", {}, mine("Pending", conditions=[sick("Synchronized", "FailedPvcNotFound")])),
    ("ErrorUnschedulable", {}, mine("Scheduling", conditions=[sick("PodScheduled", "Unschedulable")])),
    ("WaitingForVolumeBinding", {}, mine("Scheduling", conditions=[sick("PodScheduled", "WaitingForVolumeBinding")])),
    ("ErrImagePull", {}, mine("Scheduling", conditions=[sick("Synchronized", "ErrImagePull")])),
    ("ErrImagePull", {}, mine("Scheduled", conditions=[sick("Synchronized", "ErrImagePull")])),
    ("ImagePullBackOff", {}, mine("Scheduling", conditions=[sick("Synchronized", "ImagePullBackOff")])),
    *(
        ("ErrImagePull", {}, mine("Scheduling", conditions=[sick("Synchronized", reason)]))
        for reason in sorted(names.REASONS_NO_IMAGE)
    ),
    ("Starting", {}, mine("Scheduled")),
    ("Starting", {}, mine("Pending", stamps={})),
    ("Stopped", {"run": "Halted"}, None),
    ("Stopped", {"run": "Once", "runStrategy": "Once"}, mine("Failed")),
]


@pytest.mark.parametrize("shown, machine, instance", SHOWN)
def test_printable_status(shown: str, machine: dict[str, Any], instance: VirtualMachineInstance | None) -> None:
    status = after(vm(**machine), instance).status
    assert status and status.printableStatus == shown


def test_vm_is_ready_with_vmi_and_not_while_stopping() -> None:
    instance = mine(conditions=[{"type": "Ready", "status": "True"}])
    assert told(see(vm(), instance))["ready"] is True
    stopping = mine(deleting=True, conditions=[{"type": "Ready", "status": "True"}])
    status = told(see(vm(run="Halted"), stopping))
    assert "ready" not in status and status["created"] is True
    # null removes the field: as in KubeVirt there is no `false`, and clients wait for it to disappear.
    running = after(vm(), instance)
    assert running.status and running.status.ready
    gone = told(see(msgspec.structs.replace(running, spec=vm(run="Halted").spec), None))
    assert gone["ready"] is None and gone["created"] is None


def test_guest_end_does_not_change_status_of_stopping_vm() -> None:
    stopping = after(vm(run="Halted"), mine(deleting=True, conditions=[{"type": "Ready", "status": "True"}]))
    assert see(stopping, mine("Succeeded", deleting=True, conditions=[sick("Ready", "GuestNotRunning")])) == []


@pytest.mark.parametrize("phase", ["Pending", "Scheduling", "Scheduled"])
def test_phases_before_running_have_the_same_vm_status(phase: str) -> None:
    starting = after(vm(), mine("Pending", stamps={}))
    assert see(starting, mine(phase, stamps={}, conditions=[sick("Ready", "GuestNotRunning", "not yet")])) == []


def test_vmi_error_becomes_vm_failure_condition() -> None:
    status = told(see(vm(), mine("Scheduling", conditions=[sick("Synchronized", "FailedMount", "no secret s")])))
    failure = next(c for c in status["conditions"] if c["type"] == "Failure")
    assert (failure["reason"], failure["message"]) == ("FailedMount", "no secret s")
    healed = after(after(vm(), mine("Scheduling", conditions=[sick("Synchronized", "x")])), mine())
    assert healed.status and "Failure" not in [c.type for c in healed.status.conditions or []]


def test_restart_required_only_after_template_change() -> None:
    hashed = {names.ANNOTATION_TEMPLATE: template.hashes(vm().spec.template.spec)}
    same = after(vm(generation=9, run="Manual"), mine(annotations=hashed))
    assert "RestartRequired" not in [c.type for c in (same.status and same.status.conditions) or []]
    changed = vm(generation=9, spec={**SPEC, "hostname": "other"})
    assert "RestartRequired" in [c["type"] for c in told(see(changed, mine(annotations=hashed)))["conditions"]]


def hashed(spec: dict[str, Any] | None = None, generation: str = "2") -> dict[str, str]:
    """The annotations of a VMI created from this template."""
    made_from = template.hashes(vm(spec=spec).spec.template.spec)
    return {names.ANNOTATION_GENERATION: generation, names.ANNOTATION_TEMPLATE: made_from}


CHANGED = {**SPEC, "nodeSelector": {"disk": "ssd"}}
GENERATIONS: list[tuple[str, VirtualMachine, VirtualMachineInstance | None, dict[str, Any], int]] = [
    ("nothing changed", vm(generation=2), mine(annotations=hashed()), {}, 2),
    ("no restart needed", vm(generation=4, run="Manual"), mine(annotations=hashed()), {}, 4),
    ("a restart is needed", vm(generation=4, spec=CHANGED), mine(annotations=hashed()), {}, 2),
    ("put back as it was", vm(generation=5), mine(annotations=hashed()), {}, 5),
    ("faulty", vm(generation=4), mine(annotations=hashed()), {"faults": [Fault("spec.x", "Invalid", "y")]}, 2),
    ("on its way out", vm(generation=4, run="Halted"), mine(annotations=hashed(), deleting=True), {}, 2),
    ("ended", vm(generation=4, run="Manual", spec=CHANGED), mine("Succeeded", annotations=hashed()), {}, 4),
    ("no instance", vm(generation=4, run="Halted"), None, {}, 4),
]


@pytest.mark.parametrize("what, machine, instance, more, expected", GENERATIONS, ids=[case[0] for case in GENERATIONS])
def test_observed_generation_is_current_when_spec_is_in_effect(
    what: str, machine: VirtualMachine, instance: VirtualMachineInstance | None, more: dict[str, Any], expected: int
) -> None:
    status = told(see(machine, instance, **more))
    assert (status["desiredGeneration"], status["observedGeneration"]) == (machine.metadata.generation, expected)


# ---- template changes before the guest has started

STUCK = [sick("Synchronized", "FailedMount", "no secret s")]
UNSTARTED: list[tuple[str, dict[str, Any], bool]] = [
    ("", {}, True),
    ("Pending", {}, True),
    ("Scheduling", {}, True),
    ("Scheduled", {"conditions": STUCK}, True),
    ("Scheduled", {}, False),
    ("Running", {}, False),
    ("Running", {"conditions": STUCK}, False),
]


@pytest.mark.parametrize("phase, more, renewed", UNSTARTED)
@pytest.mark.parametrize("strategy", ["Always", "Manual", "RerunOnFailure", "Once"])
def test_vmi_that_never_ran_is_recreated_after_template_change(
    strategy: str, phase: str, more: dict[str, Any], renewed: bool
) -> None:
    waiting = mine(phase, stamps={}, annotations=hashed(), **more)
    machine = vm(run=strategy, runStrategy=strategy, generation=3, spec=CHANGED)
    actions = see(machine, waiting)
    assert kinds(actions) == (["Delete"] if renewed else [])
    if not renewed:
        return
    (gone,) = [action for action in actions if isinstance(action, Delete)]
    assert gone.version == waiting.metadata.resourceVersion
    (said,) = [action for action in actions if isinstance(action, RecordEvent)]
    assert "spec.nodeSelector" in said.message
    stopping = after(machine, waiting)
    assert kinds(see(stopping, mine(phase, stamps={}, annotations=hashed(), deleting=True, **more))) == []
    stopping = after(stopping, mine(phase, stamps={}, annotations=hashed(), deleting=True, **more))
    assert made(see(stopping))["nodeSelector"] == {"disk": "ssd"}
    begun = after(stopping, mine("Pending", stamps={}, annotations=hashed(CHANGED, "3"), uid="second"))
    assert kinds(see(begun, mine("Scheduling", stamps={}, annotations=hashed(CHANGED, "3"), uid="second"))) == []


def test_vmi_that_never_ran_is_kept_if_template_is_equivalent() -> None:
    assert kinds(see(vm(generation=3), mine("Scheduling", stamps={}, annotations=hashed()))) == []
    faulty = [Fault("spec.template.spec.nodeSelector", "Invalid", "no label")]
    found = see(vm(generation=3, spec=CHANGED), mine("Scheduling", stamps={}, annotations=hashed()), faults=faulty)
    assert kinds(found) == []


def test_paused_start_is_kept_when_vmi_is_recreated() -> None:
    waiting = mine("Scheduling", stamps={}, annotations=hashed(), spec={**SPEC, "startStrategy": "Paused"})
    machine = after(vm(run="Manual", runStrategy="Manual", spec=CHANGED), waiting)
    assert made(see(machine))["startStrategy"] == "Paused"


# ---- starting paused

PAUSED_START = {"action": "Start", "data": {"paused": "true"}}


@pytest.mark.parametrize("strategy", ["Manual", "RerunOnFailure", "Always"])
def test_paused_start_request_creates_paused_vmi(strategy: str) -> None:
    asked = vm(run=strategy, runStrategy=strategy, stateChangeRequests=[PAUSED_START])
    assert made(see(asked))["startStrategy"] == "Paused"
    assert "startStrategy" not in made(see(vm(run=strategy, runStrategy=strategy, stateChangeRequests=[START])))


def test_paused_start_request_is_kept_until_halted_vm_runs() -> None:
    asked = vm(run="Halted", runStrategy="Halted", stateChangeRequests=[PAUSED_START])
    assert kinds(see(asked)) == []
    assert decide(asked, None, NOW).requests == tuple(
        (asked.status or VirtualMachineStatus()).stateChangeRequests or ()
    )
    # Other requests of a VM that is not to run are dropped.
    assert decide(vm(run="Halted", stateChangeRequests=[START]), None, NOW).requests == ()


def test_start_request_is_dropped_after_create() -> None:
    asked = vm(run="Always", runStrategy="Always", stateChangeRequests=[PAUSED_START])
    assert decide(asked, mine("Scheduling"), NOW).requests == ()
