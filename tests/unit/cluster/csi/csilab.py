"""The driver without a machine: pools in a folder, and a fake node that records its devices and mounts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.csi import csi_pb2 as csi
from cluster.csi.controller import CsiControllerService
from cluster.csi.errors import StorageError
from cluster.csi.host import CsiHost
from cluster.csi.kinds import KINDS, StorageKind
from cluster.csi.node import CsiNodeService
from cluster.csi.pools import Pools

GIB = 1 << 30
MODES = csi.VolumeCapability.AccessMode


@dataclass
class Machine:
    """The loop devices of a machine, which all its nodes share: device → file. `busy`: by a mount."""

    loops: dict[str, Path] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class FakeHost(CsiHost):
    """A node of the machine, with its own mounts: target → (source, read-only)."""

    def __init__(self, machine: Machine, boot: str = "first") -> None:
        super().__init__()
        self.machine = machine
        self.booted = boot
        self.mounted: dict[str, tuple[str, bool]] = {}
        self.file_systems: dict[Path, int] = {}
        self.freezes: list[Path] = []
        self.flags: list[str] = []

    def run(self, *command: str, fine: tuple[int, ...] = (0,)) -> str:
        raise AssertionError(f"the fake does not implement {command}")

    def boot(self) -> str:
        return self.booted

    def loop(self, image: Path) -> str | None:
        return next((device for device, file in self.machine.loops.items() if file == image), None)

    def attach(self, image: Path) -> str:
        device = self.loop(image) or f"/dev/loop{len(self.machine.sizes)}"
        self.machine.loops[device] = image
        self.machine.sizes.setdefault(device, image.stat().st_size)
        return device

    def detach(self, image: Path) -> None:
        self.machine.loops.pop(self.loop(image) or "", None)

    def resize_loop(self, image: Path) -> None:
        if device := self.loop(image):
            self.machine.sizes[device] = image.stat().st_size

    def mount_image(self, image: Path, target: str, flags: Sequence[str] = (), *, format_blank: bool) -> None:
        device = self.attach(image)
        if image not in self.file_systems and not format_blank:
            raise StorageError("INTERNAL", "wrong fs type")
        self.mounted[target] = (device, False)
        self.flags = list(flags)
        self.file_systems[image] = image.stat().st_size

    def grow_file_system(self, path: str) -> None:
        device = self.mounted[path][0]
        self.file_systems[self.machine.loops[device]] = self.machine.sizes[device]

    @contextmanager
    def frozen(self, image: Path) -> Iterator[None]:
        if self.loop(image):
            self.freezes.append(image)
        yield

    def is_mounted(self, path: str) -> bool:
        return path in self.mounted

    def bind(self, source: str, target: str, *, read_only: bool = False) -> None:
        device = self.mounted[source][0] if source in self.mounted else source
        self.mounted[target] = (device, read_only)

    def unmount(self, path: str) -> None:
        device = self.mounted.pop(path, ("", False))[0]
        # A device under a mount is detached with the last mount.
        is_file_system = self.machine.loops.get(device) in self.file_systems
        if is_file_system and device not in {mount[0] for mount in self.mounted.values()}:
            self.machine.loops.pop(device)


@dataclass
class Lab:
    """One driver on two nodes."""

    kind: StorageKind
    pools: Pools
    hosts: dict[str, FakeHost]
    controller: CsiControllerService
    nodes: dict[str, CsiNodeService]

    def volume(self, name: str = "disk", **request: object) -> csi.Volume:
        """Create a volume; fields of the request by keyword, by default the smallest size."""
        request.setdefault("volume_capabilities", [capability()])
        return self.controller.CreateVolume(csi.CreateVolumeRequest(name=name, **request), None).volume  # type: ignore[arg-type]

    def attach(self, volume: csi.Volume, node: str, **request: object) -> None:
        """Attach a volume to a node, if its kind needs that."""
        if self.kind.shared:
            request.setdefault("volume_capability", capability())
            self.controller.ControllerPublishVolume(
                csi.ControllerPublishVolumeRequest(volume_id=volume.volume_id, node_id=node, **request),  # type: ignore[arg-type]
                None,
            )

    def stage(self, volume: csi.Volume, node: str, path: Path, wanted: csi.VolumeCapability | None = None) -> None:
        """Stage a volume on a node."""
        request = csi.NodeStageVolumeRequest(
            volume_id=volume.volume_id, staging_target_path=str(path), volume_capability=wanted or capability()
        )
        self.nodes[node].NodeStageVolume(request, None)

    def publish(
        self, volume: csi.Volume, node: str, staging: Path, target: Path, wanted: csi.VolumeCapability, **request: bool
    ) -> None:
        """Publish a staged volume at a pod's path."""
        message = csi.NodePublishVolumeRequest(
            volume_id=volume.volume_id, staging_target_path=str(staging), target_path=str(target),
            volume_capability=wanted, **request,
        )  # fmt: skip
        self.nodes[node].NodePublishVolume(message, None)

    def data(self, volume: csi.Volume) -> Path:
        """The file or directory behind a volume."""
        return self.pools.data(self.pools.volume(volume.volume_id))


def lab(kind: str, root: Path) -> Lab:
    """The driver of a kind, on node1 and node2."""
    pools, machine = Pools(root / kind, 100 * GIB), Machine()
    hosts = {name: FakeHost(machine) for name in ("node1", "node2")}
    nodes = {name: CsiNodeService(KINDS[kind], pools, host, name) for name, host in hosts.items()}
    for node in nodes.values():
        node.join()
    return Lab(KINDS[kind], pools, hosts, CsiControllerService(KINDS[kind], pools, hosts["node1"]), nodes)


def capability(
    mode: MODES.Mode.ValueType = MODES.SINGLE_NODE_WRITER, *, block: bool = False, **mount: object
) -> csi.VolumeCapability:
    """A file system (its fields by keyword) or a device, for one node by default."""
    how = csi.VolumeCapability.AccessMode(mode=mode)
    if block:
        return csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume(), access_mode=how)
    return csi.VolumeCapability(mount=csi.VolumeCapability.MountVolume(**mount), access_mode=how)  # type: ignore[arg-type]


def size(required: int = 0, limit: int = 0) -> csi.CapacityRange:
    """A capacity range in bytes."""
    return csi.CapacityRange(required_bytes=required, limit_bytes=limit)


def on(node: str, kind: str = "local") -> csi.Topology:
    """The topology of a node."""
    return csi.Topology(segments={KINDS[kind].topology_key: node})
