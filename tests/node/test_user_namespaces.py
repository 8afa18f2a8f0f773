"""What the handler makes for a pod with a user namespace: taps, device nodes, disks on id-mapped mounts.

The sandbox is a real one as far as the kernel is concerned: namespaces of user, network and mounts, owned by the first.
"""

import contextlib
import ctypes
import errno
import ipaddress
import os
import pathlib
import stat
import subprocess
import sys
import tempfile

import pytest

from api.errors import VolumeError
from handler.pod_network import setup as network_setup
from handler.pod_network.interface_record import InterfaceRecord
from handler.pod_network.interface_request import InterfaceRequest, MasqueradeNetwork
from handler.storage import mounts, volumes
from kit import proc
from tests.node import podlab
from tests.node.netlab import MAC
from tests.node.podlab import BASE, Sandbox

pytestmark = pytest.mark.node
_IDMAP = 0x00100000  # MOUNT_ATTR_IDMAP
OPEN = "import os, sys; [os.close(os.open(path, os.O_RDWR)) for path in sys.argv[1:]]"


@pytest.fixture
def sandbox():
    made = Sandbox(users=True)
    yield made
    made.close()


def within(sandbox: Sandbox, user: int, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in the sandbox's namespaces, as a user of its own."""
    enter = ["nsenter", f"--target={sandbox.pid}", "--user", "--mount", "--net", "-S", str(user), "-G", str(user)]
    return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=60, check=False)


# ---- identity


def test_users_are_mapped_as_by_kernel(sandbox):
    with proc.Process(sandbox.pid) as process:
        assert (process.host_user(0), process.host_user(107), process.host_group(65535)) == (
            BASE,
            BASE + 107,
            BASE + 65535,
        )
        with pytest.raises(OSError, match="not in the uid_map"):
            process.host_user(65536)
    with proc.Process(os.getpid()) as process:
        assert process.host_user(107) == 107


def test_user_namespace_created_by_host_root_is_recognized(sandbox):
    with proc.Process(sandbox.pid) as process:
        assert proc.owned_by_host_root(process)
    with proc.Process(os.getpid()) as process:
        assert not proc.owned_by_host_root(process)


# ---- devices


@pytest.fixture
def devices():
    found = [f"/{path}" for path in volumes.DEVICES if pathlib.Path("/", path).exists()]
    closed = [path for path in found if pathlib.Path(path).stat().st_mode & 0o006 != 0o006]
    if not closed:
        pytest.skip("every device of this machine opens for everybody")
    return closed


def test_devices_belong_to_launcher_and_host_nodes_are_unchanged(sandbox, devices):
    before = [pathlib.Path(path).stat() for path in devices]
    python = "/usr/bin/python3"
    assert within(sandbox, 107, python, "-c", OPEN, *devices).returncode != 0
    with proc.Process(sandbox.pid) as process:
        assert proc.isolated_now(lambda: volumes.prepare(process, [])) == [path[1:] for path in devices]
        assert proc.isolated_now(lambda: volumes.prepare(process, [])) == []
        with proc.closing(process.root()) as root:
            for path, ours in zip(devices, before, strict=True):
                with proc.closing(proc.open_beneath(root, path[1:], os.O_PATH)) as fd:
                    node = os.fstat(fd)
                assert (node.st_uid, node.st_gid, stat.S_IMODE(node.st_mode)) == (BASE + 107, BASE + 107, 0o600)
                assert node.st_rdev == ours.st_rdev
    opened = within(sandbox, 107, python, "-c", OPEN, *devices)
    assert opened.returncode == 0, opened.stderr
    assert within(sandbox, 108, python, "-c", OPEN, *devices).returncode != 0
    after = [pathlib.Path(path).stat() for path in devices]
    assert [(each.st_uid, each.st_mode, each.st_ino) for each in after] == [
        (each.st_uid, each.st_mode, each.st_ino) for each in before
    ]
    assert "hyperlet /tmp tmpfs" not in pathlib.Path("/proc/self/mounts").read_text()


@pytest.fixture
def disk(tmp_path):
    """A claim's block device, as the runtime shows it to a pod with a user namespace: the node's own node of it."""
    image, node = tmp_path / "image", pathlib.Path("/dev/volumes/tried")
    image.write_bytes(bytes(1 << 20))
    loop = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True).stdout
    node.parent.mkdir(exist_ok=True)
    try:
        os.mknod(node, stat.S_IFBLK | 0o600, pathlib.Path(loop.strip()).stat().st_rdev)
        yield node
    finally:
        subprocess.run(["losetup", "--detach", loop.strip()], check=True)
        node.unlink(missing_ok=True)
        node.parent.rmdir()


def test_block_device_of_claim_belongs_to_launcher_and_host_node_is_unchanged(disk, sandbox):
    python, before = "/usr/bin/python3", disk.stat()
    assert within(sandbox, 107, python, "-c", OPEN, str(disk)).returncode != 0
    with proc.Process(sandbox.pid) as process:
        # What a machine's own devices are is another test's.
        prepared = [proc.isolated_now(lambda: volumes.prepare(process, [], ["tried"])) for _ in range(2)]
    assert ["tried" in each for each in prepared] == [True, False]
    opened = within(sandbox, 107, python, "-c", OPEN, str(disk))
    assert opened.returncode == 0, opened.stderr
    assert within(sandbox, 108, python, "-c", OPEN, str(disk)).returncode != 0
    assert (disk.stat().st_uid, disk.stat().st_ino, disk.stat().st_mode) == (0, before.st_ino, before.st_mode)


def test_other_device_with_same_name_is_not_covered(sandbox, devices):
    """The container may have replaced the file since the handler checked it."""
    with proc.Process(sandbox.pid) as process, pytest.raises(OSError, match="was replaced"):
        proc.isolated_now(lambda: mounts.cover_device(process, "dev/null", os.makedev(10, 232), BASE, BASE))


def test_host_mount_namespace_is_refused(devices):
    process = subprocess.Popen(
        [sys.executable, "-c", podlab.Sandbox.SCRIPT, str(0x10000000), ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # CLONE_NEWUSER alone: the mounts are this machine's
    try:
        assert process.stdout and process.stdout.readline() == b"up\n"
        with proc.Process(process.pid) as held, pytest.raises(OSError, match="shares its mount namespace"):
            proc.isolated_now(
                lambda: mounts.cover_device(held, devices[0][1:], pathlib.Path(devices[0]).stat().st_rdev, BASE, BASE)
            )
    finally:
        process.kill()
        process.wait()


# ---- taps


def test_tap_belongs_to_launcher_in_user_namespace(sandbox):
    def inside(command: str) -> str:
        words = ["nsenter", f"--net=/proc/{sandbox.pid}/ns/net", "sh", "-ec", command]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout

    inside("ip link set lo up; ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up")
    inside("ip addr add 192.168.78.5/24 dev eth0")
    subnets = ipaddress.IPv4Network("10.0.2.0/24"), ipaddress.IPv6Network("fd10:0:2::/120")
    request = InterfaceRequest("default", "", MAC, True, 1, MasqueradeNetwork(*subnets, ()))
    record = InterfaceRecord("none", pathlib.Path("/nonexistent"))
    with proc.Process(sandbox.pid) as process:
        made = proc.isolated_now(
            lambda: network_setup.attach(process, [request], record, "uid", host="/proc/self/ns/net")
        )
    assert made.attachments[0].tap == "tap0"
    assert f"user {BASE + 107} group {BASE + 107}" in inside("ip -d link show tap0")


# ---- images


def test_image_mounted_by_kubelet_is_found():
    """In a directory owned by the container's root, which is not the node's root."""
    with tempfile.TemporaryDirectory(prefix="hl-") as path:
        folder = pathlib.Path(path)
        folder.chmod(0o755)
        (folder / "images/there").mkdir(parents=True)
        (folder / "images/missing").mkdir()
        for each in (folder / "images", folder / "images/there", folder / "images/missing"):
            os.chown(each, BASE, BASE)

        def look(owner: int) -> tuple[bool, bool]:
            proc.unshare(proc.CLONE_NEWNS)
            mounts._mount(None, b"/", None, mounts._MS_REC | mounts._MS_SLAVE, None)
            mounts._mount(b"test", os.fsencode(folder / "images/there"), b"tmpfs", 0, None)
            os.chroot(folder)
            return mounts.mounted("images", "there", owner), mounts.mounted("images", "missing", owner)

        # The thread's root is its own only in a process of its own: chroot would affect all threads.
        pid = os.fork()
        if pid == 0:
            try:
                found = look(BASE)
                with contextlib.suppress(PermissionError):
                    mounts.mounted("images", "there")
                    found = (False, False)
                os._exit(0 if found == (True, False) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- disks


@contextlib.contextmanager
def volume(owner: int, mode: int):
    """A container's root with an id-mapped mount of a folder at volumes/data; that folder and a process."""
    with tempfile.TemporaryDirectory(prefix="hl-") as path:
        root, folder = pathlib.Path(path, "root"), pathlib.Path(path, "volume")
        (root / "volumes/data").mkdir(parents=True)
        folder.mkdir()
        pathlib.Path(path).chmod(0o755)
        os.chown(folder, owner, owner)
        folder.chmod(mode)
        made = Sandbox(users=True, root=str(root))
        try:
            with proc.Process(made.pid) as process:
                proc.isolated_now(lambda: _mount_mapped(process, folder, root / "volumes/data"))
                yield folder, process
        finally:
            made.close()


def _mount_mapped(process: proc.Process, folder: pathlib.Path, target: pathlib.Path) -> None:
    tree = proc.syscall(mounts._SYS_OPEN_TREE, -100, os.fsencode(folder), 1 | os.O_CLOEXEC)
    with (
        proc.closing(tree),
        proc.closing(process.namespace("user")) as users,
        proc.closing(process.namespace("mnt")) as theirs,
    ):
        wanted = mounts._MountAttributes(attr_set=_IDMAP, userns_fd=users)
        try:
            proc.syscall(mounts._SYS_MOUNT_SETATTR, tree, b"", 0x1000, ctypes.byref(wanted), ctypes.sizeof(wanted))
        except OSError as error:
            if error.errno == errno.EINVAL:
                pytest.skip("this machine's /tmp has no id-mapped mounts")
            raise
        proc.enter_mounts(theirs)
        proc.syscall(mounts._SYS_MOVE_MOUNT, tree, b"", -100, os.fsencode(target), 0x04)


def prepare(process: proc.Process) -> list[str]:
    return [each for each in proc.isolated_now(lambda: volumes.prepare(process, ["data"])) if each == "data"]


def test_disk_of_root_is_chowned_to_launcher(sandbox):
    with volume(0, 0o755) as (folder, process):
        disk = folder / "disk.img"
        disk.write_bytes(b"content")
        disk.chmod(0o600)
        assert prepare(process) == ["data"]
        assert (disk.stat().st_uid, disk.stat().st_gid) == (107, 107), "on the disk it is the same user as ever"
        assert prepare(process) == []


def test_folder_of_root_is_shared_with_launcher():
    with volume(0, 0o755) as (folder, process):
        assert prepare(process) == ["data"]
        assert (folder.stat().st_uid, folder.stat().st_gid, stat.S_IMODE(folder.stat().st_mode)) == (0, 107, 0o2775)
        assert prepare(process) == []


def test_disk_writable_by_launcher_is_unchanged():
    with volume(107, 0o755) as (folder, process):
        (folder / "disk.img").write_bytes(b"")
        os.chown(folder / "disk.img", 107, 107)
        (folder / "disk.img").chmod(0o600)
        assert prepare(process) == []


def test_folder_of_other_user_is_refused():
    with volume(1000, 0o755) as (_, process), pytest.raises(VolumeError, match="is owned by user"):
        prepare(process)
