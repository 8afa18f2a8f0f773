"""In-place resize of a launcher pod: the patch, and all results that a kubelet reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.errors import Forbidden, InvalidObject, NotFound
from api.k8s.objects import Pod
from controller.launcher_pod import resize
from controller.launcher_pod.resize import Amounts, ResizeState, ResizeStatus
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi, Refusal
from tests.unit.kit.test_reconcile import until

Json = dict[str, Any]
BEFORE = {"requests": {"cpu": "100m", "memory": "160Mi"}, "limits": {"devices.kubevirt.io/tun": "1"}}
AFTER = {"requests": {"cpu": "1500m", "memory": "288Mi"}, "limits": {"devices.kubevirt.io/tun": "1"}}
WANTED = Amounts(cpu_request=1500, memory_request=288 << 20)


def document(
    asked: Json = BEFORE, given: Json | None = None, *, generation: int = 2, state: str = "running", **status: Any
) -> Json:
    return {
        "metadata": {"name": "virt-launcher-web", "namespace": "default", "uid": "pod-uid", "generation": generation},
        "spec": {
            "nodeName": "node1",
            "containers": [
                {"name": "sidecar", "resources": {"requests": {"cpu": "7m"}}},
                {"name": "compute", "resources": asked},
            ],
        },
        "status": {
            "phase": "Running",
            "observedGeneration": generation,
            "containerStatuses": [
                {"name": "sidecar", "resources": {"requests": {"cpu": "7m"}}},
                {"name": "compute", "state": {state: {}}, **({"resources": given} if given else {})},
            ],
            **status,
        },
    }


def pod(*args: Any, **more: Any) -> Pod:
    return msgspec.convert(document(*args, **more), Pod)


def condition(kind: str, reason: str = "", message: str = "", **more: Any) -> Json:
    return {"type": kind, "status": "True", "reason": reason, "message": message, **more}


# ---- patch


def test_resize_patch_targets_compute_container_with_uid() -> None:
    (patch,) = resize.plan(pod(), WANTED)
    assert (patch.kind, patch.namespace, patch.name) == (Pod, "default", "virt-launcher-web")
    assert (patch.subresource, patch.patch_kind) == ("resize", "strategic")
    assert patch.patch == {
        "metadata": {"uid": "pod-uid"},
        "spec": {"containers": [{"name": "compute", "resources": {"requests": {"cpu": "1500m", "memory": "288Mi"}}}]},
    }


def test_resize_patch_includes_limits() -> None:
    (patch,) = resize.plan(pod(), Amounts(cpu_request=2000, cpu_limit=2000, memory_limit=1 << 30))
    (container,) = patch.patch["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "2"}, "limits": {"cpu": "2", "memory": "1Gi"}}


@pytest.mark.parametrize(
    "there",
    [
        pod(AFTER),
        pod(AFTER, AFTER),
        pod(
            {**AFTER, "requests": {"cpu": 1.5, "memory": str(288 << 20)}}
            | {"requests": {"cpu": "1.5", "memory": "294912Ki"}}
        ),
        pod(phase="Succeeded", state="terminated"),
        msgspec.convert(
            {**document(), "metadata": {**document()["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}, Pod
        ),
    ],
    ids=["asked already", "done already", "asked in other units", "ended", "being deleted"],
)
def test_no_patch_if_already_requested_or_pod_has_ended(there: Pod) -> None:
    assert resize.plan(there, WANTED) == []


def test_unset_amounts_are_unchanged() -> None:
    assert (
        resize.plan(pod(), Amounts()) == []
        and resize.resize_status(pod(given=BEFORE), Amounts()).state is ResizeState.ACTUATED
    )


# ---- status

PENDING, PROGRESS = "PodResizePending", "PodResizeInProgress"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (pod(), ResizeStatus(ResizeState.UNASKED)),
        (pod(AFTER, BEFORE, observedGeneration=1), ResizeStatus(ResizeState.WAITING)),
        (pod(AFTER, BEFORE), ResizeStatus(ResizeState.WAITING)),
        (pod(AFTER), ResizeStatus(ResizeState.WAITING)),
        (pod(AFTER, AFTER, observedGeneration=1), ResizeStatus(ResizeState.WAITING)),
        (pod(AFTER, AFTER), ResizeStatus(ResizeState.ACTUATED)),
        (
            pod(AFTER, AFTER, conditions=[condition(PROGRESS, "", "still")]),
            ResizeStatus(ResizeState.IN_PROGRESS, "still"),
        ),
        (
            pod(AFTER, BEFORE, conditions=[condition(PROGRESS, "Error", "EIO")]),
            ResizeStatus(ResizeState.IN_PROGRESS, "EIO"),
        ),
        (
            pod(AFTER, BEFORE, conditions=[condition(PENDING, "Deferred", "full")]),
            ResizeStatus(ResizeState.DEFERRED, "full"),
        ),
        (
            pod(AFTER, BEFORE, conditions=[condition(PENDING, "Infeasible", "no")]),
            ResizeStatus(ResizeState.INFEASIBLE, "no"),
        ),
        (
            pod(AFTER, BEFORE, conditions=[condition(PROGRESS), condition(PENDING, "Deferred", "later")]),
            ResizeStatus(ResizeState.DEFERRED, "later"),
        ),
        (
            pod(AFTER, BEFORE, conditions=[condition(PENDING, "Infeasible", "old news", observedGeneration=1)]),
            ResizeStatus(ResizeState.WAITING),
        ),
        (
            pod(AFTER, BEFORE, conditions=[condition(PENDING, "Infeasible", "no", observedGeneration=2)]),
            ResizeStatus(ResizeState.INFEASIBLE, "no"),
        ),
        (
            pod(AFTER, AFTER, conditions=[{**condition(PENDING, "Infeasible", "no"), "status": "False"}]),
            ResizeStatus(ResizeState.ACTUATED),
        ),
        (pod(AFTER, AFTER, phase="Failed", state="terminated"), ResizeStatus(ResizeState.ENDED)),
    ],
)
def test_resize_status_is_derived_from_pod(seen: Pod, said: ResizeStatus) -> None:
    assert resize.resize_status(seen, WANTED) == said


# ---- execution


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as made:
        made.put("pods", document(given=BEFORE, generation=1))
        made.put("pods", {**document(), "metadata": {"name": "another", "namespace": "default", "uid": "x"}})
        yield made


@pytest.fixture
async def kube(api: FakeApi, tmp_path: Path) -> AsyncIterator[Kube]:
    async with Kube.connect("test", api.kubeconfig(tmp_path)) as made:
        yield made


async def answered(
    api: FakeApi, kube: Kube, status: Json, seconds: float = 20, wanted: Amounts = WANTED
) -> ResizeStatus:
    """The result of a resize with a kubelet that reports `status` immediately."""
    before = await kube.get(Pod, "default", "virt-launcher-web")

    async def kubelet() -> None:
        await until(lambda: api.calls["patch", "pods/resize"])
        api.patch("pods", "another", {"status": {"phase": "Failed"}})
        api.patch("pods", "virt-launcher-web", {"status": status})

    told = asyncio.create_task(kubelet())
    try:
        return await resize.resize(kube, before, wanted, seconds)
    finally:
        await told


async def test_completed_resize_is_returned(api: FakeApi, kube: Kube) -> None:
    done = {"observedGeneration": 2, "containerStatuses": [{"name": "compute", "resources": AFTER}]}
    assert await answered(api, kube, done) == ResizeStatus(ResizeState.ACTUATED)
    containers = api.objects["pods", "default", "virt-launcher-web"]["spec"]["containers"]
    assert containers[1]["resources"] == AFTER, "devices are unchanged"
    assert containers[0]["resources"] == {"requests": {"cpu": "7m"}}


@pytest.mark.parametrize(
    ("reason", "state"), [("Deferred", ResizeState.DEFERRED), ("Infeasible", ResizeState.INFEASIBLE)]
)
async def test_unfulfilled_resize_is_returned(api: FakeApi, kube: Kube, reason: str, state: ResizeState) -> None:
    refused = {"observedGeneration": 2, "conditions": [condition(PENDING, reason, "Node didn't have enough")]}
    assert await answered(api, kube, refused) == ResizeStatus(state, "Node didn't have enough")


async def test_slow_kubelet_times_out(api: FakeApi, kube: Kube) -> None:
    slow = {"observedGeneration": 2, "conditions": [condition(PROGRESS, "", "shrinking")]}
    assert await answered(api, kube, slow, seconds=1) == ResizeStatus(ResizeState.IN_PROGRESS, "shrinking")


async def test_pod_deletion_ends_the_wait(api: FakeApi, kube: Kube) -> None:
    before = await kube.get(Pod, "default", "virt-launcher-web")
    asking = asyncio.create_task(resize.resize(kube, before, WANTED, 20))
    await until(lambda: api.calls["watch", "pods"])
    api.remove("pods", "virt-launcher-web")
    assert await asking == ResizeStatus(ResizeState.ENDED)


async def test_pod_of_same_name_with_other_uid_is_ignored(api: FakeApi, kube: Kube) -> None:
    before = await kube.get(Pod, "default", "virt-launcher-web")
    api.remove("pods", "virt-launcher-web")
    api.put("pods", {**document(), "metadata": {**document()["metadata"], "uid": "another"}})
    with pytest.raises(InvalidObject):
        await resize.resize(kube, before, WANTED, 20)


async def test_wait_survives_expired_watch(api: FakeApi, kube: Kube) -> None:
    before = await kube.get(Pod, "default", "virt-launcher-web")
    asking = asyncio.create_task(resize.resize(kube, before, WANTED, 30))
    await until(lambda: api.calls["watch", "pods"])
    api.leave()
    await asyncio.sleep(0.1)
    api.away = False
    done = {"observedGeneration": 2, "containerStatuses": [{"name": "compute", "resources": AFTER}]}
    api.patch("pods", "virt-launcher-web", {"status": done})
    assert await asking == ResizeStatus(ResizeState.ACTUATED)


@pytest.mark.parametrize("cause", ["NodeCapacity", "UnsupportedPlatform"])
async def test_infeasible_resize_refused_by_api_server_is_returned(api: FakeApi, kube: Kube, cause: str) -> None:
    before = await kube.get(Pod, "default", "virt-launcher-web")
    refusal = Refusal(403, "Forbidden", "node didn't have enough allocatable resources", [{"reason": cause}])
    api.refuse = lambda verb, what, body: refusal if what == "pods/resize" else None
    assert await resize.resize(kube, before, WANTED) == ResizeStatus(
        ResizeState.INFEASIBLE, "node didn't have enough allocatable resources"
    )


async def test_refusal_by_api_server_is_raised(api: FakeApi, kube: Kube) -> None:
    before = await kube.get(Pod, "default", "virt-launcher-web")
    api.refuse = lambda verb, what, body: Refusal(403, "Forbidden", "exceeded quota") if what == "pods/resize" else None
    with pytest.raises(Forbidden, match="exceeded quota"):
        await resize.resize(kube, before, WANTED)
    api.remove("pods", "virt-launcher-web")
    api.refuse = lambda verb, what, body: None
    with pytest.raises(NotFound):
        await resize.resize(kube, before, WANTED)
