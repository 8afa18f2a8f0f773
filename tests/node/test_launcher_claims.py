"""Disks by the real libvirt and QEMU: errors name volume and claim, seeds are on any bus."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

import grpc
import pytest

from protos import launcher_pb2 as pb
from tests.node.launcherlab import Pod, vmi

pytestmark = pytest.mark.node
DATA = [{"name": "data", "persistentVolumeClaim": {"claimName": "shared"}}]


@pytest.fixture
def pods() -> Iterator[tuple[Pod, Pod]]:
    with contextlib.ExitStack() as stack:
        made = Pod(), Pod()
        for pod in made:
            stack.callback(pod.close)
        yield made


def disk_of(pod: Pod) -> pathlib.Path:
    folder = pod.root / "volumes/data"
    folder.mkdir()
    os.chown(folder, 107, 107)
    return folder / "disk.img"


def refusal(pod: Pod, name: str, uid: str) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        pod.sync(vmi(name, uid, volumes=DATA))
    return str(refused.value.details())


def test_second_vm_on_claim_is_refused_and_claim_named(pods: tuple[Pod, Pod]) -> None:
    first, second = pods
    disk = disk_of(first)
    disk.write_bytes(bytes(1 << 20))
    os.chown(disk, 107, 107)
    os.link(disk, disk_of(second))
    first.start()
    second.start()
    assert first.sync(vmi("one", "uid-1", volumes=DATA)).state == pb.DOMAIN_STATE_RUNNING
    words = refusal(second, "two", "uid-2")
    assert words.startswith("volume data: claim shared is in use by another virtual machine or pod"), words


def test_qcow2_image_on_claim_is_refused_and_not_opened(pods: tuple[Pod, Pod]) -> None:
    pod, _ = pods
    disk = disk_of(pod)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "8M"], check=True)
    os.chown(disk, 107, 107)
    size = disk.stat().st_size
    words = refusal(pod.start(), "one", "uid-1")
    assert "volume data: disk.img of claim shared is a qcow2 image, but a claim must hold a raw disk" in words
    assert disk.stat().st_size == size


@pytest.mark.parametrize("bus", ["sata", "virtio", "scsi", "usb"])
def test_seed_is_disk_on_any_bus(pods: tuple[Pod, Pod], bus: str) -> None:
    """libvirt has no read-only disks on SATA, which is where a disk is that names no bus."""
    devices = {"autoattachPodInterface": False, "disks": [{"name": "seed", "disk": {"bus": bus}}]}
    document = vmi(
        domain={"devices": devices, "memory": {"guest": "64Mi"}},
        volumes=[{"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config"}}],
    )
    assert pods[0].start().sync(document).state == pb.DOMAIN_STATE_RUNNING
