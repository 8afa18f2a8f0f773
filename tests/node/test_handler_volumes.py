"""Disks and devices handed to the launcher's user, on real directories, and attacks by a pod on them."""

import os
import pathlib
import stat
import subprocess

import msgspec
import pytest

from api.errors import VolumeError
from api.kubevirt.vmi import VirtualMachineInstance
from handler.storage import volumes
from kit import proc

pytestmark = pytest.mark.node


@pytest.fixture
def root(tmp_path):
    """A directory that is the root of a process."""
    for name in ("volumes/data", "dev/net", "bin"):
        (tmp_path / name).mkdir(parents=True)
    tmp_path.chmod(0o755)
    (tmp_path / "busybox").write_bytes(pathlib.Path("/bin/busybox").read_bytes())
    (tmp_path / "busybox").chmod(0o755)
    process = subprocess.Popen(
        ["chroot", str(tmp_path), "/busybox", "sh", "-c", "echo up; /busybox sleep 600"], stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"up\n"
    with proc.Process(process.pid) as held:
        yield tmp_path, held
    process.kill()
    process.wait()


def prepare(process, *names):
    return proc.isolated_now(lambda: volumes.prepare(process, names))


def test_disk_of_root_is_chowned_once(root):
    path, process = root
    disk = path / "volumes/data/disk.img"
    disk.write_bytes(b"content")
    disk.chmod(0o600)
    assert prepare(process, "data") == ["data"]
    assert (disk.stat().st_uid, disk.stat().st_gid, disk.read_bytes()) == (107, 107, b"content")
    assert prepare(process, "data") == []


def test_directory_of_root_without_disk_is_shared(root):
    path, process = root
    assert prepare(process, "data") == ["data"]
    directory = (path / "volumes/data").stat()
    assert (directory.st_uid, directory.st_gid, directory.st_mode & 0o7777) == (0, 107, 0o2775)
    assert list((path / "volumes/data").iterdir()) == []
    assert prepare(process, "data") == []


def test_directory_of_other_user_is_refused(root):
    path, process = root
    os.chown(path / "volumes/data", 1000, 1000)
    with pytest.raises(VolumeError, match="is owned by user 1000"):
        prepare(process, "data")


def test_directory_writable_by_launcher_is_unchanged(root):
    path, process = root
    (path / "volumes/data").chmod(0o777)
    assert prepare(process, "data") == []
    assert list((path / "volumes/data").iterdir()) == []


def test_disk_writable_by_group_107_is_unchanged(root):
    path, process = root
    disk = path / "volumes/data/disk.img"
    disk.write_bytes(b"")
    os.chown(disk, 0, 107)
    disk.chmod(0o660)
    assert prepare(process, "data") == []
    assert disk.stat().st_uid == 0


def test_link_to_a_host_file_is_refused(root, tmp_path_factory):
    path, process = root
    secret = tmp_path_factory.mktemp("host") / "shadow"
    secret.write_text("root's")
    (path / "volumes/data/disk.img").symlink_to(secret)
    with pytest.raises(VolumeError):
        prepare(process, "data")
    assert secret.stat().st_uid == 0


def test_volume_directory_replaced_by_link_is_refused(root):
    path, process = root
    (path / "etc").mkdir()
    (path / "etc/disk.img").write_text("root's")
    (path / "volumes/other").symlink_to("../etc")
    with pytest.raises(VolumeError):
        prepare(process, "other")
    assert (path / "etc/disk.img").stat().st_uid == 0


def test_hard_link_is_refused(root):
    path, process = root
    victim = path / "passwd"
    victim.write_text("root's")
    victim.chmod(0o600)
    os.link(victim, path / "volumes/data/disk.img")
    with pytest.raises(VolumeError, match="2 hard links"):
        prepare(process, "data")
    assert victim.stat().st_uid == 0


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))]
)
def test_disk_that_is_not_file_is_refused(root, make):
    path, process = root
    make(path / "volumes/data/disk.img")
    (path / "volumes/data/disk.img").chmod(0o600)
    with pytest.raises(VolumeError):
        prepare(process, "data")
    assert (path / "volumes/data/disk.img").stat().st_uid == 0


def test_set_user_id_file_is_refused(root):
    path, process = root
    disk = path / "volumes/data/disk.img"
    disk.write_bytes(b"")
    disk.chmod(0o4700)
    with pytest.raises(VolumeError, match="set-user-ID"):
        prepare(process, "data")


def test_block_volume_without_directory_is_accepted(root):
    _, process = root
    assert prepare(process, "raw") == []


@pytest.fixture
def disk(root):
    """The node of a block device where kubelet has the runtime make it: only root may access it."""
    path, _ = root
    (path / "dev/volumes").mkdir()
    os.mknod(path / "dev/volumes/raw", stat.S_IFBLK | 0o660, os.makedev(7, 0))
    (path / "dev/volumes/raw").chmod(0o660)
    return path / "dev/volumes/raw"


def prepare_devices(process, *names):
    return proc.isolated_now(lambda: volumes.prepare(process, [], names))


def test_block_device_of_claim_is_chowned_once(root, disk):
    _, process = root
    assert prepare_devices(process, "raw", "on-a-file-system") == ["raw"]
    assert (disk.stat().st_uid, disk.stat().st_gid, stat.S_IMODE(disk.stat().st_mode)) == (107, 107, 0o660)
    assert prepare_devices(process, "raw") == []


@pytest.mark.parametrize("mode", [stat.S_IFCHR, stat.S_IFREG, stat.S_IFIFO])
def test_file_that_is_not_block_device_is_unchanged(root, disk, mode):
    _, process = root
    disk.unlink()
    os.mknod(disk, mode | 0o600, os.makedev(1, 1))
    assert prepare_devices(process, "raw") == []
    assert disk.stat().st_uid == 0


def test_link_to_block_device_is_unchanged(root, disk):
    path, process = root
    disk.rename(path / "target")
    disk.symlink_to(path / "target")
    assert prepare_devices(process, "raw") == []
    assert (path / "target").stat().st_uid == 0


def test_block_device_path_with_link_is_refused(root, disk):
    path, process = root
    (path / "dev/volumes").rename(path / "elsewhere")
    (path / "dev/volumes").symlink_to(path / "elsewhere")
    with pytest.raises(VolumeError, match="/dev/volumes/raw"):
        prepare_devices(process, "raw")
    assert (path / "elsewhere/raw").stat().st_uid == 0


def test_host_device_node_is_unchanged(root, disk):
    path, process = root
    disk.unlink()
    disk.touch()
    # As a container would have it that mounts a node of the host's /dev.
    own = path / "own"
    own.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "own", own], check=True)
    try:
        os.mknod(own / "node", stat.S_IFBLK | 0o660, os.makedev(7, 0))
        subprocess.run(["mount", "--bind", own / "node", disk], check=True)
        assert prepare_devices(process, "raw") == []
        assert (own / "node").stat().st_uid == 0
        subprocess.run(["umount", disk], check=True)
    finally:
        subprocess.run(["umount", "--lazy", own], check=True)


def test_block_volume_with_path_in_name_is_skipped():
    vmi = msgspec.convert(
        {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm"},
            "spec": {
                "domain": {"devices": {"disks": [{"name": name} for name in ("raw", "../../sda", "a..b", "iso")]}},
                "volumes": [
                    {"name": "raw", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}},
                    {"name": "../../sda", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "a..b", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "unused", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "iso", "emptyDisk": {"capacity": "1Mi"}},
                ],
            },
        },
        VirtualMachineInstance,
    )
    assert volumes.devices_of(vmi) == ["raw"]


def test_device_node_of_container_is_chowned(root):
    path, process = root
    real = pathlib.Path("/dev/net/tun").stat().st_rdev
    os.mknod(path / "dev/net/tun", stat.S_IFCHR | 0o600, real)
    assert prepare(process) == ["dev/net/tun"]
    assert (path / "dev/net/tun").stat().st_uid == 107
    assert prepare(process) == []


def test_other_device_with_same_name_is_unchanged(root):
    path, process = root
    os.mknod(path / "dev/net/tun", stat.S_IFCHR | 0o600, os.makedev(1, 1))  # the node's memory
    assert prepare(process) == []
    assert (path / "dev/net/tun").stat().st_uid == 0


def test_link_to_device_is_unchanged(root):
    path, process = root
    (path / "dev/net/tun").symlink_to("/dev/net/tun")
    assert prepare(process) == []
    assert pathlib.Path("/dev/net/tun").stat().st_uid == 0
