"""The interfaces of secondary networks in the pods of this node: made by Multus where it runs, else by us.

Without Multus the CNI configuration of each NetworkAttachmentDefinition that a pod's annotation names is run on the
pod's network namespace, and taken back when the network goes from the annotation, or the pod goes.
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
from kit.netlink import Link, Netlink

T = TypeVar("T")
MULTUS, OURS = "multus", "hyperlet"
NODE_SECONDS = 10.0
"""How long the host's CNI configuration is remembered: Multus may be installed, or go, at any time."""

_log = log.logger(component="attachments")


class AttachmentFailed(NetworkError):
    """Some networks could not be joined, or left; all others of the pod are as they should be."""

    def __init__(self, missing: Mapping[str, str], makers: Mapping[str, str]) -> None:
        super().__init__("; ".join(missing.values()))
        self.missing = dict(missing)
        """What is wrong, by the interface's name in the pod."""
        self.makers = dict(makers)
        """Who made each of the others, as `Attachments.ensure` returns it."""


class Attachments:
    """Joins pods to the networks of their annotation.

    `again` is called with a pod's UID when something about it is to be tried again later: leaving its networks, telling
    it what it has.
    """

    def __init__(self, kube: Kube, records: AttachmentRecords, host: CniHost | None = None) -> None:
        self._kube = kube
        self._records = records
        self._host = host or CniHost.configured()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._node: tuple[float, NodeCniConfig] | None = None
        self._works: set[asyncio.Task[Any]] = set()
        self.again: Callable[[str], None] = lambda pod_uid: None

    @property
    def pods(self) -> list[str]:
        """UIDs of the pods that we have joined to networks."""
        return list(self._records)

    def record(self, pod_uid: str) -> AttachmentRecord | None:
        """What we have joined a pod to."""
        return self._records.get(pod_uid)

    async def ensure(self, pod: Pod, process: proc.Process) -> dict[str, str]:
        """Who made each interface that the pod's annotation asks for, by its name in the pod: "multus" or "hyperlet".

        Joins what is missing and leaves what is no longer asked for; idempotent. `process` is one in the pod's network
        namespace. One that fails holds up none of the others. Raises AttachmentFailed while an interface is missing,
        NetworkError, ApiUnavailable.
        """
        uid = pod.metadata.uid or ""
        wanted = _wanted(pod)
        if not wanted and self._records.get(uid) is None:
            return {}
        try:
            namespace = process.namespace("net")
        except OSError as error:
            raise NetworkError("the pod has no running process") from error
        # A caller that is cancelled in the middle of an ADD must not leave it half done.
        return await self._to_its_end(uid, lambda: self._ensure(pod, wanted, namespace))

    async def forget(self, pod_uid: str) -> None:
        """Leaves the networks of a pod that is gone or has ended. Never raises: what fails is tried again later."""
        try:
            await self.leave(pod_uid)
        except NetworkError as error:
            _log.warning("Could not detach a pod from its networks, retrying", why=error.message, pod_uid=pod_uid)
            self.again(pod_uid)

    async def leave(self, pod_uid: str) -> None:
        """Leaves all networks that we joined a pod to. Raises NetworkError when one of them could not be left."""
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
        """Whether Multus runs on this node: then nothing is ours to do."""
        return (await self._configuration()).multus

    # ---- one pod at a time -----------------------------------------------------------------------------------------

    async def _to_its_end(self, uid: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        lock = self._locks.setdefault(uid, asyncio.Lock())

        async def body() -> T:
            async with lock:
                return await work()

        task = asyncio.create_task(body())
        self._works.add(task)
        task.add_done_callback(self._works.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for what is under way."""
        await asyncio.gather(*self._works, return_exceptions=True)

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
        """Leaves what is not asked for any more, and what is half joined or went away with an earlier sandbox.

        Returns what could not be left, and why, by interface.
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
                f"network {selection.network}: no such NetworkAttachmentDefinition in namespace "
                f"{selection.namespace}"
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
            # The specification has a failed ADD followed by a DEL; if that fails too, the record knows.
            with contextlib.suppress(NetworkError):
                await self._leave(home.uid, selection.interface, namespace)
            raise
        await self._keep(before.having(msgspec.structs.replace(joined, result=result)))
        _log.info(
            "Attached pod to network", network=selection.network, interface=selection.interface, **log.about(pod)
        )

    async def _leave(self, uid: str, interface: str | None, namespace: int | None) -> None:
        """Leaves the network of one interface, or all, last joined first. Raises the first trouble after trying all."""
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
        """Writes the status annotation if it differs. What fails is tried again later: the pod has its interfaces."""
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
    """The devices of a network namespace. Raises NetworkError for the node's own, and for what cannot be read."""

    def body() -> dict[str, Link]:
        for ours in (host, "/proc/self/ns/net"):
            if os.path.samestat(os.fstat(namespace), os.stat(ours)):  # noqa: PTH116
                raise NetworkError("the pod is in the node's network namespace")
        proc.setns(namespace, proc.CLONE_NEWNET)
        with Netlink() as route:
            return route.links()

    try:
        return await proc.isolated(body)
    except OSError as error:
        raise NetworkError(f"cannot inspect the pod's network namespace: {error.strerror or error}") from error


async def _open_namespace(pod_uid: str, host: str, stack: contextlib.ExitStack) -> int | None:
    """The network namespace of what is left of a pod, or None."""
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
