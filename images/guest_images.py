"""Images with a guest: containerDisks (a disk below /disk) and one for kernelBoot (files below /boot)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guests import disk, packages, tiny
from images.archive import ArchiveEntry, write_archive
from images.keys import text_key
from images.paths import ARCHIVES
from images.plan import ImagePlan

PREFIX = "hyperlet.local/guests"
QEMU_ID = 107
"""User and group that QEMU runs as in the launcher; by convention they own the disks in a containerDisk."""


def _owned(path: str, source: Path | bytes) -> ArchiveEntry:
    return ArchiveEntry(path, source, mode=0o440, uid=QEMU_ID, gid=QEMU_ID)


@dataclass(frozen=True)
class GuestImage:
    """An image of a built guest's files. `role` is its name in `python -m images list`."""

    role: str
    reference: str
    entries: Callable[[tiny.Guest], list[ArchiveEntry]]
    kernel: str = packages.KERNEL_META
    """The metapackage of the guest's kernel."""

    def plan(self) -> ImagePlan:
        """The archive's name changes with the guest's sources and this recipe; manifests use the reference."""
        key = text_key(tiny.key(), Path(__file__).read_text(), self.reference)
        return ImagePlan(self.role, self.reference, ARCHIVES / f"{self.role}-{key}.tar")

    def make(self, plan: ImagePlan) -> None:
        """Build the guest if needed, and write the archive."""
        write_archive(plan.reference, self.entries(tiny.build(self.kernel)), plan.archive)


GUEST_IMAGES = (
    GuestImage("guest-tiny", f"{PREFIX}/tiny:1", lambda g: [_owned("disk/tiny.qcow2", g.qcow2)]),
    # For devices without a driver in a cloud kernel: SATA disks, USB, the watchdog.
    GuestImage(
        "guest-generic",
        f"{PREFIX}/generic:1",
        lambda g: [_owned("disk/generic.qcow2", g.qcow2)],
        packages.GENERIC_META,
    ),
    GuestImage(
        "guest-tiny-kernel",
        f"{PREFIX}/tiny-kernel:1",
        lambda g: [_owned("boot/vmlinuz", g.kernel), _owned("boot/initrd", g.initrd)],
    ),
    GuestImage("guest-halt", f"{PREFIX}/halt:1", lambda g: [_owned("disk/halt.img", g.halt)]),
    # For measurements: a large screen.
    GuestImage("guest-screen", f"{PREFIX}/screen:1", lambda _: [_owned("disk/screen.img", disk.screen_disk())]),
    # For tests of user errors: an image without a disk, and one with an invalid disk.
    GuestImage(
        "guest-no-disk", f"{PREFIX}/no-disk:1", lambda g: [_owned("readme.txt", b"There is no disk in here.\n")]
    ),
    GuestImage(
        "guest-not-a-disk", f"{PREFIX}/not-a-disk:1", lambda g: [_owned("disk/a.qcow2", b"QFI\xfb" + bytes(508))]
    ),
)
