"""Mounts containerDisk and kernelBoot images into launchers, without a container per image.

Needed only where the API server has no image volumes, and available only where the handler has containerd's socket
(manifests/components/containerd-socket). The image is pulled if necessary; a view of its snapshot becomes a detached
mount, which is moved to /images/<volume> in the launcher's mount namespace. The handler never reads the image's
content: the unprivileged launcher does.
"""

import asyncio
import errno
import os
import re
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from api.errors import ImagePullFailed
from api.kubevirt.vmi import VirtualMachineInstance
from handler.storage import containerd, mounts
from handler.storage.containerd import PullRefused
from kit import backoff, log, proc

DIRECTORY = "images"
KERNEL_BOOT = "kernel-boot"
_PREFIX = "hyperlet-"
_VOLUME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_BACKOFF_SECONDS = (5.0, 300.0)
_REMEMBERED = 1000
"""Bound of remembered pull failures: users may request any number of images."""

_UNAVAILABLE = (
    "image {image} cannot be mounted into the launcher: the cluster has no image volumes (on by "
    "default since 1.35), and the handler has no containerd socket; deploy with manifests/components/containerd-socket"
)

_log = log.logger(component="images")


@dataclass(frozen=True)
class WantedImage:
    """An image used by a VMI."""

    volume: str
    image: str
    policy: str | None
    secret: str | None

    @property
    def what(self) -> str:
        """The field with the image, for messages."""
        return "firmware.kernelBoot.container" if self.volume == KERNEL_BOOT else f"volume {self.volume}"


def wanted_by(vmi: VirtualMachineInstance) -> list[WantedImage]:
    """The images of the VMI. Raises ImagePullFailed for a volume name that is not a valid directory name."""
    found = [
        WantedImage(volume.name, source.image, source.imagePullPolicy, source.imagePullSecret)
        for volume in vmi.spec.volumes or []
        if (source := volume.containerDisk)
    ]
    firmware = vmi.spec.domain.firmware
    boot = firmware.kernelBoot.container if firmware and firmware.kernelBoot else None
    if boot:
        found.append(WantedImage(KERNEL_BOOT, boot.image, boot.imagePullPolicy, boot.imagePullSecret))
    for item in found:
        if not _VOLUME.fullmatch(item.volume) or ".." in item.volume:
            raise ImagePullFailed(f"{item.volume!r} is not a valid volume name")
    return found


def key_of(pod_uid: str, volume: str) -> str:
    """Name of the view and the lease of a pod's volume."""
    return f"{_PREFIX}{pod_uid}-{volume}"


class ImageMounts:
    """The images of this node's launchers. `client`: None if the runtime's socket is not mounted."""

    def __init__(self, client: containerd.Containerd | None, host_mounts: str = "/proc/1/ns/mnt") -> None:
        self._client = client
        self._host_mounts = host_mounts
        self._failures: OrderedDict[str, tuple[int, float, str]] = OrderedDict()

    async def provide(self, process: proc.Process, pod_uid: str, wanted: Sequence[WantedImage]) -> list[str]:
        """Mount every missing image; returns the mounted volumes. Idempotent. Raises ImagePullFailed."""
        done = await asyncio.gather(*(self._one(process, pod_uid, item) for item in wanted), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        return [item.volume for item, changed in zip(wanted, done, strict=True) if changed]

    async def _one(self, process: proc.Process, pod_uid: str, item: WantedImage) -> bool:
        try:
            if await proc.isolated(lambda: _has(process, item.volume)):
                return False
            client = self._client
            if client is None:
                raise ImagePullFailed(_UNAVAILABLE.format(image=item.image))
            chain = await self._snapshot(client, item)
            views = await client.view(key_of(pod_uid, item.volume), chain, pod_uid)
            await proc.isolated(lambda: self._show(process, item.volume, views))
        except ImagePullFailed as error:
            error.message = f"{item.what}: {error.message}"
            error.args = (error.message,)
            raise
        except OSError as error:
            raise ImagePullFailed(
                f"{item.what}: image {item.image} cannot be mounted into the launcher: {error.strerror or error}"
            ) from error
        return True

    async def _snapshot(self, client: containerd.Containerd, item: WantedImage) -> str:
        policy = containerd.pull_policy(item.image, item.policy)
        if policy != "Always":
            try:
                return await client.top_snapshot(item.image)
            except containerd.ImageMissing:
                if policy == "Never":
                    raise
        if item.secret:
            try:
                return await client.top_snapshot(item.image)
            except containerd.ImageMissing as error:
                raise ImagePullFailed(
                    f"image {item.image} is not on the node, and pulling it with imagePullSecret "
                    f"{item.secret} requires image volumes in the cluster"
                ) from error
        await self._pull(client, item.image)
        return await client.top_snapshot(item.image)

    async def _pull(self, client: containerd.Containerd, image: str) -> None:
        """Pull with backoff: until the next attempt is due, raise the last error again. Many VMs may use one image."""
        count, due, words = self._failures.get(image, (0, 0.0, ""))
        if (left := due - time.monotonic()) > 0:
            raise PullRefused(words, left)
        try:
            await client.pull(image)
        except PullRefused as error:
            first, longest = _BACKOFF_SECONDS
            pause = backoff.delay(count + 1, first, longest)
            self._failures[image] = (count + 1, time.monotonic() + pause, error.message)
            self._failures.move_to_end(image)
            while len(self._failures) > _REMEMBERED:
                self._failures.popitem(last=False)
            raise PullRefused(error.message, pause) from error
        self._failures.pop(image, None)

    def _show(self, process: proc.Process, volume: str, views: Sequence[mounts.DetachedMount]) -> None:
        with (
            proc.closing(os.open(self._host_mounts, os.O_RDONLY | os.O_CLOEXEC)) as host,
            proc.closing(process.namespace("mnt")) as theirs,
        ):
            if os.path.samestat(os.fstat(host), os.fstat(theirs)):
                raise OSError(errno.EPERM, "the launcher is in the node's mount namespace")
            owner = process.host_user(0)
            proc.enter_mounts(host)
            with proc.closing(mounts.detached(views)) as tree:
                proc.setns(theirs, proc.CLONE_NEWNS)
                mounts.place(tree, DIRECTORY, volume, owner)

    async def forget(self, pod_uid: str) -> None:
        """Release a pod's images. Raises ImagePullFailed."""
        if self._client is None:
            return
        for key, owner in (await self._client.leases()).items():
            if owner == pod_uid:
                await self._client.drop(key)

    async def sweep(self, living: Collection[str]) -> list[str]:
        """Release the images of pods not in `living`; returns the released views. Raises ImagePullFailed."""
        dropped: list[str] = []
        if self._client is None:
            return dropped
        for key, owner in (await self._client.leases()).items():
            if owner not in living:
                await self._client.drop(key)
                dropped.append(key)
        return dropped


def _has(process: proc.Process, volume: str) -> bool:
    owner = process.host_user(0)
    with proc.closing(process.namespace("mnt")) as theirs:
        proc.enter_mounts(theirs)
    return mounts.mounted(DIRECTORY, volume, owner)
