"""Disks of a running domain that grow with their claims, on real libvirt, QEMU and a real block device."""

import os
import pathlib
import stat
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from protos import launcher_pb2 as pb
from tests.node import bootsector
from tests.node.launcherlab import Pod, vmi

pytestmark = pytest.mark.node
MIB = 1 << 20


@pytest.fixture
def pod() -> Iterator[Pod]:
    with Pod() as made:
        made.image("root", bootsector.ignoring_power_button())
        (made.root / "volumes/file").mkdir()
        os.chown(made.root / "volumes/file", 107, 107)
        yield made


@pytest.fixture
def device(pod: Pod) -> Iterator[str]:
    """The loop device behind the claim in Block mode, 32 MiB."""
    image = pod.root / "image"
    image.touch()
    os.truncate(image, 32 * MIB)
    command = ["losetup", "--find", "--show", str(image)]
    loop = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    node = pod.root / "dev/volumes/raw"
    os.mknod(node, stat.S_IFBLK | 0o660, pathlib.Path(loop).stat().st_rdev)
    os.chown(node, 107, 107)
    yield loop
    subprocess.run(["losetup", "--detach", loop], check=True)


def document(capacity: str) -> dict[str, Any]:
    """A VMI whose claims have that capacity."""
    claims = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("file", "raw")]
    made = vmi(volumes=[{"name": "root", "containerDisk": {"image": "guest"}}, *claims])
    info = {"capacity": {"storage": capacity}}
    made["status"] = {
        "volumeStatus": [{"name": name, "target": "", "persistentVolumeClaimInfo": info} for name in ("file", "raw")]
    }
    return made


def sizes(report: pb.Report) -> dict[str, int]:
    return {disk.volume: disk.size // MIB for disk in report.disks if disk.capacity}


def test_disks_of_running_guest_are_enlarged(pod: Pod, device: str) -> None:
    pod.start()
    first = pod.sync(document("32Mi"))
    assert sizes(first) == {"file": 32, "raw": 32}
    os.truncate(pod.root / "image", 64 * MIB)
    subprocess.run(["losetup", "--set-capacity", device], check=True)
    grown = pod.sync(document("64Mi"))
    assert sizes(grown) == {"file": 64, "raw": 64}
    assert (pod.root / "volumes/file/disk.img").stat().st_size == 64 * MIB, "QEMU has made the file larger"
    assert grown.qemu_pid == first.qemu_pid and grown.state == pb.DOMAIN_STATE_RUNNING
    assert "error" not in pod.errors.read_text(), pod.errors.read_text()
    again = pod.sync(document("64Mi"))
    assert sizes(again) == {"file": 64, "raw": 64}


def test_claim_capacity_beyond_device_size_changes_nothing(pod: Pod, device: str) -> None:
    pod.start()
    pod.sync(document("32Mi"))
    report = pod.sync(document("64Mi"))
    assert sizes(report) == {"file": 64, "raw": 32}, "a device is as large as it is"
    assert {disk.capacity for disk in report.disks if disk.capacity} == {"64Mi"}
