"""Claims that a CSI driver provisions: of a node's own storage and of storage that both nodes share, as file system and
as device. The classes `local` and `shared` are those of `python -m cluster storage`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.e2e.manifests import persistent_claim
from tests.e2e.support import E2eNamespace, Json, Kubectl, VmUnderTest, create_namespace, project
from tests.waiting import wait_for

MIB = 1 << 20
SMALL, LARGE = 512 * MIB, 1024 * MIB


class Kind(NamedTuple):
    """A storage class and a volume mode."""

    storage_class: str
    mode: str

    @property
    def is_exact(self) -> bool:
        """Whether a guest's disk is as large as the claim: a file on a file system of its own is a little smaller."""
        return self != Kind("local", "Filesystem")


KINDS = [Kind(storage_class, mode) for storage_class in ("local", "shared") for mode in ("Filesystem", "Block")]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.storage_class}-{kind.mode}".lower())


def storage_namespace(kubectl: Kubectl) -> Iterator[E2eNamespace]:
    """A namespace for a module, with the storage installed; its claims are deleted at the end, and their volumes."""
    project("cluster", "storage")
    made = create_namespace(kubectl, "csi")
    yield made
    made.kubectl("delete", "vm,vmi", "--all", "--timeout=120s")
    made.kubectl("delete", "volumesnapshots,pvc", "--all", "--timeout=120s")
    made.clear()
    volumes = lambda: [  # noqa: E731
        volume["metadata"]["name"]
        for volume in kubectl.items("persistentvolumes")
        if volume["spec"].get("claimRef", {}).get("namespace") == made.name
    ]
    wait_for(
        lambda: not volumes(), "volumes of deleted claims are deleted", explain=lambda: str(volumes()), seconds=120
    )


def claim_of(
    name: str, kind: Kind, size: int = SMALL, source: tuple[str, str] | None = None, many: bool = False
) -> Json:
    """A claim; `source`: kind and name of its data source."""
    made = persistent_claim(name, f"{size // MIB}Mi", kind.storage_class, kind.mode)
    if many:
        made["spec"]["accessModes"] = ["ReadWriteMany"]
    if source:
        group = {"apiGroup": "snapshot.storage.k8s.io"} if source[0] == "VolumeSnapshot" else {}
        made["spec"]["dataSource"] = {"kind": source[0], "name": source[1], **group}
    return made


def disk_bytes(machine: VmUnderTest, serial: str) -> int:
    """The size of a disk as the guest sees it."""
    return next(int(disk["bytes"]) for disk in machine.guest().report()["disks"] if disk["serial"] == serial)


def size_matches(kind: Kind, found: int, capacity: int) -> bool:
    """Whether the size of a guest's disk matches a claim of that capacity."""
    return found == capacity if kind.is_exact else capacity * 7 // 10 < found <= capacity


def on_node(name: str) -> Json:
    """Node selector for a VM."""
    return {"nodeSelector": {"kubernetes.io/hostname": name}}
