"""The controller with a fake API server, scheduler, kubelet and handler.

Includes the budget of API calls, and crashes of the controller after every single write.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api import names
from controller.cache.cluster import ClusterCache
from controller.installation import image_volumes
from controller.kind_reconciler import KindReconciler
from controller.reconcilers import RECONCILERS
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi, Json, Refusal, Write
from tests.unit.controller.objects import SPEC, claim
from tests.waiting import until

READS = {"list", "watch"}
QUIET_LOOKS = 4


class Nodes:
    """A fake scheduler, kubelet and handler: binds and runs pods, starts guests, ends deleted pods."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.handler = True
        self.tells_deletions = True
        self.silent = False
        self.attests = False
        """Whether handlers remove deleted pods from activePods because none of their processes is left."""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.003)
            if self.silent:
                continue
            for pod in self.api.of("pods"):
                await self._pod(pod)
            for vmi in self.api.of("virtualmachineinstances"):
                if self.handler and vmi.get("status", {}).get("phase") == "Scheduled":
                    await self._phase(vmi["metadata"]["name"], "Running", True)
                if self.attests:
                    there = {pod["metadata"]["uid"] for pod in self.api.of("pods")}
                    gone = {uid: None for uid in vmi.get("status", {}).get("activePods", {}) if uid not in there}
                    if gone:
                        change = {"status": {"activePods": gone}}
                        self.api.patch("virtualmachineinstances", vmi["metadata"]["name"], change)

    async def _phase(self, name: str, phase: str, ready: bool) -> None:
        condition = {"type": "Ready", "status": str(ready), "reason": "x"}
        self.api.patch("virtualmachineinstances", name, {"status": {"phase": phase, "conditions": [condition]}})

    async def _pod(self, pod: Json) -> None:
        meta, name = pod["metadata"], pod["metadata"]["name"]
        owner = next(each["value"] for each in pod["spec"]["containers"][0]["env"] if each["name"] == "HYPERLET_NAME")
        if meta.get("deletionTimestamp"):
            if self.handler and self.tells_deletions and self.api.find("virtualmachineinstances", owner):
                await self._phase(owner, "Succeeded", False)
            ended = pod["status"]["phase"] == "Succeeded"
            await self.end(name, "Succeeded")
            if self.tells_deletions or ended:  # the kubelet removes what it has reported as ended
                self.api.remove("pods", name)
        elif pod["status"]["phase"] == "Pending":
            running = {"phase": "Running", "containerStatuses": [{"name": "compute", "state": {"running": {}}}]}
            self.api.patch("pods", name, {"spec": {"nodeName": "node1"}, "status": running})

    async def end(self, pod: str, phase: str) -> None:
        """The pod's container terminates; the handler, if running, reports it."""
        words = f'{{"phase":"{phase}","reason":"Told","message":"by the launcher"}}'
        status = {"name": "compute", "state": {"running": None, "terminated": {"exitCode": 0, "message": words}}}
        self.api.patch("pods", pod, {"status": {"phase": phase, "containerStatuses": [status]}})


class World:
    """An API server, nodes, and a controller that can be killed and restarted."""

    def __init__(self, api: FakeApi, config: str) -> None:
        self.api, self.config = api, config
        self.nodes = Nodes(api)
        self._node_task = asyncio.create_task(self.nodes.run())
        self._running: asyncio.Task[None] | None = None
        self.cluster: ClusterCache | None = None
        self._loops: list[KindReconciler[Any, Any]] = []

    async def start(self) -> None:
        ready = asyncio.Event()
        self._running = asyncio.create_task(self._controller(ready))
        await ready.wait()

    async def _controller(self, ready: asyncio.Event) -> None:
        async with Kube.connect("controller", self.config) as kube:
            cluster = self.cluster = ClusterCache(kube)
            loops = self._loops = [reconciler(kube, cluster) for reconciler in RECONCILERS]
            async with asyncio.TaskGroup() as group:
                for store in cluster.stores.values():
                    group.create_task(store.run())
                for store in cluster.stores.values():
                    await store.synced()
                for loop in loops:
                    loop.add_all()
                    group.create_task(loop.run(4))
                ready.set()

    async def kill(self) -> None:
        if self._running:
            self._running.cancel()
            with contextlib.suppress(BaseException):
                await self._running

    async def close(self) -> None:
        await self.kill()
        self._node_task.cancel()

    async def vm(self, run: str = "Always", spec: Json | None = None) -> None:
        self.api.put(
            "virtualmachines",
            {
                "apiVersion": "kubevirt.io/v1",
                "kind": "VirtualMachine",
                "metadata": {
                    "name": "web",
                    "namespace": "default",
                    "generation": 1,
                    "finalizers": [names.FINALIZER_VM],
                },
                "spec": {"runStrategy": run, "template": {"spec": spec or SPEC}},
            },
        )

    async def vmi(self, spec: Json | None = None) -> None:
        self.api.put(
            "virtualmachineinstances",
            {
                "apiVersion": "kubevirt.io/v1",
                "kind": "VirtualMachineInstance",
                "metadata": {"name": "web", "namespace": "default"},
                "spec": spec or SPEC,
            },
        )

    def status(self, plural: str = "virtualmachines") -> Json:
        status: Json = (self.api.find(plural, "web") or {}).get("status", {})
        return status

    def shown(self) -> Any:
        return self.status().get("printableStatus")

    def writes(self) -> dict[str, int]:
        calls = self.api.calls.copy()
        self.api.calls.clear()
        return {f"{verb} {resource}": count for (verb, resource), count in calls.items() if count and verb not in READS}

    async def quiet(self) -> None:
        """Waits until the controller's queues are empty and nothing has been written, several times in a row.

        A key that is being processed, however slowly, counts: its write is not missed.
        """
        version, calm = -1, 0
        while calm < QUIET_LOOKS:
            is_calm = version == self.api.version and all(loop.queue.idle() for loop in self._loops)
            version, calm = self.api.version, calm + 1 if is_calm else 0
            await asyncio.sleep(0.05)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with FakeApi() as api:
        made = World(api, api.kubeconfig(tmp_path))
        yield made
        await made.close()


# ---- call budget: the handler's two calls are added


async def test_vmi_takes_four_calls_to_run_and_two_to_delete(world: World) -> None:
    await world.start()
    await world.vmi()
    await until(lambda: world.status("virtualmachineinstances").get("phase") == "Running")
    await world.quiet()
    assert world.writes() == {"create pods": 1, "patch virtualmachineinstances": 2, "patch pods/status": 1}
    world.api.delete("virtualmachineinstances", "web")
    await until(lambda: not world.api.of("virtualmachineinstances"))
    await world.quiet()
    assert world.writes() == {"delete pods": 1, "patch virtualmachineinstances": 1}


async def test_unreported_end_of_deleted_vmi_takes_no_extra_call(world: World) -> None:
    await world.start()
    await world.vmi()
    await until(lambda: world.status("virtualmachineinstances").get("phase") == "Running")
    await world.quiet()
    world.writes()
    world.nodes.tells_deletions = False
    world.api.delete("virtualmachineinstances", "web")
    await until(lambda: not world.api.of("virtualmachineinstances"))
    await world.quiet()
    assert world.writes() == {"delete pods": 1, "patch virtualmachineinstances": 1}


async def test_vm_takes_eight_calls_to_start_nine_with_new_template_and_six_to_stop(world: World) -> None:
    await world.vm("Halted")
    await world.start()
    await until(lambda: world.shown() == "Stopped")
    world.writes()
    world.api.patch("virtualmachines", "web", {"spec": {"runStrategy": "Always"}})
    await until(lambda: world.shown() == "Running")
    await world.quiet()
    started = world.writes()
    assert sum(started.values()) == 9, started
    assert started["patch virtualmachines/status"] == 2 and started["create events"] == 1
    assert started["create controllerrevisions"] == 1
    world.api.patch("virtualmachines", "web", {"spec": {"runStrategy": "Halted"}})
    await until(lambda: world.shown() == "Stopped")
    await world.quiet()
    stopped = world.writes()
    assert sum(stopped.values()) == 6, stopped
    world.api.patch("virtualmachines", "web", {"spec": {"runStrategy": "Always"}})
    await until(lambda: world.shown() == "Running")
    await world.quiet()
    again = world.writes()
    assert sum(again.values()) == 8 and "create controllerrevisions" not in again, again
    (revision,) = world.api.of("controllerrevisions")
    told = world.status("virtualmachineinstances")["virtualMachineRevisionName"]
    assert told == revision["metadata"]["name"] and revision["data"]["spec"]["template"]["spec"]["domain"]


async def test_restarted_controller_writes_nothing_in_steady_state(world: World) -> None:
    await world.vm()
    await world.start()
    await until(lambda: world.shown() == "Running")
    await world.quiet()
    await world.kill()
    world.api.calls.clear()
    await world.start()
    await world.quiet()
    assert world.writes() == {}


# ---- crashes


@pytest.mark.parametrize("writes", range(1, 9))
@pytest.mark.parametrize("answered", [True, False])
async def test_crash_after_any_write_loses_and_duplicates_nothing(world: World, writes: int, answered: bool) -> None:
    """The API server has executed the write; the controller crashes before or after it reads the response."""
    left = [writes]
    dead = asyncio.Event()

    async def counted(write: Write) -> None:
        if write.verb == "delete":
            return
        left[0] -= 1
        if left[0] == 0:
            dead.set()
            if not answered:
                await asyncio.sleep(600)

    world.api.on_write = counted
    await world.vm()
    await world.start()
    await dead.wait()
    await world.kill()
    world.api.on_write = None
    await world.start()
    await until(lambda: world.shown() == "Running")
    await world.quiet()
    assert len(world.api.of("pods")) == 1 and len(world.api.of("virtualmachineinstances")) == 1
    assert world.api.version < 100 + 25, "the controller writes in a loop"


# ---- failures


async def test_refused_pod_is_reported_and_retried(world: World) -> None:
    quota = Refusal(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: thrift')
    world.api.refuse = lambda verb, plural, body: quota if (verb, plural) == ("create", "pods") else None
    await world.vm()
    await world.start()
    await until(lambda: any("exceeded quota" in c.get("message", "") for c in world.status().get("conditions", [])))
    assert [event["reason"] for event in world.api.of("events") if event["type"] == "Warning"] == ["FailedCreate"]
    world.api.refuse = lambda verb, plural, body: None
    await until(lambda: world.shown() == "Running")
    assert "Failure" not in [c["type"] for c in world.status()["conditions"]]


@pytest.mark.parametrize(
    "words",
    [
        'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: compute; limits.memory for: compute',
        'pods "x" is forbidden: failed quota: q: must specify limits.cpu,limits.memory',
    ],
)
async def test_pod_refused_by_quota_is_retried_with_limits(world: World, words: str) -> None:
    quota = Refusal(403, "Forbidden", words)

    def refuse(verb: str, plural: str, body: Json) -> Refusal | None:
        if (verb, plural) != ("create", "pods"):
            return None
        limits = body["spec"]["containers"][0]["resources"]["limits"]
        return None if {"cpu", "memory"} <= limits.keys() else quota

    world.api.refuse = refuse
    await world.vm()
    await world.start()
    await until(lambda: world.shown() == "Running")
    (pod,) = world.api.of("pods")
    amounts = pod["spec"]["containers"][0]["resources"]
    assert amounts["limits"]["cpu"] == "1" and amounts["limits"]["memory"] == amounts["requests"]["memory"]


async def test_vm_starts_when_missing_claim_is_created(world: World) -> None:
    await world.vm(spec={**SPEC, "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]})
    await world.start()
    await until(lambda: world.shown() == "ErrorPvcNotFound")
    assert not world.api.of("pods")
    world.api.put(
        "persistentvolumeclaims",
        {
            "metadata": {"name": "data", "namespace": "default"},
            "spec": {"volumeMode": "Block"},
            "status": {"phase": "Bound"},
        },
    )
    await until(lambda: world.shown() == "Running")
    (pod,) = world.api.of("pods")
    assert pod["spec"]["containers"][0]["volumeDevices"] == [{"name": "v-data", "devicePath": "/dev/volumes/data"}]
    assert claim("data").spec.volumeMode == "Filesystem"


BRIDGED = {
    **SPEC,
    "domain": {**SPEC["domain"], "devices": {"interfaces": [{"name": "red", "bridge": {}}]}},
    "networks": [{"name": "red", "multus": {"networkName": "default/br1"}}],
}
ANNOTATION = "k8s.v1.cni.cncf.io/networks"


async def define(api: FakeApi, name: str) -> None:
    """Creates a NetworkAttachmentDefinition."""
    annotations = {"k8s.v1.cni.cncf.io/resourceName": f"bridge.network.kubevirt.io/{name}"}
    api.put(
        "network-attachment-definitions",
        {
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name, "namespace": "default", "annotations": annotations},
            "spec": {"config": "{}"},
        },
    )


def complaint(world: World) -> str:
    conditions = world.status("virtualmachineinstances").get("conditions", [])
    return next((c.get("message", "") for c in conditions if c["type"] == "Synchronized"), "")


@pytest.mark.parametrize("served", [True, False])
async def test_vm_starts_when_missing_network_is_created(
    world: World, monkeypatch: pytest.MonkeyPatch, served: bool
) -> None:
    """With `served`, only the definition is missing; without, its CRD as well."""
    monkeypatch.setattr("controller.cache.definitions.ABSENT_SECONDS", 0.02)
    if not served:
        world.api.unserved.add("network-attachment-definitions")
    await world.vm(spec=BRIDGED)
    await world.start()
    await until(lambda: "NetworkAttachmentDefinition br1 not found in namespace default" in complaint(world))
    assert ("does not serve this kind" in complaint(world)) is not served
    await world.quiet()
    assert not world.api.of("pods") and world.status().get("printableStatus") == "Starting"
    assert [c["reason"] for c in world.status()["conditions"] if c["type"] == "Failure"] == [
        names.REASON_NETWORK_NOT_FOUND
    ]
    world.api.unserved.clear()
    await define(world.api, "br1")
    await until(lambda: world.shown() == "Running")
    assert "Failure" not in [c["type"] for c in world.status()["conditions"]]
    (pod,) = world.api.of("pods")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["bridge.network.kubevirt.io/br1"] == "1"
    assert '"name":"br1"' in pod["metadata"]["annotations"][ANNOTATION]


async def test_secondary_network_takes_no_extra_call(world: World) -> None:
    await define(world.api, "br1")
    await world.start()
    await world.vmi(BRIDGED)
    await until(lambda: world.status("virtualmachineinstances").get("phase") == "Running")
    await world.quiet()
    assert world.writes() == {"create pods": 1, "patch virtualmachineinstances": 2, "patch pods/status": 1}


async def test_nics_are_plugged_and_unplugged_in_running_vm(world: World) -> None:
    """Interfaces get from the template to VMI and pod, and are removed from all when the handler reports the unplug."""
    two = {
        **BRIDGED,
        "domain": {**SPEC["domain"], "devices": {"interfaces": [{"name": "red", "bridge": {}},
                                                                {"name": "blue", "bridge": {}}]}},
        "networks": [*BRIDGED["networks"], {"name": "blue", "multus": {"networkName": "br2"}}],
    }  # fmt: skip

    def cards() -> list[Any]:
        spec = world.api.objects["virtualmachineinstances", "default", "web"]["spec"]
        return [(nic["name"], nic.get("state")) for nic in spec["domain"]["devices"]["interfaces"]]

    def networks() -> list[str]:
        (pod,) = world.api.of("pods")
        return [entry["name"] for entry in json.loads(pod["metadata"]["annotations"][ANNOTATION])]

    async def report(*names: str) -> None:
        shown = [{"name": name, "infoSource": "domain"} for name in names]
        world.api.patch("virtualmachineinstances", "web", {"status": {"interfaces": shown}})

    await define(world.api, "br1")
    await world.vm(spec=BRIDGED)
    await world.start()
    await until(lambda: world.shown() == "Running")
    await report("red")
    await world.quiet()
    world.writes()
    world.api.patch("virtualmachines", "web", {"spec": {"template": {"spec": two}}})
    await until(lambda: networks() == ["br1", "br2"])
    await world.quiet()
    assert cards() == [("red", None), ("blue", None)]
    assert world.writes() == {"patch virtualmachineinstances": 1, "patch pods/status": 1}
    await report("red", "blue")
    two["domain"]["devices"]["interfaces"][1]["state"] = "absent"
    world.api.patch("virtualmachines", "web", {"spec": {"template": {"spec": two}}})
    await until(lambda: cards() == [("red", None), ("blue", "absent")])
    await world.quiet()
    assert networks() == ["br1", "br2"]
    await report("red")
    await until(lambda: networks() == ["br1"])
    await world.quiet()
    assert cards() == [("red", None)]
    template = world.api.objects["virtualmachines", "default", "web"]["spec"]["template"]["spec"]
    assert [nic["name"] for nic in template["domain"]["devices"]["interfaces"]] == ["red"]
    assert [network["name"] for network in template["networks"]] == ["red"]
    assert "RestartRequired" not in [c["type"] for c in world.status()["conditions"]]
    assert len(world.api.of("pods")) == 1


async def test_vm_starts_when_kubevirt_cr_permits_it(world: World) -> None:
    network = {"permitBridgeInterfaceOnPodNetwork": False}
    world.api.put(
        "kubevirts",
        {
            "apiVersion": "kubevirt.io/v1",
            "kind": "KubeVirt",
            "spec": {"configuration": {"network": network}},
            "metadata": {"name": "kubevirt", "namespace": "hyperlet", "generation": 1},
        },
    )
    on_pod = {**BRIDGED, "networks": [{"name": "red", "pod": {}}]}
    await world.vm(spec=on_pod)
    await world.start()
    await until(
        lambda: any(
            "is disabled by permitBridgeInterfaceOnPodNetwork" in c.get("message", "")
            for c in world.status().get("conditions", [])
        )
    )
    assert not world.api.of("virtualmachineinstances")
    network["permitBridgeInterfaceOnPodNetwork"] = True
    world.api.patch("kubevirts", "kubevirt", {"spec": {"configuration": {"network": network}}}, namespace="hyperlet")
    await until(lambda: world.shown() == "Running")


async def test_foreign_pod_with_launcher_name_is_not_adopted(world: World) -> None:
    async def squat(verb: str, plural: str, body: Json) -> None:
        world.api.objects["pods", "default", body["metadata"]["name"]] = {
            "metadata": {
                "name": body["metadata"]["name"],
                "namespace": "default",
                "uid": "stranger",
                "resourceVersion": "1",
            },
            "spec": {},
            "status": {"phase": "Succeeded"},
        }

    def refuse(verb: str, plural: str, body: Json) -> Refusal | None:
        if (verb, plural) == ("create", "pods"):
            asyncio.get_running_loop().create_task(squat(verb, plural, body))
            return Refusal(409, "AlreadyExists", "exists")
        return None

    world.api.refuse = refuse
    await world.vmi()
    await world.start()
    await until(lambda: world.api.calls["get", "pods"] >= 3)
    assert world.status("virtualmachineinstances").get("phase") in (None, "", "Pending")


async def test_unresponsive_node_prevents_start_on_another_node(world: World) -> None:
    await world.vm()
    await world.start()
    await until(lambda: world.shown() == "Running")
    world.nodes.silent = True
    (pod,) = world.api.of("pods")
    world.api.delete("pods", pod["metadata"]["name"])
    world.api.delete("virtualmachineinstances", "web")
    await world.quiet()
    assert [each["metadata"]["uid"] for each in world.api.of("pods")] == [pod["metadata"]["uid"]]
    assert world.shown() == "Stopping"
    world.nodes.silent = False
    uid = pod["metadata"]["uid"]
    await until(lambda: world.shown() == "Running" and world.api.of("pods")[0]["metadata"]["uid"] != uid)


async def test_vm_on_unresponsive_node_is_unknown_until_recovery(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.vmi.plan.LOST_SECONDS", 0.3)
    node: Json = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node1"}}
    world.api.put("nodes", {**node, "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    await world.vm()
    await world.start()
    await until(lambda: world.shown() == "Running")
    world.nodes.silent = True
    await world.quiet()
    world.writes()
    silent = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    world.api.patch("nodes", "node1", silent, namespace="")
    await until(lambda: world.shown() == "Unknown")
    await world.quiet()
    spent = {what: count for what, count in world.writes().items() if "events" not in what}
    assert spent == {"patch virtualmachineinstances": 1, "patch virtualmachines/status": 1}
    assert len(world.api.of("pods")) == 1 and world.status("virtualmachineinstances")["phase"] == "Running"
    # The deletion of its pod is no evidence ...
    monkeypatch.setattr("controller.vmi.plan.END_SECONDS", 0.05)
    (pod,) = world.api.of("pods")
    world.nodes.silent = False
    world.api.remove("pods", pod["metadata"]["name"])
    await world.quiet()
    assert not world.api.of("pods") and world.status("virtualmachineinstances")["phase"] == "Running"
    # ... but fencing by an administrator is.
    taint = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
    world.api.patch("nodes", "node1", {"spec": {"taints": [taint]}}, namespace="")
    old = pod["metadata"]["uid"]
    await until(lambda: [each for each in world.api.of("pods") if each["metadata"]["uid"] != old])


async def test_force_deleted_pod_is_replaced_only_with_evidence_from_its_node(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.vmi.plan.AWAIT_SECONDS", 0.05)
    await world.vm()
    await world.start()
    await until(lambda: world.shown() == "Running")
    world.nodes.silent = True
    (pod,) = world.api.of("pods")
    world.api.remove("pods", pod["metadata"]["name"])
    await until(lambda: world.shown() == "Unknown")
    # A restarted controller still waits.
    await world.kill()
    await world.start()
    await world.quiet()
    assert not world.api.of("pods")
    assert world.status("virtualmachineinstances")["activePods"] == {pod["metadata"]["uid"]: "node1"}
    # A deletion waits as well.
    world.api.delete("virtualmachineinstances", "web")
    await world.quiet()
    assert world.api.of("virtualmachineinstances") and not world.api.of("pods")
    world.nodes.silent = False
    gone = {"status": {"activePods": {pod["metadata"]["uid"]: None}}}
    world.api.patch("virtualmachineinstances", "web", gone)
    await until(lambda: world.shown() == "Running")


async def test_phase_failed_without_terminated_containers_is_no_evidence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.vmi.plan.END_SECONDS", 0.05)
    monkeypatch.setattr("controller.vmi.plan.AWAIT_SECONDS", 0.05)
    await world.vm()
    await world.start()
    await until(lambda: world.shown() == "Running")
    (pod,) = world.api.of("pods")
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    early = {**pod["status"], "phase": "Failed", "reason": "Preempting", "containerStatuses": None}
    world.api.put("pods", {**pod, "status": {key: value for key, value in early.items() if value is not None}})
    await until(lambda: world.shown() == "Unknown")
    await world.quiet()
    assert [each["metadata"]["uid"] for each in world.api.of("pods")] == [uid]
    await world.nodes.end(name, "Failed")
    await until(lambda: world.shown() == "Running" and world.api.of("pods")[-1]["metadata"]["uid"] != uid)


async def test_new_vmi_waits_for_pod_of_removed_vmi_of_same_name(world: World) -> None:
    """Finalizer and owner reference were removed: the pod of the earlier VMI still runs."""
    await world.vm()
    await world.start()
    await until(lambda: world.shown() == "Running")
    await world.quiet()
    world.nodes.silent = True
    (pod,) = world.api.of("pods")
    world.api.patch("pods", pod["metadata"]["name"], {"metadata": {"ownerReferences": [], "labels": None}})
    world.api.remove("virtualmachineinstances", "web")
    await until(lambda: "earlier VirtualMachineInstance" in complaint(world))
    await world.quiet()
    (still,) = world.api.of("pods")
    assert still["metadata"]["uid"] == pod["metadata"]["uid"] and still["metadata"]["deletionTimestamp"]
    # The Pod is force-deleted without evidence from its node.
    world.api.remove("pods", pod["metadata"]["name"])
    await world.quiet()
    assert not world.api.of("pods")
    gone = {"status": {"activePods": {pod["metadata"]["uid"]: None}}}
    world.api.patch("virtualmachineinstances", "web", gone)
    world.nodes.silent = False
    await until(lambda: world.shown() == "Running")


async def test_pod_without_label_does_not_count_as_deleted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.vmi.plan.END_SECONDS", 0.05)
    await world.vm()
    await world.start()
    await until(lambda: world.shown() == "Running")
    (pod,) = world.api.of("pods")
    world.api.patch("pods", pod["metadata"]["name"], {"metadata": {"labels": {names.LABEL_APP: None}}})
    await asyncio.sleep(0.3)
    await world.quiet()
    assert [each["metadata"]["uid"] for each in world.api.of("pods")] == [pod["metadata"]["uid"]]
    assert world.shown() == "Running"
    # Its end is still detected.
    await world.nodes.end(pod["metadata"]["name"], "Failed")
    uid = pod["metadata"]["uid"]
    await until(lambda: world.shown() == "Running" and world.api.of("pods")[0]["metadata"]["uid"] != uid)


async def test_controller_reports_end_without_handler(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.vmi.plan.END_SECONDS", 0.05)
    await world.vmi()
    await world.start()
    await until(lambda: world.status("virtualmachineinstances").get("phase") == "Running")
    world.nodes.handler = False
    (pod,) = world.api.of("pods")
    await world.nodes.end(pod["metadata"]["name"], "Failed")
    await until(lambda: world.status("virtualmachineinstances").get("phase") == "Failed")
    assert world.status("virtualmachineinstances")["reason"] == "Told"


async def test_controller_catches_up_after_api_server_outage(world: World) -> None:
    await world.vm()
    await world.start()
    await until(lambda: world.shown() == "Running")
    # The pod's last status may be missed between two watches; then only its node can provide evidence.
    world.nodes.attests = True
    world.api.leave()
    await until(lambda: world.cluster and not any(store.connected for store in world.cluster.stores.values()))
    world.api.objects["virtualmachines", "default", "web"]["spec"]["runStrategy"] = "Halted"
    world.api.version += 1
    world.api.objects["virtualmachines", "default", "web"]["metadata"]["resourceVersion"] = str(world.api.version)
    world.api.compact()
    world.api.away = False
    await until(lambda: world.shown() == "Stopped")


async def test_undecodable_object_gets_condition_and_event(world: World) -> None:
    await world.start()
    world.api.put(
        "virtualmachines",
        {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "runStrategy": "Always",
                "template": {"spec": {"domain": {"devices": {}, "cpu": {"cores": "many"}}}},
            },
        },
    )
    await until(lambda: any("cores" in c.get("message", "") for c in world.status().get("conditions", [])))


# ---- KubeVirt CR


async def test_kubevirt_status_deployed_is_written_once(world: World) -> None:
    world.api.put(
        "kubevirts",
        {
            "apiVersion": "kubevirt.io/v1",
            "kind": "KubeVirt",
            "spec": {},
            "metadata": {"name": "kubevirt", "namespace": "hyperlet", "generation": 1},
        },
    )
    await world.start()
    found = ("kubevirts", "hyperlet", "kubevirt")
    await until(lambda: world.api.objects[found].get("status", {}).get("phase") == "Deployed")
    await world.quiet()
    assert world.writes() == {"patch kubevirts/status": 1}


@pytest.mark.parametrize("keeps", [True, False])
async def test_image_volumes_are_detected_by_dry_run(world: World, keeps: bool) -> None:
    world.api.keeps_image_volumes = keeps
    async with Kube.connect("controller", world.config) as kube:
        assert await image_volumes.supported(kube, "default") is keeps
    assert not world.api.of("pods")


NO_SOURCE = {"reason": "FieldValueRequired", "field": "spec.volumes[0]", "message": "must specify a volume type"}
POLICY = {"reason": "FieldValueForbidden", "field": "spec.containers[0].image", "message": "not from our registry"}


@pytest.mark.parametrize(
    "refusals, answer",
    [
        ([Refusal(422, "Invalid", "spec.volumes[0]: must specify a volume type", [NO_SOURCE])], False),
        ([Refusal(422, "Invalid", "refused by a policy", [POLICY])], True),
        ([Refusal(403, "Forbidden", "exceeded quota")], True),
        ([Refusal(503, "ServiceUnavailable", "no etcd leader"), Refusal(500, "InternalError", "no webhook")], True),
    ],
)
async def test_inconclusive_image_volume_detection_is_not_taken_as_unsupported(
    world: World, monkeypatch: pytest.MonkeyPatch, refusals: list[Refusal], answer: bool
) -> None:
    monkeypatch.setattr(image_volumes, "AGAIN_SECONDS", 0.01)
    world.api.keeps_image_volumes = True
    waiting = list(refusals)
    world.api.refuse = lambda verb, plural, body: waiting.pop(0) if plural == "pods" and waiting else None
    async with Kube.connect("controller", world.config) as kube:
        assert await image_volumes.supported(kube, "default") is answer
    assert not waiting and not world.api.of("pods")


async def test_image_volumes_are_detected_after_server_update(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_volumes, "UPDATE_SECONDS", 0.01)
    async with Kube.connect("controller", world.config) as kube:
        waiting = asyncio.create_task(image_volumes.appear(kube, "default"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        world.api.keeps_image_volumes = True
        await asyncio.wait_for(waiting, 30)


async def test_pods_created_after_server_update_use_image_volumes(world: World) -> None:
    await world.start()
    assert world.cluster is not None
    assert world.cluster.settings.image_volumes is False
    world.cluster.use_image_volumes()
    assert world.cluster.settings.image_volumes is True
