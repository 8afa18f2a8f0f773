"""The storage behind the driver: volumes and snapshots as files below one folder, each with a record beside its data.

    ROOT/lock                              held by every call that changes something, on any node
    ROOT/nodes/NODE                        the nodes that run the driver
    ROOT/pools/POOL/volumes/ID/record.json
                              /data        a file (of a block device, or of a file system on one), or a directory
    ROOT/pools/POOL/snapshots/ID/...       the same

An identifier is the hash of the name that the caller chose, so a repeated call finds its earlier result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.csi.errors import StorageError

_IDENTIFIER = re.compile(r"(vol|snap)-[0-9a-f]{24}")

Frozen = Callable[[Path], AbstractContextManager[None]]
"""Freezes a file system on a file while it is copied."""


@dataclass(frozen=True)
class StoredVolume:
    """One volume. `capacity` in bytes; `image`: its data is a file, else a directory; `block`: published as device."""

    id: str
    name: str
    pool: str
    capacity: int
    image: bool
    block: bool
    source: str = ""
    """The identifier of the volume or snapshot that it was created from."""
    published: dict[str, bool] = field(default_factory=dict)
    """The nodes that it is attached to, and whether read-only."""
    staged: tuple[str, ...] = ()
    """The nodes that have it staged."""
    targets: tuple[tuple[str, str], ...] = ()
    """Where it is published to pods: node and path."""


@dataclass(frozen=True)
class StoredSnapshot:
    """A copy of a volume's data. `created`: seconds since the epoch."""

    id: str
    name: str
    pool: str
    capacity: int
    image: bool
    block: bool
    source: str
    created: float


def identifier(kind: str, name: str) -> str:
    """The identifier for a name: `vol-` or `snap-` and 24 hex digits."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:24]}"


class Pools:
    """All pools of one driver. Volumes are thin; together they never exceed a pool's `capacity` (bytes)."""

    def __init__(self, root: Path, capacity: int) -> None:
        self.root = root
        self.capacity = capacity
        root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Serializes changes, also those of the driver's processes on other nodes."""
        with (self.root / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    # ---- nodes

    def add_node(self, name: str, boot: str) -> bool:
        """Register a node; whether it has booted (`boot` identifies that) since it was last registered."""
        path = self.root / "nodes" / name
        path.parent.mkdir(exist_ok=True)
        known = path.read_text() if path.exists() else ""
        path.write_text(boot)
        return known != boot

    def nodes(self) -> list[str]:
        """The nodes that run the driver."""
        return sorted(path.name for path in (self.root / "nodes").glob("*"))

    # ---- volumes

    def volumes(self) -> list[StoredVolume]:
        """All volumes, by identifier."""
        return sorted(map(_volume, self._records("volumes")), key=lambda volume: volume.id)

    def volume(self, identity: str) -> StoredVolume:
        """The volume of that identifier. Raises StorageError."""
        found = self._find("volumes", identity)
        if found is None:
            raise StorageError("NOT_FOUND", f"there is no volume {identity!r}")
        return _volume(found)

    def volume_named(self, name: str) -> StoredVolume | None:
        """The volume that was created under that name."""
        found = self._find("volumes", identifier("vol", name))
        return None if found is None else _volume(found)

    def data(self, item: StoredVolume | StoredSnapshot) -> Path:
        """The file or directory with the data."""
        return self._folder(item) / "data"

    def put(self, item: StoredVolume | StoredSnapshot) -> None:
        """Write the record, replacing the one before."""
        folder = self._folder(item)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "record.new"
        temporary.write_text(json.dumps(asdict(item)))
        temporary.rename(folder / "record.json")

    def create(self, volume: StoredVolume, source: StoredVolume | StoredSnapshot | None, frozen: Frozen) -> None:
        """Create the volume's data, empty or from a source. Raises StorageError when the pool is full."""
        free = self.free(volume.pool)
        if volume.capacity > free:
            code = "OUT_OF_RANGE" if volume.capacity > self.capacity else "RESOURCE_EXHAUSTED"
            raise StorageError(code, f"pool {volume.pool} has {free} bytes left, {volume.capacity} are requested")
        with self._made(volume) as data:
            if source is not None:
                self._copy(source, data, frozen)
            elif not volume.image:
                data.mkdir()
            if volume.image:
                grow(data, volume.capacity)

    def delete(self, item: StoredVolume | StoredSnapshot) -> None:
        """Delete a volume or snapshot with its data."""
        folder = self._folder(item)
        # Without its record it does not exist, even if the rest must be retried.
        (folder / "record.json").unlink(missing_ok=True)
        shutil.rmtree(folder)

    def free(self, pool: str) -> int:
        """Free bytes of a pool."""
        return max(0, self.capacity - sum(each.capacity for each in self.volumes() if each.pool == pool))

    # ---- snapshots

    def snapshots(self) -> list[StoredSnapshot]:
        """All snapshots, by identifier."""
        return sorted((StoredSnapshot(**each) for each in self._records("snapshots")), key=lambda snapshot: snapshot.id)

    def snapshot(self, identity: str) -> StoredSnapshot | None:
        """The snapshot of that identifier, if there is one."""
        found = self._find("snapshots", identity)
        return None if found is None else StoredSnapshot(**found)

    def take(self, name: str, source: StoredVolume, frozen: Frozen) -> StoredSnapshot:
        """Copy a volume's data into a new snapshot."""
        snapshot = StoredSnapshot(
            identifier("snap", name),
            name,
            source.pool,
            source.capacity,
            source.image,
            source.block,
            source.id,
            time.time(),
        )
        with self._made(snapshot) as data:
            self._copy(source, data, frozen)
        return snapshot

    # ---- files

    def _folder(self, item: StoredVolume | StoredSnapshot) -> Path:
        kind = "volumes" if isinstance(item, StoredVolume) else "snapshots"
        return self.root / "pools" / item.pool / kind / item.id

    def _records(self, kind: str) -> Iterator[dict[str, Any]]:
        for path in self.root.glob(f"pools/*/{kind}/*/record.json"):
            yield json.loads(path.read_text())

    def _find(self, kind: str, identity: str) -> dict[str, Any] | None:
        if not _IDENTIFIER.fullmatch(identity):
            return None
        for path in self.root.glob(f"pools/*/{kind}/{identity}/record.json"):
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        return None

    @contextmanager
    def _made(self, item: StoredVolume | StoredSnapshot) -> Iterator[Path]:
        """The path for new data; the record is written last, and makes the item exist."""
        folder = self._folder(item)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder / "data"
        self.put(item)

    def _copy(self, source: StoredVolume | StoredSnapshot, target: Path, frozen: Frozen) -> None:
        data = self.data(source)
        is_file_system = source.image and not source.block
        with frozen(data) if is_file_system else nullcontext():
            done = subprocess.run(
                ["cp", "--archive", "--reflink=auto", "--sparse=always", str(data), str(target)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            raise StorageError("INTERNAL", f"{source.id} cannot be copied: {done.stderr.strip()}")


def _volume(record: dict[str, Any]) -> StoredVolume:
    targets = tuple((node, path) for node, path in record["targets"])
    return StoredVolume(**{**record, "staged": tuple(record["staged"]), "targets": targets})


def grow(path: Path, size: int) -> None:
    """Create or extend a sparse file to at least that size. It never shrinks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
