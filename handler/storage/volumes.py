"""Gives the launcher's user access to device nodes, and to disks on volumes that belong to root.

The container's files are reached through /proc/<pid>/root. They are untrusted: each path is opened without following
links, then inspected and changed by its descriptor only.
"""

import contextlib
import errno
import os
import pathlib
import re
import stat
from collections.abc import Sequence
from typing import NamedTuple

from api import names
from api.errors import VolumeError
from api.kubevirt.vmi import VirtualMachineInstance
from handler.storage import mounts
from kit import proc

DISK = "disk.img"
DEVICES = ("dev/kvm", "dev/net/tun", "dev/vhost-net")
_SYS_FCHOWNAT = {"x86_64": 260, "aarch64": 54}
_SYS_SETFSUID = {"x86_64": (122, 123), "aarch64": (151, 152)}
_AT_EMPTY_PATH = 0x1000
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def written_by(vmi: VirtualMachineInstance) -> list[str]:
    """PVC volumes whose disk the guest may write. Raises VolumeError for an invalid volume name."""
    used = {disk.name: disk for disk in vmi.spec.domain.devices.disks or []}
    found = []
    for volume in vmi.spec.volumes or []:
        claim = volume.persistentVolumeClaim
        disk = used.get(volume.name)
        if not claim or claim.readOnly or disk is None or disk.cdrom or (disk.disk and disk.disk.readonly):
            continue
        if not _NAME.fullmatch(volume.name) or ".." in volume.name:
            raise VolumeError(f"{volume.name!r} is not a valid volume name")
        found.append(volume.name)
    return found


def devices_of(vmi: VirtualMachineInstance) -> list[str]:
    """PVC volumes that may be block devices, including those of read-only disks."""
    used = {disk.name for disk in vmi.spec.domain.devices.disks or []}
    claims = [each.name for each in vmi.spec.volumes or [] if each.persistentVolumeClaim and each.name in used]
    return [name for name in claims if _NAME.fullmatch(name) and ".." not in name]


class _LauncherUser(NamedTuple):
    """The launcher's user and group, and the container's root, as host IDs."""

    user: int
    group: int
    root: int


def prepare(
    process: proc.Process, volumes: Sequence[str], devices: Sequence[str] = (), uid: int = names.LAUNCHER_UID
) -> list[str]:
    """Give the launcher its device nodes, those of the volumes in `devices`, and the disks of `volumes`.

    Returns what was changed. Idempotent. In a pod with a user namespace, volumes are id-mapped mounts, where a file of
    the pod's user 107 has the host ID mapped to it. Changes the calling thread's file system IDs: call it through
    `kit.proc.isolated`. Raises VolumeError.
    """
    changed = []
    try:
        owner = _LauncherUser(process.host_user(uid), process.host_group(uid), process.host_user(0))
    except OSError as error:
        raise VolumeError(f"the launcher's user namespace cannot be used: {error.strerror or error}") from error
    with proc.closing(process.root()) as root:
        for path in DEVICES:
            try:
                if _claim_device(process, root, path, owner):
                    changed.append(path)
            except OSError as error:
                raise VolumeError(f"/{path} cannot be given to the launcher: {error.strerror or error}") from error
        changed += [name for name in devices if _claim_block_device(process, root, name, owner)]
        for volume in volumes:
            try:
                if _claim_disk(root, volume, owner):
                    changed.append(volume)
            except OSError as error:
                raise VolumeError(f"volume {volume}: {error.strerror or error}") from error
    return changed


def _claim_device(process: proc.Process, root: int, path: str, owner: _LauncherUser) -> bool:
    """Change the owner of a device node in the container's own /dev to the launcher's user.

    In a pod with a user namespace the node is the host's, bind-mounted; it must not be changed, so a node with the
    right owner is mounted over it.
    """
    try:
        fd = proc.open_beneath(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return False  # not requested by the pod
    with proc.closing(fd):
        node = os.fstat(fd)
        try:
            ours = pathlib.Path("/", path).stat()
        except OSError:
            return False
        if not stat.S_ISCHR(node.st_mode) or node.st_rdev != ours.st_rdev:
            return False
        if node.st_uid == owner.user or node.st_mode & 0o006 == 0o006:
            return False
        if process.shares_namespace("user"):
            if (node.st_dev, node.st_ino) == (ours.st_dev, ours.st_ino):
                return False
            proc.syscall(_SYS_FCHOWNAT[os.uname().machine], fd, b"", owner.user, owner.group, _AT_EMPTY_PATH)
            return True
    proc.isolated_now(lambda: mounts.cover_device(process, path, node.st_rdev, owner.user, owner.group))
    return True


def _claim_block_device(process: proc.Process, root: int, volume: str, owner: _LauncherUser) -> bool:
    """Change the owner of the device node of a Block mode claim to the launcher's user.

    In a pod with a user namespace it is the host's and is covered: see `_claim_device`. A read-only claim stays
    read-only by the container's device cgroup, regardless of the owner.
    """
    try:
        fd = proc.open_beneath(root, f"dev/volumes/{volume}", os.O_PATH | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False  # a claim in Filesystem mode
    except OSError as error:
        raise VolumeError(f"volume {volume}: /dev/volumes/{volume}: {error.strerror or error}") from error
    with proc.closing(fd), proc.closing(proc.open_beneath(root, "dev", os.O_PATH | os.O_DIRECTORY)) as directory:
        node = os.fstat(fd)
        if not stat.S_ISBLK(node.st_mode) or node.st_uid == owner.user:
            return False
        if process.shares_namespace("user"):
            # A node on another file system is the host's, bind-mounted.
            if node.st_dev != os.fstat(directory).st_dev:
                return False
            proc.syscall(_SYS_FCHOWNAT[os.uname().machine], fd, b"", owner.user, owner.group, _AT_EMPTY_PATH)
            return True
    path = f"dev/volumes/{volume}"
    try:
        proc.isolated_now(
            lambda: mounts.cover_device(process, path, node.st_rdev, owner.user, owner.group, stat.S_IFBLK)
        )
    except OSError as error:
        raise VolumeError(
            f"volume {volume}: /{path} cannot be given to the launcher: {error.strerror or error}"
        ) from error
    return True


def _claim_disk(root: int, volume: str, owner: _LauncherUser) -> bool:
    try:
        directory = proc.open_beneath(root, f"volumes/{volume}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False  # a claim in Block mode has no directory
    with proc.closing(directory):
        _become(owner.user, owner.group)
        try:
            usable = _usable(directory)
        finally:
            _become(0, 0)
        return False if usable else _hand_over(directory, volume, owner)


def _become(uid: int, gid: int) -> None:
    """Set this thread's file system IDs: file access is checked as this user, without root's capabilities."""
    group, user = _SYS_SETFSUID[os.uname().machine][::-1]
    proc.syscall(group, gid)
    proc.syscall(user, uid)


def _usable(directory: int) -> bool:
    """Whether the current file system user can write the disk, or create it if missing."""
    try:
        os.close(proc.open_regular(directory, DISK, os.O_RDWR))
    except FileNotFoundError:
        return _can_create(directory)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            return False
        raise
    return True


def _can_create(directory: int) -> bool:
    # access(2) ignores file system IDs, so this tries to create an unnamed file.
    try:
        os.close(proc.open_beneath(directory, ".", os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return False  # no O_TMPFILE on this file system: setting the group is harmless
        if error.errno in (errno.EACCES, errno.EPERM):
            return False
        raise
    return True


def _hand_over(directory: int, volume: str, owner: _LauncherUser) -> bool:
    try:
        fd = proc.open_regular(directory, DISK, os.O_RDWR)
    except FileNotFoundError:
        return _share(directory, volume, owner)
    with proc.closing(fd):
        status = os.fstat(fd)
        if status.st_nlink != 1:
            raise VolumeError(f"volume {volume}: {DISK} has {status.st_nlink} hard links; its owner is not changed")
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            raise VolumeError(f"volume {volume}: {DISK} is a set-user-ID file; its owner is not changed")
        os.fchown(fd, owner.user, owner.group)
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o660)
    return True


def _share(directory: int, volume: str, owner: _LauncherUser) -> bool:
    """Same as kubelet's fsGroup for volumes that it manages: the launcher may create its disk here."""
    status = os.fstat(directory)
    if status.st_uid != owner.root:
        raise VolumeError(
            f"volume {volume}: its directory is owned by user {status.st_uid} and not writable by the launcher"
        )
    os.fchown(directory, -1, owner.group)
    os.fchmod(directory, stat.S_IMODE(status.st_mode) | stat.S_IRWXG | stat.S_ISGID)
    return True
