"""Other requests for a launcher pod that runs, with the controller's own rights, and what a real kubelet answers."""

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
from tests.e2e.support import SYSTEM, Kubectl, Machine, Space

MIB = 1 << 20


@pytest.fixture(scope="module")
def machine(space: Space) -> Machine:
    return space.machine(idle("grown")).until_status("Running")


@pytest.fixture(scope="module")
def controller(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A kubeconfig with a token of the controller's account."""
    token = kubectl.within(SYSTEM)("create", "token", "hyperlet-controller", "--duration=1h").strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
    path: Path = tmp_path_factory.mktemp("controller") / "kubeconfig"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return str(path)


def seen(machine: Machine, controller: str) -> tuple[Pod, Node]:
    """The launcher pod and its node."""

    async def get() -> tuple[Pod, Node]:
        async with Kube.connect("test", controller) as kube:
            pod = await kube.get(Pod, machine.space.name, machine.pod()["metadata"]["name"])
            nodes, _ = await kube.list(Node)
            return pod, next(node for node in nodes if node.metadata.name == pod.spec.nodeName)

    return asyncio.run(get())


def ask(pod: Pod, wanted: Amounts, controller: str) -> ResizeStatus:
    async def run() -> ResizeStatus:
        async with Kube.connect("test", controller) as kube:
            return await resize.resize(kube, pod, wanted, seconds=60)

    return asyncio.run(run())


def allocatable(node: Node) -> int:
    """Bytes of memory that pods can have."""
    return quantity_bytes((node.status.allocatable or {})["memory"])


def test_a_running_launcher_gets_more_and_less_without_a_restart(machine: Machine, controller: str) -> None:
    pod, _ = seen(machine, controller)
    before, qemu = resize.requested_amounts(pod), machine.pod()["status"]["containerStatuses"][0]["containerID"]
    assert before.cpu_request and before.memory_request
    more = Amounts(cpu_request=before.cpu_request + 50, memory_request=before.memory_request + 32 * MIB)
    assert ask(pod, more, controller) == ResizeStatus(ResizeState.ACTUATED)
    now, _ = seen(machine, controller)
    assert (resize.actual_amounts(now).cpu_request, resize.actual_amounts(now).memory_request) == (
        more.cpu_request,
        more.memory_request,
    )
    assert ask(now, before, controller) == ResizeStatus(ResizeState.ACTUATED)
    after = machine.pod()
    assert after["metadata"]["uid"] == pod.metadata.uid
    (status,) = after["status"]["containerStatuses"]
    assert (status["restartCount"], status["containerID"]) == (0, qemu)
    assert machine.phase() == "Running"


def test_what_no_node_of_its_size_has_is_infeasible(machine: Machine, controller: str) -> None:
    pod, node = seen(machine, controller)
    before = resize.requested_amounts(pod)
    answer = ask(pod, Amounts(memory_request=allocatable(node) + 1024 * MIB), controller)
    assert answer.state is ResizeState.INFEASIBLE and "memory" in answer.message
    after, _ = seen(machine, controller)
    assert resize.actual_amounts(after) == before, "it has what it had"
    # Kubernetes 1.36 refuses it, older servers store it: then the old amounts are asked for.
    assert ask(after, before, controller) == ResizeStatus(ResizeState.ACTUATED)


@pytest.mark.alone  # the scheduler counts what is deferred as taken
def test_what_the_node_has_no_room_for_is_deferred_until_there_is(machine: Machine, controller: str) -> None:
    pod, node = seen(machine, controller)
    before = resize.requested_amounts(pod)
    answer = ask(pod, Amounts(memory_request=allocatable(node) - MIB), controller)
    assert answer.state is ResizeState.DEFERRED and "memory" in answer.message
    assert resize.actual_amounts(seen(machine, controller)[0]) == before, "it has what it had"
    assert ask(seen(machine, controller)[0], before, controller) == ResizeStatus(ResizeState.ACTUATED)


def test_another_quality_of_service_is_refused(machine: Machine, controller: str) -> None:
    pod, _ = seen(machine, controller)
    before = resize.requested_amounts(pod)
    same = Amounts(before.cpu_request, before.cpu_request, before.memory_request, before.memory_request)
    with pytest.raises(InvalidObject, match="QOS"):
        ask(pod, same, controller)


def test_a_quota_counts_for_a_resize_too(machine: Machine, controller: str) -> None:
    pod, _ = seen(machine, controller)
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
            ask(pod, Amounts(cpu_request=before.cpu_request + 500), controller)
    finally:
        machine.kubectl("delete", "resourcequota", "small")


def test_the_controller_may_change_nothing_but_amounts_there(machine: Machine, controller: str) -> None:
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
