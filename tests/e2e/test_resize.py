"""In-place resize of a running launcher pod, with the controller's permissions, on a real kubelet."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from api.errors import Forbidden, InvalidObject
from api.k8s.meta import quantity_bytes
from api.k8s.objects import Node, Pod
from controller.launcher_pod import resize
from controller.launcher_pod.resize import Amounts, ResizeState, ResizeStatus
from kit.kube import Kube
from tests.e2e.manifests import idle
from tests.e2e.support import SYSTEM, E2eNamespace, Kubectl, VmUnderTest

MIB = 1 << 20


@pytest.fixture(scope="module")
def machine(space: E2eNamespace) -> VmUnderTest:
    return space.apply_vm(idle("grown")).until_status("Running")


@pytest.fixture(scope="module")
def controller(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A kubeconfig with a token of the controller's account."""
    token = kubectl.in_namespace(SYSTEM)("create", "token", "hyperlet-controller", "--duration=1h").strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
    path: Path = tmp_path_factory.mktemp("controller") / "kubeconfig"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return str(path)


def pod_and_node(machine: VmUnderTest, controller: str) -> tuple[Pod, Node]:
    """The launcher pod and its node."""

    async def get() -> tuple[Pod, Node]:
        async with Kube.connect("test", controller) as kube:
            pod = await kube.get(Pod, machine.space.name, machine.pod()["metadata"]["name"])
            nodes, _ = await kube.list(Node)
            return pod, next(node for node in nodes if node.metadata.name == pod.spec.nodeName)

    return asyncio.run(get())


def request_resize(pod: Pod, wanted: Amounts, controller: str) -> ResizeStatus:
    async def run() -> ResizeStatus:
        async with Kube.connect("test", controller) as kube:
            return await resize.resize(kube, pod, wanted, seconds=60)

    return asyncio.run(run())


def allocatable(node: Node) -> int:
    """Allocatable memory of a node in bytes."""
    return quantity_bytes((node.status.allocatable or {})["memory"])


def test_running_launcher_pod_is_resized_without_restart(machine: VmUnderTest, controller: str) -> None:
    pod, _ = pod_and_node(machine, controller)
    before, qemu = resize.requested_amounts(pod), machine.pod()["status"]["containerStatuses"][0]["containerID"]
    assert before.cpu_request and before.memory_request
    more = Amounts(cpu_request=before.cpu_request + 50, memory_request=before.memory_request + 32 * MIB)
    assert request_resize(pod, more, controller) == ResizeStatus(ResizeState.ACTUATED)
    now, _ = pod_and_node(machine, controller)
    assert (resize.actual_amounts(now).cpu_request, resize.actual_amounts(now).memory_request) == (
        more.cpu_request,
        more.memory_request,
    )
    assert request_resize(now, before, controller) == ResizeStatus(ResizeState.ACTUATED)
    after = machine.pod()
    assert after["metadata"]["uid"] == pod.metadata.uid
    (status,) = after["status"]["containerStatuses"]
    assert (status["restartCount"], status["containerID"]) == (0, qemu)
    assert machine.phase() == "Running"


def test_resize_beyond_node_size_is_infeasible(machine: VmUnderTest, controller: str) -> None:
    pod, node = pod_and_node(machine, controller)
    before = resize.requested_amounts(pod)
    answer = request_resize(pod, Amounts(memory_request=allocatable(node) + 1024 * MIB), controller)
    assert answer.state is ResizeState.INFEASIBLE and "memory" in answer.message
    after, _ = pod_and_node(machine, controller)
    assert resize.actual_amounts(after) == before, "it has what it had"
    # Kubernetes 1.36 refuses it, older servers store it: then the old amounts are asked for.
    assert request_resize(after, before, controller) == ResizeStatus(ResizeState.ACTUATED)


@pytest.mark.alone  # the scheduler counts what is deferred as taken
def test_resize_beyond_free_memory_is_deferred(machine: VmUnderTest, controller: str) -> None:
    pod, node = pod_and_node(machine, controller)
    before = resize.requested_amounts(pod)
    answer = request_resize(pod, Amounts(memory_request=allocatable(node) - MIB), controller)
    assert answer.state is ResizeState.DEFERRED and "memory" in answer.message
    assert resize.actual_amounts(pod_and_node(machine, controller)[0]) == before, "it has what it had"
    assert request_resize(pod_and_node(machine, controller)[0], before, controller) == ResizeStatus(
        ResizeState.ACTUATED
    )


def test_resize_that_changes_qos_class_is_refused(machine: VmUnderTest, controller: str) -> None:
    pod, _ = pod_and_node(machine, controller)
    before = resize.requested_amounts(pod)
    same = Amounts(before.cpu_request, before.cpu_request, before.memory_request, before.memory_request)
    with pytest.raises(InvalidObject, match="QOS"):
        request_resize(pod, same, controller)


def test_resize_beyond_quota_is_refused(machine: VmUnderTest, controller: str) -> None:
    pod, _ = pod_and_node(machine, controller)
    before = resize.requested_amounts(pod)
    assert before.cpu_request
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"requests.cpu": f"{before.cpu_request + 10}m"}},
    }
    machine.space.apply(quota)
    try:
        with pytest.raises(Forbidden, match="exceeded quota"):
            request_resize(pod, Amounts(cpu_request=before.cpu_request + 500), controller)
    finally:
        machine.kubectl("delete", "resourcequota", "small")


def test_controller_may_not_change_image_with_resize(machine: VmUnderTest, controller: str) -> None:
    async def patch(subresource: str | None) -> None:
        body = {"spec": {"containers": [{"name": "compute", "image": "evil:1"}]}}
        async with Kube.connect("test", controller) as kube:
            await kube.patch(
                Pod,
                machine.space.name,
                machine.pod()["metadata"]["name"],
                body,
                subresource=subresource,
                patch_kind="strategic",
            )

    def images() -> list[str]:
        return [container["image"] for container in machine.pod()["spec"]["containers"]]

    before = images()
    # Kubernetes 1.36 takes the amounts and drops the rest; older servers refuse it.
    with contextlib.suppress(InvalidObject):
        asyncio.run(patch("resize"))
    assert images() == before
    with pytest.raises(Forbidden, match="cannot patch resource"):
        asyncio.run(patch(None))
