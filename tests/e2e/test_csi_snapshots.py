"""Snapshots and clones of disks on CSI claims."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.csi import (
    LARGE,
    SMALL,
    Kind,
    claim_of,
    disk_bytes,
    every_kind,
    size_matches,
    storage_namespace,
)
from tests.e2e.manifests import booting, claim
from tests.e2e.support import E2eNamespace, Kubectl
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def space(kubectl: Kubectl) -> Iterator[E2eNamespace]:
    """A namespace for this module."""
    yield from storage_namespace(kubectl)


@every_kind
def test_snapshot_and_clone_of_used_disk_contain_its_data(space: E2eNamespace, kind: Kind) -> None:
    name = f"source-{kind.storage_class}-{kind.mode}".lower()
    space.apply(claim_of(name, kind))
    machine = space.apply_vm(booting(name, claim("data", name))).until_status("Running")
    machine.answer()
    machine.guest().write("data", "first")
    snapshot = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": kind.storage_class, "source": {"persistentVolumeClaimName": name}},
    }
    space.apply(snapshot)

    def ready() -> bool:
        taken = space.kubectl.get("volumesnapshot", name) or {}
        return bool(taken["status"]["readyToUse"])

    wait_for(ready, f"snapshot {name} is ready", explain=lambda: space.kubectl("describe", "volumesnapshot", name))
    machine.guest().write("data", "later")
    restored, cloned = f"{name}-restored", f"{name}-cloned"
    space.apply(
        claim_of(restored, kind, LARGE, ("VolumeSnapshot", name)),
        claim_of(cloned, kind, SMALL, ("PersistentVolumeClaim", name)),
    )
    reader = space.apply_vm(booting(f"{name}-reader", claim("restored", restored), claim("cloned", cloned)))
    reader.until_status("Running").answer()
    assert reader.guest().read("restored") == "first"
    assert reader.guest().read("cloned") == "later"
    assert size_matches(kind, disk_bytes(reader, "restored"), LARGE), (
        "a restored volume may be larger than its snapshot"
    )
    reader.guest().write("cloned", "the clone's own")
    assert machine.guest().read("data") == "later"
    reader.delete()
    machine.delete()
