"""QEMU's locks on disk images: which disks are in use by another QEMU.

QEMU's own check, because libvirt passes on QEMU's message without an error code. QEMU holds a lock on byte 100 + n for
each permission n that it uses, and on byte 200 + n for each that others may not use; a user of permission n checks for
the latter, and a QEMU that does not share it for the former. Source: block/file-posix.c, RAW_LOCK_PERM_BASE.
"""

import fcntl
import os
import struct

from launcher.domain_builder.answers import ClaimedDisk

_WRITES, _SHARES_NO_WRITER = 101, 201
"""BLK_PERM_WRITE is bit 1."""
_LOCK = struct.Struct("hhqqi4x")  # struct flock of a 64-bit system: type, whence, start, length, process


def locked(claims: list[ClaimedDisk]) -> list[ClaimedDisk]:
    """Those of the builder's `claims` that another QEMU has locked. Blocks on network file systems."""
    return [claim for claim in claims if _is_locked(claim["path"], claim["writes"], claim["shares"])]


def _is_locked(path: str, writes: bool, shares: bool) -> bool:
    wanted = [_SHARES_NO_WRITER] * writes + [_WRITES] * (not shares)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return any(_has_lock(file, byte) for byte in wanted)
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(file)


def _has_lock(file: int, byte: int) -> bool:
    wanted = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, *_ = _LOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, wanted))
    return bool(kind != fcntl.F_UNLCK)


def in_use(claims: list[ClaimedDisk]) -> str:
    """The message for disks that are in use."""
    shown = " or ".join(f"volume {claim['volume']}: claim {claim['claim']}" for claim in claims)
    return (
        f"{shown} is in use by another virtual machine or pod, which holds QEMU's lock on it: stop that one first, or "
        "give each its own claim"
    )
