"""Where a machine's data comes from, and whether it is still there tomorrow."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.e2e.manifests import booting, claim, cloud_init, drive, idle, persistent_claim, secret, tiny, virtual_machine
from tests.e2e.support import Json, KubectlError, Machine, Space, image, project

CLASS = "local"


def volume_for(space: Space, claim_name: str, node: str = "node1", size: str = "64Mi") -> Json:
    """A PersistentVolume on a node's disk, meant for one claim of this namespace; the claim to apply."""
    storage_class = f"{CLASS}-{secrets.token_hex(3)}"
    project("cluster", "pv", f"{space.name}-{claim_name}", node, size, "--storage-class", storage_class)
    return persistent_claim(claim_name, size, storage_class)


@pytest.fixture(scope="module", autouse=True)
def volumes(space: Space) -> Iterator[None]:
    """Takes away the PersistentVolumes that belong to this module's namespace."""
    yield
    space.kubectl("delete", "vm,vmi,pvc", "--all", "--timeout=90s")
    for volume in space.kubectl.items("persistentvolumes"):
        if volume["metadata"]["name"].startswith(f"{space.name}-"):
            space.kubectl("delete", "pv", volume["metadata"]["name"], "--wait=false")


@pytest.fixture(scope="module")
def keeper(space: Space) -> Machine:
    """A machine with a disk that is to last and one that is not."""
    space.apply(volume_for(space, "data", node="node2"))
    scratch = drive("scratch", {"emptyDisk": {"capacity": "16Mi"}}, serial="scratch")
    return space.machine(booting("keeper", claim("data", "data"), scratch)).until_status("Running")


def test_the_guest_sees_its_disks_with_their_sizes(keeper: Machine) -> None:
    assert keeper.node() == "node2", "the volume is there"
    disks = {disk["serial"]: disk for disk in keeper.answer()["disks"] if disk["serial"]}
    assert disks["scratch"]["bytes"] == 16 << 20
    assert 32 << 20 <= disks["data"]["bytes"] <= 64 << 20


def test_a_claims_data_survives_stop_and_start_and_an_empty_disks_does_not(keeper: Machine) -> None:
    first = keeper.answer()
    text = f"written by boot {first['bootId']}"
    for disk in ("data", "scratch"):
        keeper.guest().write(disk, text)
        assert keeper.guest().read(disk) == text
    keeper.run("Halted")
    keeper.until_stopped()
    keeper.run("Always")
    keeper.answer(other_than=first["bootId"])
    assert keeper.guest().read("data") == text
    assert keeper.guest().read("scratch") is None


def test_a_claims_data_survives_a_guest_that_powers_itself_off(keeper: Machine) -> None:
    first = keeper.answer()
    keeper.guest().write("data", "last words")
    keeper.guest().power_off()
    keeper.answer(other_than=first["bootId"])
    assert keeper.guest().read("data") == "last words"


def test_the_status_knows_the_claim(keeper: Machine) -> None:
    volumes = {each["name"]: each for each in (keeper.vmi() or {})["status"]["volumeStatus"]}
    assert volumes["data"]["persistentVolumeClaimInfo"]["claimName"] == "data"
    assert volumes["data"]["target"].startswith("vd")
    keeper.discard()


# ---- container disks


def test_a_machine_may_have_several_container_disks(space: Space) -> None:
    spare = drive("spare", {"containerDisk": {"image": image("guest-halt")}}, serial="spare")
    double = space.machine(booting("double", spare)).until_status("Running")
    assert {"spare": 1 << 20}.items() <= {disk["serial"]: disk["bytes"] for disk in double.answer()["disks"]}.items()
    with pytest.raises(OSError, match="409"):
        double.guest().write("spare", "this guest never writes over content, and the image has content")
    double.discard()


@pytest.mark.parametrize("path", ["/disk/tiny.qcow2", "disk/tiny.qcow2"])
def test_a_container_disk_may_name_its_path(space: Space, path: str) -> None:
    if path.startswith("/"):
        named = space.machine(virtual_machine("named", tiny(path=path))).until_status("Running")
        assert named.answer()["bootId"]
        named.discard()
    else:
        with pytest.raises(KubectlError, match=r"containerDisk\.path: 'disk/tiny\.qcow2' must be an absolute path"):
            space.apply(virtual_machine("crooked", tiny(path=path)))


def test_an_image_may_hold_a_kernel(space: Space) -> None:
    boot = {
        "kernelArgs": "console=ttyS0 no_timer_check quiet by=kernelboot",
        "container": {"image": image("guest-tiny-kernel"), "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"},
    }
    direct = space.machine(virtual_machine("direct", domain={"firmware": {"kernelBoot": boot}}))
    told = direct.until_status("Running").answer()
    assert "by=kernelboot" in told["cmdline"]
    direct.discard()


# ---- cloud-init and friends out of other objects


def test_user_data_may_lie_in_a_secret(space: Space) -> None:
    space.apply(
        secret("seed", userdata="#cloud-config\nhostname: from-a-secret\n"),
        secret("seed-network", networkdata="version: 1\nconfig: []\n"),
    )
    seed = cloud_init(secretRef={"name": "seed"}, networkDataSecretRef={"name": "seed-network"})
    seeded = space.machine(booting("seeded", seed)).until_status("Running")
    told = seeded.answer()
    assert told["hostname"] == "from-a-secret"
    assert told["cloudInit"]["user-data"] == "#cloud-config\nhostname: from-a-secret\n"
    assert told["cloudInit"]["network-config"] == "version: 1\nconfig: []\n"
    assert "from-a-secret" not in space.kubectl("get", "vm,vmi,pods", "-o", "json"), (
        "a secret has leaked into an object"
    )
    seeded.discard()


def test_user_data_may_be_base64(space: Space) -> None:
    encoded = cloud_init(userDataBase64="I2Nsb3VkLWNvbmZpZwpob3N0bmFtZTogZW5jb2RlZAo=")
    machine = space.machine(booting("encoded", encoded)).until_status("Running")
    assert machine.answer()["hostname"] == "encoded"
    machine.discard()


# ---- what is not there yet


def test_a_machine_waits_for_its_claim(space: Space) -> None:
    patient = space.machine(idle("patient", claim("data", "late")))
    patient.until_told("ErrorPvcNotFound")
    patient.until_told("late", "PersistentVolumeClaim")
    space.apply(volume_for(space, "late"))
    patient.until_status("Running")
    patient.discard()


def test_a_claim_without_a_volume_is_waited_for_too(space: Space) -> None:
    space.apply(persistent_claim("unbound", "64Mi", "no-such-class"))
    stuck = space.machine(idle("stuck", claim("data", "unbound")))
    stuck.until_told("unbound")
    stuck.until_status("ErrorUnschedulable", "WaitingForVolumeBinding", "Provisioning")
    stuck.discard()
