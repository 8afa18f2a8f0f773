"""The capabilities of volumes of a kind, and how calls are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc

from cluster.csi import csi_pb2 as csi
from cluster.csi import host
from cluster.csi.errors import StorageError, required
from cluster.csi.kinds import StorageKind
from cluster.csi.pools import StoredVolume

MODES = csi.VolumeCapability.AccessMode
ONE_NODE = frozenset(
    {
        MODES.SINGLE_NODE_WRITER,
        MODES.SINGLE_NODE_READER_ONLY,
        MODES.SINGLE_NODE_SINGLE_WRITER,
        MODES.SINGLE_NODE_MULTI_WRITER,
    }
)
MANY_NODES = frozenset({MODES.MULTI_NODE_READER_ONLY, MODES.MULTI_NODE_SINGLE_WRITER, MODES.MULTI_NODE_MULTI_WRITER})


MOST_VOLUMES = 24
"""Volumes per node. All nodes share 64 loop devices (cluster/node-init.sh); the kubelet uses one more per device."""


def modes(kind: StorageKind) -> frozenset[Any]:
    """The access modes that a volume can have."""
    return ONE_NODE | MANY_NODES if kind.shared else ONE_NODE


def is_block(capability: csi.VolumeCapability) -> bool:
    """Whether a capability requests a device. Raises StorageError when it requests neither device nor file system."""
    kind = capability.WhichOneof("access_type")
    required(kind, "volume_capability.access_type")
    return kind == "block"


def unsupported(kind: StorageKind, capabilities: Iterable[csi.VolumeCapability]) -> str:
    """Why these capabilities are not supported; empty when they are. Raises StorageError for incomplete ones."""
    for capability in capabilities:
        mode = capability.access_mode.mode
        required(mode, "volume_capability.access_mode")
        if mode not in modes(kind):
            return f"access mode {MODES.Mode.Name(mode)}: a {kind.name} volume is reachable from one node only"
        file_system = "" if is_block(capability) else capability.mount.fs_type
        if file_system not in ("", host.FILE_SYSTEM) and not kind.shared:
            return f"fsType {file_system}: {kind.name} volumes have {host.FILE_SYSTEM}"
    return ""


def check_capability(volume: StoredVolume, capability: csi.VolumeCapability) -> None:
    """Raises StorageError when a volume was not created for that access type."""
    if is_block(capability) != volume.block:
        made = "a device" if volume.block else "a file system"
        raise StorageError("INVALID_ARGUMENT", f"volume_capability: volume {volume.id} is {made}")


class Refusals(grpc.ServerInterceptor):
    """Translates StorageError and any other exception of a method into the call's status."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The handler of a call, wrapped. All methods of CSI are unary."""
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = details.method.rsplit("/", 1)[-1]

        def call(request: Any, context: Any) -> Any:
            try:
                return handler.unary_unary(request, context)
            except StorageError as error:
                code, words = error.code, str(error)
            except Exception as error:  # a bug of the driver: the caller shows it and retries
                code, words = "INTERNAL", f"{type(error).__name__}: {error}"
            print(f"{method}: {code}: {words}", flush=True)
            return context.abort(grpc.StatusCode[code], words)

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
