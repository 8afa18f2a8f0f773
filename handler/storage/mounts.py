"""Detached mounts, moved into a launcher's mount namespace.

A detached mount is created in the node's mount namespace, where containerd's snapshots are. It never appears in the
node's mount table, and disappears with the container.
Sources: open_tree(2), move_mount(2), mount_setattr(2), fsopen(2), Documentation/filesystems/overlayfs.rst.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from api.errors import ImagePullFailed
from kit import proc

_SYS_MOUNT = {"x86_64": 165, "aarch64": 40}
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_MOUNT_SETATTR = (
    428,
    429,
    430,
    431,
    432,
    442,
)

_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_FSMOUNT_CLOEXEC = 1
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 0x01, 0x02, 0x04, 0x08
_LOCKED_DOWN = _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV | _ATTR_NOEXEC
_MS_RDONLY, _MS_NOSUID, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 1, 2, 8, 0x4000, 0x80000
_AT_EMPTY_PATH = 0x1000


class DetachedMount(NamedTuple):
    """A mount as described by containerd's snapshotter."""

    type: str
    source: str
    options: tuple[str, ...]


class _MountAttributes(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def detached(mounts: Sequence[DetachedMount]) -> int:
    """A descriptor of a detached, read-only, nosuid, nodev, noexec mount of a snapshot.

    Runs in the mount namespace of the sources. Raises ImagePullFailed for mounts that are not a view, OSError.
    """
    if len(mounts) != 1:
        raise ImagePullFailed(f"the snapshot needs {len(mounts)} mounts; only one is supported")
    mount = mounts[0]
    if mount.type in ("bind", "rbind"):
        return _bound(mount.source)
    if mount.type == "overlay":
        lower = [option.removeprefix("lowerdir=") for option in mount.options if option.startswith("lowerdir=")]
        if len(lower) == 1 and not any(option.startswith("upperdir=") for option in mount.options):
            return _overlaid(lower[0].split(":"))
    raise ImagePullFailed(f"mount type {mount.type} of the node's snapshotter is not supported")


def _bound(source: str) -> int:
    tree = proc.syscall(_SYS_OPEN_TREE, -100, os.fsencode(source), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
    return _locked_down(tree)


def _overlaid(layers: Sequence[str]) -> int:
    """A read-only overlay of directories, topmost first."""
    try:
        return _overlaid_by_steps(layers)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return _overlaid_at_once(layers)  # Linux before 6.8 has no lowerdir+


def _overlaid_by_steps(layers: Sequence[str]) -> int:
    context = proc.syscall(_SYS_FSOPEN, b"overlay", _FSOPEN_CLOEXEC)
    with proc.closing(context):
        for layer in layers:
            proc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, b"lowerdir+", os.fsencode(layer), 0)
        proc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, b"ro", None, 0)
        proc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return proc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, _LOCKED_DOWN)


def _overlaid_at_once(layers: Sequence[str]) -> int:
    """By mount(2), which needs a mount point: in a private copy of the mount namespace."""
    proc.unshare(proc.CLONE_NEWNS)
    _mount(None, b"/", None, _MS_REC | _MS_SLAVE, None)
    place = os.fsencode(layers[0])
    base = os.path.commonpath(layers)
    os.chdir(base)  # of this thread only; relative names fit many layers into one page
    lower = ":".join(os.path.relpath(layer, base) for layer in layers)
    _mount(b"overlay", place, b"overlay", _MS_RDONLY, os.fsencode(f"lowerdir={lower}"))
    return _bound(layers[0])


def _mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None) -> None:
    proc.syscall(_SYS_MOUNT[os.uname().machine], source, target, kind, flags, data)


def _locked_down(tree: int) -> int:
    attributes = _MountAttributes(attr_set=_LOCKED_DOWN)
    try:
        proc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes))
    except BaseException:
        os.close(tree)
        raise
    return tree


def place(tree: int | None, parent: str, name: str, owner: int = 0) -> bool:
    """Move a detached mount to `parent`/`name` below the root of the calling thread's mount namespace.

    `parent` must be a directory owned by root: the node's, or the container's (`owner`, as host UID in a pod with a
    user namespace); `name` is created if missing. Symbolic links are not followed. Without a tree, only checks. Returns
    whether something was already mounted there. Raises OSError.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with proc.closing(root), proc.closing(_directory(root, parent, tree is not None)) as above:
        if os.fstat(above).st_uid not in (0, owner):
            raise OSError(errno.EPERM, f"/{parent} is not owned by root")
        with proc.closing(_directory(above, name, tree is not None)) as target:
            if _is_mount(above, target):
                return True
            if tree is not None:
                proc.syscall(
                    _SYS_MOVE_MOUNT, tree, b"", target, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
                )
            return False


def mounted(parent: str, name: str, owner: int = 0) -> bool:
    """Whether something is mounted at `parent`/`name` in the thread's mount namespace; `owner` as in `place`."""
    try:
        return place(None, parent, name, owner)
    except FileNotFoundError:
        return False


def cover_device(
    process: proc.Process, path: str, device: int, user: int, group: int, kind: int = stat.S_IFCHR
) -> None:
    """Mount a device node owned by this user over the one at `path` (of /dev) in the process's mount namespace.

    The node is on a private tmpfs that disappears with it; the pod's device cgroup still applies.
    Changes the calling thread's mount namespace: call it through `kit.proc.isolated`. Raises OSError.
    """
    with proc.closing(process.namespace("mnt")) as theirs:
        if process.shares_namespace("user") or not proc.belongs_to_users_of(theirs, process):
            raise OSError(errno.EPERM, "the launcher shares its mount namespace")
        proc.unshare(proc.CLONE_NEWNS)
        _mount(None, b"/", None, _MS_REC | _MS_SLAVE, None)
        _mount(b"hyperlet", b"/tmp", b"tmpfs", _MS_NOSUID | _MS_NOEXEC, b"mode=0700,size=4k")
        os.mknod("/tmp/device", kind | 0o600, device)
        os.chown("/tmp/device", user, group)
        tree = proc.syscall(_SYS_OPEN_TREE, -100, b"/tmp/device", _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
        with proc.closing(tree):
            proc.setns(theirs, proc.CLONE_NEWNS)
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            with proc.closing(root), proc.closing(proc.open_beneath(root, path, os.O_PATH | os.O_NOFOLLOW)) as target:
                node = os.fstat(target)
                if stat.S_IFMT(node.st_mode) != kind or node.st_rdev != device:
                    raise OSError(errno.EINVAL, "the device node was replaced")
                proc.syscall(
                    _SYS_MOVE_MOUNT, tree, b"", target, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
                )


def _directory(above: int, name: str, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=above)
    fd = proc.open_beneath(above, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOTDIR, f"{name} is not a directory")
    return fd


def _is_mount(above: int, below: int) -> bool:
    return os.fstat(above).st_dev != os.fstat(below).st_dev
