"""VMs on claims that a CSI driver provisions: where a volume is, and who may use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.csi import (
    KINDS,
    MIB,
    Kind,
    claim_of,
    on_node,
    storage_namespace,
)
from tests.e2e.manifests import booting, claim, drive, idle
from tests.e2e.support import E2eNamespace, Kubectl, conditions, project
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def space(kubectl: Kubectl) -> Iterator[E2eNamespace]:
    """A namespace for this module."""
    yield from storage_namespace(kubectl)


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
