"""A client of the node's containerd: images, snapshot views, leases; and of its CRI service for pulling.

Errors are raised as `api.errors.ImagePullFailed`. Source: containerd's API as in protos/containerd.proto, the OCI image
specification (descriptors, indexes, chain IDs), the CRI as in protos/cri.proto.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import grpc.aio

from api.errors import ImagePullFailed
from handler.storage.mounts import DetachedMount
from protos import containerd_pb2 as pb
from protos import cri_pb2 as cri

SOCKETS = ("/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock")
NAMESPACE = "k8s.io"
SNAPSHOTTERS = ("overlayfs", "native")
LABEL_POD = "hyperlet/pod"
_SECONDS = 20.0
_PULL_SECONDS = 600.0
_MAX_DOCUMENT = 4 << 20
_MAX_LAYERS = 500
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEXES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)


class ImageMissing(ImagePullFailed):
    """The image is not on the node."""

    reason = "ErrImageNeverPull"


class PullRefused(ImagePullFailed):
    """The container runtime could not pull the image. `again_in`: seconds until the next attempt."""

    reason = "ErrImagePull"

    def __init__(self, message: str, again_in: float = 0.0) -> None:
        super().__init__(message)
        self.again_in = again_in


def checked(reference: str) -> str:
    """The stripped reference, if its syntax is plausible; the runtime validates it. Raises ImagePullFailed."""
    reference = reference.strip()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+\[\]-]{0,510}", reference):
        raise ImagePullFailed(f"{reference[:200]!r} is not an image reference")
    return reference


def pull_policy(reference: str, policy: str | None) -> str:
    """The effective policy, by Kubernetes' default: Always for `latest` or no tag, else IfNotPresent."""
    name = checked(reference)
    if policy:
        return policy
    tag = name.rpartition("/")[2].partition(":")[2]
    return "Always" if "@" not in name and tag in ("", "latest") else "IfNotPresent"


def chain_id(diff_ids: Sequence[str]) -> str:
    """Name of the snapshot with all layers (OCI image specification, "Layer ChainID")."""
    chain = diff_ids[0]
    for diff in diff_ids[1:]:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff}'.encode()).hexdigest()}"
    return chain


def find_socket() -> str | None:
    """Path of containerd's socket, None if not mounted: HYPERLET_CONTAINERD, else a default path."""
    return os.environ.get("HYPERLET_CONTAINERD") or next(
        (path for path in SOCKETS if pathlib.Path(path).exists()), None
    )


class Containerd:
    """A client of one containerd. Must be closed."""

    def __init__(self, socket: str, namespace: str = NAMESPACE) -> None:
        self.socket = socket
        self._metadata = (("containerd-namespace", namespace),)
        self._channel = grpc.aio.insecure_channel(
            f"unix:{self.socket}",
            options=[
                ("grpc.max_receive_message_length", 16 << 20),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.initial_reconnect_backoff_ms", 100),
            ],
        )
        self._cri_version = "v1"

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _call(
        self, method: str, request: Any, answer: type[Any], lease: str | None = None, seconds: float = _SECONDS
    ) -> Any:
        call: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = self._channel.unary_unary(
            method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        metadata = (*self._metadata, ("containerd-lease", lease)) if lease else self._metadata
        return await call(request, metadata=metadata, timeout=seconds)

    # ---- images ----------------------------------------------------------------------------------------------------

    async def top_snapshot(self, reference: str) -> str:
        """The chain ID of an image's layers. Raises ImageMissing, ImagePullFailed."""
        name = checked(reference)
        status = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
        try:
            # The CRI completes short names as configured, and also stores every image under its ID.
            known = await self._cri("ImageStatus", status, cri.ImageStatusResponse, _SECONDS)
            if not known.image.id:
                raise ImageMissing(f"image {name} is not on the node")
            found = await self._call(
                "/containerd.services.images.v1.Images/Get",
                pb.GetImageRequest(name=known.image.id),
                pb.GetImageResponse,
            )
            manifest = await self._manifest(found.image.target)
            config = await self._document(str(manifest["config"]["digest"]))
            diff_ids = [str(diff) for diff in config["rootfs"]["diff_ids"]]
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise ImageMissing(f"image {name} is not on the node") from error
            raise self._failed(f"image {name}", error) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ImagePullFailed(f"image {name} has no usable manifest: {error}") from error
        if not 0 < len(diff_ids) <= _MAX_LAYERS or not all(_DIGEST.fullmatch(diff) for diff in diff_ids):
            raise ImagePullFailed(f"image {name} has no usable layers")
        return chain_id(diff_ids)

    async def _manifest(self, target: pb.Descriptor) -> dict[str, Any]:
        document = await self._document(target.digest)
        if target.media_type in _INDEXES or "manifests" in document:
            document = await self._document(self._for_this_machine(document["manifests"]))
        return document

    def _for_this_machine(self, entries: list[dict[str, Any]]) -> str:
        architecture = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
        for entry in entries:
            platform = entry.get("platform") or {}
            if platform.get("architecture", architecture) == architecture and platform.get("os", "linux") == "linux":
                return str(entry["digest"])
        raise ValueError(f"no manifest for architecture {architecture}")

    async def _document(self, digest: str) -> dict[str, Any]:
        call: grpc.aio.UnaryStreamMultiCallable[pb.ReadContentRequest, pb.ReadContentResponse]
        call = self._channel.unary_stream(
            "/containerd.services.content.v1.Content/Read",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ReadContentResponse.FromString,
        )
        data = b""
        async for part in call(pb.ReadContentRequest(digest=digest), metadata=self._metadata, timeout=_SECONDS):
            data += part.data
            if len(data) > _MAX_DOCUMENT:
                raise ValueError(f"{digest} is larger than {_MAX_DOCUMENT >> 20} MiB")
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError(f"{digest} is not a JSON object")
        return document

    async def pull(self, reference: str) -> None:
        """Pull an image through the CRI, without credentials. Raises PullRefused with the runtime's message."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=checked(reference)))
        try:
            await self._cri("PullImage", request, cri.PullImageResponse, _PULL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise PullRefused(f"cannot pull image {reference}: {_message(error)}") from error

    async def _cri(self, method: str, request: Any, answer: type[Any], seconds: float) -> Any:
        try:
            return await self._call(
                f"/runtime.{self._cri_version}.ImageService/{method}", request, answer, seconds=seconds
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED or self._cri_version == "v1alpha2":
                raise
            self._cri_version = "v1alpha2"
        return await self._call(f"/runtime.{self._cri_version}.ImageService/{method}", request, answer, seconds=seconds)

    # ---- views -----------------------------------------------------------------------------------------------------

    async def view(self, key: str, chain: str, pod_uid: str) -> list[DetachedMount]:
        """Create a read-only view of a snapshot, kept by a lease of the same name; returns its mounts. Idempotent."""
        try:
            await self._lease(key, pod_uid)
            for snapshotter in SNAPSHOTTERS:
                mounts = await self._view(snapshotter, key, chain)
                if mounts is not None:
                    return mounts
        except grpc.aio.AioRpcError as error:
            raise self._failed("an image snapshot view", error) from error
        raise ImagePullFailed(f"the image is on the node but not unpacked (no snapshot {chain[:19]}…)")

    async def _lease(self, key: str, pod_uid: str) -> None:
        try:
            await self._call(
                "/containerd.services.leases.v1.Leases/Create",
                pb.CreateLeaseRequest(id=key, labels={LABEL_POD: pod_uid}),
                pb.CreateLeaseResponse,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise

    async def _view(self, snapshotter: str, key: str, chain: str) -> list[DetachedMount] | None:
        service = "/containerd.services.snapshots.v1.Snapshots"
        try:
            answer = await self._call(
                f"{service}/View",
                pb.ViewSnapshotRequest(snapshotter=snapshotter, key=key, parent=chain),
                pb.ViewSnapshotResponse,
                lease=key,
            )
        except grpc.aio.AioRpcError as error:
            # INVALID_ARGUMENT: containerd has no such snapshotter.
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return None
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            answer = await self._call(
                f"{service}/Mounts", pb.MountsRequest(snapshotter=snapshotter, key=key), pb.MountsResponse
            )
        return [DetachedMount(mount.type, mount.source, tuple(mount.options)) for mount in answer.mounts]

    async def drop(self, key: str) -> None:
        """Remove a view and its lease, if they exist. Raises ImagePullFailed."""
        try:
            for snapshotter in SNAPSHOTTERS:
                await self._gone(
                    "/containerd.services.snapshots.v1.Snapshots/Remove",
                    pb.RemoveSnapshotRequest(snapshotter=snapshotter, key=key),
                )
            await self._gone("/containerd.services.leases.v1.Leases/Delete", pb.DeleteLeaseRequest(id=key))
        except grpc.aio.AioRpcError as error:
            raise self._failed(f"snapshot view {key}", error) from error

    async def _gone(self, method: str, request: Any) -> None:
        try:
            await self._call(method, request, pb.Empty)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise

    async def leases(self) -> dict[str, str]:
        """Pod UID by lease, for the leases of hyperlet. Raises ImagePullFailed."""
        try:
            answer = await self._call(
                "/containerd.services.leases.v1.Leases/List", pb.ListLeasesRequest(), pb.ListLeasesResponse
            )
        except grpc.aio.AioRpcError as error:
            raise self._failed("leases", error) from error
        return {lease.id: lease.labels[LABEL_POD] for lease in answer.leases if LABEL_POD in lease.labels}

    def _failed(self, what: str, error: grpc.aio.AioRpcError) -> ImagePullFailed:
        return ImagePullFailed(f"containerd at {self.socket}: the request for {what} failed: {_message(error)}")


def _message(error: grpc.aio.AioRpcError) -> str:
    return str(error.details() or error.code().name)[:600]
