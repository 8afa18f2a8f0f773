from typing import Any

import pytest

from bench.timeline import TimelineRecorder, Timeout, pod_marks, pod_owner, spans, vm_marks, vmi_marks


def pod(name: str = "virt-launcher-a-x1", owner: str | None = "a", **status: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if owner:
        metadata["ownerReferences"] = [{"kind": "VirtualMachineInstance", "name": owner}]
    return {"metadata": metadata, "status": status}


def vmi(name: str = "a", phase: str | None = None, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}, "status": {"phase": phase} if phase else {}}


def true(*conditions: str) -> list[dict[str, str]]:
    return [{"type": c, "status": "True"} for c in conditions]


def test_launcher_pod_is_recorded_under_its_vmi() -> None:
    assert pod_owner(pod()) == "a"
    assert pod_owner(pod("bare-1", owner=None)) == "bare-1"


def test_pod_marks_follow_its_conditions() -> None:
    assert pod_marks("ADDED", pod()) == {"pod created"}
    half = [*true("PodScheduled"), {"type": "Ready", "status": "False"}]
    assert pod_marks("MODIFIED", pod(conditions=half)) == {"pod created", "pod scheduled"}
    ready = pod(conditions=true("PodScheduled", "ContainersReady", "Ready"))
    assert {"containers ready", "pod ready"} <= pod_marks("MODIFIED", ready)


@pytest.mark.parametrize(
    "status",
    [{"phase": "Succeeded"}, {"phase": "Failed"}, {"containerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]}],
)
def test_terminated_containers_set_containers_ended(status: dict[str, Any]) -> None:
    assert {"containers ended", "pod over"} <= pod_marks("MODIFIED", pod(**status))


def test_running_container_prevents_containers_ended() -> None:
    states = [{"state": {"terminated": {}}}, {"state": {"running": {}}}]
    assert "containers ended" not in pod_marks("MODIFIED", pod(phase="Running", containerStatuses=states))


def test_vmi_marks_are_phase_and_end() -> None:
    assert vmi_marks("ADDED", vmi()) == {"vmi created"}
    assert "Running" in vmi_marks("MODIFIED", vmi(phase="Running"))
    assert {"guest off", "vmi deleting"} <= vmi_marks("MODIFIED", vmi(phase="Succeeded", deletionTimestamp="now"))
    assert "vmi gone" in vmi_marks("DELETED", vmi(phase="Succeeded"))


def test_vm_marks_are_its_printable_status() -> None:
    vm = {"metadata": {"name": "v"}, "status": {"printableStatus": "Starting"}}
    assert vm_marks("MODIFIED", vm) == {"vm Starting"}
    assert "vm gone" in vm_marks("DELETED", vm)


def test_first_time_of_milestone_is_kept() -> None:
    recorder = TimelineRecorder()
    recorder.note("VirtualMachineInstance", "ADDED", vmi(), 1.0)
    recorder.note("Pod", "ADDED", pod(), 2.0)
    recorder.note("VirtualMachineInstance", "MODIFIED", vmi(phase="Running"), 3.0)
    recorder.note("VirtualMachineInstance", "MODIFIED", vmi(phase="Running"), 9.0)
    assert recorder.marks("a") == {"vmi created": 1.0, "pod created": 2.0, "Running": 3.0}
    assert spans([recorder.marks("a")], "vmi created", "Running") == [2.0]
    assert recorder.latest("Pod", "a")["metadata"]["name"] == "virt-launcher-a-x1"


def test_spans_skip_incomplete_timelines() -> None:
    assert spans([{"asked": 1.0, "Running": 4.0}, {"asked": 2.0}], "asked", "Running") == [3.0]


def test_forgotten_milestone_is_awaited_again() -> None:
    recorder = TimelineRecorder()
    recorder.note("VirtualMachineInstance", "MODIFIED", vmi(phase="Running"), 1.0)
    recorder.wait(["a"], "Running", 0)
    recorder.forget("a", "Running")
    with pytest.raises(Timeout):
        recorder.wait(["a"], "Running", 0)


def test_failed_guest_ends_the_wait() -> None:
    recorder = TimelineRecorder()
    failed = vmi(phase="Failed")
    failed["status"]["conditions"] = [{"type": "Ready", "status": "False", "message": "no disk in the image"}]
    recorder.note("VirtualMachineInstance", "MODIFIED", failed, 1.0)
    with pytest.raises(Timeout, match="no disk in the image"):
        recorder.wait(["a"], "Running", 3600)


def test_failed_watch_ends_the_wait() -> None:
    def dead() -> None:
        raise Timeout("a watch ended")

    with pytest.raises(Timeout, match="a watch ended"):
        TimelineRecorder().wait(["a"], "Running", 3600, dead)
