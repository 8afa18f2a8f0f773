"""The Kubernetes API as the handler sees it: lists, watches, merge patches with versions, Events; it can be away."""

import asyncio
from typing import Any

import msgspec

from api.errors import ApiUnavailable, Conflict, NotFound
from api.kubevirt.vmi import VirtualMachineInstance


class FakeKube:
    """Holds documents by kind, namespace and name. `patches` and `events` remember what was written."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._watchers: list[tuple[str, asyncio.Queue[tuple[str, dict[str, Any]]]]] = []
        self._version = 100
        self.away = False
        self.patches: list[dict[str, Any]] = []
        self.events: list[tuple[str, str, str]] = []

    # -- for tests

    def put(self, kind: type, document: dict[str, Any]) -> None:
        """Creates or replaces an object."""
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)
        key = self._key(kind, document)
        change = "MODIFIED" if key in self._objects else "ADDED"
        self._objects[key] = document
        self._tell(kind, change, document)

    def remove(self, kind: type, namespace: str, name: str) -> None:
        """Deletes an object."""
        self._version += 1
        document = self._objects.pop((kind.__name__, namespace, name))
        document["metadata"]["resourceVersion"] = str(self._version)
        self._tell(kind, "DELETED", document)

    def document(self, kind: type, namespace: str, name: str) -> dict[str, Any]:
        """What is stored."""
        return self._objects[kind.__name__, namespace, name]

    def status(self, name: str = "vm") -> dict[str, Any]:
        """The status of a VMI."""
        found: dict[str, Any] = self.document(VirtualMachineInstance, "test", name)["status"]
        return found

    def condition(self, type: str, name: str = "vm") -> dict[str, Any]:
        """A condition of a VMI; empty if it has none of that type."""
        return next((item for item in self.status(name).get("conditions", []) if item["type"] == type), {})

    # -- as kit.kube has it

    async def list(self, kind: type, namespace=None, labels=None, fields=None, bad=None):
        self._answer()
        found = [msgspec.convert(document, kind) for key, document in self._objects.items() if key[0] == kind.__name__]
        return found, str(self._version)

    async def watch(self, kind: type, resource_version: str, namespace=None, labels=None, fields=None, bad=None):
        queue: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        watcher = (kind.__name__, queue)
        self._watchers.append(watcher)
        try:
            while True:
                change, document = await queue.get()
                yield change, msgspec.convert(document, kind)
        finally:
            self._watchers.remove(watcher)

    async def patch(self, kind: type, namespace, name, patch, subresource=None, patch_kind="merge"):
        self._answer()
        document = self._objects.get((kind.__name__, namespace or "", name))
        if document is None:
            raise NotFound(f"{name} not found")
        wanted = patch.get("metadata", {}).get("resourceVersion")
        if wanted and wanted != document["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified")
        self.patches.append(patch)
        self.put(kind, merge(document, patch))
        return msgspec.convert(self.document(kind, namespace or "", name), kind)

    async def event(self, obj, reason, message, type="Normal"):
        self.events.append((type, reason, message))

    def _answer(self) -> None:
        if self.away:
            raise ApiUnavailable("connection refused")

    @staticmethod
    def _key(kind: type, document: dict[str, Any]) -> tuple[str, str, str]:
        return kind.__name__, document["metadata"].get("namespace", ""), document["metadata"]["name"]

    def _tell(self, kind: type, change: str, document: dict[str, Any]) -> None:
        for name, queue in self._watchers:
            if name == kind.__name__:
                queue.put_nowait((change, msgspec.json.decode(msgspec.json.encode(document))))


def merge(document: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def vmi(
    name: str = "vm",
    uid: str = "vmi-uid",
    node: str = "node1",
    phase: str = "Scheduled",
    pod: str = "pod-uid",
    **spec: Any,
) -> dict[str, Any]:
    """A VMI as the controller hands it over to the pod of that UID."""
    then = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "False", "reason": "GuestNotRunning", "lastTransitionTime": then}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"namespace": "test", "name": name, "uid": uid, "labels": {"kubevirt.io/nodeName": node}},
        "spec": {"domain": {"devices": {"autoattachPodInterface": False}, "memory": {"guest": "64Mi"}}, **spec},
        "status": {
            "phase": phase,
            "nodeName": node,
            "activePods": {pod: node},
            "conditions": [ready],
            "phaseTransitionTimestamps": [{"phase": "Scheduled", "phaseTransitionTimestamp": then}],
        },
    }


def pod(
    uid: str, owner: str = "vmi-uid", name: str = "virt-launcher-vm-abcde", node: str = "node1", vm: str = "vm"
) -> dict[str, Any]:
    """A launcher pod that runs."""
    reference = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": vm, "uid": owner}
    given = {"HYPERLET_NAMESPACE": "test", "HYPERLET_NAME": vm, "HYPERLET_UID": owner}
    compute = {"name": "compute", "env": [{"name": name, "value": value} for name, value in given.items()]}
    return {
        "metadata": {
            "namespace": "test",
            "name": name,
            "uid": uid,
            "labels": {"kubevirt.io": "virt-launcher"},
            "ownerReferences": [{**reference, "controller": True}],
        },
        "spec": {"nodeName": node, "containers": [compute]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "ContainersReady", "status": "True"}],
            "containerStatuses": [
                {"name": "compute", "ready": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
            ],
        },
    }
