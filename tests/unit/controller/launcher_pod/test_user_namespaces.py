"""User namespaces of launcher pods: when they are requested, and recovery if a pod cannot start in one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from api import defaults
from api.k8s.objects import Node, Pod
from controller.actions import Create, Delete, Patch, RecordEvent
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import pod as pods
from controller.launcher_pod import user_namespaces
from tests.unit.controller.objects import SPEC, claim, pod, vmi
from tests.unit.controller.vmi.test_plan import SCHEDULING, see

Json = dict[str, Any]
ABLE = [{"name": "", "features": {"userNamespaces": True}}, {"name": "other", "features": {"userNamespaces": False}}]
UNABLE = [{"name": "", "features": {"userNamespaces": False}}, {"name": "other", "features": {"userNamespaces": True}}]
OFFERED = ControllerSettings(image_volumes=True, user_namespaces=True)
# The error of runc 1.5, as reported by containerd and the kubelet.
REFUSED = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    "failed to set MOUNT_ATTR_IDMAP on /var/lib/kubelet/pods/x/volumes/kubernetes.io~nfs/data: invalid argument "
    "(maybe the filesystem used doesn't support idmap mounts on this kernel?)"
)


def node(handlers: Any, schedulable: str = "true") -> Node:
    meta = {"name": "n", "labels": {"kubevirt.io/schedulable": schedulable}}
    return msgspec.convert({"metadata": meta, "status": {"runtimeHandlers": handlers}}, Node)


# ---- support by nodes


@pytest.mark.parametrize(
    ("nodes", "offered"),
    [
        ([node(ABLE)], True),
        ([node(ABLE), node(ABLE)], True),
        ([node(ABLE), node(UNABLE)], False),
        ([node(ABLE), node(UNABLE, schedulable="false")], True),
        ([node(UNABLE)], False),
        ([node(None)], False),
        ([node([{"name": ""}])], False),
        ([node([{"name": "runc", "features": {"userNamespaces": True}}])], False),
        ([node(ABLE, schedulable="false")], False),
        ([], False),
    ],
)
def test_all_schedulable_nodes_must_support_user_namespaces(
    nodes: list[Node], offered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYPERLET_USER_NAMESPACES", raising=False)
    assert user_namespaces.offered(nodes) is offered


@pytest.mark.parametrize(("setting", "offered"), [("auto", True), ("never", False), ("always", False)])
def test_user_namespaces_can_be_switched_off(setting: str, offered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERLET_USER_NAMESPACES", setting)
    assert user_namespaces.offered([node(ABLE)]) is offered


# ---- which pods


def host_users(
    spec: Json | None = None, settings: ControllerSettings = OFFERED, mode: str = "Filesystem", **more: Any
) -> Any:
    data = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    asked = {**SPEC, **(spec or {})}
    instance = defaults.default_vmi(vmi(spec={**asked, "volumes": [data, *asked.get("volumes", [])]}))
    claims = {"data": claim("data", mode=mode), "another": claim("another", mode="Block")}
    made = pods.launcher_pod(instance, settings, claims, **more)
    return made["spec"].get("hostUsers")


DISK = {"volumes": [{"name": "root", "containerDisk": {"image": "registry.local/disk:1"}}]}
KERNEL = {"container": {"image": "registry.local/kernel:1", "kernelPath": "/boot/vmlinuz"}}
FUNCTION = {
    "domain": {**SPEC["domain"], "devices": {"interfaces": [{"name": "vf", "sriov": {}}]}},
    "networks": [{"name": "vf", "multus": {"networkName": "functions"}}],
}


def test_pod_gets_user_namespace_if_nodes_support_it() -> None:
    assert host_users() is False
    assert host_users(DISK) is False
    assert host_users(settings=replace(OFFERED, user_namespaces=False)) is None


@pytest.mark.parametrize(
    ("why", "case"),
    [
        ("Kubernetes refuses claims in Block mode", {"mode": "Block"}),
        ("the file of a host's device belongs to no user there", {"spec": FUNCTION}),
        ("so do images that the handler brings", {"spec": DISK, "settings": replace(OFFERED, image_volumes=False)}),
        (
            "and kernels",
            {
                "spec": {"domain": {**SPEC["domain"], "firmware": {"kernelBoot": KERNEL}}},
                "settings": replace(OFFERED, image_volumes=False),
            },
        ),
        (
            "what a runtime class can is not known",
            {
                "settings": replace(
                    OFFERED,
                    configuration=msgspec.structs.replace(OFFERED.configuration, defaultRuntimeClass="gvisor"),
                )
            },
        ),
        ("it was tried and failed", {"host_users": True}),
    ],
)
def test_unsupported_pod_gets_no_user_namespace(why: str, case: Json) -> None:
    assert host_users(**case) is None, why


# ---- failures


def failed(**state: Any) -> Pod:
    seen = pod(node="node1", phase="Pending")
    document = msgspec.to_builtins(seen)
    document["spec"]["hostUsers"] = False
    document["status"]["containerStatuses"] = [{"name": "compute", "state": state}] if state else []
    return msgspec.convert(document, Pod)


WAITING = failed(waiting={"reason": "CreateContainerError", "message": REFUSED})
ENDED = msgspec.structs.replace(
    failed(terminated={"exitCode": 128, "reason": "StartError", "message": REFUSED}),
    status=msgspec.structs.replace(
        failed(terminated={"exitCode": 128, "reason": "StartError", "message": REFUSED}).status, phase="Failed"
    ),
)


@pytest.mark.parametrize(
    ("seen", "warning"),
    [
        (WAITING, None),
        (ENDED, None),
        (failed(), ("FailedCreatePodSandBox", 'error mounting "proc" to rootfs at "/proc": operation not permitted')),
        (failed(), ("FailedCreatePodSandBox", "runtime does not support user namespaces")),
    ],
)
def test_pod_that_fails_in_user_namespace_is_recreated_without_one(seen: Pod, warning: tuple[str, str] | None) -> None:
    instance = vmi("Scheduling", stamps=SCHEDULING)
    back, delete, said = see(instance, pod=seen, warning=warning, settings=OFFERED, host_users=True)
    assert isinstance(back, Patch) and back.patch["status"]["phase"] == "Pending"
    assert isinstance(delete, Delete) and delete.uid == seen.metadata.uid
    assert delete.version == seen.metadata.resourceVersion
    assert isinstance(said, RecordEvent) and said.reason == "NoUserNamespace"
    assert "recreating it without one" in said.message
    again = vmi("Pending", stamps={"Pending": SCHEDULING["Pending"]})
    going = msgspec.structs.replace(
        seen, metadata=msgspec.structs.replace(seen.metadata, deletionTimestamp="2026-01-01T00:00:00Z")
    )
    assert see(again, pod=going, warning=warning, settings=OFFERED, host_users=True) == []
    (create,) = see(again, settings=OFFERED, host_users=True)
    assert isinstance(create, Create) and "hostUsers" not in create.obj["spec"]


@pytest.mark.parametrize(
    ("seen", "warning"),
    [
        (failed(waiting={"reason": "ImagePullBackOff", "message": "no such image"}), None),
        (failed(), ("FailedMount", "MountVolume.SetUp failed for volume data")),
        (failed(running={}), ("FailedCreatePodSandBox", "user namespaces: an earlier try failed")),
        (failed(terminated={"exitCode": 1, "reason": "Error", "message": "the guest wrote: user namespace"}), None),
        (msgspec.structs.replace(WAITING, spec=msgspec.structs.replace(WAITING.spec, hostUsers=None)), None),
    ],
    ids=["other trouble", "other warning", "it runs", "words of a launcher that ran", "a pod without one"],
)
def test_other_failures_keep_the_user_namespace(seen: Pod, warning: tuple[str, str] | None) -> None:
    assert user_namespaces.failure(seen, warning) is None
