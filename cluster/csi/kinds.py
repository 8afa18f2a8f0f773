"""The two kinds of storage of the test cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StorageKind:
    """One of the two kinds of storage.

    `local`: a node's own disks. A volume is reachable from one node; a file system is created on a device, as with a
    volume manager. `shared`: a storage array and file server that every node reaches; a file system is a directory of
    the server, and a volume must be attached to a node first.
    """

    name: str
    """Also of its StorageClass and VolumeSnapshotClass."""
    driver: str
    """The name of the CSIDriver object."""
    shared: bool

    @property
    def topology_key(self) -> str:
        """The key of the nodes' topology, with the node's name as its value."""
        return f"{self.driver}/node"

    def is_image(self, *, block: bool) -> bool:
        """Whether a volume's data is a file (a device, or a file system on one)."""
        return block or not self.shared


KINDS = {
    kind.name: kind
    for kind in (
        StorageKind("local", "local.csi.hyperlet.local", shared=False),
        StorageKind("shared", "shared.csi.hyperlet.local", shared=True),
    )
}
