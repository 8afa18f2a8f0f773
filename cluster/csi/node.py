"""CSI's Node service: stages volumes on this node and publishes them to its pods.

A device is a loop device on the volume's file. A node's file system is mounted from such a device; a shared one is a
directory of the server, bind mounted at the target.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from pathlib import Path
from typing import Any

from cluster.csi import csi_pb2 as csi
from cluster.csi import csi_pb2_grpc as services
from cluster.csi.driver import MODES, MOST_VOLUMES, check_capability, is_block
from cluster.csi.errors import StorageError, required
from cluster.csi.host import CsiHost
from cluster.csi.kinds import StorageKind
from cluster.csi.pools import Pools, StoredVolume


class CsiNodeService(services.NodeServicer):
    """The driver on one node."""

    def __init__(self, kind: StorageKind, pools: Pools, node: CsiHost, name: str) -> None:
        self._kind = kind
        self._pools = pools
        self._host = node
        self._name = name

    def NodeGetInfo(self, request: csi.NodeGetInfoRequest, context: Any) -> csi.NodeGetInfoResponse:
        """The node's name, which is also its topology."""
        topology = None if self._kind.shared else csi.Topology(segments={self._kind.topology_key: self._name})
        return csi.NodeGetInfoResponse(
            node_id=self._name, max_volumes_per_node=MOST_VOLUMES, accessible_topology=topology
        )

    def NodeGetCapabilities(
        self, request: csi.NodeGetCapabilitiesRequest, context: Any
    ) -> csi.NodeGetCapabilitiesResponse:
        """The node's capabilities."""
        rpc = csi.NodeServiceCapability.RPC
        types = (rpc.STAGE_UNSTAGE_VOLUME, rpc.GET_VOLUME_STATS, rpc.EXPAND_VOLUME, rpc.SINGLE_NODE_MULTI_WRITER)
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[csi.NodeServiceCapability(rpc=rpc(type=each)) for each in types]
        )

    def join(self) -> None:
        """Register this node, and drop its staging of an earlier boot. Call it before serving."""
        with self._pools.locked():
            if not self._pools.add_node(self._name, self._host.boot()):
                return
            for volume in self._pools.volumes():
                if self._name in volume.staged:
                    self._forget(volume)

    def _forget(self, volume: StoredVolume) -> None:
        """Record that the volume is no longer staged on this node; its last node detaches the device."""
        left = _without(volume, self._name)
        if volume.block and not left.staged:
            self._host.detach(self._pools.data(volume))
        self._pools.put(left)

    # ---- staging: once per node

    def NodeStageVolume(self, request: csi.NodeStageVolumeRequest, context: Any) -> csi.NodeStageVolumeResponse:
        """Create the device, or mount the file system, for all pods of the node."""
        required(request.volume_id, "volume_id")
        required(request.staging_target_path, "staging_target_path")
        _has_capability(request)
        target = request.staging_target_path
        with self._pools.locked():
            volume = self._pools.volume(request.volume_id)
            check_capability(volume, request.volume_capability)
            self._reachable(volume)
            data = self._pools.data(volume)
            if volume.block:
                self._host.attach(data)
                self._host.resize_loop(data)
            elif not self._host.is_mounted(target):
                self._host.path(target).mkdir(parents=True, exist_ok=True)
                if volume.image:
                    flags = list(request.volume_capability.mount.mount_flags)
                    self._host.mount_image(data, target, flags, format_blank=True)
                else:
                    self._host.bind(str(data), target)
            if self._name not in volume.staged:
                self._pools.put(dataclasses.replace(volume, staged=(*volume.staged, self._name)))
        return csi.NodeStageVolumeResponse()

    def _reachable(self, volume: StoredVolume) -> None:
        if self._kind.shared and self._name not in volume.published:
            raise StorageError("FAILED_PRECONDITION", f"volume {volume.id} is not attached to {self._name}")
        if not self._kind.shared and volume.pool != self._name:
            raise StorageError("FAILED_PRECONDITION", f"volume {volume.id} is on {volume.pool}, not on {self._name}")

    def NodeUnstageVolume(self, request: csi.NodeUnstageVolumeRequest, context: Any) -> csi.NodeUnstageVolumeResponse:
        """Undo NodeStageVolume."""
        required(request.volume_id, "volume_id")
        required(request.staging_target_path, "staging_target_path")
        with self._pools.locked():
            volume = self._pools.volume(request.volume_id)
            self._host.unmount(request.staging_target_path)
            self._forget(volume)
        return csi.NodeUnstageVolumeResponse()

    # ---- publishing: for one pod

    def NodePublishVolume(self, request: csi.NodePublishVolumeRequest, context: Any) -> csi.NodePublishVolumeResponse:
        """Bind mount the volume at the pod's path: the file system's root, or the device."""
        required(request.volume_id, "volume_id")
        required(request.target_path, "target_path")
        _has_capability(request)
        target = request.target_path
        with self._pools.locked():
            volume = self._pools.volume(request.volume_id)
            check_capability(volume, request.volume_capability)
            required(request.staging_target_path, "staging_target_path")
            source = self._staged_source(volume, request.staging_target_path)
            here = (self._name, target)
            others = [path for _, path in volume.targets if path != target]
            if others and request.volume_capability.access_mode.mode == MODES.SINGLE_NODE_SINGLE_WRITER:
                raise StorageError(
                    "FAILED_PRECONDITION", f"volume {volume.id} is single-pod, and published at {others[0]}"
                )
            if not self._host.is_mounted(target):
                self._make_point(target, device=volume.block)
                # A bind mount does not make a device read-only; the runtime does, by the pod's device rules.
                self._host.bind(source, target, read_only=request.readonly and not volume.block)
            if here not in volume.targets:
                self._pools.put(dataclasses.replace(volume, targets=(*volume.targets, here)))
        return csi.NodePublishVolumeResponse()

    def _staged_source(self, volume: StoredVolume, staging: str) -> str:
        source = self._host.loop(self._pools.data(volume)) if volume.block else staging
        if self._name not in volume.staged or source is None or not (volume.block or self._host.is_mounted(staging)):
            raise StorageError("FAILED_PRECONDITION", f"volume {volume.id} is not staged at {staging}")
        return source

    def _make_point(self, target: str, *, device: bool) -> None:
        point = self._host.path(target)
        point.parent.mkdir(parents=True, exist_ok=True)
        point.touch(mode=0o600) if device else point.mkdir(mode=0o750, exist_ok=True)

    def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest, context: Any
    ) -> csi.NodeUnpublishVolumeResponse:
        """Undo NodePublishVolume."""
        required(request.volume_id, "volume_id")
        required(request.target_path, "target_path")
        with self._pools.locked():
            volume = self._pools.volume(request.volume_id)
            self._host.unmount(request.target_path)
            left = tuple(target for target in volume.targets if target != (self._name, request.target_path))
            self._pools.put(dataclasses.replace(volume, targets=left))
            point = self._host.path(request.target_path)
            with contextlib.suppress(FileNotFoundError):
                point.rmdir() if point.is_dir() else point.unlink()
        return csi.NodeUnpublishVolumeResponse()

    # ---- in use

    def NodeExpandVolume(self, request: csi.NodeExpandVolumeRequest, context: Any) -> csi.NodeExpandVolumeResponse:
        """Expand the device, and the file system on it, to the volume's size."""
        required(request.volume_id, "volume_id")
        required(request.volume_path, "volume_path")
        with self._pools.locked():
            volume = self._pools.volume(request.volume_id)
            path = self._present(request.volume_path)
            if volume.image:
                self._host.resize_loop(self._pools.data(volume))
                if not volume.block:
                    self._host.grow_file_system(str(path))
        return csi.NodeExpandVolumeResponse(capacity_bytes=volume.capacity)

    def NodeGetVolumeStats(
        self, request: csi.NodeGetVolumeStatsRequest, context: Any
    ) -> csi.NodeGetVolumeStatsResponse:
        """Bytes and inodes of a file system, bytes of a device."""
        required(request.volume_id, "volume_id")
        required(request.volume_path, "volume_path")
        volume = self._pools.volume(request.volume_id)
        path = self._host.path(str(self._present(request.volume_path)))
        usage = csi.VolumeUsage
        if volume.block:
            return csi.NodeGetVolumeStatsResponse(usage=[usage(total=volume.capacity, unit=usage.BYTES)])
        system = os.statvfs(path)
        size, free, available = (n * system.f_frsize for n in (system.f_blocks, system.f_bfree, system.f_bavail))
        return csi.NodeGetVolumeStatsResponse(
            usage=[
                usage(total=size, used=size - free, available=available, unit=usage.BYTES),
                usage(
                    total=system.f_files,
                    used=system.f_files - system.f_ffree,
                    available=system.f_favail,
                    unit=usage.INODES,
                ),
            ]
        )

    def _present(self, path: str) -> Path:
        """A path of the node with a volume. Raises StorageError."""
        point = self._host.path(path)
        if not point.exists() or not (self._host.is_mounted(path) or stat.S_ISBLK(point.stat().st_mode)):
            raise StorageError("NOT_FOUND", f"no volume at {path}")
        return Path(path)


def _has_capability(request: csi.NodeStageVolumeRequest | csi.NodePublishVolumeRequest) -> None:
    if not request.HasField("volume_capability"):
        raise StorageError("INVALID_ARGUMENT", "volume_capability is missing")
    is_block(request.volume_capability)


def _without(volume: StoredVolume, node: str) -> StoredVolume:
    return dataclasses.replace(
        volume,
        staged=tuple(name for name in volume.staged if name != node),
        targets=tuple(target for target in volume.targets if target[0] != node),
    )
