"""CSI's Controller service: creates, copies, expands, attaches and deletes volumes and snapshots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import Int64Value

from cluster.csi import csi_pb2 as csi
from cluster.csi import csi_pb2_grpc as services
from cluster.csi import host
from cluster.csi.driver import MANY_NODES, MOST_VOLUMES, check_capability, is_block, unsupported
from cluster.csi.errors import StorageError, required
from cluster.csi.host import CsiHost
from cluster.csi.kinds import StorageKind
from cluster.csi.pools import Pools, StoredSnapshot, StoredVolume, grow, identifier

MEBIBYTE = 1 << 20
DEFAULT_SIZE = 1 << 30
SHARED_POOL = "shared"
T = TypeVar("T")


def size_of(wanted: csi.CapacityRange, smallest: int) -> int:
    """The capacity to provide: the required one, at least `smallest`, in whole MiB. Raises StorageError when that
    exceeds the limit."""
    if wanted.required_bytes < 0 or wanted.limit_bytes < 0:
        raise StorageError("INVALID_ARGUMENT", "capacity_range is negative")
    size = wanted.required_bytes or min(DEFAULT_SIZE, wanted.limit_bytes or DEFAULT_SIZE)
    size = -(-max(size, smallest) // MEBIBYTE) * MEBIBYTE
    if 0 < wanted.limit_bytes < size:
        raise StorageError("OUT_OF_RANGE", f"capacity_range: the smallest possible volume has {size} bytes")
    return size


def page(items: Sequence[T], token: str, most: int) -> tuple[Sequence[T], str]:
    """At most `most` items (0: all) from a token on, and the next page's token. Raises StorageError for an invalid
    token."""
    if most < 0:
        raise StorageError("INVALID_ARGUMENT", "max_entries is negative")
    if token and not (token.isascii() and token.isdigit() and int(token) <= len(items)):
        raise StorageError("ABORTED", f"starting_token {token[:40]!r} is not a token of this driver")
    start = int(token or 0)
    end = min(len(items), start + most) if most else len(items)
    return items[start:end], str(end) if end < len(items) else ""


class CsiControllerService(services.ControllerServicer):
    """The controller of one driver."""

    def __init__(self, kind: StorageKind, pools: Pools, node: CsiHost) -> None:
        self._kind = kind
        self._pools = pools
        self._host = node

    def ControllerGetCapabilities(
        self, request: csi.ControllerGetCapabilitiesRequest, context: Any
    ) -> csi.ControllerGetCapabilitiesResponse:
        """The controller's capabilities."""
        rpc = csi.ControllerServiceCapability.RPC
        types = [
            rpc.CREATE_DELETE_VOLUME, rpc.LIST_VOLUMES, rpc.GET_CAPACITY, rpc.CREATE_DELETE_SNAPSHOT,
            rpc.LIST_SNAPSHOTS, rpc.CLONE_VOLUME, rpc.EXPAND_VOLUME, rpc.GET_VOLUME, rpc.SINGLE_NODE_MULTI_WRITER,
        ]  # fmt: skip
        if self._kind.shared:
            types += [rpc.PUBLISH_UNPUBLISH_VOLUME, rpc.LIST_VOLUMES_PUBLISHED_NODES, rpc.PUBLISH_READONLY]
        capability = csi.ControllerServiceCapability
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[capability(rpc=capability.RPC(type=each)) for each in types]
        )

    # ---- volumes

    def CreateVolume(self, request: csi.CreateVolumeRequest, context: Any) -> csi.CreateVolumeResponse:
        """Create a volume, empty or from a snapshot or another volume; an existing one of that name is returned."""
        required(request.name, "name")
        required(request.volume_capabilities, "volume_capabilities")
        if refusal := unsupported(self._kind, request.volume_capabilities):
            raise StorageError("INVALID_ARGUMENT", refusal)
        blocks = {is_block(each) for each in request.volume_capabilities}
        if len(blocks) > 1:
            raise StorageError(
                "INVALID_ARGUMENT", "volume_capabilities: a volume is a device or a file system, not both"
            )
        block = blocks.pop()
        smallest = host.SMALLEST if self._kind.is_image(block=block) and not block else MEBIBYTE
        with self._pools.locked():
            known = self._pools.volume_named(request.name)
            if known is not None:
                return csi.CreateVolumeResponse(volume=self._again(known, request, block))
            source = self._source(request.volume_content_source)
            if source is not None:
                smallest = max(smallest, source.capacity)
                if source.block != block:
                    raise StorageError("INVALID_ARGUMENT", "volume_content_source has the other volumeMode")
            volume = StoredVolume(
                identifier("vol", request.name), request.name, self._pool(request.accessibility_requirements),
                size_of(request.capacity_range, smallest), self._kind.is_image(block=block), block,
                source.id if source else "",
            )  # fmt: skip
            self._pools.create(volume, source, self._host.frozen)
        return csi.CreateVolumeResponse(volume=self._describe(volume))

    def _again(self, known: StoredVolume, request: csi.CreateVolumeRequest, block: bool) -> csi.Volume:
        wanted, source = request.capacity_range, request.volume_content_source
        too_small = known.capacity < wanted.required_bytes
        too_large = 0 < wanted.limit_bytes < known.capacity
        other_source = known.source != (source.snapshot.snapshot_id or source.volume.volume_id)
        if too_small or too_large or other_source or known.block != block:
            raise StorageError("ALREADY_EXISTS", f"volume {known.name!r} exists, with another size, mode or source")
        return self._describe(known)

    def _source(self, source: csi.VolumeContentSource) -> StoredVolume | StoredSnapshot | None:
        match source.WhichOneof("type"):
            case "snapshot":
                return self._snapshot(source.snapshot.snapshot_id)
            case "volume":
                return self._pools.volume(source.volume.volume_id)
        return None

    def _snapshot(self, identity: str) -> StoredSnapshot:
        found = self._pools.snapshot(identity)
        if found is None:
            raise StorageError("NOT_FOUND", f"there is no snapshot {identity!r}")
        return found

    def _pool(self, wanted: csi.TopologyRequirement) -> str:
        """The pool of the first node that the caller prefers, or of any."""
        if self._kind.shared:
            return SHARED_POOL
        nodes = self._pools.nodes()
        topologies = [*wanted.preferred, *wanted.requisite]
        names = [each.segments.get(self._kind.topology_key, "") for each in topologies] or nodes
        found = next((name for name in names if name in nodes), None)
        if found is None:
            raise StorageError("RESOURCE_EXHAUSTED", f"no storage on {', '.join(names) or 'any node'}")
        return found

    def _describe(self, volume: StoredVolume) -> csi.Volume:
        source = None
        if volume.source.startswith("snap-"):
            snapshot = csi.VolumeContentSource.SnapshotSource(snapshot_id=volume.source)
            source = csi.VolumeContentSource(snapshot=snapshot)
        elif volume.source:
            origin = csi.VolumeContentSource.VolumeSource(volume_id=volume.source)
            source = csi.VolumeContentSource(volume=origin)
        topology = [] if self._kind.shared else [csi.Topology(segments={self._kind.topology_key: volume.pool})]
        return csi.Volume(
            volume_id=volume.id,
            capacity_bytes=volume.capacity,
            content_source=source,
            accessible_topology=topology,
            volume_context={"pool": volume.pool},
        )

    def DeleteVolume(self, request: csi.DeleteVolumeRequest, context: Any) -> csi.DeleteVolumeResponse:
        """Delete a volume unless it is in use; idempotent."""
        required(request.volume_id, "volume_id")
        with self._pools.locked():
            try:
                volume = self._pools.volume(request.volume_id)
            except StorageError:
                return csi.DeleteVolumeResponse()
            users = sorted({*volume.published, *volume.staged})
            if users:
                raise StorageError("FAILED_PRECONDITION", f"volume {volume.id} is in use on {', '.join(users)}")
            self._pools.delete(volume)
        return csi.DeleteVolumeResponse()

    def ControllerExpandVolume(
        self, request: csi.ControllerExpandVolumeRequest, context: Any
    ) -> csi.ControllerExpandVolumeResponse:
        """Expand a volume. The node's part is NodeExpandVolume."""
        required(request.volume_id, "volume_id")
        if not request.HasField("capacity_range"):
            raise StorageError("INVALID_ARGUMENT", "capacity_range is missing")
        with self._pools.locked():
            volume = self._pools.volume(request.volume_id)
            size = size_of(request.capacity_range, volume.capacity)
            if size - volume.capacity > self._pools.free(volume.pool):
                raise StorageError("OUT_OF_RANGE", f"pool {volume.pool} has less than {size} bytes left")
            if volume.image:
                grow(self._pools.data(volume), size)
            self._pools.put(dataclasses.replace(volume, capacity=size))
        return csi.ControllerExpandVolumeResponse(capacity_bytes=size, node_expansion_required=volume.image)

    def ValidateVolumeCapabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest, context: Any
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        """Whether a volume has these capabilities."""
        required(request.volume_id, "volume_id")
        required(request.volume_capabilities, "volume_capabilities")
        volume = self._pools.volume(request.volume_id)
        refusal = unsupported(self._kind, request.volume_capabilities)
        if not refusal and any(is_block(each) != volume.block for each in request.volume_capabilities):
            refusal = "the volume has the other volumeMode"
        if refusal:
            return csi.ValidateVolumeCapabilitiesResponse(message=refusal)
        confirmed = csi.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return csi.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def ListVolumes(self, request: csi.ListVolumesRequest, context: Any) -> csi.ListVolumesResponse:
        """All volumes, in pages."""
        shown, token = page(self._pools.volumes(), request.starting_token, request.max_entries)
        answer = csi.ListVolumesResponse
        entries = [
            answer.Entry(
                volume=self._describe(each), status=answer.VolumeStatus(published_node_ids=sorted(each.published))
            )
            for each in shown
        ]
        return answer(entries=entries, next_token=token)

    def ControllerGetVolume(
        self, request: csi.ControllerGetVolumeRequest, context: Any
    ) -> csi.ControllerGetVolumeResponse:
        """One volume."""
        required(request.volume_id, "volume_id")
        volume = self._pools.volume(request.volume_id)
        status = csi.ControllerGetVolumeResponse.VolumeStatus(published_node_ids=sorted(volume.published))
        return csi.ControllerGetVolumeResponse(volume=self._describe(volume), status=status)

    def GetCapacity(self, request: csi.GetCapacityRequest, context: Any) -> csi.GetCapacityResponse:
        """The free capacity of a pool; 0 where the requested kind of volume is impossible."""
        if unsupported(self._kind, request.volume_capabilities):
            return csi.GetCapacityResponse(available_capacity=0)
        if self._kind.shared:
            pools = [SHARED_POOL]
        else:
            node = request.accessible_topology.segments.get(self._kind.topology_key)
            pools = [each for each in self._pools.nodes() if node in (None, each)]
        free = [self._pools.free(pool) for pool in pools]
        return csi.GetCapacityResponse(
            available_capacity=sum(free), maximum_volume_size=Int64Value(value=max(free, default=0))
        )

    # ---- attaching

    def ControllerPublishVolume(
        self, request: csi.ControllerPublishVolumeRequest, context: Any
    ) -> csi.ControllerPublishVolumeResponse:
        """Attach a volume to a node."""
        required(request.volume_id, "volume_id")
        required(request.node_id, "node_id")
        if not request.HasField("volume_capability"):
            raise StorageError("INVALID_ARGUMENT", "volume_capability is missing")
        with self._pools.locked():
            volume = self._pools.volume(request.volume_id)
            if request.node_id not in self._pools.nodes():
                raise StorageError("NOT_FOUND", f"there is no node {request.node_id!r}")
            check_capability(volume, request.volume_capability)
            if refusal := unsupported(self._kind, [request.volume_capability]):
                raise StorageError("INVALID_ARGUMENT", refusal)
            read_only = volume.published.get(request.node_id)
            if read_only is not None and read_only != request.readonly:
                raise StorageError(
                    "ALREADY_EXISTS", f"{volume.id} is attached to {request.node_id} with another value of readonly"
                )
            others = sorted(set(volume.published) - {request.node_id})
            one_node = request.volume_capability.access_mode.mode not in MANY_NODES
            if others and one_node:
                raise StorageError("FAILED_PRECONDITION", f"{volume.id} is attached to {', '.join(others)}")
            attached = sum(request.node_id in each.published for each in self._pools.volumes())
            if read_only is None and attached >= MOST_VOLUMES:
                raise StorageError("RESOURCE_EXHAUSTED", f"{request.node_id} has {attached} volumes, the maximum")
            published = {**volume.published, request.node_id: request.readonly}
            self._pools.put(dataclasses.replace(volume, published=published))
        return csi.ControllerPublishVolumeResponse(publish_context={"attachedTo": request.node_id})

    def ControllerUnpublishVolume(
        self, request: csi.ControllerUnpublishVolumeRequest, context: Any
    ) -> csi.ControllerUnpublishVolumeResponse:
        """Detach a volume from a node, or from all. Its staging is removed too: the node may have failed."""
        required(request.volume_id, "volume_id")
        with self._pools.locked():
            try:
                volume = self._pools.volume(request.volume_id)
            except StorageError:
                return csi.ControllerUnpublishVolumeResponse()
            gone = {request.node_id} if request.node_id else set(volume.published)
            self._pools.put(
                dataclasses.replace(
                    volume,
                    published={node: mode for node, mode in volume.published.items() if node not in gone},
                    staged=tuple(node for node in volume.staged if node not in gone),
                    targets=tuple(target for target in volume.targets if target[0] not in gone),
                )
            )
        return csi.ControllerUnpublishVolumeResponse()

    # ---- snapshots

    def CreateSnapshot(self, request: csi.CreateSnapshotRequest, context: Any) -> csi.CreateSnapshotResponse:
        """Create a snapshot of a volume; an existing one of that name is returned."""
        required(request.name, "name")
        required(request.source_volume_id, "source_volume_id")
        with self._pools.locked():
            known = self._pools.snapshot(identifier("snap", request.name))
            if known is not None:
                if known.source != request.source_volume_id:
                    raise StorageError("ALREADY_EXISTS", f"snapshot {request.name!r} exists, of volume {known.source}")
                return csi.CreateSnapshotResponse(snapshot=_snapshot(known))
            source = self._pools.volume(request.source_volume_id)
            taken = self._pools.take(request.name, source, self._host.frozen)
        return csi.CreateSnapshotResponse(snapshot=_snapshot(taken))

    def DeleteSnapshot(self, request: csi.DeleteSnapshotRequest, context: Any) -> csi.DeleteSnapshotResponse:
        """Delete a snapshot; idempotent."""
        required(request.snapshot_id, "snapshot_id")
        with self._pools.locked():
            known = self._pools.snapshot(request.snapshot_id)
            if known is not None:
                self._pools.delete(known)
        return csi.DeleteSnapshotResponse()

    def ListSnapshots(self, request: csi.ListSnapshotsRequest, context: Any) -> csi.ListSnapshotsResponse:
        """All snapshots, or one, or those of a volume, in pages."""
        found = [
            each
            for each in self._pools.snapshots()
            if request.snapshot_id in ("", each.id) and request.source_volume_id in ("", each.source)
        ]
        shown, token = page(found, request.starting_token, request.max_entries)
        entry = csi.ListSnapshotsResponse.Entry
        return csi.ListSnapshotsResponse(entries=[entry(snapshot=_snapshot(each)) for each in shown], next_token=token)


def _snapshot(snapshot: StoredSnapshot) -> csi.Snapshot:
    created = Timestamp()
    created.FromNanoseconds(int(snapshot.created * 1e9))
    return csi.Snapshot(
        snapshot_id=snapshot.id,
        source_volume_id=snapshot.source,
        size_bytes=snapshot.capacity,
        creation_time=created,
        ready_to_use=True,
    )
