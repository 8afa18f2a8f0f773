"""Random faults: whatever is deleted, stopped or restarted, one VM never has two QEMU processes.

Kubelets and handlers are models that start and end QEMU and report it; the API server is the fake one; the controller
is the real one, and is killed and restarted as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from api import names
from controller.cache.cluster import ClusterCache
from controller.vm.reconciler import VmReconciler
from controller.vmi.reconciler import LauncherPodReconciler
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi, Json
from tests.unit.controller.objects import SPEC

NODES = ("node1", "node2")
TICK = 0.004
GRACE = 60
"""Grace period, in ticks, of a guest that ignores its power button."""
VMIS, VMS, PODS = "virtualmachineinstances", "virtualmachines", "pods"


@dataclass
class Container:
    """A launcher on a node. It may outlive its Pod object and phase Failed."""

    pod: Json
    node: str
    vmi: str
    qemu: bool = False
    ending: int | None = None
    """Ticks until the kubelet kills it."""


@dataclass
class Reality:
    """The launchers that run, independently of the API server's state."""

    api: FakeApi
    dice: random.Random
    containers: dict[str, Container] = field(default_factory=dict)
    kubelets: set[str] = field(default_factory=lambda: set(NODES))
    handlers: set[str] = field(default_factory=lambda: set(NODES))
    most: int = 0
    starts: int = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            await self.collect_garbage()
            for node in NODES:
                if node in self.kubelets:
                    await self.kubelet(node)
                if node in self.handlers:
                    await self.handler(node)
            running = sum(each.qemu for each in self.containers.values())
            self.most = max(self.most, running)

    async def comes_up(self, seconds: float) -> bool:
        """Waits at most `seconds` for a guest to run. Whether one does."""
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline:
            phase = (self.api.find(VMIS, "web") or {}).get("status", {}).get("phase")
            if phase == "Running" and any(each.qemu for each in self.containers.values()):
                return True
            await asyncio.sleep(0.02)
        return False

    async def collect_garbage(self) -> None:
        """Deletes pods whose owner is deleted, like Kubernetes' garbage collector."""
        alive = {vmi["metadata"]["uid"] for vmi in self.api.of(VMIS)}
        for pod in self.api.of(PODS):
            owners = [owner["uid"] for owner in pod["metadata"].get("ownerReferences") or ()]
            if owners and not set(owners) & alive and not pod["metadata"].get("deletionTimestamp"):
                self.api.delete(PODS, pod["metadata"]["name"])

    async def kubelet(self, node: str) -> None:
        there = {pod["metadata"]["uid"]: pod for pod in self.api.of(PODS)}
        for uid, pod in there.items():
            at, meta = pod["spec"].get("nodeName"), pod["metadata"]
            if at is None and not meta.get("deletionTimestamp") and node == self.dice.choice(NODES):
                # The scheduler's part; the kubelet's follows at its next tick.
                self.api.patch(PODS, meta["name"], {"spec": {"nodeName": node}})
            elif at == node and uid not in self.containers and pod["status"]["phase"] == "Pending":
                given = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
                self.containers[uid] = Container(pod, node, given["HYPERLET_UID"])
                await self.tell(pod, "Running", {"running": {}})
        for uid, container in [(u, c) for u, c in self.containers.items() if c.node == node]:
            current: Json | None = there.get(uid)
            failed = current is not None and current["status"]["phase"] in ("Failed", "Succeeded")
            if current is None or failed or current["metadata"].get("deletionTimestamp"):
                container.ending = GRACE if container.ending is None else container.ending - 1
            if container.ending is not None and container.ending <= 0:
                del self.containers[uid]
                if current is not None and self.api.find(PODS, current["metadata"]["name"]):
                    await self.tell(current, "Failed", {"running": None, "terminated": {"exitCode": 137}})
                    if current["metadata"].get("deletionTimestamp"):
                        self.api.remove(PODS, current["metadata"]["name"])

    async def tell(self, pod: Json, phase: str, state: Json) -> None:
        status = {"phase": phase, "containerStatuses": [{"name": "compute", "state": state}]}
        with contextlib.suppress(KeyError):
            self.api.patch(PODS, pod["metadata"]["name"], {"status": status})

    async def handler(self, node: str) -> None:
        """Starts QEMU where the VMI was handed over to; takes pods off of which nothing is left
        (handler/vmi/plan.py)."""
        pods = {pod["metadata"]["uid"]: pod for pod in self.api.of(PODS)}
        for vmi in self.api.of(VMIS):
            status, meta = vmi.get("status", {}), vmi["metadata"]
            if (meta.get("labels") or {}).get(names.LABEL_NODE_NAME) != node or status.get("nodeName") != node:
                continue
            for uid, at in list((status.get("activePods") or {}).items()):
                container, pod = self.containers.get(uid), pods.get(uid)
                unreported = pod is None or (pod["status"]["phase"] == "Failed" and not _terminated(pod))
                if at == node and container is None and unreported:
                    self.api.patch(VMIS, meta["name"], {"status": {"activePods": {uid: None}}})
                elif at == node and container is not None and pod is not None and not container.qemu:
                    started = status["phase"] == "Scheduled" and container.vmi == meta["uid"]
                    if started and not meta.get("deletionTimestamp") and container.ending is None:
                        container.qemu = True
                        self.starts += 1
                        ready = [{"type": "Ready", "status": "True", "reason": "x"}]
                        self.api.patch(VMIS, meta["name"], {"status": {"phase": "Running", "conditions": ready}})


def _terminated(pod: Json) -> bool:
    return any(each["state"].get("terminated") for each in pod["status"].get("containerStatuses") or ())


class Chance:
    """Actions of users and Kubernetes on the objects."""

    def __init__(self, reality: Reality) -> None:
        self.reality, self.api, self.dice = reality, reality.api, reality.dice

    def pod(self) -> Json | None:
        pods = self.api.of(PODS)
        return self.dice.choice(pods) if pods else None

    async def delete_vmi(self) -> None:
        if self.api.find(VMIS, "web"):
            self.api.delete(VMIS, "web")

    async def delete_pod(self) -> None:
        if pod := self.pod():
            self.api.delete(PODS, pod["metadata"]["name"])

    async def force_pod(self) -> None:
        if pod := self.pod():
            self.api.remove(PODS, pod["metadata"]["name"])

    async def call_failed(self) -> None:
        if pod := self.pod():
            early = {"phase": "Failed", "reason": "Preempting", "qosClass": "Burstable"}
            self.api.put(PODS, {**pod, "status": early})

    async def strip_pod(self) -> None:
        if pod := self.pod():
            meta = {key: value for key, value in pod["metadata"].items() if key not in ("labels", "ownerReferences")}
            self.api.put(PODS, {**pod, "metadata": meta})

    async def strip_vmi(self) -> None:
        """A user's PUT without finalizer and label."""
        if vmi := self.api.find(VMIS, "web"):
            bare = {"finalizers": None, "labels": None} if not vmi["metadata"].get("deletionTimestamp") else {}
            self.api.patch(VMIS, "web", {"metadata": bare})

    async def tear_away(self) -> None:
        """An administrator removes the VMI while its pod exists."""
        if self.api.of(PODS) and (vmi := self.api.find(VMIS, "web")):
            active = set((vmi.get("status") or {}).get("activePods") or {})
            if active <= {pod["metadata"]["uid"] for pod in self.api.of(PODS)}:
                self.api.remove(VMIS, "web")

    async def orphan_vmi(self) -> None:
        if vmi := self.api.find(VMIS, "web"):
            self.api.put(VMIS, {**vmi, "metadata": {**vmi["metadata"], "ownerReferences": []}})

    async def stop_kubelet(self) -> None:
        node = self.dice.choice(NODES)
        self.reality.kubelets.discard(node)
        asyncio.get_running_loop().call_later(0.15, self.reality.kubelets.add, node)

    async def stop_handler(self) -> None:
        node = self.dice.choice(NODES)
        self.reality.handlers.discard(node)
        asyncio.get_running_loop().call_later(0.15, self.reality.handlers.add, node)


async def controller(config: str, ready: asyncio.Event) -> None:
    async with Kube.connect("controller", config) as kube:
        cluster = ClusterCache(kube)
        loops: list[Any] = [VmReconciler(kube, cluster), LauncherPodReconciler(kube, cluster)]
        async with asyncio.TaskGroup() as group:
            for store in cluster.stores.values():
                group.create_task(store.run())
            for store in cluster.stores.values():
                await store.synced()
            for loop in loops:
                loop.add_all()
                group.create_task(loop.run(4))
            ready.set()


@pytest.mark.parametrize("seed", range(3))
async def test_random_faults_never_start_two_qemus(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.vm.run_strategy.FIRST_DELAY", 0)
    monkeypatch.setattr("controller.vmi.plan.END_SECONDS", 0.02)
    monkeypatch.setattr("controller.vmi.plan.AWAIT_SECONDS", 0.05)
    dice = random.Random(seed)
    async with FakeApi() as api:
        for node in NODES:
            ready = {"conditions": [{"type": "Ready", "status": "True"}]}
            api.put("nodes", {"metadata": {"name": node}, "status": ready})
        machine = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {"name": "web", "namespace": "default", "generation": 1},
            "spec": {"runStrategy": "Always", "template": {"spec": SPEC}},
        }
        api.put(VMS, machine)
        reality = Reality(api, dice)
        chance = Chance(reality)
        actions = [getattr(chance, name) for name in vars(Chance) if not name.startswith("_") and name != "pod"]
        config = api.kubeconfig(tmp_path)
        running = asyncio.create_task(reality.run())
        for _ in range(4):
            started = asyncio.Event()
            work = asyncio.create_task(controller(config, started))
            await started.wait()
            for _ in range(6):
                if dice.random() < 0.6:
                    await reality.comes_up(3)
                await asyncio.sleep(dice.uniform(0, 0.1))
                with contextlib.suppress(KeyError):
                    await dice.choice(actions)()
                assert reality.most <= 1, "two QEMUs of one VM"
            work.cancel()
            with contextlib.suppress(BaseException):
                await work
        # The VM was actually restarted several times.
        started = asyncio.Event()
        work = asyncio.create_task(controller(config, started))
        assert await reality.comes_up(60), "the VM does not recover"
        assert reality.most == 1 and reality.starts >= 2
        work.cancel()
        running.cancel()
        with contextlib.suppress(BaseException):
            await asyncio.gather(work, running)
