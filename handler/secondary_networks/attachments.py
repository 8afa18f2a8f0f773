"""Secondary network interfaces in the pods of this node, created by Multus where it runs, else by the handler.

Without Multus, the handler runs the CNI configuration of each NetworkAttachmentDefinition in the pod's annotation on
the pod's network namespace, and DEL when the network leaves the annotation or the pod ends.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from api import network_attachments
from api.errors import HyperletError, NetworkError, NotFound
from api.k8s.objects import Pod
from api.launcher_pods import origin
from api.network_attachments import NetworkAttachmentDefinition, Selection
from handler.node import pod_processes
from handler.secondary_networks import cni_chain, cni_config, network_status
from handler.secondary_networks.attachment_records import Attachment, AttachmentRecord, AttachmentRecords
from handler.secondary_networks.cni_exec import CniHost, NodeCniConfig
from kit import log, proc
from kit.kube import Kube
from kit.netlink.route import Link, RtnetlinkSocket
from kit.tasks import BackgroundTasks

T = TypeVar("T")
MULTUS, OURS = "multus", "hyperlet"
NODE_SECONDS = 10.0
"""Lifetime of the cached CNI configuration of the host: Multus may be installed or removed at any time."""

_log = log.logger(component="attachments")


class AttachmentFailed(NetworkError):
    """Some networks could not be attached or detached; all others of the pod are done."""

    def __init__(self, missing: Mapping[str, str], makers: Mapping[str, str]) -> None:
        super().__init__("; ".join(missing.values()))
        self.missing = dict(missing)
        """Error by interface name in the pod."""
        self.makers = dict(makers)
        """Creator of each other interface, as returned by `Attachments.ensure`."""


class Attachments:
    """Attaches pods to the networks of their annotation.

    `again` is called with a pod's UID to retry later: detaching its networks, or writing its network-status.
    """

    def __init__(self, kube: Kube, records: AttachmentRecords, host: CniHost | None = None) -> None:
        self._kube = kube
        self._records = records
        self._host = host or CniHost.configured()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._node: tuple[float, NodeCniConfig] | None = None
        self._tasks = BackgroundTasks(log.task_failed)
        self.again: Callable[[str], None] = lambda pod_uid: None

    @property
    def pods(self) -> list[str]:
        """UIDs of the pods with attachment records."""
        return list(self._records)

    def record(self, pod_uid: str) -> AttachmentRecord | None:
        """The attachment record of a pod."""
        return self._records.get(pod_uid)

    async def ensure(self, pod: Pod, process: proc.Process) -> dict[str, str]:
        """Make the pod's interfaces match its annotation. Returns each one's creator: "multus" or "hyperlet".

        Attaches missing networks and detaches others; idempotent. `process` is one in the pod's network namespace. A
        failing network does not block the others. Raises AttachmentFailed if an interface is missing, NetworkError,
        ApiUnavailable.
        """
        uid = pod.metadata.uid or ""
        wanted = _wanted(pod)
        if not wanted and self._records.get(uid) is None:
            return {}
        try:
            namespace = process.namespace("net")
        except OSError as error:
            raise NetworkError("the pod has no running process") from error
        # Cancelling the caller must not interrupt an ADD.
        return await self._to_its_end(uid, lambda: self._ensure(pod, wanted, namespace))

    async def forget(self, pod_uid: str) -> None:
        """Detach a pod that was deleted or has ended. Never raises: failures are retried."""
        try:
            await self.leave(pod_uid)
        except NetworkError as error:
            _log.warning("Could not detach a pod from its networks, retrying", why=error.message, pod_uid=pod_uid)
            self.again(pod_uid)

    async def leave(self, pod_uid: str) -> None:
        """Detach the pod from all recorded networks. Raises NetworkError if one fails."""
        if self._records.get(pod_uid) is None:
            return

        async def work() -> None:
            with contextlib.ExitStack() as stack:
                await self._leave(pod_uid, None, await _open_namespace(pod_uid, self._host.network, stack))

        await self._to_its_end(pod_uid, work)

    @property
    def host(self) -> CniHost:
        """The host whose plugins are run."""
        return self._host

    async def uses_multus(self) -> bool:
        """Whether Multus runs on this node, which then attaches all networks."""
        return (await self._configuration()).multus

    # ---- one pod at a time -----------------------------------------------------------------------------------------

    async def _to_its_end(self, uid: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        lock = self._locks.setdefault(uid, asyncio.Lock())

        async def body() -> T:
            async with lock:
                return await work()

        return await self._tasks.complete("attachments", body(), pod_uid=uid)

    async def close(self) -> None:
        """Wait for running operations."""
        await self._tasks.finish()

    async def _ensure(self, pod: Pod, wanted: list[Selection], namespace: int) -> dict[str, str]:
        with proc.closing(namespace):
            links = await _links(namespace, self._host.network)
            missing = await self._leave_unwanted(pod, wanted, links, namespace)
            makers: dict[str, str] = {}
            for each in wanted:
                if each.interface in missing:
                    continue
                try:
                    makers[each.interface] = await self._one(pod, each, links, namespace)
                except NetworkError as error:
                    missing[each.interface] = error.message
            own = links.get("eth0")
            await self._tell(pod, own.mac if own else "")
            if missing:
                raise AttachmentFailed(missing, makers)
            return makers

    async def _leave_unwanted(
        self, pod: Pod, wanted: list[Selection], links: dict[str, Link], namespace: int
    ) -> dict[str, str]:
        """Detach networks that are no longer requested, incomplete, or lost with an earlier sandbox.

        Returns the error of each that could not be detached, by interface.
        """
        uid, failed = pod.metadata.uid or "", dict[str, str]()
        record = self._records.get(uid)
        keep = {(each.interface, each.network) for each in wanted}
        for joined in record.joined if record else []:
            selection = joined.selection
            whole = joined.result is not None and selection.interface in links
            if not whole or (selection.interface, selection.network) not in keep:
                try:
                    await self._leave(uid, selection.interface, namespace)
                except NetworkError as error:
                    failed[selection.interface] = error.message
                else:
                    links.pop(selection.interface, None)
        return failed

    async def _one(self, pod: Pod, selection: Selection, links: dict[str, Link], namespace: int) -> str:
        record = self._records.get(pod.metadata.uid or "")
        if record is not None and record.of(selection.interface) is not None:
            return OURS
        told = {each["interface"] for each in network_status.entries(pod)}
        if selection.interface in told and selection.interface in links:
            return MULTUS
        node = await self._configuration()
        if node.multus:
            raise NetworkError(
                f"network {selection.network}: Multus runs on this node but has not created {selection.interface} in "
                "the pod; it adds interfaces when a pod starts, and later only with its dynamic networks controller"
            )
        await self._join(pod, selection, node, namespace)
        return OURS

    async def _join(self, pod: Pod, selection: Selection, node: NodeCniConfig, namespace: int) -> None:
        try:
            definition = await self._kube.get(NetworkAttachmentDefinition, selection.namespace, selection.name)
        except NotFound as error:
            raise NetworkError(
                f"network {selection.network}: no such NetworkAttachmentDefinition in namespace {selection.namespace}"
            ) from error
        network = cni_config.parse(definition)
        if network.name in node.names:
            raise NetworkError(
                f"{network.source}: name {network.name!r} in spec.config is already used by the node's CNI "
                "configuration; choose another"
            )
        if fault := cni_config.faults(network, selection, origin(pod) is not None):
            raise NetworkError(fault)
        await cni_chain.require(self._host, network)
        home = _sandbox_of(pod, namespace)
        joined = Attachment(
            selection=selection, name=network.name, version=network.version, plugins=list(network.plugins)
        )
        before = self._records.get(home.uid) or AttachmentRecord(namespace=home.namespace, name=home.name, uid=home.uid)
        await self._keep(before.having(joined))
        try:
            result = await cni_chain.add(self._host, network, selection, home)
        except NetworkError:
            # The CNI specification requires DEL after a failed ADD; if that fails too, it is retried from the record.
            with contextlib.suppress(NetworkError):
                await self._leave(home.uid, selection.interface, namespace)
            raise
        await self._keep(before.having(msgspec.structs.replace(joined, result=result)))
        _log.info("Attached pod to network", network=selection.network, interface=selection.interface, **log.about(pod))

    async def _leave(self, uid: str, interface: str | None, namespace: int | None) -> None:
        """Detach one interface's network, or all, in reverse order. Raises the first error after trying all."""
        first: NetworkError | None = None
        record = self._records.get(uid)
        for joined in reversed(record.joined if record else []):
            if interface not in (None, joined.selection.interface):
                continue
            assert record is not None
            home = cni_chain.PodSandbox(record.namespace, record.name, uid, namespace)
            try:
                await cni_chain.delete(self._host, joined.network, joined.selection, home, joined.result)
            except NetworkError as error:
                first = first or error
                continue
            record = record.without(joined.selection.interface)
            await self._keep(record)
            _log.info(
                "Detached pod from network",
                network=joined.selection.network,
                interface=joined.selection.interface,
                **log.about(record.pod),
            )
        if first is not None:
            raise first

    async def _keep(self, record: AttachmentRecord) -> None:
        try:
            await asyncio.to_thread(self._records.keep, record)
        except OSError as error:
            raise NetworkError(f"cannot write the pod's attachment record: {error.strerror or error}") from error

    async def _configuration(self) -> NodeCniConfig:
        now = asyncio.get_running_loop().time()
        if self._node is None or self._node[0] < now:
            try:
                self._node = (now + NODE_SECONDS, await self._host.node())
            except OSError as error:
                raise NetworkError(f"the node's CNI configuration cannot be read: {error.strerror}") from error
        return self._node[1]

    async def _tell(self, pod: Pod, mac: str) -> None:
        """Write the network-status annotation if it differs. Failures are retried: the pod has its interfaces."""
        uid = pod.metadata.uid or ""
        record = self._records.get(uid)
        told = (pod.metadata.annotations or {}).get(network_attachments.ANNOTATION_STATUS)
        if record is None and not told:
            return
        if record is None and (len(network_status.entries(pod)) < 2 or await self.uses_multus()):
            return
        text = network_status.text(pod, (await self._configuration()).default, mac, record.joined if record else [])
        if text == told:
            return
        patch = {"metadata": {"uid": uid, "annotations": {network_attachments.ANNOTATION_STATUS: text}}}
        try:
            await self._kube.patch(Pod, pod.metadata.namespace, pod.metadata.name or "", patch, subresource="status")
        except NotFound:
            return
        except HyperletError as error:
            _log.warning("Could not write the network-status annotation, retrying", why=error.message, **log.about(pod))
            self.again(uid)


def _wanted(pod: Pod) -> list[Selection]:
    text = (pod.metadata.annotations or {}).get(network_attachments.ANNOTATION_NETWORKS)
    try:
        return network_attachments.selections(pod.metadata.namespace or "", text)
    except ValueError as error:
        raise NetworkError(str(error)) from error


def _sandbox_of(pod: Pod, namespace: int) -> cni_chain.PodSandbox:
    meta = pod.metadata
    return cni_chain.PodSandbox(meta.namespace or "", meta.name or "", meta.uid or "", namespace)


async def _links(namespace: int, host: str) -> dict[str, Link]:
    """The devices of a network namespace. Raises NetworkError, also for the node's own namespace."""

    def body() -> dict[str, Link]:
        for ours in (host, "/proc/self/ns/net"):
            if os.path.samestat(os.fstat(namespace), os.stat(ours)):  # noqa: PTH116
                raise NetworkError("the pod is in the node's network namespace")
        proc.setns(namespace, proc.CLONE_NEWNET)
        with RtnetlinkSocket() as route:
            return {link.name: link for link in route.links()}

    try:
        return await proc.isolated(body)
    except OSError as error:
        raise NetworkError(f"cannot inspect the pod's network namespace: {error.strerror or error}") from error


async def _open_namespace(pod_uid: str, host: str, stack: contextlib.ExitStack) -> int | None:
    """The network namespace of a pod's remaining sandbox, or None."""
    process = await asyncio.to_thread(pod_processes.sandbox, pod_uid, host)
    if process is None:
        return None
    with process:
        try:
            namespace = process.namespace("net")
        except OSError:
            return None
    stack.callback(os.close, namespace)
    return namespace
