"""Disks on CSI claims that are expanded, while the VM runs and while it is stopped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.csi import (
    KINDS,
    LARGE,
    MIB,
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
def test_disk_grows_in_running_guest_and_keeps_data(space: E2eNamespace, kind: Kind) -> None:
    name = f"grower-{kind.storage_class}-{kind.mode}".lower()
    space.apply(claim_of(name, kind))
    machine = space.apply_vm(booting(name, claim("data", name))).until_status("Running")
    first = machine.answer()
    assert size_matches(kind, disk_bytes(machine, "data"), SMALL)
    machine.guest().write("data", f"written to {kind}")
    space.kubectl(
        "patch", "pvc", name, "-p", f'{{"spec":{{"resources":{{"requests":{{"storage":"{LARGE // MIB}Mi"}}}}}}}}'
    )
    wait_for(
        lambda: size_matches(kind, disk_bytes(machine, "data"), LARGE),
        "the guest sees that its disk has grown",
        seconds=180,
        explain=lambda: f"{space.kubectl('describe', 'pvc', name)}\n{machine.diagnostics()}",
    )
    told = machine.answer()
    assert told["bootId"] == first["bootId"], "without a restart"
    assert machine.guest().read("data") == f"written to {kind}"

    def size_in_status() -> bool:
        entry = next(each for each in (machine.vmi() or {})["status"]["volumeStatus"] if each["name"] == "data")
        capacity = entry["persistentVolumeClaimInfo"]["capacity"]["storage"]
        return capacity == f"{LARGE // MIB // 1024}Gi" and size_matches(kind, entry["size"], LARGE)

    wait_for(size_in_status, "the status says how large claim and disk are", explain=machine.diagnostics)
    machine.run("Halted")
    machine.until_stopped()
    machine.run("Always")
    machine.answer(other_than=first["bootId"])
    assert machine.guest().read("data") == f"written to {kind}"
    assert size_matches(kind, disk_bytes(machine, "data"), LARGE)
    machine.delete()


@pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.mode.lower())
def test_claim_expanded_while_vm_is_stopped_gives_larger_disk(space: E2eNamespace, kind: Kind) -> None:
    name = f"sleeper-{kind.storage_class}-{kind.mode}".lower()
    space.apply(claim_of(name, kind))
    machine = space.apply_vm(booting(name, claim("data", name))).until_status("Running")
    first = machine.answer()
    machine.guest().write("data", "before")
    machine.run("Halted")
    machine.until_stopped()
    space.kubectl(
        "patch", "pvc", name, "-p", f'{{"spec":{{"resources":{{"requests":{{"storage":"{LARGE // MIB}Mi"}}}}}}}}'
    )
    machine.run("Always")
    machine.answer(other_than=first["bootId"])
    # A file system can only be grown where it is mounted, so that may come a moment after the start.
    wait_for(
        lambda: size_matches(kind, disk_bytes(machine, "data"), LARGE),
        "the disk is larger",
        explain=machine.diagnostics,
        seconds=180,
    )
    assert machine.guest().read("data") == "before"
    machine.delete()
