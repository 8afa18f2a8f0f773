"""Disks, container disks, cloud-init data, and persistence of data."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.e2e.manifests import booting, claim, cloud_init, drive, idle, persistent_claim, secret, tiny, virtual_machine
from tests.e2e.support import E2eNamespace, Json, KubectlError, VmUnderTest, image, project

CLASS = "local"


def volume_for(space: E2eNamespace, claim_name: str, node: str = "node1", size: str = "64Mi") -> Json:
    """A PersistentVolume on a node's disk, meant for one claim of this namespace; the claim to apply."""
    storage_class = f"{CLASS}-{secrets.token_hex(3)}"
    project("cluster", "pv", f"{space.name}-{claim_name}", node, size, "--storage-class", storage_class)
    return persistent_claim(claim_name, size, storage_class)


@pytest.fixture(scope="module", autouse=True)
def volumes(space: E2eNamespace) -> Iterator[None]:
    """Delete the PersistentVolumes of this module's namespace at the end."""
    yield
    space.kubectl("delete", "vm,vmi,pvc", "--all", "--timeout=90s")
    for volume in space.kubectl.items("persistentvolumes"):
        if volume["metadata"]["name"].startswith(f"{space.name}-"):
            space.kubectl("delete", "pv", volume["metadata"]["name"], "--wait=false")


@pytest.fixture(scope="module")
def vm_with_claim(space: E2eNamespace) -> VmUnderTest:
    """A VM with a persistent disk and an empty disk."""
    space.apply(volume_for(space, "data", node="node2"))
    scratch = drive("scratch", {"emptyDisk": {"capacity": "16Mi"}}, serial="scratch")
    return space.apply_vm(booting("keeper", claim("data", "data"), scratch)).until_status("Running")


def test_guest_disks_have_expected_sizes(vm_with_claim: VmUnderTest) -> None:
    assert vm_with_claim.node() == "node2", "the volume is there"
    disks = {disk["serial"]: disk for disk in vm_with_claim.answer()["disks"] if disk["serial"]}
    assert disks["scratch"]["bytes"] == 16 << 20
    assert 32 << 20 <= disks["data"]["bytes"] <= 64 << 20


def test_claim_keeps_data_after_restart_and_empty_disk_does_not(vm_with_claim: VmUnderTest) -> None:
    first = vm_with_claim.answer()
    text = f"written by boot {first['bootId']}"
    for disk in ("data", "scratch"):
        vm_with_claim.guest().write(disk, text)
        assert vm_with_claim.guest().read(disk) == text
    vm_with_claim.run("Halted")
    vm_with_claim.until_stopped()
    vm_with_claim.run("Always")
    vm_with_claim.answer(other_than=first["bootId"])
    assert vm_with_claim.guest().read("data") == text
    assert vm_with_claim.guest().read("scratch") is None


def test_claim_keeps_data_after_guest_power_off(vm_with_claim: VmUnderTest) -> None:
    first = vm_with_claim.answer()
    vm_with_claim.guest().write("data", "last words")
    vm_with_claim.guest().power_off()
    vm_with_claim.answer(other_than=first["bootId"])
    assert vm_with_claim.guest().read("data") == "last words"


def test_vmi_status_lists_claim(vm_with_claim: VmUnderTest) -> None:
    volumes = {each["name"]: each for each in (vm_with_claim.vmi() or {})["status"]["volumeStatus"]}
    assert volumes["data"]["persistentVolumeClaimInfo"]["claimName"] == "data"
    assert volumes["data"]["target"].startswith("vd")
    vm_with_claim.discard()


# ---- container disks


def test_vm_with_two_container_disks_runs(space: E2eNamespace) -> None:
    spare = drive("spare", {"containerDisk": {"image": image("guest-halt")}}, serial="spare")
    double = space.apply_vm(booting("double", spare)).until_status("Running")
    assert {"spare": 1 << 20}.items() <= {disk["serial"]: disk["bytes"] for disk in double.answer()["disks"]}.items()
    with pytest.raises(OSError, match="409"):
        double.guest().write("spare", "this guest never writes over content, and the image has content")
    double.discard()


@pytest.mark.parametrize("path", ["/disk/tiny.qcow2", "disk/tiny.qcow2"])
def test_container_disk_path_must_be_absolute(space: E2eNamespace, path: str) -> None:
    if path.startswith("/"):
        named = space.apply_vm(virtual_machine("named", tiny(path=path))).until_status("Running")
        assert named.answer()["bootId"]
        named.discard()
    else:
        with pytest.raises(KubectlError, match=r"containerDisk\.path: 'disk/tiny\.qcow2' must be an absolute path"):
            space.apply(virtual_machine("crooked", tiny(path=path)))


def test_kernel_boot_from_image_passes_kernel_args(space: E2eNamespace) -> None:
    boot = {
        "kernelArgs": "console=ttyS0 no_timer_check quiet by=kernelboot",
        "container": {"image": image("guest-tiny-kernel"), "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"},
    }
    direct = space.apply_vm(virtual_machine("direct", domain={"firmware": {"kernelBoot": boot}}))
    told = direct.until_status("Running").answer()
    assert "by=kernelboot" in told["cmdline"]
    direct.discard()


# ---- cloud-init data from other objects


def test_cloud_init_data_from_secret_reaches_guest(space: E2eNamespace) -> None:
    space.apply(
        secret("seed", userdata="#cloud-config\nhostname: from-a-secret\n"),
        secret("seed-network", networkdata="version: 1\nconfig: []\n"),
    )
    seed = cloud_init(secretRef={"name": "seed"}, networkDataSecretRef={"name": "seed-network"})
    seeded = space.apply_vm(booting("seeded", seed)).until_status("Running")
    told = seeded.answer()
    assert told["hostname"] == "from-a-secret"
    assert told["cloudInit"]["user-data"] == "#cloud-config\nhostname: from-a-secret\n"
    assert told["cloudInit"]["network-config"] == "version: 1\nconfig: []\n"
    assert "from-a-secret" not in space.kubectl("get", "vm,vmi,pods", "-o", "json"), (
        "a secret has leaked into an object"
    )
    seeded.discard()


def test_base64_user_data_reaches_guest(space: E2eNamespace) -> None:
    encoded = cloud_init(userDataBase64="I2Nsb3VkLWNvbmZpZwpob3N0bmFtZTogZW5jb2RlZAo=")
    machine = space.apply_vm(booting("encoded", encoded)).until_status("Running")
    assert machine.answer()["hostname"] == "encoded"
    machine.discard()


# ---- missing claims and volumes


def test_vm_with_missing_claim_starts_once_claim_is_created(space: E2eNamespace) -> None:
    patient = space.apply_vm(idle("patient", claim("data", "late")))
    patient.until_message("ErrorPvcNotFound")
    patient.until_message("late", "PersistentVolumeClaim")
    space.apply(volume_for(space, "late"))
    patient.until_status("Running")
    patient.discard()


def test_unbound_claim_is_reported_in_vm_status(space: E2eNamespace) -> None:
    space.apply(persistent_claim("unbound", "64Mi", "no-such-class"))
    stuck = space.apply_vm(idle("stuck", claim("data", "unbound")))
    stuck.until_message("unbound")
    stuck.until_status("ErrorUnschedulable", "WaitingForVolumeBinding", "Provisioning")
    stuck.discard()
