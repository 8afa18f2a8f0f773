"""The plan for a VMI, on whole snapshots."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import msgspec
import pytest

from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from handler.launchers.reports import GuestOs, LauncherState, NicInfo, ReportedDisk, guest_interface
from handler.pod_network.interface_request import InterfaceRequest
from handler.pod_network.setup import PodNetworkState
from handler.pod_network.vm_interface import VmInterface
from handler.vmi import status as vmi_status
from handler.vmi.node_setup import NodeResources
from handler.vmi.plan import (
    CONFIRM_SECONDS,
    LOST_SECONDS,
    SILENCE_SECONDS,
    UNPLUG_SECONDS,
    DeferWrite,
    ObservedLauncher,
    PatchVmi,
    RecordEventOnce,
    SetUp,
    digest,
    is_active,
    plan,
    setup_key,
)
from handler.vmi.status import Problem
from kit.reconcile import RequeueAfter
from protos import launcher_pb2 as pb
from tests.fakes import handler_objects
from tests.fakes.patches import merge

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
MAC = "52:54:00:00:00:01"
RUNNING = LauncherState(state=pb.DOMAIN_STATE_RUNNING, machine="pc-q35-10.0", accelerator="kvm")
ATTACHMENT = VmInterface(
    InterfaceRequest("default"),
    "eth0",
    MAC,
    "k6t-eth0",
    tap="tap0",
    addresses=(ip_address("10.1.1.5"), ip_address("fd00::5")),
)
MADE = PodNetworkState((ATTACHMENT,))


def vmi(phase="Scheduled", **status):
    document = handler_objects.vmi(phase=phase)
    document["metadata"]["resourceVersion"] = "7"
    document["status"] |= status
    return msgspec.convert(document, VirtualMachineInstance)


def pod(**changes):
    document = handler_objects.pod("pod-uid")
    document["metadata"] |= changes.get("metadata", {})
    document["status"] |= changes.get("status", {})
    return msgspec.convert(document, Pod)


def seen(state=RUNNING, phase="Scheduled", resources=True, **changes):
    observed = ObservedLauncher(
        vmi(phase),
        pod(),
        NOW,
        1000.0,
        state,
        resources=NodeResources(MADE) if resources else None,
        synced=digest(vmi(), pod()) if resources else "",
    )
    return replace(observed, **changes)


def written(actions):
    return [action for action in actions if isinstance(action, PatchVmi)]


def running_vmi():
    """The VMI after its Running patch."""
    [write] = written(plan(seen()))
    document = merge(msgspec.to_builtins(vmi()), {"status": write.patch.body["status"]})
    return msgspec.convert(document, VirtualMachineInstance)


def test_new_vmi_is_set_up():
    assert plan(seen(LauncherState(), resources=False)) == [SetUp(sync=True)]


def test_no_actions_during_setup():
    assert plan(seen(LauncherState(), resources=False, busy=True)) == []


def test_running_is_one_patch_with_everything():
    [write] = written(plan(seen()))
    body = write.patch.body
    assert body["metadata"] == {"resourceVersion": "7"}
    assert body["status"]["phase"] == "Running" and body["status"]["machine"] == {"type": "pc-q35-10.0"}
    assert body["status"]["interfaces"][0]["ipAddresses"] == ["10.1.1.5", "fd00::5"]
    assert {item["type"]: item["status"] for item in body["status"]["conditions"]} == {
        "Ready": "True", "LiveMigratable": "False", "Synchronized": "True"}  # fmt: skip
    assert [event[0] for event in write.events] == ["Started"]


def test_unchanged_status_is_not_written():
    assert written(plan(seen(vmi=running_vmi()))) == []
    later = NOW + timedelta(hours=1)
    assert plan(seen(vmi=running_vmi(), now=later)) == []


def claims(capacity):
    info = {"claimName": "data", "capacity": {"storage": capacity}}
    return {"volumeStatus": [{"name": "data", "target": "vda", "persistentVolumeClaimInfo": info}]}


def test_grown_claim_is_synced():
    small, large = vmi("Running", **claims("1Gi")), vmi("Running", **claims("2Gi"))
    synced = digest(small, pod())
    assert SetUp(sync=True) not in plan(seen(vmi=small, synced=synced))
    assert SetUp(sync=True) in plan(seen(vmi=large, synced=synced))


def test_restarted_handler_syncs_grown_claim():
    state = replace(RUNNING, disks=(ReportedDisk("data", "vda", 1 << 30, "1Gi"),))
    for capacity, told in (("1Gi", False), ("2Gi", True)):
        actions = plan(seen(state, vmi=vmi("Running", **claims(capacity)), resources=False))
        assert SetUp(sync=told) in actions


def test_restarted_handler_sets_up_without_sync():
    assert plan(seen(vmi=running_vmi(), resources=False)) == [SetUp(sync=False)]


def test_running_vm_with_lost_patch_is_written():
    """The handler died between Sync and the patch: the domain runs, the VMI says Scheduled."""
    assert plan(seen(resources=False)) == [SetUp(sync=False)]
    assert written(plan(seen()))[0].patch.body["status"]["phase"] == "Running"


@pytest.mark.parametrize("phase", ["", "Pending", "Scheduling", "Succeeded", "Failed"])
def test_other_phases_are_ignored(phase):
    assert plan(seen(phase=phase)) == []


@pytest.mark.parametrize("pod_phase", ["Succeeded", "Failed"])
def test_ended_pod_is_left_to_the_controller_without_final_report(pod_phase):
    over = pod(status={"phase": pod_phase})
    assert plan(seen(pod=over)) == plan(seen(pod=None)) == []
    [write] = written(plan(seen(LauncherState(state=pb.DOMAIN_STATE_CRASHED), vmi=running_vmi(), pod=over)))
    assert write.patch.body["status"]["phase"] == "Failed"


def test_deleted_vmi_is_not_written_before_its_end():
    going = pod(metadata={"deletionTimestamp": "2026-03-01T12:00:00Z"})
    leaving = changed(running_vmi(), {"metadata": {"deletionTimestamp": "2026-03-01T12:00:00Z"}})
    quiet = replace(RUNNING, state=pb.DOMAIN_STATE_SHUTDOWN)
    assert plan(seen(quiet, vmi=leaving, pod=going)) == []
    [tell] = plan(seen(LauncherState(state=pb.DOMAIN_STATE_SHUTOFF, reason="Terminated"), vmi=leaving, pod=going))
    assert tell.event[0] == "Stopped"


def changed(instance, patch):
    return msgspec.convert(merge(msgspec.to_builtins(instance), patch), VirtualMachineInstance)


def target(reason, message="m"):
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}


GOING = {"deletionTimestamp": "2026-03-01T12:00:00Z"}
CAUSES = [
    ({"metadata": GOING}, "PodDeleted"),
    ({"metadata": GOING, "status": {"conditions": [target("EvictionByEvictionAPI")]}}, "EvictionByEvictionAPI"),
    ({"metadata": GOING, "status": {"conditions": [target("PreemptionByScheduler")]}}, "PreemptionByScheduler"),
    ({"metadata": GOING, "status": {"conditions": [target("DeletionByTaintManager")]}}, "DeletionByTaintManager"),
    ({"status": {"phase": "Failed", "reason": "Evicted", "conditions": [target("TerminationByKubelet")]}}, "Evicted"),
    ({"status": {"phase": "Failed", "reason": "Preempting", "message": "x"}}, "Preempting"),
    ({"status": {"phase": "Failed", "reason": "Terminated", "conditions": [target("TerminationByKubelet")]}},
     "Terminated"),
    ({"status": {"conditions": [target("\x1b[31mred")]}}, "DisruptionTarget"),
]  # fmt: skip


@pytest.mark.parametrize(("launcher", "reason"), CAUSES, ids=[reason for _, reason in CAUSES])
@pytest.mark.parametrize("said", ["Terminated", "ForceOff", "NeverStarted"])
def test_vm_of_disrupted_pod_fails_with_the_cause(launcher, reason, said):
    over = LauncherState(state=pb.DOMAIN_STATE_SHUTOFF, reason=said, message="the guest shut down")
    [write] = written(plan(seen(over, vmi=running_vmi(), pod=pod(**launcher))))
    assert (write.patch.body["status"]["phase"], write.patch.body["status"]["reason"]) == ("Failed", reason)
    [ready] = [each for each in write.patch.body["status"]["conditions"] if each["type"] == "Ready"]
    assert ready["message"].endswith("; the guest shut down") and ready["message"].isprintable()
    assert [event[0] for event in write.events] == [reason]


@pytest.mark.parametrize(("launcher", "reason"), CAUSES[:4], ids=[reason for _, reason in CAUSES[:4]])
def test_disruption_is_reported_once_during_shutdown(launcher, reason):
    going = seen(replace(RUNNING, state=pb.DOMAIN_STATE_SHUTDOWN), vmi=running_vmi(), pod=pod(**launcher))
    [write] = written(plan(going))
    [ready] = [each for each in write.patch.body["status"]["conditions"] if each["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", reason) and "phase" not in write.patch.body["status"]
    assert [event[0] for event in write.events] == [reason]
    told = changed(running_vmi(), {"status": write.patch.body["status"]})
    assert plan(replace(going, vmi=told)) == []


@pytest.mark.parametrize("launcher", [{}, *(launcher for launcher, _ in CAUSES)])
def test_guest_power_off_succeeds(launcher):
    over = LauncherState(state=pb.DOMAIN_STATE_SHUTOFF, reason="Shutdown", message="the guest shut down")
    [write] = written(plan(seen(over, vmi=running_vmi(), pod=pod(**launcher))))
    assert (write.patch.body["status"]["phase"], write.events[0][0]) == ("Succeeded", "Stopped")


def test_end_waits_for_the_kubelets_cause():
    over = LauncherState(state=pb.DOMAIN_STATE_SHUTOFF, reason="Terminated")
    fresh = seen(over, vmi=running_vmi(), state_seconds=1.0)
    [again] = plan(fresh)
    assert isinstance(again, RequeueAfter) and again.seconds > 5
    evicted = pod(status={"phase": "Failed", "reason": "Evicted"})
    assert written(plan(replace(fresh, pod=evicted)))[0].patch.body["status"]["reason"] == "Evicted"
    # Without a cause from the kubelet the controller reports the end: it watches the pod's Events.
    assert plan(replace(fresh, pod=pod(status={"phase": "Succeeded"}))) == []
    probed = changed(running_vmi(), {"spec": {"livenessProbe": {"tcpSocket": {"port": 80}}}})
    for vmi_, reason in ((running_vmi(), "PodTerminated"), (probed, "LivenessProbeFailed")):
        [write] = written(plan(replace(fresh, vmi=vmi_, state_seconds=60.0)))
        assert write.patch.body["status"]["reason"] == reason


def test_end_of_deleted_vmi_is_an_event_only():
    going = merge(msgspec.to_builtins(running_vmi()), {"metadata": {"deletionTimestamp": "2026-03-01T12:00:00Z"}})
    going = msgspec.convert(going, VirtualMachineInstance)
    [tell] = plan(seen(LauncherState(state=pb.DOMAIN_STATE_SHUTOFF), vmi=going))
    assert tell == RecordEventOnce(("Stopped", "The virtual machine ended: the guest shut down", "Normal"))


def test_terminated_container_awaits_the_final_report():
    over = pod(status={"containerStatuses": [{"name": "compute", "state": {"terminated": {"exitCode": 0}}}]})
    assert written(plan(seen(pod=over))) == []


def test_crash_has_the_launchers_message():
    state = LauncherState(state=pb.DOMAIN_STATE_CRASHED, reason="Panicked", message="the guest's kernel panicked")
    [write] = written(plan(seen(state, vmi=running_vmi())))
    assert write.patch.body["status"]["phase"] == "Failed" and write.patch.body["status"]["reason"] == "Panicked"
    assert write.events == (("Crashed", "The virtual machine ended: the guest's kernel panicked", "Warning"),)


def test_silent_launcher_is_reported_after_timeout():
    short = plan(seen(silent_seconds=SILENCE_SECONDS / 2, silence="no"))
    assert len(short) == 1 and isinstance(short[0], RequeueAfter)
    [write] = written(plan(seen(silent_seconds=SILENCE_SECONDS + 1, silence="the launcher hangs")))
    [condition] = [item for item in write.patch.body["status"]["conditions"] if item["type"] == "Synchronized"]
    assert (condition["status"], condition["reason"], condition["message"]) == (
        "False", "LauncherUnavailable", "the launcher hangs")  # fmt: skip


def test_cut_off_launcher_is_reported_once_and_at_once():
    why = "the launcher was cut off: more than 100 PING frames a second"
    (write,) = plan(seen(silent_seconds=0.1, silence=why, cut_off=why))
    (condition,) = [each for each in write.patch.body["status"]["conditions"] if each["type"] == "Synchronized"]
    assert (condition["reason"], condition["status"]) == ("LauncherCutOff", "False")
    assert condition["message"] == why
    assert write.events == (("LauncherCutOff", why, "Warning"),)


def test_lost_vm_is_never_restarted():
    young = plan(seen(LauncherState(), vmi=running_vmi(), state_seconds=1))
    assert len(young) == 1 and isinstance(young[0], RequeueAfter)
    old = plan(seen(LauncherState(), vmi=running_vmi(), state_seconds=LOST_SECONDS + 1))
    assert not any(isinstance(action, SetUp) for action in old)
    assert "has lost the domain" in str(written(old)[0].patch.body)


def test_permanent_error_fails_the_vmi_once():
    trouble = Problem("SyncFailed", "spec.x: no", permanent=True)
    [write] = plan(seen(LauncherState(), trouble=trouble))
    assert write.patch.body["status"]["phase"] == "Failed"
    assert write.events == (("SyncFailed", "spec.x: no", "Warning"),)


def test_transient_error_is_reported_once_and_retried():
    trouble = Problem("ErrImagePull", "no such image")
    tried = setup_key(vmi(), pod())
    observed = seen(LauncherState(), resources=False, trouble=trouble, retry_at=1010.0, tried=tried)
    actions = plan(observed)
    assert isinstance(actions[0], RequeueAfter) and len(written(actions)) == 1
    body = written(actions)[0].patch.body
    told = msgspec.convert(merge(msgspec.to_builtins(observed.vmi), {"status": body["status"]}), VirtualMachineInstance)
    assert written(plan(replace(observed, vmi=told))) == []
    assert plan(replace(observed, vmi=told, clock=1011.0)) == [SetUp(sync=True)]
    # Whatever may have changed it is not waited for.
    joined = pod(metadata={"annotations": {"k8s.v1.cni.cncf.io/network-status": "[]"}})
    assert plan(replace(observed, vmi=told, pod=joined)) == [SetUp(sync=True)]


def test_minor_changes_are_coalesced():
    state = replace(RUNNING, agent=True, os=GuestOs(name="Debian"))
    first = plan(seen(state, vmi=running_vmi()))
    assert first[0] == DeferWrite(1000.0) and isinstance(first[1], RequeueAfter)
    assert written(plan(seen(state, vmi=running_vmi(), minor_since=1000.0, clock=1001.0))) == []
    [write] = written(plan(seen(state, vmi=running_vmi(), minor_since=1000.0, clock=1002.5)))
    assert write.patch.body["status"]["guestOSInfo"] == {"name": "Debian"} and write.events == ()


def test_pause_is_urgent():
    state = replace(RUNNING, state=pb.DOMAIN_STATE_PAUSED)
    [write] = written(plan(seen(state, vmi=running_vmi())))
    conditions = {item["type"]: item for item in write.patch.body["status"]["conditions"]}
    assert conditions["Paused"]["reason"] == "PausedByUser" and conditions["Ready"]["status"] == "False"


def test_unready_containers_make_it_unready():
    unready = pod(
        status={"conditions": [{"type": "ContainersReady", "status": "False", "reason": "ContainersNotReady"}]}
    )
    [write] = written(plan(seen(vmi=running_vmi(), pod=unready)))
    ready = next(item for item in write.patch.body["status"]["conditions"] if item["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")


def test_changed_spec_is_synced():
    actions = plan(seen(vmi=running_vmi(), synced="another"))
    assert SetUp(sync=True) in actions


def test_interfaces_include_guest_agent_data():
    inside = (
        guest_interface("enp1s0", MAC, ("10.0.2.2",)),
        guest_interface("docker0", "02:42:00:00:00:01", ("172.17.0.1",)),
    )
    facts = vmi_status.StatusFacts(replace(RUNNING, interfaces=inside), pod(), MADE, "")
    patch = vmi_status.running(vmi(), facts, NOW)
    assert patch is not None
    first, second = patch.body["status"]["interfaces"]
    assert (first["ipAddress"], first["interfaceName"], first["infoSource"]) == (
        "10.1.1.5",
        "enp1s0",
        "domain, guest-agent",
    )
    assert (second["interfaceName"], second["ipAddresses"], second["infoSource"]) == (
        "docker0", ["172.17.0.1"], "guest-agent")  # fmt: skip


def test_volumes_keep_what_the_controller_wrote():
    known = [{"name": "data", "target": "", "persistentVolumeClaimInfo": {"claimName": "c"}}]
    facts = vmi_status.StatusFacts(
        replace(RUNNING, disks=(ReportedDisk("data", "vda", 5), ReportedDisk("ci", "vdb", 6))),
        pod(),
        PodNetworkState(),
        "",
    )
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "ci", "cloudInitNoCloud": {}}]
    document = msgspec.to_builtins(vmi(volumeStatus=known))
    document["spec"]["volumes"] = volumes
    patch = vmi_status.running(msgspec.convert(document, VirtualMachineInstance), facts, NOW)
    assert patch is not None
    assert patch.body["status"]["volumeStatus"] == [
        {"name": "data", "target": "vda", "size": 5, "persistentVolumeClaimInfo": {"claimName": "c"}},
        {"name": "ci", "target": "vdb", "size": 6},
    ]


def test_software_emulation_condition_is_set_once_with_reason():
    facts = vmi_status.StatusFacts(replace(RUNNING, accelerator="tcg"), pod(), MADE, "/dev/kvm is missing")
    patch = vmi_status.running(vmi(), facts, NOW)
    assert patch is not None
    emulated = next(item for item in patch.body["status"]["conditions"] if item["type"] == "SoftwareEmulation")
    assert "/dev/kvm is missing" in emulated["message"]
    document = merge(msgspec.to_builtins(vmi()), {"status": patch.body["status"]})
    told = msgspec.convert(document, VirtualMachineInstance)
    assert vmi_status.running(told, replace(facts, kvm="not checked yet"), NOW) is None


# ---- evidence that a pod has ended


def test_pod_without_processes_is_removed_from_active_pods() -> None:
    lost = seen(pod=None, state=None, unreported=frozenset({"pod-uid"}))
    assert plan(lost) == [RequeueAfter(CONFIRM_SECONDS)]
    [write] = plan(replace(lost, empty=frozenset({"pod-uid"})))
    assert isinstance(write, PatchVmi)
    assert write.patch.body == {"metadata": {"uid": "vmi-uid"}, "status": {"activePods": {"pod-uid": None}}}
    assert write.events == ()


@pytest.mark.parametrize("phase", ["", "Pending", "Scheduled", "Running", "Succeeded", "Failed"])
def test_ended_pod_is_reported_in_every_phase(phase: str) -> None:
    """A VMI waiting for an earlier one is Pending; an ended one may still wait for its pod."""
    both = frozenset({"pod-uid"})
    assert [type(action) for action in plan(seen(phase=phase, pod=None, unreported=both, empty=both))] == [PatchVmi]


def test_other_pods_stay_active() -> None:
    found = seen(pod=None, state=None, unreported=frozenset({"pod-uid", "other"}), empty=frozenset({"other"}))
    [write] = plan(found)
    assert isinstance(write, PatchVmi) and write.patch.body["status"] == {"activePods": {"other": None}}
    assert plan(replace(found, unreported=frozenset())) == []


def test_failed_pod_with_running_launcher_is_still_observed() -> None:
    """The kubelet sets Failed on preemption: the guest then shuts down, and its launcher reports the end."""
    preempted = pod(status={"phase": "Failed", "reason": "Preempting", "containerStatuses": []})
    assert plan(seen(pod=preempted, phase="Running")) == []
    [write] = written(plan(seen(LauncherState(state=pb.DOMAIN_STATE_SHUTOFF), phase="Running", pod=preempted)))
    assert write.patch.body["status"]["phase"] == "Succeeded"


@pytest.mark.parametrize(
    ("active", "node", "known"),
    [
        ({"pod-uid": "node1"}, "node1", True),
        ({"pod-uid": ""}, "node1", False),
        ({"pod-uid": "node2"}, "node1", False),
        ({"other": "node1"}, "node1", False),
        ({}, "node1", False),
        (None, "node1", False),
    ],
)
def test_vm_starts_only_in_a_recorded_active_pod(active: dict[str, str] | None, node: str, known: bool) -> None:
    document = handler_objects.pod("pod-uid", node=node)
    assert is_active(vmi(activePods=active), msgspec.convert(document, Pod)) is known


# ---- NICs that come and go -------------------------------------------------------------------------------------------


def with_nics(document, *nics):
    document = msgspec.to_builtins(document)
    document["spec"]["domain"]["devices"]["interfaces"] = list(nics)
    return msgspec.convert(document, VirtualMachineInstance)


DEFAULT = {"name": "default", "masquerade": {}}
BLUE = {"name": "blue", "bridge": {}}
HAS_DEFAULT, HAS_BLUE = NicInfo("default", MAC, True, 1), NicInfo("blue", "52:54:00:00:00:02", True, 1)


def test_change_of_the_pods_networks_is_synced():
    annotated = pod(metadata={"annotations": {"k8s.v1.cni.cncf.io/networks": "blue@pod16477688c0e"}})
    assert SetUp(sync=True) in plan(seen(vmi=running_vmi(), pod=annotated))


def test_restarted_handler_syncs_a_new_nic():
    wanted = with_nics(running_vmi(), DEFAULT, BLUE)
    state = replace(RUNNING, nics=(HAS_DEFAULT,))
    assert plan(seen(state, vmi=wanted, resources=False)) == [SetUp(sync=True)]
    assert plan(seen(replace(state, nics=(HAS_DEFAULT, HAS_BLUE)), vmi=wanted, resources=False)) == [SetUp(sync=False)]
    down = with_nics(running_vmi(), DEFAULT | {"state": "down"})
    assert plan(seen(state, vmi=down, resources=False)) == [SetUp(sync=True)]


def going(state, **changes):
    wanted = with_nics(running_vmi(), DEFAULT, BLUE | {"state": "absent"})
    left = NodeResources(replace(MADE, going=("blue",)))
    observed = replace(seen(state, vmi=wanted), resources=left, synced=digest(wanted, pod()), synced_at=999.0)
    return replace(observed, **changes)


def test_nic_kept_by_the_guest_keeps_its_tap_and_is_retried():
    state = replace(RUNNING, nics=(HAS_DEFAULT, HAS_BLUE))
    assert not any(isinstance(action, SetUp) for action in plan(going(state)))
    assert SetUp(sync=True) in plan(going(state, clock=999.0 + UNPLUG_SECONDS))


def test_nic_removed_from_the_domain_is_removed_from_the_pod():
    assert SetUp(sync=False) in plan(going(replace(RUNNING, nics=(HAS_DEFAULT,))))


def test_unplugged_nic_is_removed_from_status_at_once():
    document = msgspec.to_builtins(running_vmi())
    entry = {"name": "blue", "infoSource": "domain", "linkState": "up"}
    document["status"]["interfaces"] = [*document["status"]["interfaces"], entry]
    [write] = written(plan(seen(vmi=msgspec.convert(document, VirtualMachineInstance))))
    assert write.patch.urgent and [item["name"] for item in write.patch.body["status"]["interfaces"]] == ["default"]


# ---- what cannot be plugged in holds up nothing else ----------------------------------------------------------------

MISSING = "network ns/blue: Multus runs on this node but has not created pod1 in the pod"
WAITING = NodeResources(MADE, pending={"blue": MISSING})


def test_pending_nic_is_reported_with_the_running_status():
    observed = seen(resources=False, trouble=Problem("NetworkError", MISSING), retry_at=2000.0)
    observed = replace(observed, resources=WAITING, synced=digest(vmi(), pod()), tried=setup_key(vmi(), pod()))
    [write] = written(plan(observed))
    status = write.patch.body["status"]
    assert status["phase"] == "Running" and status["interfaces"][0]["ipAddresses"] == ["10.1.1.5", "fd00::5"]
    synchronized = next(item for item in status["conditions"] if item["type"] == "Synchronized")
    assert (synchronized["status"], synchronized["message"]) == ("False", MISSING)
    started = ("Started", "The virtual machine is running")
    assert [event[:2] for event in write.events] == [("NetworkError", MISSING), started]
    assert RequeueAfter(1000.01) in plan(observed), "and it is tried again when it is due"
    assert SetUp(sync=False) in plan(replace(observed, clock=2000.0))


def test_other_changes_are_applied_while_a_nic_is_pending():
    observed = seen(trouble=Problem("NetworkError", MISSING), retry_at=2000.0)
    observed = replace(observed, resources=WAITING, synced="of the spec before", tried="and tried for that one")
    assert SetUp(sync=True) in plan(observed)


def test_resolved_pending_nic_is_synced():
    observed = seen(vmi=running_vmi(), trouble=Problem("NetworkError", MISSING))
    [write] = written(plan(replace(observed, resources=WAITING, tried=setup_key(vmi(), pod()), retry_at=2000.0)))
    document = merge(msgspec.to_builtins(running_vmi()), {"status": write.patch.body["status"]})
    told = msgspec.convert(document, VirtualMachineInstance)
    [healed] = written(plan(seen(vmi=told)))
    assert {item["type"]: item["status"] for item in healed.patch.body["status"]["conditions"]}[
        "Synchronized"
    ] == "True"
