"""Bootable raw disks: the tiny guest's, one that only halts, one with a large screen."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

SECTOR = 512
PARTITION_START = 2048
"""First sector of the only partition, at 1 MiB as partitioning tools place it."""
EPOCH = 1700000000
"""Time stamp of every file written, so that the same input gives the same bytes."""

KERNEL_ARGS = "console=ttyS0 no_timer_check quiet cryptomgr.notests"
"""`no_timer_check`: a busy host makes the kernel's timer test fail under emulation. `cryptomgr.notests`: the self-tests
of the kernel's ciphers take a tenth of the whole boot there."""

SYSLINUX_CONFIG = f"DEFAULT tiny\nPROMPT 0\nLABEL tiny\n  KERNEL vmlinuz\n  INITRD initrd\n  APPEND {KERNEL_ARGS}\n"


def master_boot_record(code: bytes, start: int, sectors: int) -> bytes:
    """A classic MBR: boot code (at most 440 bytes), one active FAT16 (LBA) partition, all in sectors of 512 bytes."""
    if len(code) > 440:
        raise ValueError(f"boot code of {len(code)} bytes does not fit before the disk signature")
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x0E, b"\xfe\xff\xff", start, sectors)
    return code.ljust(440, b"\0") + b"HLTY\0\0" + entry + bytes(48) + b"\x55\xaa"


def halting_disk() -> bytes:
    """One MiB whose boot sector is `cli; hlt; jmp` to the hlt: a guest that costs no CPU time, for measurements."""
    code = b"\xfa\xf4\xeb\xfd"
    return (code.ljust(510, b"\0") + b"\x55\xaa").ljust(1024 * 1024, b"\0")


def screen_disk() -> bytes:
    """One MiB whose boot sector switches the screen to 1600 × 1200 pixels of 32 bits and halts: a guest with a
    screen of 7.7 MB, for measurements of its transfer.

    Source: VESA BIOS Extension 3.0, function 4F02h; 147h is the mode's number in Bochs' and QEMU's VGA firmware, bit 14
    requests the linear frame buffer.
    """
    # xor ax, ax; ds = ss = 0; sp = 7c00h; mov ax, 4f02h; mov bx, 4147h; int 10h; cli; hlt; jmp to the hlt
    code = bytes.fromhex("31c0 8ed8 8ed0 bc007c b8024f bb4741 cd10 fa f4 ebfd")
    return (code.ljust(510, b"\0") + b"\x55\xaa").ljust(1024 * 1024, b"\0")


def _tools(root: Path) -> dict[str, str]:
    """An environment with syslinux and mtools of the unpacked packages."""
    places = [str(root / place) for place in ("usr/bin", "usr/sbin", "sbin", "bin")]
    return {
        "PATH": ":".join([*places, os.environ.get("PATH", "/usr/bin:/bin")]),
        "MTOOLS_SKIP_CHECK": "1",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "TZ": "UTC",
    }


def tiny_disk(root: Path, kernel: Path, initrd: Path, out: Path) -> None:
    """Write a BIOS-bootable raw disk: MBR, one FAT16 partition, syslinux, kernel and initrd.

    Args:
        root: folder with the unpacked packages syslinux, syslinux-common, mtools and dosfstools.
    """
    environment = _tools(root)
    content = kernel.stat().st_size + initrd.stat().st_size + 1024 * 1024
    sectors = -(-content // (1024 * 1024)) * 2048
    with out.open("wb") as file:
        code = (root / "usr/lib/syslinux/mbr/mbr.bin").read_bytes()
        file.write(master_boot_record(code, PARTITION_START, sectors))
        file.truncate((PARTITION_START + sectors) * SECTOR)
    offset = PARTITION_START * SECTOR

    def run(*command: str) -> None:
        subprocess.run(command, check=True, env=environment, capture_output=True)

    run(
        "mkfs.vfat", "--invariant", "-F", "16", "-s", "8", "-h", str(PARTITION_START), f"--offset={PARTITION_START}",
        "-n", "TINY", str(out), str(sectors // 2),
    )  # fmt: skip
    config = out.with_suffix(".cfg")
    config.write_text(SYSLINUX_CONFIG)
    for source, name in ((config, "syslinux.cfg"), (kernel, "vmlinuz"), (initrd, "initrd")):
        copy = out.with_suffix(".copy")
        shutil.copyfile(source, copy)
        os.utime(copy, (EPOCH, EPOCH))
        run("mcopy", "-m", "-i", f"{out}@@{offset}", str(copy), f"::{name}")
        copy.unlink()
    config.unlink()
    run("syslinux", "--offset", str(offset), "--install", str(out))
