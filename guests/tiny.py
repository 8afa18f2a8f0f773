"""The tiny guest's files, built into one folder: kernel, initrd, tiny.img, tiny.qcow2, halt.img."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from guests import disk, initramfs, modules, packages
from images.keys import text_key, tree_key
from images.paths import GUESTS, ROOT

SOURCES = ("guests",)
KEPT = 4
"""How many guests of earlier sources stay in the cache; another checkout may be using them."""


@dataclass(frozen=True)
class Guest:
    """The built files. `kernel` and `initrd` boot together; the disks boot by themselves with BIOS firmware."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def raw(self) -> Path:
        return self.folder / "tiny.img"

    @property
    def qcow2(self) -> Path:
        return self.folder / "tiny.qcow2"

    @property
    def halt(self) -> Path:
        return self.folder / "halt.img"


def _compress(root: Path, data: bytes, out: Path) -> None:
    """lz4 in the only framing that the kernel supports. Under emulation 0.1 s slower than no compression at half the
    size; gzip, zstd and xz cost 0.2, 0.2 and 1 s (measured)."""
    plain = out.with_suffix(".cpio")
    plain.write_bytes(data)
    subprocess.run([str(root / "usr/bin/lz4"), "-q", "-l", "-9", "-f", str(plain), str(out)], check=True)
    plain.unlink()


def _build(names: list[str], needed: tuple[str, ...], draft: Path) -> None:
    root = draft / "root"
    archives = packages.fetch(names + packages.libraries("qemu-guest-agent"), draft / "packages")
    packages.unpack(archives, root)
    folder = root / "lib/modules" if (root / "lib/modules").exists() else root / "usr/lib/modules"
    if lacking := modules.missing(folder, needed):
        raise LookupError(f"the guest's kernel has no module {', '.join(lacking)}: a test needs it")
    guest = Guest(draft)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, guest.kernel)
    initramfs.compile_init(draft / "init")
    _compress(root, initramfs.pack(root, draft / "init"), guest.initrd)
    disk.tiny_disk(root, guest.kernel, guest.initrd, guest.raw)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(guest.raw), str(guest.qcow2)], check=True)
    guest.halt.write_bytes(disk.halting_disk())
    for waste in (root, draft / "packages"):
        shutil.rmtree(waste)


def key() -> str:
    """A hash of our sources. The versions of Debian's packages are not in it, only in the file `done`: querying apt
    takes longer than a build without changes may take."""
    return tree_key(ROOT, SOURCES)


def _folder(meta: str) -> Path:
    return GUESTS / (key() if meta == packages.KERNEL_META else f"{key()}.{meta}")


def built(meta: str = packages.KERNEL_META) -> Guest | None:
    """The guest of these sources with this kernel, None if it is not in the cache."""
    folder = _folder(meta)
    return Guest(folder) if (folder / "done").exists() else None


def _forget_old() -> None:
    done = sorted(GUESTS.glob("*/done"), key=lambda path: path.stat().st_mtime)
    for path in done[:-KEPT]:
        shutil.rmtree(path.parent, ignore_errors=True)


def build(meta: str = packages.KERNEL_META) -> Guest:
    """The guest, from the cache or newly built (needs gcc, binutils, apt's lists and qemu-img; no root).

    `meta` is the metapackage of its kernel: `packages.GENERIC_META` for one that drives emulated hardware.
    """
    guest = built(meta)
    if guest is not None:
        return guest
    folder = _folder(meta)
    names = packages.wanted(meta)
    GUESTS.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=GUESTS))
    try:
        _build(names, modules.CLOUD if meta == packages.KERNEL_META else modules.WANTED, draft)
        (draft / "done").write_text("\n".join([*names, text_key(*names)]) + "\n")
        draft.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        _forget_old()
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Guest(folder)
