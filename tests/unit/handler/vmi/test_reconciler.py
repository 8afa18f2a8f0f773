"""launcher_of: selects the launcher by VMI UID, node and activePods. close: leaves no task."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from api.errors import NotFound
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from handler.vmi.plan import ObservedLauncher, SetUp
from handler.vmi.reconciler import VmiReconciler
from tests.unit.tasklab import others


class Conversation:
    """Fake launcher connection."""

    def __init__(self, pod_uid: str, changed: object, limiter: object) -> None:
        self.pod_uid = pod_uid


def vmi(uid: str = "uid-1", node: str = "node1", active: tuple[str, ...] = ("pod-1",)) -> VirtualMachineInstance:
    return msgspec.convert(
        {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"namespace": "ns", "name": "vm", "uid": uid, "resourceVersion": "1"},
            "spec": {"domain": {"devices": {}}},
            "status": {"nodeName": node, "activePods": dict.fromkeys(active, node)},
        },
        VirtualMachineInstance,
    )


def pod(uid: str = "pod-1", namespace: str = "ns", node: str = "node1", **given: Any) -> Pod:
    environment = {"HYPERLET_NAMESPACE": "ns", "HYPERLET_NAME": "vm", "HYPERLET_UID": "uid-1", **given}
    variables = [{"name": name, "value": value} for name, value in environment.items()]
    return msgspec.convert(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": namespace, "name": uid, "uid": uid, "resourceVersion": "1",
                "labels": {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": "uid-1"},
            },
            "spec": {"nodeName": node, "containers": [{"name": "compute", "env": variables}]},
            "status": {
                "phase": "Running",
                "containerStatuses": [{"name": "compute", "state": {"running": {}}}],
            },
        },
        Pod,
    )  # fmt: skip


def machines(found: VirtualMachineInstance | None, *pods: Pod) -> VmiReconciler:
    made = VmiReconciler(None, "node1", None, lambda: "", Conversation)  # type: ignore[arg-type]
    if found:
        made.vmis.learn(found)
    for each in pods:
        made.pods.learn(each)
        made._pod_changed(None, each)
    return made


async def test_launcher_of_finds_the_vmi_of_this_node() -> None:
    assert machines(vmi(), pod()).launcher_of("ns", "vm", "uid-1").pod_uid == "pod-1"


@pytest.mark.parametrize(
    ("found", "pods"),
    [
        (None, [pod()]),
        (vmi(uid="uid-2"), [pod(uid="pod-1")]),  # made again under the same name
        (vmi(node="node2"), [pod()]),  # handed over to another node
        (vmi(), []),
        (vmi(), [pod(node="node2")]),
        (vmi(), [pod(namespace="other")]),  # another namespace's pod with a forged owner reference
        (vmi(), [pod(uid="pod-9")]),  # one that the controller does not know
        (vmi(), [pod(HYPERLET_UID="uid-0")]),  # made for an earlier VMI of this name
        (vmi(), [pod(HYPERLET_NAMESPACE="other")]),
    ],
)
async def test_launcher_of_rejects_other_vmis(found: VirtualMachineInstance | None, pods: list[Pod]) -> None:
    with pytest.raises(NotFound, match="ns/vm"):
        machines(found, *pods).launcher_of("ns", "vm", "uid-1")


class SlowConversation(Conversation):
    """A launcher connection that takes time to close."""

    closed = 0

    async def close(self) -> None:
        await asyncio.sleep(0.01)
        SlowConversation.closed += 1


class NoSetup:
    """Node setup that never ends."""

    async def set_up(self, *_: Any) -> Any:
        await asyncio.Event().wait()

    async def forget(self, _pod_uid: str) -> None:
        await asyncio.Event().wait()


async def test_close_leaves_no_task_and_no_connection() -> None:
    made = VmiReconciler(None, "node1", NoSetup(), lambda: "", SlowConversation)  # type: ignore[arg-type]
    made.vmis.learn(vmi(active=("pod-1",)))
    for each in (pod(), pod("pod-2")):
        made.pods.learn(each)
        made._pod_changed(None, each)
    seen = ObservedLauncher(vmi(), pod(), datetime.now(UTC), 0.0)
    await made.apply(seen, SetUp(sync=True))
    made._pod_changed(pod("pod-2"), None)  # deleted: its connection is being closed
    await made.close()
    assert not others() and SlowConversation.closed == 2


async def test_failure_to_release_a_pod_is_logged_with_its_uid() -> None:
    class Broken(NoSetup):
        async def forget(self, _pod_uid: str) -> None:
            raise LookupError("odd")

    made = VmiReconciler(None, "node1", Broken(), lambda: "", SlowConversation)  # type: ignore[arg-type]
    made._pod_changed(None, pod())
    with capture_logs() as lines:
        made._pod_changed(pod(), None)
        async with asyncio.timeout(10):
            while not lines:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    (line,) = lines
    assert (line["task"], line["pod_uid"], repr(line["exc_info"])) == ("release", "pod-1", "LookupError('odd')")
