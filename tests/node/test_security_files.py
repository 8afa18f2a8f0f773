"""Files that a container shows to the handler although they are something else: looked at, never opened."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from api.errors import VolumeError
from handler.pod_network import resolv_conf
from handler.storage import volumes
from kit import proc

pytestmark = pytest.mark.node

# Character device 240:0 is for local experiments: no driver uses it, so open() fails with ENXIO. A real one would
# do something: 10:130 is the watchdog, which, once opened and closed again, lets the node reboot.
DEAD = os.makedev(240, 0)


@pytest.fixture
def container(tmp_path):
    """A process whose root is a test directory: the path and the process."""
    for name in ("volumes/data", "etc"):
        (tmp_path / name).mkdir(parents=True)
    tmp_path.chmod(0o755)
    (tmp_path / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tmp_path / "busybox").chmod(0o755)
    process = subprocess.Popen(
        ["chroot", str(tmp_path), "/busybox", "sh", "-c", "echo up; /busybox sleep 600"], stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"up\n"
    with proc.Process(process.pid) as held:
        yield tmp_path, held
    process.kill()
    process.wait()


@pytest.mark.parametrize("mode", [0o666, 0o600])
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_disk_that_is_device_node_is_not_opened(container, kind, mode):
    root, process = container
    disk = root / "volumes/data/disk.img"
    os.mknod(disk, kind | mode, DEAD)
    disk.chmod(mode)
    with pytest.raises(VolumeError, match="is not a regular file"):
        proc.isolated_now(lambda: volumes.prepare(process, ["data"]))
    assert disk.stat().st_uid == 0


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: os.mknod(path, stat.S_IFCHR | 0o666, DEAD), lambda path: path.mkdir()]
)
def test_name_servers_are_read_from_regular_file_only(container, make):
    root, process = container
    make(root / "etc/resolv.conf")
    with pytest.raises(OSError, match="is not a regular file"):
        resolv_conf.read(process)


def test_name_servers_are_not_read_through_link(container, tmp_path_factory):
    root, process = container
    outside = tmp_path_factory.mktemp("host") / "resolv.conf"
    outside.write_text("nameserver 192.0.2.1\n")
    (root / "etc/resolv.conf").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        resolv_conf.read(process)


def test_name_servers_are_read_up_to_limit(container):
    root, process = container
    path = root / "etc/resolv.conf"
    path.write_text("nameserver 192.0.2.1\n" + "#" * (64 << 10) + "\nnameserver 192.0.2.2\n")
    assert [str(server) for server in resolv_conf.read(process).servers4] == ["192.0.2.1"]
