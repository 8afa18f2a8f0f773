"""The plan for a VMI, on complete snapshots."""

from dataclasses import replace
from datetime import timedelta
from math import inf
from typing import Any

import msgspec
import pytest

from api import defaults, names
from api.errors import Fault
from api.k8s.objects import Pod, PodDisruptionBudget
from api.kubevirt.configuration import DeveloperConfiguration, KubeVirtConfiguration, NetworkConfiguration
from api.kubevirt.vmi import VirtualMachineInstance
from controller.actions import Concurrently, Create, Delete, Patch, RecordEvent
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import pod as pods
from controller.vmi.evidence import Evidence, Fence
from controller.vmi.plan import ObservedVmi, plan
from kit.reconcile import RequeueAfter
from tests.unit.controller.objects import LONG_AGO, NOW, SPEC, STAMP, claim, pod, vmi

READY_FALSE = {
    "type": "Ready",
    "status": "False",
    "reason": "GuestNotRunning",
    "message": "The guest is not running yet",
    "lastTransitionTime": STAMP,
}
SCHEDULING = {"Pending": LONG_AGO, "Scheduling": LONG_AGO}
RUNNING = {**SCHEDULING, "Scheduled": LONG_AGO, "Running": LONG_AGO}
WITH_CLAIM = {**SPEC, "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}


def see(instance: VirtualMachineInstance, **more: Any) -> list[Any]:
    """The plan, with the actions of Concurrently flattened."""
    flat: list[Any] = []
    for action in plan(ObservedVmi(vmi=instance, now=NOW, **more)):
        flat += action.actions if isinstance(action, Concurrently) else [action]
    return flat


def waits(planned: list[Any]) -> bool:
    """Whether the plan does nothing but requeue."""
    return all(isinstance(action, RequeueAfter) for action in planned)


def status_of(action: Any) -> dict[str, Any]:
    assert isinstance(action, Patch) and action.kind is VirtualMachineInstance and action.subresource is None
    assert action.patch["metadata"]["uid"] == "vmi-uid", "a patch without UID could hit another VMI of that name"
    status: dict[str, Any] = action.patch.get("status", {})
    return status


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(c for c in status["conditions"] if c["type"] == kind)


# ---- creation of the pod


@pytest.mark.parametrize("phase", ["", "Pending"])
def test_new_vmi_only_creates_pod(phase: str) -> None:
    (action,) = see(vmi(phase))
    assert isinstance(action, Create) and action.kind is Pod
    assert action.obj["metadata"]["ownerReferences"][0]["uid"] == "vmi-uid"


def test_pod_name_depends_on_vmi_uid() -> None:
    assert pods.pod_name(vmi()) == pods.pod_name(vmi("Pending"))
    assert pods.pod_name(vmi()) != pods.pod_name(vmi(uid="another"))


def test_invalid_vmi_reports_all_faults_once() -> None:
    faults = [Fault("spec.a", "FieldValueInvalid", "too long"), Fault("spec.b", "FieldValueRequired", "missing")]
    patch, event = see(vmi(finalizer=False), faults=faults)
    told = condition(status_of(patch), "Synchronized")
    assert told["reason"] == "InvalidSpec" and told["message"] == "spec.a: too long; spec.b: missing"
    assert isinstance(event, RecordEvent) and event.message == told["message"] and event.type == "Warning"
    assert patch.patch["metadata"]["finalizers"] == [names.FINALIZER_VMI]
    again = vmi("Pending", conditions=[*status_of(patch)["conditions"]])
    assert see(again, faults=faults) == []


def test_missing_claim_is_reported_and_awaited() -> None:
    patch, event = see(vmi("Pending", spec=WITH_CLAIM))
    told = condition(status_of(patch), "Synchronized")
    assert (
        told["reason"] == names.REASON_FAILED_PVC_NOT_FOUND and "data not found in namespace default" in told["message"]
    )
    assert isinstance(event, RecordEvent)
    (action,) = see(vmi("Pending", spec=WITH_CLAIM), claims={"data": claim("data")})
    assert isinstance(action, Create)


# ---- until the hand-over


EMULATING = ControllerSettings(
    configuration=KubeVirtConfiguration(developerConfiguration=DeveloperConfiguration(useEmulation=True))
)
FOR_KVM = {"devices.kubevirt.io/kvm": "1", "devices.kubevirt.io/tun": "1"}


def test_pending_pod_requesting_kvm_is_recreated_for_emulation() -> None:
    """Such as one created before emulation was allowed."""
    waiting = vmi("Scheduling", stamps=SCHEDULING)
    back, told, gone = see(waiting, pod=pod(limits=FOR_KVM), settings=EMULATING)
    assert status_of(back)["phase"] == "Pending", "a VMI without a pod in a later phase would count as failed"
    assert isinstance(told, RecordEvent) and told.type == "Normal"
    assert isinstance(gone, Delete) and gone.uid == "pod-uid"
    assert gone.version == "9", "it may have been bound meanwhile"
    # The result of the first write is observed before the second.
    assert see(vmi("Pending"), pod=pod(limits=FOR_KVM), settings=EMULATING) == [gone]
    assert see(vmi("Pending"), pod=pod(limits=FOR_KVM, deleting=True), settings=EMULATING) == []
    (made,) = see(vmi("Pending"), settings=EMULATING)
    assert isinstance(made, Create)
    assert "devices.kubevirt.io/kvm" not in made.obj["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize(
    ("state", "limits", "settings"),
    [
        ("bound", FOR_KVM, EMULATING),
        ("running", FOR_KVM, EMULATING),
        ("pending", {"devices.kubevirt.io/tun": "1"}, EMULATING),
        ("pending", FOR_KVM, ControllerSettings()),
        ("pending", FOR_KVM, replace(EMULATING, kvm_offered=True)),
    ],
)
def test_other_pods_are_not_recreated(state: str, limits: dict[str, str], settings: ControllerSettings) -> None:
    planned = see(vmi("Scheduling", stamps=SCHEDULING), pod=pod(state, limits=limits), settings=settings)
    assert not [action for action in planned if isinstance(action, Delete | RecordEvent)]


def test_existing_pod_sets_phase_scheduling_in_one_write() -> None:
    instance = defaults.default_vmi(vmi("Pending", stamps={"Pending": LONG_AGO}, spec=WITH_CLAIM))
    (patch,) = see(instance, pod=pod(), claims={"data": claim("data")})
    status = status_of(patch)
    assert status["phase"] == "Scheduling" and status["activePods"] == {"pod-uid": ""}
    assert status["conditions"] == [READY_FALSE]
    assert [stamp["phase"] for stamp in status["phaseTransitionTimestamps"]] == ["Pending", "Scheduling"]
    assert (
        status["memory"]["guestAtBoot"] == "64Mi" and status["qosClass"] == "Burstable" and status["runtimeUser"] == 107
    )
    assert status["launcherContainerImageVersion"] == "launcher:1"
    assert status["volumeStatus"] == [
        {
            "name": "data",
            "target": "",
            "persistentVolumeClaimInfo": {
                "claimName": "data",
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "1Gi"},
                "requests": {"storage": "1Gi"},
                "volumeMode": "Filesystem",
                "filesystemOverhead": "0",
            },
        }
    ]
    assert "resourceVersion" not in patch.patch["metadata"] and "spec" not in patch.patch


def with_capacity(amount: str) -> dict[str, Any]:
    info = {"claimName": "data", "volumeMode": "Filesystem", "capacity": {"storage": amount}}
    return {"name": "data", "target": "vda", "size": 5, "persistentVolumeClaimInfo": info}


def test_grown_claim_updates_volume_status() -> None:
    other = {"name": "root", "target": "vdb", "size": 9}
    running = vmi("Running", spec=WITH_CLAIM, volumeStatus=[with_capacity("500Mi"), other])
    (patch,) = see(running, pod=pod("running", gate="True"), claims={"data": claim("data")})
    assert patch.patch["metadata"] == {"uid": "vmi-uid", "resourceVersion": "7"}, (
        "a merge patch replaces the whole list"
    )
    entry, untouched = status_of(patch)["volumeStatus"]
    assert entry["persistentVolumeClaimInfo"]["capacity"] == {"storage": "1Gi"}
    assert (entry["target"], entry["size"]) == ("vda", 5), "fields of the handler are kept"
    assert untouched["size"] == 9


@pytest.mark.parametrize("phase", ["Bound", "Lost"])
def test_unchanged_claim_is_not_written(phase: str) -> None:
    running = vmi("Running", spec=WITH_CLAIM, volumeStatus=[with_capacity("1Gi")])
    assert see(running, pod=pod("running", gate="True"), claims={"data": claim("data", phase)}) == []
    assert see(running, pod=pod("running", gate="True")) == [], "a deleted claim does not change the capacity"


@pytest.mark.parametrize("ready", [False, True])
def test_defaults_are_written_to_spec_before_hand_over(ready: bool) -> None:
    """A VMI that was created while no gateway was running. The handler does not know the KubeVirt CR."""
    chosen = KubeVirtConfiguration(
        network=NetworkConfiguration(defaultNetworkInterface="bridge"), cpuModel="Haswell", machineType="pc-q35-9.0"
    )
    settings = ControllerSettings(configuration=chosen)
    launcher = pod("running") if ready else pod()
    patch = see(vmi("Pending"), pod=launcher, settings=settings)[0]
    assert status_of(patch)["phase"] == ("Scheduled" if ready else "Scheduling")
    assert patch.patch["spec"]["networks"] == [{"name": "default", "pod": {}}]
    domain = patch.patch["spec"]["domain"]
    assert domain["devices"]["interfaces"] == [{"name": "default", "bridge": {}, "model": "virtio"}]
    assert (domain["cpu"]["model"], domain["machine"]) == ("Haswell", {"type": "pc-q35-9.0"})
    assert patch.patch["metadata"]["resourceVersion"] == "7"
    written = merge(SPEC, patch.patch["spec"])
    (later, *_) = see(vmi("Pending", spec=written), pod=launcher, settings=settings)
    assert "spec" not in later.patch and status_of(later)["phase"] == status_of(patch)["phase"]
    instance = vmi("Pending", spec=written)
    assert defaults.default_vmi(instance, config=chosen) == instance


def merge(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386."""
    result = {key: value for key, value in document.items() if key not in patch or patch[key] is not None}
    for key, value in patch.items():
        if value is not None:
            before = result.get(key)
            result[key] = merge(before if isinstance(before, dict) else {}, value) if isinstance(value, dict) else value
    return result


def test_user_created_vmi_gets_finalizer_in_same_write() -> None:
    (patch,) = see(vmi(finalizer=False), pod=pod())
    assert patch.patch["metadata"] == {"uid": "vmi-uid", "finalizers": [names.FINALIZER_VMI], "resourceVersion": "7"}
    assert status_of(patch)["phase"] == "Scheduling"


@pytest.mark.parametrize("launcher", [pod("pending"), pod("bound", gate="True")])
def test_unchanged_state_writes_nothing(launcher: Pod) -> None:
    assert see(vmi("Scheduling", stamps=SCHEDULING, conditions=[READY_FALSE]), pod=launcher) == []


def test_readiness_gate_is_set_when_pod_is_bound() -> None:
    (gate,) = see(vmi("Scheduling", stamps=SCHEDULING, conditions=[READY_FALSE]), pod=pod("bound"))
    assert isinstance(gate, Patch) and gate.subresource == "status" and gate.patch_kind == "strategic"
    (opened,) = gate.patch["status"]["conditions"]
    assert (opened["type"], opened["status"]) == (names.READINESS_GATE, "True")


def test_running_launcher_is_handed_over() -> None:
    starting = vmi("Scheduling", stamps=SCHEDULING, conditions=[READY_FALSE])
    (hand_over,) = see(starting, pod=pod("running", gate="True"))
    status = status_of(hand_over)
    assert status["phase"] == "Scheduled" and status["nodeName"] == "node1"
    assert status["activePods"] == {"pod-uid": "node1"}
    assert hand_over.patch["metadata"]["labels"] == {names.LABEL_NODE_NAME: "node1"}


def test_hand_over_does_not_wait_for_readiness_gate() -> None:
    (both,) = plan(ObservedVmi(vmi=vmi("Scheduling", stamps=SCHEDULING), now=NOW, pod=pod("running")))
    assert isinstance(both, Concurrently) and [action.kind for action in both.actions] == [VirtualMachineInstance, Pod]  # type: ignore[union-attr]


@pytest.mark.parametrize("phase", ["Scheduled", "Running"])
def test_handed_over_vmi_is_not_written(phase: str) -> None:
    assert (
        see(vmi(phase, stamps=RUNNING), pod=pod("running", gate="True"), warning=("FailedMount", "no"), bound_for=99)
        == []
    )


def test_readiness_gate_is_set_after_crash() -> None:
    (gate,) = see(vmi("Running", stamps=RUNNING), pod=pod("running"))
    assert isinstance(gate, Patch) and gate.kind is Pod


def test_guest_started_paused_is_not_ready_until_resumed() -> None:
    spec = {**SPEC, "startStrategy": "Paused"}
    starting = vmi("Scheduling", stamps=SCHEDULING, conditions=[READY_FALSE], spec=spec)
    assert see(starting, pod=pod("bound")) == []
    held = vmi("Running", stamps=RUNNING, spec=spec, conditions=[{"type": "Paused", "status": "True"}])
    assert see(held, pod=pod("running")) == []
    (gate,) = see(vmi("Running", stamps=RUNNING, spec=spec), pod=pod("running"))
    assert gate.patch["status"]["conditions"][0]["status"] == "True"


def test_paused_guest_clears_readiness_gate() -> None:
    paused = vmi("Running", stamps=RUNNING, conditions=[{"type": "Paused", "status": "True"}])
    (gate,) = see(paused, pod=pod("running", gate="True"))
    assert gate.patch["status"]["conditions"][0]["status"] == "False"
    assert see(paused, pod=pod("running", gate="False")) == []


# ---- problems before the pod runs


def test_scheduling_failure_is_reported_in_condition_and_event() -> None:
    waiting = vmi("Scheduling", stamps=SCHEDULING, conditions=[READY_FALSE])
    patch, event = see(waiting, pod=pod(unschedulable="0/2 nodes are available"))
    told = condition(status_of(patch), "PodScheduled")
    assert (told["status"], told["reason"], told["message"]) == ("False", "Unschedulable", "0/2 nodes are available")
    assert isinstance(event, RecordEvent) and event.reason == "Unschedulable"
    known = vmi("Scheduling", stamps=SCHEDULING, conditions=status_of(patch)["conditions"])
    assert see(known, pod=pod(unschedulable="0/2 nodes are available")) == []
    (cleared,) = see(known, pod=pod("bound", gate="True"))
    assert [c["type"] for c in status_of(cleared)["conditions"]] == ["Ready"]


def test_unbound_claim_is_named_in_condition() -> None:
    waiting = vmi("Scheduling", stamps=SCHEDULING, spec=WITH_CLAIM)
    patch, _ = see(waiting, pod=pod(unschedulable="unbound"), claims={"data": claim("data", phase="Pending")})
    assert condition(status_of(patch), "PodScheduled")["reason"] == "WaitingForVolumeBinding"


def test_image_pull_error_is_reported_at_most_twice() -> None:
    instance = vmi("Scheduling", stamps=SCHEDULING, conditions=[READY_FALSE])
    writes = 0
    for reason, message in [
        ("ErrImagePull", "no such image x:1"),
        ("ImagePullBackOff", 'Back-off pulling image "x:1": ErrImagePull: no such image x:1'),
        ("ErrImagePull", "no such image x:1"),
        ("ImagePullBackOff", 'Back-off pulling image "x:1"'),
    ]:
        for action in see(instance, pod=pod("bound", gate="True", waiting={"reason": reason, "message": message})):
            if isinstance(action, Patch):
                writes += 1
                told = condition(status_of(action), "Synchronized")
                assert "no such image x:1" in told["message"], "the cause is lost"
                instance = vmi("Scheduling", stamps=SCHEDULING, conditions=status_of(action)["conditions"])
    assert writes == 2


def test_failed_mount_is_reported_after_warning_seconds() -> None:
    instance, warning = (
        vmi("Scheduling", stamps=SCHEDULING, conditions=[READY_FALSE]),
        ("FailedMount", 'secret "s" not found'),
    )
    (again,) = see(instance, pod=pod("bound", gate="True"), warning=warning, bound_for=1)
    assert again == RequeueAfter(4)
    patch, event = see(instance, pod=pod("bound", gate="True"), warning=warning, bound_for=5)
    assert condition(status_of(patch), "Synchronized")["message"] == 'secret "s" not found'
    assert isinstance(event, RecordEvent) and event.reason == "FailedMount"


@pytest.mark.parametrize("strategy", [None, "None", "LiveMigrate", "LiveMigrateIfPossible", "External"])
@pytest.mark.parametrize("whose", ["VMI", "cluster"])
def test_eviction_strategy_creates_disruption_budget(strategy: Any, whose: str) -> None:
    spec = {**SPEC, "evictionStrategy": strategy} if whose == "VMI" and strategy else SPEC
    config = KubeVirtConfiguration(evictionStrategy=strategy if whose == "cluster" else None)
    made = see(vmi("Pending", spec=spec), settings=ControllerSettings(configuration=config))
    budgets = [each.obj for each in made if isinstance(each, Create) and each.kind is PodDisruptionBudget]
    assert [each.kind for each in made if isinstance(each, Create)][-1] is Pod
    if strategy not in ("LiveMigrate", "External"):
        assert budgets == []
        return
    (budget,) = budgets
    launcher = made[-1].obj["metadata"]
    selector = budget["spec"]["selector"]["matchLabels"]
    assert selector.items() <= launcher["labels"].items() and budget["spec"]["minAvailable"] == 1
    assert budget["metadata"]["ownerReferences"] == launcher["ownerReferences"]
    assert budget["metadata"]["name"].startswith("kubevirt-disruption-budget-web-")


# ---- the end


def test_handler_has_two_seconds_to_report_the_end() -> None:
    (again,) = see(vmi("Running", stamps=RUNNING), pod=pod("ended"), ended_for=0.5)
    assert again == RequeueAfter(1.5)


@pytest.mark.parametrize(
    "launcher, phase, reason",
    [
        (pod("ended", message='{"phase":"Succeeded","reason":"Shutdown","message":"off"}'), "Succeeded", "Shutdown"),
        (
            pod("ended", message='{"phase":"Failed","reason":"Crashed","message":"boom"}', exit_code=1),
            "Failed",
            "Crashed",
        ),
        (pod("ended", message='{"phase":"Running"}'), "Succeeded", "LauncherEnded"),
        (pod("ended", message="no json", exit_code=137), "Failed", "LauncherEnded"),
        (pod("ended", message='{"phase":"Failed","reason":"<b>; rm -rf"}'), "Failed", "LauncherEnded"),
        (None, "Failed", "PodNotExists"),
        (pod("ended", exit_code=1, containerStatuses=[], reason="Evicted"), "Failed", "Evicted"),
    ],
)
def test_termination_message_is_used_without_handler(launcher: Pod | None, phase: str, reason: str) -> None:
    # The kubelet reports no container statuses: the handler found no process and removed the pod from activePods.
    listed = {"pod-uid": "node1"} if launcher and launcher.status.containerStatuses else {}
    actions = see(vmi("Running", stamps=RUNNING, activePods=listed), pod=launcher, ended_for=2)
    status = status_of(actions[0])
    assert (status["phase"], status["reason"]) == (phase, reason)
    assert status.get("activePods", {}) == dict.fromkeys(listed)
    assert actions[0].patch["metadata"]["resourceVersion"] == "7", "the handler may have reported it meanwhile"
    assert [type(action) for action in actions[1:]] == ([RecordEvent] if phase == "Failed" else [])


TOLD = '{"phase":"Succeeded","reason":"%s","message":"the guest shut down"}'


def disrupted(reason: str) -> list[dict[str, str]]:
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why"}]


@pytest.mark.parametrize("said", ["Terminated", "ForceOff", "NeverStarted"])
@pytest.mark.parametrize(
    "more, phase, reason",
    [
        ({"deleting": True}, "Failed", "PodDeleted"),
        ({"deleting": True, "conditions": disrupted("EvictionByEvictionAPI")}, "Failed", "EvictionByEvictionAPI"),
        ({"conditions": disrupted("TerminationByKubelet"), "reason": "Terminated", "exit_code": 1}, "Failed",
         "Terminated"),
        ({"reason": "Evicted", "exit_code": 1}, "Failed", "Evicted"),
        ({}, "Failed", "PodTerminated"),
    ],
)  # fmt: skip
def test_disrupted_vmi_fails_with_cause(said: str, more: dict[str, Any], phase: str, reason: str) -> None:
    more = dict(more)
    conditions, made = more.pop("conditions", None), pod("ended", message=TOLD % said, **more)
    if conditions:
        made = msgspec.convert({**msgspec.to_builtins(made), "status": {**msgspec.to_builtins(made.status),
                               "conditions": conditions}}, Pod)  # fmt: skip
    running = vmi("Running", stamps=RUNNING, activePods={"pod-uid": "node1"})
    patch, event = see(running, pod=made, ended_for=2)
    assert (status_of(patch)["phase"], status_of(patch)["reason"]) == (phase, reason)
    assert event.reason == reason and "the guest shut down" in event.message
    # A VMI that is being deleted has ended as requested.
    going = vmi("Running", stamps=RUNNING, deleting=True, activePods={"pod-uid": "node1"})
    last, *_ = see(going, pod=made, ended_for=2)
    assert status_of(last.actions[0] if isinstance(last, Concurrently) else last)["phase"] == "Succeeded"


@pytest.mark.parametrize("reason, told", [("Evicted", "Evicted"), ("Preempting", "Preempting"), ("x", "PodTerminated")])
def test_disruption_cause_is_taken_from_kubelet_event(reason: str, told: str) -> None:
    """Kubernetes 1.36 drops the eviction from the status of a pod whose containers all succeeded."""
    running = vmi("Running", stamps=RUNNING, activePods={"pod-uid": "node1"})
    warning = (reason, 'Usage of EmptyDir volume "hyperlet" exceeds the limit')
    patch, event = see(running, pod=pod("ended", message=TOLD % "ForceOff"), ended_for=2, warning=warning)
    assert (status_of(patch)["phase"], status_of(patch)["reason"], event.reason) == ("Failed", told, told)


def test_failed_liveness_probe_is_reported() -> None:
    probed = {**SPEC, "livenessProbe": {"tcpSocket": {"port": 80}}}
    running = vmi("Running", stamps=RUNNING, activePods={"pod-uid": "node1"}, spec=probed)
    patch, event = see(running, pod=pod("ended", message=TOLD % "Terminated"), ended_for=2)
    assert (status_of(patch)["phase"], event.reason) == ("Failed", "LivenessProbeFailed")
    patch, *rest = see(running, pod=pod("ended", message=TOLD % "Shutdown"), ended_for=2)
    assert (status_of(patch)["phase"], rest) == ("Succeeded", [])


def test_termination_message_is_bounded() -> None:
    words = '{"phase":"Failed","reason":"Crashed","message":"' + "x" * 4000 + '"}'
    status = status_of(see(vmi("Running", stamps=RUNNING), pod=pod("ended", message=words), ended_for=2)[0])
    assert len(condition(status, "Ready")["message"]) == 1024


def test_pod_end_before_hand_over_fails_vmi_at_once() -> None:
    assert status_of(see(vmi("Scheduling", stamps=SCHEDULING), pod=pod("ended", exit_code=1))[0])["phase"] == "Failed"
    assert status_of(see(vmi("Scheduling", stamps=SCHEDULING))[0])["phase"] == "Failed"


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_finished_vmi_keeps_pod_until_deleted(phase: str) -> None:
    assert see(vmi(phase, stamps=RUNNING), pod=pod("ended")) == []


def test_idle_launcher_of_finished_vmi_is_deleted_after_idle_seconds() -> None:
    waiting = pod("running")
    (later,) = see(vmi("Failed", stamps={**SCHEDULING, "Failed": STAMP}), pod=waiting)
    assert later == RequeueAfter(15.0)
    assert see(vmi("Failed", stamps={**SCHEDULING, "Failed": LONG_AGO}), pod=waiting) == [
        Delete(Pod, "default", "virt-launcher-web-x", "pod-uid", None)
    ]
    assert see(vmi("Failed", stamps={**SCHEDULING, "Failed": LONG_AGO}), pod=pod("running", deleting=True)) == []


# ---- deletion


def test_deletion_deletes_pod_with_its_own_grace_period_and_waits() -> None:
    (action,) = see(vmi("Running", stamps=RUNNING, deleting=True), pod=pod("running"))
    assert action == Delete(Pod, "default", "virt-launcher-web-x", "pod-uid", None)
    assert waits(see(vmi("Running", stamps=RUNNING, deleting=True), pod=pod("running", deleting=True)))


def test_changed_grace_period_is_honoured() -> None:
    spec = {**SPEC, "terminationGracePeriodSeconds": 0}
    (action,) = see(vmi("Running", stamps=RUNNING, deleting=True, spec=spec), pod=pod("running"))
    assert action.grace_seconds == 1
    longer = {**SPEC, "terminationGracePeriodSeconds": 60}
    (action,) = see(vmi("Running", stamps=RUNNING, deleting=True, spec=longer), pod=pod("running"))
    assert action.grace_seconds == 90


def test_grace_period_is_capped_at_one_day() -> None:
    made = pod("running")
    made = msgspec.structs.replace(
        made, spec=msgspec.structs.replace(made.spec, terminationGracePeriodSeconds=10_000_000_000_030)
    )
    absurd = {**SPEC, "terminationGracePeriodSeconds": 10_000_000_000_000}
    (action,) = see(vmi("Running", stamps=RUNNING, deleting=True, spec=absurd), pod=made)
    assert action.grace_seconds == 86400
    # A forced stop of such a VMI is immediate.
    hurried = {**SPEC, "terminationGracePeriodSeconds": 0}
    (action,) = see(vmi("Running", stamps=RUNNING, deleting=True, spec=hurried), pod=made)
    assert action.grace_seconds == 1


def test_grace_period_shortened_during_termination_is_applied() -> None:
    ending = pod("running", deleting=True)
    ending = msgspec.structs.replace(
        ending, metadata=msgspec.structs.replace(ending.metadata, deletionGracePeriodSeconds=35)
    )
    assert waits(see(vmi("Running", stamps=RUNNING, deleting=True), pod=ending))
    spec = {**SPEC, "terminationGracePeriodSeconds": 2}
    action, _later = see(vmi("Running", stamps=RUNNING, deleting=True, spec=spec), pod=ending)
    assert action == Delete(Pod, "default", "virt-launcher-web-x", "pod-uid", 2)


def test_pod_on_unresponsive_node_keeps_vmi() -> None:
    silent = pod("running", deleting=True, reason="NodeLost")
    assert waits(see(vmi("Running", stamps=RUNNING, deleting=True), pod=silent, ended_for=0))
    # Even if a final phase was already written, or the pod was marked Failed without terminated containers.
    assert waits(see(vmi("Failed", stamps=RUNNING, deleting=True), pod=silent))
    marked = pod("running", deleting=True, phase="Failed")
    assert waits(see(vmi("Running", stamps=RUNNING, deleting=True), pod=marked))


def test_finalizer_is_removed_after_pod_end_is_reported() -> None:
    (patch,) = see(vmi("Succeeded", stamps=RUNNING, deleting=True), pod=pod("ended", deleting=True))
    assert patch.patch == {"metadata": {"uid": "vmi-uid", "finalizers": None, "resourceVersion": "7"}}


def test_unreported_end_goes_into_finalizer_write_and_kubelet_deletes_pod() -> None:
    (patch,) = see(vmi("Running", stamps=RUNNING, deleting=True), pod=pod("ended", deleting=True))
    assert status_of(patch)["phase"] == "Succeeded" and patch.patch["metadata"]["finalizers"] is None
    patch, removal = see(vmi("Running", stamps=RUNNING, deleting=True), pod=pod("ended"))
    assert status_of(patch)["phase"] == "Succeeded" and patch.patch["metadata"]["finalizers"] is None
    assert removal == Delete(Pod, "default", "virt-launcher-web-x", "pod-uid", None)


def test_deleted_finished_vmi_deletes_its_pod() -> None:
    patch, removal = see(vmi("Failed", stamps=RUNNING, deleting=True), pod=pod("ended"))
    assert patch.patch["metadata"]["finalizers"] is None
    assert removal == Delete(Pod, "default", "virt-launcher-web-x", "pod-uid", None)


def test_vmi_is_released_if_deleted_pod_was_reported_terminated() -> None:
    heard = Evidence(ended=frozenset({"pod-uid"}))
    (patch,) = see(vmi("Running", stamps=RUNNING, deleting=True), evidence=heard)
    assert patch.patch == {"metadata": {"uid": "vmi-uid", "finalizers": None, "resourceVersion": "7"}}
    (patch,) = see(vmi("Running", stamps=RUNNING, deleting=True, activePods={}))
    assert patch.patch == {"metadata": {"uid": "vmi-uid", "finalizers": None, "resourceVersion": "7"}}


@pytest.mark.parametrize("phase", ["", "Pending", "Scheduling"])
def test_vmi_that_never_ran_is_released_at_once(phase: str) -> None:
    (patch,) = see(vmi(phase, deleting=True))
    assert patch.patch["metadata"]["finalizers"] is None


def test_foreign_finalizers_are_kept() -> None:
    instance = vmi("Failed", deleting=True, activePods={})
    instance.metadata.finalizers.append("example.com/backup")  # type: ignore[union-attr]
    (patch,) = see(instance)
    assert patch.patch["metadata"]["finalizers"] == ["example.com/backup"]
    assert see(vmi("Failed", deleting=True, finalizer=False, activePods={})) == []


@pytest.mark.parametrize("reason", ["Unknown", "ContainerStatusUnknown"])
def test_exit_status_is_unknown_after_power_loss(reason: str) -> None:
    status = {"name": "compute", "state": {"terminated": {"exitCode": 255, "reason": reason}}}
    cut = pod("ended", exit_code=255, containerStatuses=[status])
    patch, event = see(vmi("Running", stamps=RUNNING), pod=cut, ended_for=5.0)
    assert status_of(patch)["phase"] == "Failed" and status_of(patch)["reason"] == reason
    assert isinstance(event, RecordEvent) and "node was restarted or lost power" in event.message


# ---- unresponsive nodes


LOST = {"type": "Ready", "status": "False", "reason": "NodeNotReady", "message": "x", "lastTransitionTime": STAMP}
AGENT = {"type": "AgentConnected", "status": "True", "lastTransitionTime": LONG_AGO}
UP = {"type": "Ready", "status": "True", "lastTransitionTime": LONG_AGO}


def on_a_node(phase: str, silent: float | None, *conditions: dict[str, Any], **more: Any) -> list[Any]:
    instance = vmi(phase, stamps=RUNNING, nodeName="node1", conditions=list(conditions), **more)
    return see(instance, pod=pod("running", gate="True"), node_silent_for=silent)


@pytest.mark.parametrize("phase", ["Scheduled", "Running"])
def test_guest_on_unresponsive_node_is_only_marked_not_ready(phase: str) -> None:
    patch, event = on_a_node(phase, 75.0, UP, AGENT)
    ready = condition(status_of(patch), "Ready")
    assert (ready["status"], ready["reason"], ready["lastTransitionTime"]) == ("False", "NodeNotReady", STAMP)
    assert "node1" in ready["message"] and "unknown" in ready["message"]
    assert condition(status_of(patch), "AgentConnected") == AGENT, "the patch replaces the whole list"
    assert patch.patch["metadata"]["resourceVersion"] == "7"
    assert set(patch.patch["status"]) == {"conditions"}, "no phase: the guest may be running"
    assert isinstance(event, RecordEvent) and event.type == "Warning"


def test_unresponsive_node_is_reported_once_after_lost_seconds() -> None:
    assert on_a_node("Running", 75.0, LOST) == []
    (later,) = on_a_node("Running", 70.0, UP)
    assert isinstance(later, RequeueAfter) and later.seconds == 5
    assert on_a_node("Running", None, UP) == []


def test_recovered_node_leaves_ready_condition_to_handler() -> None:
    assert on_a_node("Running", None, LOST) == []
    (patch,) = on_a_node("Scheduled", None, LOST)
    assert condition(status_of(patch), "Ready")["reason"] == "GuestNotRunning"


def test_deleted_vmi_waits_for_unresponsive_node() -> None:
    assert on_a_node("Running", 500.0, UP, deleting=True) != []
    gone = vmi("Running", stamps=RUNNING, nodeName="node1", conditions=[UP], deleting=True)
    assert waits(see(gone, pod=pod("running", gate="True", deleting=True), node_silent_for=500.0))


# ---- evidence that a pod has ended: never two copies

PREEMPTED = pod("running", phase="Failed", reason="Preempting", containerStatuses=[])
STALE = pod("running", phase="Failed", reason="NodeLost")
OTHER_STATUS = {"name": "sidecar", "state": {"running": {}}}
LEFT = {"name": "compute", "state": {"terminated": {"exitCode": 0}}}
HALF = pod("running", phase="Failed", containerStatuses=[LEFT, OTHER_STATUS])


@pytest.mark.parametrize("deleting", [True, False])
@pytest.mark.parametrize("launcher", [None, PREEMPTED, STALE, HALF], ids=["vanished", "preempted", "stale", "half"])
def test_missing_evidence_is_reported_once_and_ends_nothing(launcher: Pod | None, deleting: bool) -> None:
    instance = vmi("Running", stamps=RUNNING, conditions=[UP, AGENT], deleting=deleting)
    early = see(instance, pod=launcher, ended_for=1)
    assert all(isinstance(action, RequeueAfter | Delete) for action in early)
    planned = see(instance, pod=launcher, ended_for=3)
    (patch,) = [action for action in planned if isinstance(action, Patch)]
    status = status_of(patch)
    assert set(status) == {"conditions"} and "finalizers" not in patch.patch["metadata"]
    ready = condition(status, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", names.REASON_LAUNCHER_NOT_ENDED)
    assert "node1" in ready["message"] and "hyperctl fence -n default web" in ready["message"]
    (event,) = [action for action in planned if isinstance(action, RecordEvent)]
    assert event.type == "Warning" and event.message == ready["message"]
    told = vmi("Running", stamps=RUNNING, conditions=status["conditions"], deleting=deleting)
    again = see(told, pod=launcher, ended_for=300)
    assert [action for action in again if not isinstance(action, RequeueAfter | Delete)] == []


@pytest.mark.parametrize("launcher", [PREEMPTED, STALE, HALF])
def test_failed_pod_without_evidence_is_deleted_with_its_vmi(launcher: Pod) -> None:
    removal = see(vmi("Running", stamps=RUNNING, deleting=True), pod=launcher)[0]
    assert removal == Delete(Pod, "default", "virt-launcher-web-x", "pod-uid", None)


OUT = Evidence(fences={"node1": Fence("out of service")})


def test_fenced_pod_object_is_deleted_before_vmi_is_released() -> None:
    """The next VMI would wait for the Pod object."""
    removal, patch = see(vmi("Running", stamps=RUNNING, deleting=True), pod=pod("running", deleting=True), evidence=OUT)
    assert removal == Delete(Pod, "default", "virt-launcher-web-x", "pod-uid", 0)
    assert status_of(patch)["phase"] == "Failed" and patch.patch["metadata"]["finalizers"] is None
    (end, _event) = see(vmi("Running", stamps=RUNNING), pod=pod("running"), evidence=OUT, ended_for=9)
    assert status_of(end)["phase"] == "Failed" and status_of(end)["activePods"] == {"pod-uid": None}


def test_fence_annotation_covers_only_listed_pods() -> None:
    for uid, believed in (("pod-uid", True), ("another", False), ("another,pod-uid", True)):
        fenced = vmi("Running", stamps=RUNNING, annotations={names.ANNOTATION_FENCED: uid})
        planned = see(fenced, pod=None, ended_for=9)
        assert ("phase" in status_of(planned[0])) is believed


@pytest.mark.parametrize(
    ("deleted", "vanished", "believed"), [(100, 36, True), (100, 34, False), (34, 100, False), (100, None, False)]
)
def test_deleted_node_is_fenced_after_pod_grace_period(deleted: float, vanished: float | None, believed: bool) -> None:
    """A running kubelet ends a deleted pod within its grace period (35 s here)."""
    gone = Evidence(
        fences={"node1": Fence("deleted", deleted)}, vanished={} if vanished is None else {"pod-uid": vanished}
    )
    launcher = pod("running", gate="True") if vanished is None else None
    planned = see(vmi("Running", stamps=RUNNING), pod=launcher, evidence=gone, ended_for=9)
    assert any("phase" in status_of(action) for action in planned if isinstance(action, Patch)) is believed
    if launcher is None and not believed:
        assert any(isinstance(action, RequeueAfter) for action in planned), "no event occurs when the time has passed"


def test_fence_of_other_node_is_no_evidence() -> None:
    elsewhere = Evidence(fences={"node2": Fence("out of service")}, vanished={"pod-uid": inf})
    planned = see(vmi("Running", stamps=RUNNING), evidence=elsewhere, ended_for=9)
    assert "phase" not in status_of(planned[0])


def test_pod_not_handed_over_has_run_no_guest() -> None:
    for launcher in (None, pod("bound", phase="Failed", reason="OutOfcpu", containerStatuses=[]), PREEMPTED):
        planned = see(vmi("Scheduling", stamps=SCHEDULING), pod=launcher)
        assert status_of(planned[0])["phase"] == "Failed"


def test_terminating_pod_is_not_handed_over() -> None:
    assert see(vmi("Scheduling", stamps=SCHEDULING), pod=pod("running", deleting=True)) == []


@pytest.mark.parametrize("phase", ["Scheduled", "Running", "Succeeded", "Failed"])
def test_second_copy_protection_is_restored_in_every_phase(phase: str) -> None:
    bare = vmi(phase, stamps=RUNNING, finalizer=False)
    bare.metadata.labels.clear()  # type: ignore[union-attr]
    (patch,) = see(bare, pod=pod("running", gate="True"))
    assert patch.patch == {
        "metadata": {
            "uid": "vmi-uid",
            "resourceVersion": "7",
            "finalizers": [names.FINALIZER_VMI],
            "labels": {names.LABEL_NODE_NAME: "node1"},
        }
    }


def test_finalizer_is_restored_while_start_is_refused() -> None:
    (patch, _event) = see(vmi("Pending", spec=WITH_CLAIM))
    told = vmi("Pending", spec=WITH_CLAIM, conditions=status_of(patch)["conditions"], finalizer=False)
    (patch,) = see(told)
    assert patch.patch["metadata"]["finalizers"] == [names.FINALIZER_VMI]


def test_running_pod_is_restored_in_active_pods() -> None:
    (patch,) = see(vmi("Running", stamps=RUNNING, activePods={}), pod=pod("running", gate="True"))
    assert status_of(patch) == {"activePods": {"pod-uid": "node1"}}


def test_entry_removed_by_the_handler_is_not_restored_for_a_stale_pod_status() -> None:
    stale = pod("running", gate="True")
    stale = msgspec.structs.replace(stale, status=msgspec.structs.replace(stale.status, phase="Failed"))
    planned = see(vmi("Running", stamps=RUNNING, activePods={}), pod=stale, ended_for=inf)
    assert status_of(planned[0])["phase"] == "Failed"
    assert not any(
        "pod-uid" in (status_of(each).get("activePods") or {}) for each in planned if isinstance(each, Patch)
    )


def test_deleted_vmi_gets_no_finalizer() -> None:
    """The API server refuses new finalizers during deletion."""
    bare = vmi("Running", stamps=RUNNING, finalizer=False, deleting=True)
    planned = see(bare, pod=pod("running", deleting=True))
    assert waits(planned)


# ---- pods of earlier instances of the name

EARLIER = ("web", "earlier-uid")


def stray(state: str = "running", **more: Any) -> Pod:
    return pod(state, uid="old-uid", made_for=EARLIER, owner=None, **more)


@pytest.mark.parametrize("phase", ["", "Pending"])
def test_pod_of_earlier_vmi_is_deleted_and_awaited(phase: str) -> None:
    patch, event, removal = see(vmi(phase), strays=[stray()])
    status = status_of(patch)
    assert status.get("phase", phase) == "Pending"
    assert status["activePods"] == {"old-uid": "node1"} and status["nodeName"] == "node1"
    assert patch.patch["metadata"]["labels"] == {names.LABEL_NODE_NAME: "node1"}
    told = condition(status, "Synchronized")
    assert told["reason"] == names.REASON_LAUNCHER_NOT_ENDED
    assert "virt-launcher-web-x on node node1" in told["message"] and "hyperctl fence" in told["message"]
    assert isinstance(event, RecordEvent) and event.type == "Warning"
    assert removal == Delete(Pod, "default", "virt-launcher-web-x", "old-uid", None)
    waiting = vmi("Pending", conditions=status["conditions"], activePods={"old-uid": "node1"}, nodeName="node1")
    assert see(waiting, strays=[stray(deleting=True)]) == []


@pytest.mark.parametrize("gone", [[], [stray(phase="Failed", containerStatuses=[])]], ids=["vanished", "failed"])
def test_deleted_pod_of_earlier_vmi_is_still_awaited(gone: list[Pod]) -> None:
    waiting = vmi("Pending", activePods={"old-uid": "node1"}, nodeName="node1")
    planned = see(waiting, strays=gone)
    assert not any(isinstance(action, Create) for action in planned)
    # Not even when this VMI is deleted: the next one would not know of the pod.
    ending = vmi("Pending", activePods={"old-uid": "node1"}, nodeName="node1", deleting=True)
    assert not any(
        "finalizers" in action.patch["metadata"]
        for action in see(ending, strays=gone, ended_for=9)
        if isinstance(action, Patch)
    )


def test_node_of_deleted_pod_is_set_first() -> None:
    waiting = vmi("Pending", activePods={"old-uid": "node1", "older-uid": "node0"}, nodeName="node1")
    patch = see(waiting, strays=[stray()])[0]
    assert status_of(patch)["nodeName"] == "node0"
    assert "deleted pod (UID older-uid) on node node0" in condition(status_of(patch), "Synchronized")["message"]


@pytest.mark.parametrize(
    "strays, evidence",
    [
        ([stray("ended")], Evidence()),
        ([stray("pending")], Evidence()),
        ([stray()], OUT),
        ([], Evidence(ended=frozenset({"old-uid"}))),
    ],
)
def test_pod_is_created_when_earlier_ones_have_ended(strays: list[Pod], evidence: Evidence) -> None:
    waiting = vmi("Pending", activePods={"old-uid": "node1"} if not strays else {}, nodeName="node1")
    (made,) = see(waiting, strays=strays, evidence=evidence)
    assert isinstance(made, Create)


def test_awaited_pods_are_removed_from_status_with_next_write() -> None:
    waited = vmi("Pending", activePods={"old-uid": "node1"}, nodeName="node1")
    (patch,) = see(waited, pod=pod(), evidence=Evidence(ended=frozenset({"old-uid"})))
    status = status_of(patch)
    assert status["phase"] == "Scheduling" and status["activePods"] == {"old-uid": None, "pod-uid": ""}
    assert status["nodeName"] is None and patch.patch["metadata"]["labels"] == {names.LABEL_NODE_NAME: None}


# ---- reports of a pending deletion


def test_slow_deletion_is_reported_only_when_overdue() -> None:
    ending = pod("running", deleting=True)
    instance = vmi("Running", stamps=RUNNING, deleting=True)
    assert see(instance, pod=ending) == [RequeueAfter(30.0)]
    late = plan(ObservedVmi(vmi=instance, now=NOW + timedelta(seconds=31), pod=ending))
    assert condition(status_of(late[0]), "Ready")["message"].startswith(
        "Pod virt-launcher-web-x on node node1 is terminating"
    )


def test_orphaned_pod_is_deleted_and_wait_is_reported() -> None:
    """As after `kubectl delete vmi --cascade=orphan`."""
    removal, patch, event = see(vmi("Running", stamps=RUNNING, deleting=True), pod=pod("running", owner=None))
    assert removal == Delete(Pod, "default", "virt-launcher-web-x", "pod-uid", None)
    assert condition(status_of(patch), "Ready")["reason"] == names.REASON_LAUNCHER_NOT_ENDED
    assert isinstance(event, RecordEvent)
