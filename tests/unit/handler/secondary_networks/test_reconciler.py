"""The plan for attaching and detaching pods, on whole snapshots."""

import json
from typing import Any

import msgspec
import pytest

from api.k8s.objects import Pod
from api.network_attachments import ANNOTATION_NETWORKS, ANNOTATION_STATUS
from handler.secondary_networks.attachment_records import AttachmentRecord
from handler.secondary_networks.reconciler import Join, Leave, ObservedPod, plan
from kit.reconcile import RequeueAfter

RUNNING = [{"name": "app", "state": {"running": {}}}]
GIVEN = {"HYPERLET_NAMESPACE": "web", "HYPERLET_NAME": "vm", "HYPERLET_UID": "1"}
MACHINE = {
    "containers": [{"name": "compute", "env": [{"name": name, "value": value} for name, value in GIVEN.items()]}]
}
"""The spec of a launcher pod."""


def pod(networks: str = "dmz", phase: str = "Running", statuses: Any = RUNNING, **fields: Any) -> Pod:
    annotations = {ANNOTATION_NETWORKS: networks} if networks else {}
    if told := fields.pop("told", ()):
        annotations[ANNOTATION_STATUS] = json.dumps(
            [{"interface": "eth0", "default": True}, *({"interface": each} for each in told)]
        )
    metadata = {"name": "app", "namespace": "web", "uid": "u", "annotations": annotations, **fields.pop("metadata", {})}
    return msgspec.convert(
        {"metadata": metadata, "spec": fields, "status": {"phase": phase, "containerStatuses": statuses}}, Pod
    )


def record(*interfaces: str, whole: bool = True) -> AttachmentRecord:
    return msgspec.convert(
        {
            "namespace": "web",
            "name": "app",
            "uid": "u",
            "joined": [
                {
                    "selection": {"namespace": "web", "name": "dmz", "interface": each},
                    "name": "lan",
                    "version": "0.3.1",
                    "plugins": [],
                    **({"result": {}} if whole else {}),
                }
                for each in interfaces
            ],
        },
        AttachmentRecord,
    )


def test_ordinary_pod_is_attached_when_a_container_runs() -> None:
    assert plan(ObservedPod("u", running := pod(), None)) == [Join(running)]
    assert plan(ObservedPod("u", pod(statuses=[{"name": "app", "state": {"waiting": {}}}]), None)) == []
    assert plan(ObservedPod("u", pod(statuses=[]), None)) == []


def test_running_init_container_suffices() -> None:
    early = msgspec.convert(
        {"metadata": {"uid": "u"}, "status": {"phase": "Pending", "initContainerStatuses": RUNNING}}, Pod
    )
    assert plan(ObservedPod("u", early, None)) == [Join(early)]


@pytest.mark.parametrize(
    "changes",
    [
        {"hostNetwork": True},
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        MACHINE,
    ],
)
def test_pods_that_are_not_attached(changes: dict[str, Any]) -> None:
    assert plan(ObservedPod("u", pod(**changes), None)) == []


def test_with_multus_only_recorded_pods_are_managed() -> None:
    assert plan(ObservedPod("u", pod(), None, multus=True)) == []
    assert plan(ObservedPod("u", gone := pod(), record("net1"), multus=True)) == [Join(gone)]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_ended_pod_is_detached(phase: str) -> None:
    assert plan(ObservedPod("u", pod(phase=phase), record("net1"))) == [Leave()]
    assert plan(ObservedPod("u", pod(phase=phase), None)) == []


def test_deleted_pod_is_detached_after_its_processes_end() -> None:
    assert plan(ObservedPod("u", None, record("net1"))) == [Leave()]
    (later,) = plan(ObservedPod("u", None, record("net1"), alive=True))
    assert isinstance(later, RequeueAfter)


def test_vm_pod_is_attached_only_if_its_status_differs() -> None:
    machine: dict[str, Any] = MACHINE
    assert plan(ObservedPod("u", pod(told=["net1"], **machine), record("net1"))) == []
    for differs in (
        pod("", told=["net1"], **machine),  # unplugged
        pod("dmz,dmz", told=["net1"], **machine),  # plugged
        pod(**machine),  # no network-status yet
    ):
        assert plan(ObservedPod("u", differs, record("net1"))) == [Join(differs)]
    assert plan(ObservedPod("u", whole := pod(told=["net1"], **machine), record("net1", whole=False))) == [Join(whole)]
    assert plan(ObservedPod("u", pod("other/x", **machine), record("net1"))) == []
