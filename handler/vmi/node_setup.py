"""Sets up the node for a VM: networks, images, disks and devices, in parallel, each in its own thread."""

import asyncio
import pathlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from api.errors import HyperletError, ImagePullFailed, NetworkError
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from api.text import is_mac
from handler.devices import memlock
from handler.launchers.connection import LauncherConnection
from handler.pod_network import interface_record
from handler.pod_network import setup as network_setup
from handler.pod_network.interface_record import InterfaceRecord
from handler.pod_network.interface_request import InterfaceRequest, requests_of
from handler.pod_network.router_advertiser import Advertiser
from handler.pod_network.vm_interface import VmInterface
from handler.secondary_networks import network_status
from handler.secondary_networks.attachments import AttachmentFailed
from handler.storage import images, volumes
from handler.storage.images import ImageMounts
from kit import log, proc

_log = log.logger(component="node-setup")


class NetworkAttacher(Protocol):
    """Attaches pods to secondary networks (`handler.secondary_networks.attachments`)."""

    async def ensure(self, pod: Pod, process: proc.Process) -> dict[str, str]:
        """Attach the pod's networks; returns each interface's creator by name in the pod. Raises NetworkError."""

    async def forget(self, pod_uid: str) -> None:
        """Detach a pod that has ended."""


@dataclass
class NodeResources:
    """What was set up for a VM, and must be released with its pod."""

    made: network_setup.PodNetworkState = field(default_factory=network_setup.PodNetworkState)
    told: frozenset[str] = frozenset()
    """The pod interfaces listed in the network-status annotation."""
    pending: Mapping[str, str] = field(default_factory=dict)
    """Errors of interfaces that are still to be plugged into the running VM, by interface name. They do not block
    the rest."""
    advertisers: dict[str, Advertiser] = field(default_factory=dict)
    """By bridge."""

    def close(self) -> None:
        """Release the resources."""
        for advertiser in self.advertisers.values():
            advertiser.close()
        self.advertisers.clear()


class NodeSetup:
    """Sets up and releases the node's resources for VMs."""

    def __init__(
        self,
        provider: ImageMounts,
        host_network: str = network_setup.HOST,
        attacher: NetworkAttacher | None = None,
        records: pathlib.Path = interface_record.DIRECTORY,
        allow: Callable[[str, str, int], object] = memlock.allow,
    ) -> None:
        self._images = provider
        self._host_network = host_network
        self._attacher = attacher
        self._records = records
        self._allow = allow
        """Raises RLIMIT_MEMLOCK for a pod's launcher and an interface: `memlock.allow`."""

    async def set_up(
        self, vmi: VirtualMachineInstance, pod: Pod, launcher: LauncherConnection, before: NodeResources | None
    ) -> NodeResources:
        """Set up what is missing; idempotent. `before`: result of the previous call. Raises `api.errors`."""
        process = launcher.process
        wanted, writable, devices = images.wanted_by(vmi), volumes.written_by(vmi), volumes.devices_of(vmi)
        outcomes = await asyncio.gather(
            self._join(vmi, pod, launcher, before),
            self._images.provide(process, launcher.pod_uid, wanted),
            proc.isolated(lambda: volumes.prepare(process, writable, devices)),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, HyperletError):
                raise outcome
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        joined = outcomes[0]
        assert not isinstance(joined, BaseException)
        made = joined.made
        changed = [str(item) for outcome in outcomes[1:] if isinstance(outcome, list) for item in outcome]
        changed += made.changed
        if changed:
            _log.debug("Prepared the node for the VM", changed=changed, **log.about(vmi))
        advertisers = await self._advertise(process, made.attachments, before)
        return NodeResources(made, joined.told, joined.pending, advertisers)

    async def _join(
        self, vmi: VirtualMachineInstance, pod: Pod, launcher: LauncherConnection, before: NodeResources | None
    ) -> NodeResources:
        """Attach the pod's networks, and create the VM's taps.

        If the VM is running, an interface that it does not use yet is deferred when something is missing for it.
        """
        process = launcher.process
        requests = list(requests_of(vmi))
        told: frozenset[str] = frozenset()
        pending: dict[str, str] = {}
        used = _used(launcher)
        if self._attacher is not None:
            try:
                told = frozenset(await self._attacher.ensure(pod, process))
            except AttachmentFailed as error:
                pending = _set_aside(error, requests, used)
                told = frozenset(error.makers)
        requests = [request for request in requests if request.name not in pending]
        if hardware := ", ".join(request.name for request in requests if request.hardware):
            amount = memlock.wanted(vmi)
            await proc.isolated(lambda: self._allow(launcher.pod_uid, hardware, amount))
        if not (requests or used or (before and (before.made.attachments or before.made.going))):
            return NodeResources(told=told, pending=pending)  # a VM without NICs may have any namespace
        made = await self._attach(launcher, requests, used, pending)
        made = replace(made, attachments=tuple(_with_mac(each, pod) for each in made.attachments))
        return NodeResources(made, told, pending)

    async def _attach(
        self,
        launcher: LauncherConnection,
        requests: list[InterfaceRequest],
        used: Collection[str] | None,
        pending: dict[str, str],
    ) -> network_setup.PodNetworkState:
        """Create the taps; an interface of a running VM that the pod lacks is added to `pending` instead."""
        record = InterfaceRecord(launcher.pod_uid, self._records)
        while True:
            asked = [request for request in requests if request.name not in pending]
            work = partial(
                network_setup.attach, launcher.process, asked, record, launcher.pod_uid, used, self._host_network
            )
            try:
                return await proc.isolated(work)
            except network_setup.InterfaceMissing as error:
                if used is None or error.name in used:
                    raise
                pending[error.name] = error.message

    async def _advertise(
        self, process: proc.Process, attachments: Collection[VmInterface], before: NodeResources | None
    ) -> dict[str, Advertiser]:
        """One advertiser per bridge with an IPv6 router; existing ones are kept unless their bridge was recreated."""
        old = before.advertisers if before is not None else {}
        wanted = {each.bridge: each for each in attachments if each.router6 is not None}
        for bridge in [bridge for bridge in old if bridge not in wanted or wanted[bridge].fresh]:
            old.pop(bridge).close()
        for bridge, each in wanted.items():
            if bridge in old or each.router6 is None:
                continue
            try:
                old[bridge] = await Advertiser.start(process, bridge, each.router6, each.bridge_mac, each.mtu)
            except OSError as error:
                raise NetworkError(f"cannot start router advertisements: {error.strerror or error}") from error
        return old

    async def forget(self, pod_uid: str) -> None:
        """Release what outlives a pod: its networks and its image views."""
        if self._attacher is not None:
            await self._attacher.forget(pod_uid)
        try:
            InterfaceRecord(pod_uid, self._records).remove()
        except (OSError, NetworkError) as error:
            _log.warning("Could not remove the record of a pod's interfaces", why=str(error), pod_uid=pod_uid)
        try:
            await self._images.forget(pod_uid)
        except ImagePullFailed as error:
            _log.warning(
                "Could not release a pod's images, retrying with the next sweep",
                why=error.message,
                pod_uid=pod_uid,
            )

    def sweep(self, living: Collection[str]) -> int:
        """Remove the interface records of deleted pods; returns how many. Raises OSError."""
        return interface_record.sweep(self._records, living)


def _set_aside(
    error: AttachmentFailed, requests: Collection[InterfaceRequest], used: Collection[str] | None
) -> dict[str, str]:
    """Errors by VM interface. Raises the error if the VM is not running, or uses one of the interfaces."""
    names = {request.interface: request.name for request in requests if request.interface}
    if used is None or any(names.get(interface) in used for interface in error.missing):
        raise error
    return {names.get(interface, interface): message for interface, message in error.missing.items()}


def _with_mac(attachment: VmInterface, pod: Pod) -> VmInterface:
    """A host device does not report its MAC: the CNI plugin has set it, and network-status contains it."""
    if not attachment.request.hardware:
        return attachment
    told = (entry.get("mac") for entry in network_status.entries(pod) if entry["interface"] == attachment.interface)
    mac = next((mac.lower() for mac in told if isinstance(mac, str)), "")
    return replace(attachment, mac=mac) if is_mac(mac) else attachment


def _used(launcher: LauncherConnection) -> tuple[str, ...] | None:
    """Names of the interfaces in the launcher's domain; None if unknown."""
    state = launcher.state
    return tuple(nic.name for nic in state.nics) if state is not None and state.runs else None
