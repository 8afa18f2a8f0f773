"""The node's side of a VM: its pod network, its images, its disks and devices. All at once, each in its own thread."""

import asyncio
from dataclasses import dataclass

from api.errors import HyperletError, ImagePullFailed, NetworkError
from api.vmi import VirtualMachineInstance
from handler import images, network, volumes
from handler.advertiser import Advertiser
from handler.images import Images
from handler.launchers import Launcher
from kit import log, proc

_log = log.logger(component="bringing")


@dataclass
class Brought:
    """What was made, and what has to be let go of with the pod."""

    attachment: network.Attachment | None
    advertiser: Advertiser | None = None

    def close(self) -> None:
        """Lets go of it."""
        if self.advertiser is not None:
            self.advertiser.close()
            self.advertiser = None


class Bringer:
    """Makes the node's side of VMs."""

    def __init__(self, provider: Images, host_network: str = network.HOST) -> None:
        self._images = provider
        self._host_network = host_network

    async def bring(self, vmi: VirtualMachineInstance, launcher: Launcher, before: Brought | None) -> Brought:
        """Makes what is missing; idempotent. `before` is what an earlier call made. Raises `api.errors`."""
        process = launcher.process
        request = network.request_of(vmi)
        wanted, writable = images.wanted_by(vmi), volumes.written_by(vmi)
        made = await asyncio.gather(
            self._attach(process, request),
            self._images.provide(process, launcher.pod_uid, wanted),
            proc.isolated(lambda: volumes.prepare(process, writable)),
            return_exceptions=True,
        )
        for outcome in made:
            if isinstance(outcome, HyperletError):
                raise outcome
        for outcome in made:
            if isinstance(outcome, BaseException):
                raise outcome
        attachment = made[0]
        assert not isinstance(attachment, BaseException)
        changed = [str(item) for outcome in made[1:] if isinstance(outcome, list) for item in outcome]
        if attachment is not None:
            changed += attachment.changed
        if changed:
            _log.debug("Made the node's side of the VM", changed=changed, **log.about(vmi))
        return Brought(attachment, await self._advertise(process, attachment, before))

    async def _attach(self, process: proc.Process, request: network.Request | None) -> network.Attachment | None:
        if request is None:
            return None
        return await proc.isolated(lambda: network.attach(process, request, self._host_network))

    async def _advertise(
        self, process: proc.Process, attachment: network.Attachment | None, before: Brought | None
    ) -> Advertiser | None:
        if before is not None and before.advertiser is not None:
            return before.advertiser
        if attachment is None or attachment.guest6 is None:
            return None
        try:
            return await Advertiser.start(process, attachment, network.GATEWAY_MAC)
        except OSError as error:
            raise NetworkError(f"the guest's IPv6 router cannot be started: {error.strerror or error}") from error

    async def forget(self, pod_uid: str) -> None:
        """Lets go of what outlives a pod: its views of images."""
        try:
            await self._images.forget(pod_uid)
        except ImagePullFailed as error:
            _log.warning(
                "Could not let go of a pod's images: the next start of the handler does",
                why=error.message,
                pod_uid=pod_uid,
            )
