"""Guests on claims that a CSI driver provisions: a node's own storage and one that both nodes share, as file system and
as device. The classes `local` and `shared` are those of `python -m cluster storage`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.e2e.manifests import booting, claim, drive, idle, persistent_claim
from tests.e2e.support import E2eNamespace, Json, Kubectl, VmUnderTest, conditions, create_namespace, project
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


@pytest.fixture(scope="module", autouse=True)
def storage() -> None:
    """Installed on first use."""
    project("cluster", "storage")


@pytest.fixture(scope="module")
def space(kubectl: Kubectl) -> Iterator[E2eNamespace]:
    """A namespace for this module; its claims are deleted at the end, and their volumes with them."""
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


# ---- resize, snapshot, clone


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


# ---- where a volume is


def test_local_volume_is_provisioned_on_node_of_vm(space: E2eNamespace) -> None:
    space.apply(claim_of("placed", KINDS[0]))
    assert (space.kubectl.get("pvc", "placed") or {})["status"]["phase"] == "Pending"
    machine = space.apply_vm(idle("placed", claim("data", "placed"), **on_node("node2"))).until_status("Running")
    assert machine.node() == "node2"
    bound = (space.kubectl.get("pvc", "placed") or {})["spec"]["volumeName"]
    affinity = (space.kubectl.get("pv", bound) or {})["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert affinity[0]["matchExpressions"][0]["values"] == ["node2"]
    machine.delete()


def test_claim_larger_than_any_node_is_reported(space: E2eNamespace) -> None:
    space.apply(claim_of("huge", KINDS[1], 1024 * 1024 * MIB))
    machine = space.apply_vm(idle("huge", claim("data", "huge")))
    machine.until_message("huge", "enough free storage")
    assert machine.status() in ("WaitingForVolumeBinding", "ErrorUnschedulable", "Provisioning"), machine.diagnostics()
    machine.delete()


def test_vms_on_both_nodes_share_block_volume(space: E2eNamespace) -> None:
    """One writes, the other may only read: `shareable`, for several writers, is not supported yet."""
    space.apply(claim_of("common", Kind("shared", "Block"), many=True))
    writer = space.apply_vm(booting("common-writer", claim("data", "common"), **on_node("node1")))
    writer.until_status("Running").answer()
    writer.guest().write("data", "from node1")
    source = {"persistentVolumeClaim": {"claimName": "common", "readOnly": True}}
    reader = space.apply_vm(booting("common-reader", drive("data", source, serial="data"), **on_node("node2")))
    reader.until_status("Running").answer()
    assert (writer.node(), reader.node()) == ("node1", "node2")
    assert reader.guest().read("data") == "from node1"
    assert writer.phase() == "Running"
    reader.delete()
    writer.delete()


def test_read_only_claim_is_readable_and_not_writable(space: E2eNamespace) -> None:
    kind = Kind("local", "Block")
    space.apply(claim_of("original", kind))
    writer = space.apply_vm(booting("writer", claim("data", "original"))).until_status("Running")
    writer.answer()
    writer.guest().write("data", "to be read")
    writer.delete()
    source = {"persistentVolumeClaim": {"claimName": "original", "readOnly": True}}
    reader = space.apply_vm(booting("reader", drive("data", source, serial="data"))).until_status("Running")
    reader.answer()
    assert reader.guest().read("data") == "to be read"
    with pytest.raises(OSError):
        reader.guest().write("data", "no")
    reader.delete()


# ---- power failure of a node


@pytest.fixture
def node2_restored(kubectl: Kubectl) -> Iterator[None]:
    """Power on node2 at the end, and wait until it accepts VMs."""
    yield
    project("cluster", "on", "node2")
    kubectl("taint", "node", "node2", "node.kubernetes.io/out-of-service-", check=False)
    wait_for(
        lambda: (kubectl.get("node", "node2") or {})["metadata"]["labels"].get("kubevirt.io/schedulable") == "true",
        "node2 takes machines again",
        seconds=120,
    )


@pytest.mark.alone
def test_disks_keep_data_after_power_cycle_of_node(space: E2eNamespace, node2_restored: None) -> None:
    drives = []
    for kind in KINDS:
        name = f"kept-{kind.storage_class}-{kind.mode}".lower()[:20]  # a virtio disk's serial has 20 characters
        space.apply(claim_of(name, kind))
        drives.append(claim(name, name))
    machine = space.apply_vm(booting("kept", *drives, **on_node("node2"))).until_status("Running")
    first = machine.answer()
    serials = [each.volume["name"] for each in drives]
    for serial in serials:
        machine.guest().write(serial, f"kept on {serial}")
    project("cluster", "off", "node2")
    project("cluster", "on", "node2")
    machine.answer(other_than=first["bootId"], seconds=240)
    assert {serial: machine.guest().read(serial) for serial in serials} == {s: f"kept on {s}" for s in serials}
    machine.delete()


@pytest.mark.alone
@pytest.mark.parametrize("mode", ["Filesystem", "Block"])
def test_vm_with_shared_disk_starts_on_other_node_after_out_of_service_taint(
    space: E2eNamespace, kubectl: Kubectl, node2_restored: None, mode: str
) -> None:
    name = f"mover-{mode}".lower()
    space.apply(claim_of(name, Kind("shared", mode)))
    preferred = {
        "weight": 100,
        "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node2"]}]},
    }
    wait_for(
        lambda: (
            (kubectl.get("node", "node2") or {})["status"]["allocatable"].get("devices.kubevirt.io/tun", "0") != "0"
        ),
        "node2 offers taps again",
        seconds=90,
    )
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}}
    machine = space.apply_vm(booting(name, claim("data", name), affinity=affinity)).until_status("Running")
    assert machine.node() == "node2"
    first = machine.answer()
    machine.guest().write("data", "carried over")
    project("cluster", "off", "node2")
    wait_for(
        lambda: conditions(kubectl.get("node", "node2"))["Ready"]["status"] != "True", "node2 is NotReady", seconds=120
    )
    kubectl("taint", "node", "node2", "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
    machine.answer(other_than=first["bootId"], seconds=300)
    assert machine.node() == "node1"
    assert machine.guest().read("data") == "carried over"
    machine.delete()
