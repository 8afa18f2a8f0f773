"""The driver's work on a node: loop devices, file systems, mounts, all with the node's own programs.

In a pod the node has another mount namespace than the driver: commands run there with nsenter(1), and its files are
below /proc/PID/root. Outside of a pod (csi-sanity) both are the same.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.csi.errors import StorageError

FILE_SYSTEM = "xfs"
"""ext4 would need CAP_SYS_RESOURCE to grow while it is mounted, which root does not have everywhere."""

SMALLEST = 300 << 20
"""The smallest file system that mkfs.xfs creates, in bytes."""


@dataclass(frozen=True)
class AttachedLoop:
    """A loop device and the file behind it."""

    device: str
    major_minor: tuple[int, int]
    inode: int


@dataclass(frozen=True)
class MountEntry:
    """One line of /proc/PID/mountinfo (proc_pid_mountinfo(5)): mount point and device."""

    path: str
    major_minor: tuple[int, int]


def parse_loops(text: str) -> list[AttachedLoop]:
    """The answer of `losetup --list --json --output NAME,BACK-INO,BACK-MAJ:MIN`; empty text where there are none."""
    found = []
    for each in json.loads(text)["loopdevices"] if text.strip() else []:
        # A device whose file was deleted has no inode number.
        if each.get("back-ino") and each.get("back-maj:min"):
            major, minor = each["back-maj:min"].split(":")
            found.append(AttachedLoop(each["name"], (int(major), int(minor)), int(each["back-ino"])))
    return found


def parse_mounts(text: str) -> list[MountEntry]:
    """The mounts in a mountinfo file, in order. Spaces and similar characters are octal there."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        major, minor = fields[2].split(":")
        path = fields[4].encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")
        found.append(MountEntry(path, (int(major), int(minor))))
    return found


class CsiHost:
    """A node, entered by the pid of one of its processes; without one, the driver's own namespace."""

    def __init__(self, pid: int | None = None) -> None:
        self._prefix = ["nsenter", f"--target={pid}", "--mount", "--"] if pid else []
        self._proc = Path("/proc", str(pid) if pid else "self")
        self._root = self._proc / "root" if pid else Path("/")

    def path(self, path: str) -> Path:
        """The path by which the driver reaches a path of the node."""
        return self._root / path.lstrip("/")

    def run(self, *command: str, fine: tuple[int, ...] = (0,)) -> str:
        """Standard output of a program of the node. Raises StorageError with its error output if it fails."""
        done = subprocess.run([*self._prefix, *command], capture_output=True, text=True, check=False)
        if done.returncode not in fine:
            raise StorageError("INTERNAL", f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def boot(self) -> str:
        """Identifies the node's present boot."""
        return self.path("/proc/sys/kernel/random/boot_id").read_text().strip()

    # ---- loop devices

    def loop(self, image: Path) -> str | None:
        """The loop device on a file, identified by the file's inode: names differ between namespaces."""
        status = image.stat()
        wanted = (os.major(status.st_dev), os.minor(status.st_dev))
        listing = self.run("losetup", "--list", "--json", "--output", "NAME,BACK-INO,BACK-MAJ:MIN")
        for each in parse_loops(listing):
            if (each.major_minor, each.inode) == (wanted, status.st_ino):
                return each.device
        return None

    def attach(self, image: Path) -> str:
        """The loop device on a file, created if there is none: two on one file would have separate caches."""
        return self.loop(image) or self.run("losetup", "--find", "--show", str(image)).strip()

    def detach(self, image: Path) -> None:
        """Detach the loop device on a file, now or when it is closed and unmounted."""
        device = self.loop(image)
        if device:
            self.run("losetup", "--detach", device)

    def resize_loop(self, image: Path) -> None:
        """Update the loop device's size after its file has grown."""
        device = self.loop(image)
        if device:
            self.run("losetup", "--set-capacity", device)

    # ---- file systems

    def format(self, device: str) -> None:
        """Create a file system on a blank device."""
        if not self.run("blkid", "--probe", "--output", "value", "--match-tag", "TYPE", device, fine=(0, 2)).strip():
            self.run(f"mkfs.{FILE_SYSTEM}", "-q", device)

    def mount_image(self, image: Path, target: str, flags: Sequence[str] = (), *, format_blank: bool) -> None:
        """Mount the file system on a file, in its full size. The loop device is detached with the last mount."""
        device = self.attach(image)
        try:
            if format_blank:
                self.format(device)
            # A clone has the identifier of its source, and both may be mounted on one node.
            self.run("mount", "-t", FILE_SYSTEM, "-o", ",".join(["nouuid", *flags]), device, target)
        finally:
            self.run("losetup", "--detach", device)
        self.grow_file_system(target)

    def grow_file_system(self, path: str) -> None:
        """Extend a mounted file system to the end of its device."""
        self.run("xfs_growfs", "-d", path)

    @contextmanager
    def frozen(self, image: Path) -> Iterator[None]:
        """Freezes the file system on a file, if it is mounted on this machine, so that a copy is consistent."""
        if self.loop(image) is None:
            yield
            return
        # One kernel: this is the same file system that the other node has mounted.
        point = self.run("mktemp", "--directory", "--tmpdir=/run", "csi-freeze-XXXXXX").strip()
        self.mount_image(image, point, format_blank=False)
        try:
            self.run("fsfreeze", "--freeze", point)
            try:
                yield
            finally:
                self.run("fsfreeze", "--unfreeze", point)
        finally:
            self.run("umount", point)
            self.run("rmdir", point)

    # ---- mounts

    def mounts(self) -> list[MountEntry]:
        """All mounts of the node."""
        return parse_mounts((self._proc / "mountinfo").read_text())

    def is_mounted(self, path: str) -> bool:
        """Whether that path is a mount point."""
        return any(mount.path == path.rstrip("/") for mount in self.mounts())

    def bind(self, source: str, target: str, *, read_only: bool = False) -> None:
        """Bind mount one path at another."""
        self.run("mount", "--bind", source, target)
        if read_only:
            self.run("mount", "-o", "remount,bind,ro", target)

    def unmount(self, path: str) -> None:
        """Unmount everything at a path."""
        while self.is_mounted(path):
            self.run("umount", path)
