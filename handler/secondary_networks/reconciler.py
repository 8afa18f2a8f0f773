"""Attaches the pods of this node to their secondary networks, and detaches them.

A VM's pod is attached when the VM is set up (`handler.vmi.node_setup`); an ordinary pod when its first container runs,
since nothing calls the handler earlier. Every pod is detached after it has ended or was deleted, even if that happened
while the handler or the node was down.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from api import network_attachments
from api.errors import NetworkError
from api.k8s.objects import Pod
from api.launcher_pods import END_PHASES, origin
from handler.node import pod_processes
from handler.secondary_networks import network_status
from handler.secondary_networks.attachment_records import AttachmentRecord
from handler.secondary_networks.attachments import Attachments
from kit import proc
from kit.cache import Store
from kit.kube import Kube
from kit.reconcile import Reconciler, RequeueAfter

RETRY_SECONDS = 1.0
REASON_JOINED, REASON_NOT_JOINED, REASON_NOT_LEFT = "AddedInterface", "FailedAddInterface", "FailedRemoveInterface"


@dataclass(frozen=True)
class ObservedPod:
    """Input of the plan for a pod. `alive`: the API server no longer has the pod, but the node does."""

    uid: str
    pod: Pod | None
    record: AttachmentRecord | None
    alive: bool = False
    multus: bool = False


@dataclass(frozen=True)
class Join:
    """Attach the networks in the pod's annotation and detach all others."""

    pod: Pod


@dataclass(frozen=True)
class Leave:
    """Detach all networks."""


def plan(seen: ObservedPod) -> list[Join | Leave | RequeueAfter]:
    """What to do for one pod. Pure."""
    pod = seen.pod
    if pod is None or pod.status.phase in END_PHASES:
        if seen.record is None:
            return []
        return [RequeueAfter(RETRY_SECONDS)] if seen.alive else [Leave()]
    if pod.metadata.deletionTimestamp or pod.spec.hostNetwork or (seen.multus and seen.record is None):
        return []
    if origin(pod) is not None:
        return [Join(pod)] if seen.record is not None and not _settled(pod, seen.record) else []
    return [Join(pod)] if _runs(pod) else []


def _settled(pod: Pod, record: AttachmentRecord) -> bool:
    """Whether a VM's pod has the requested networks and a matching network-status."""
    text = (pod.metadata.annotations or {}).get(network_attachments.ANNOTATION_NETWORKS)
    try:
        wanted = {each.interface for each in network_attachments.selections(pod.metadata.namespace or "", text)}
    except ValueError:
        return True  # the VMI's condition reports the error
    joined = {each.selection.interface for each in record.joined if each.result is not None}
    told = {each["interface"] for each in network_status.entries(pod) if each.get("default") is not True}
    return wanted == joined == told


def _runs(pod: Pod) -> bool:
    status = pod.status
    containers = [*(status.initContainerStatuses or ()), *(status.containerStatuses or ())]
    return any(each.state is not None and each.state.running is not None for each in containers)


class PodNetworkReconciler(Reconciler[str, ObservedPod, Join | Leave]):
    """Runs `Attachments` for the pods of this node, by UID."""

    name = "podnetworks"

    def __init__(self, kube: Kube, pods: Store[Pod], attachments: Attachments) -> None:
        super().__init__()
        self._kube = kube
        self._pods = pods
        self._attachments = attachments
        pods.index("uid", lambda pod: [pod.metadata.uid or ""])
        pods.on_change(self._changed)
        attachments.again = lambda pod_uid: self.queue.add_after(pod_uid, RETRY_SECONDS)

    async def run(self, workers: int = 8) -> None:
        """Run until cancelled, starting with recorded pods."""
        await self._pods.synced()
        for uid in self._attachments.pods:
            self.queue.add(uid)
        await super().run(workers)

    def _changed(self, old: Pod | None, new: Pod | None) -> None:
        uid = ((new or old) or Pod()).metadata.uid or ""
        asks = any(
            network_attachments.ANNOTATION_NETWORKS in (pod.metadata.annotations or {}) for pod in (old, new) if pod
        )
        if asks or self._attachments.record(uid) is not None:
            self.queue.add(uid)

    def describe(self, key: str) -> dict[str, Any]:
        """Context of log lines."""
        record, pods = self._attachments.record(key), self._pods.by("uid", key)
        if pods:
            return {"namespace": pods[0].metadata.namespace, "name": pods[0].metadata.name, "pod_uid": key}
        return {"pod_uid": key} | ({"namespace": record.namespace, "name": record.name} if record else {})

    async def observe(self, key: str) -> ObservedPod | None:
        """State from cache and records, and from the node where the cache has no pod."""
        pods, record = self._pods.by("uid", key), self._attachments.record(key)
        pod = pods[0] if pods else None
        if pod is None and record is None:
            return None
        alive = pod is None and await self._process(key, keep=False) is not None
        multus = pod is not None and record is None and await self._attachments.uses_multus()
        return ObservedPod(key, pod, record, alive, multus)

    def plan(self, observed: ObservedPod) -> Sequence[Join | Leave | RequeueAfter]:
        """See `plan`."""
        return plan(observed)

    async def apply(self, observed: ObservedPod, action: Join | Leave) -> None:
        """Apply one action. Raises NetworkError."""
        match action:
            case Leave():
                await self._attachments.leave(observed.uid)
            case Join(pod):
                await self._join(pod, observed.record)
            case _:
                assert_never(action)

    async def _join(self, pod: Pod, before: AttachmentRecord | None) -> None:
        uid = pod.metadata.uid or ""
        process = await self._process(uid)
        if process is None:
            self.queue.add_after(uid, RETRY_SECONDS)
            return
        with process:
            try:
                await self._attachments.ensure(pod, process)
            except NetworkError as error:
                if origin(pod) is None:
                    await self._kube.event(pod, REASON_NOT_JOINED, error.message, "Warning")
                raise
        if origin(pod) is None:
            await self._record_success(pod, before)

    async def _record_success(self, pod: Pod, before: AttachmentRecord | None) -> None:
        """Record Events for an ordinary pod's new interfaces, with Multus' wording."""
        record = self._attachments.record(pod.metadata.uid or "")
        for joined in record.joined if record else []:
            if before is None or before.of(joined.selection.interface) is None:
                ips = network_status.entry(joined).get("ips", [])
                words = f"Add {joined.selection.interface} [{' '.join(ips)}] from {joined.selection.network}"
                await self._kube.event(pod, REASON_JOINED, words)

    async def _process(self, uid: str, keep: bool = True) -> proc.Process | None:
        process = await asyncio.to_thread(pod_processes.sandbox, uid, self._attachments.host.network)
        if process is not None and not keep:
            process.close()
        return process

    async def report(self, key: str, error: str, failures: int) -> None:
        """Record an Event for a pod, which may be deleted, about a network that could not be detached."""
        record = self._attachments.record(key)
        living = [pod for pod in self._pods.by("uid", key) if pod.status.phase not in END_PHASES]
        if record is not None and not living:
            await self._kube.event(record.pod, REASON_NOT_LEFT, error, "Warning")
