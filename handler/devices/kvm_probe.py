"""Checks whether KVM is usable. Run as a program, it times two tiny guests and prints one line of JSON.

A kernel that emulates guest code behind /dev/kvm opens the device, creates VMs and runs code, but too slowly for any
guest to boot. A check of results alone passes there, so the probe measures time: 1,000,000 iterations of dec/jnz in
32-bit protected mode and in long mode take about 1 ms with hardware virtualization; more than 0.2 s is a failure.

The program uses the standard library only and runs in its own process, which is killed at its deadline: a probe that
hangs in the kernel does not block the handler.
Sources: Documentation/virt/kvm/api.rst, include/uapi/linux/kvm.h, Intel SDM volume 3.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
import time
from typing import NamedTuple

DEVICE = "/dev/kvm"
ROUNDS = 1_000_000
LIMIT_SECONDS = 0.2
DEADLINE_SECONDS = 5.0

_GET_API_VERSION, _CREATE_VM, _GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
_CREATE_VCPU, _RUN = 0xAE41, 0xAE80
_SET_USER_MEMORY_REGION = 0x4020AE46
_GET_REGS, _SET_REGS = 0x8090AE81, 0x4090AE82
_GET_SREGS, _SET_SREGS = 0x8138AE83, 0x4138AE84
_EXIT_HLT = 5
_MEMORY = 1 << 20
_CODE, _TABLES = 0x1000, 0x8000
_MAGIC = 0x4B564D21

# mov ecx, rounds; 1: dec ecx; jnz 1b; mov eax, magic; hlt. The encoding is the same in both modes.
_PROGRAM = b"\xb9" + struct.pack("<I", ROUNDS) + b"\xff\xc9\x75\xfc\xb8" + struct.pack("<I", _MAGIC) + b"\xf4"


class KvmProbe(NamedTuple):
    """Whether guests can use KVM on this node, and the reason as one sentence."""

    works: bool
    sentence: str


class _Segment(ctypes.Structure):
    """struct kvm_segment."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("selector", ctypes.c_uint16),
        *(
            (name, ctypes.c_uint8)
            for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")
        ),
    ]


class _Table(ctypes.Structure):
    """struct kvm_dtable."""

    _fields_ = [("base", ctypes.c_uint64), ("limit", ctypes.c_uint16), ("padding", ctypes.c_uint16 * 3)]


class _Sregs(ctypes.Structure):
    """struct kvm_sregs."""

    _fields_ = [
        *((name, _Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", _Table),
        ("idt", _Table),
        *((name, ctypes.c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupts", ctypes.c_uint64 * 4),
    ]


class _KvmUnusable(Exception):
    """KVM does not work; the message is the reason."""


async def probe(device: str = DEVICE, deadline: float = DEADLINE_SECONDS) -> KvmProbe:
    """Run the probe in a child process. Never raises; returns within the deadline plus about a second."""
    if os.uname().machine != "x86_64":
        return _unprobed(device)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        __file__,
        device,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(deadline):
            output, _ = await child.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        # A process stuck in the kernel may ignore SIGKILL: leave it to the reaper.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await child.wait()
        return KvmProbe(False, f"{device} hangs: the probe's guest did not halt within {deadline:g} s")
    try:
        answer = json.loads(output)
        return KvmProbe(bool(answer["works"]), str(answer["sentence"])[:500])
    except (ValueError, KeyError, TypeError):
        return KvmProbe(False, f"the probe of {device} ended with status {child.returncode}")


def _unprobed(device: str) -> KvmProbe:
    if os.access(device, os.R_OK | os.W_OK):
        return KvmProbe(True, f"{device} exists; the timed probe runs on x86_64 only")
    return KvmProbe(False, f"{device} is missing")


def measure(device: str) -> KvmProbe:
    """The probe. Blocks, and may hang where KVM is broken: run it in a separate process."""
    try:
        slowest = max(_timed(device, long_mode) for long_mode in (False, True))
    except FileNotFoundError:
        return KvmProbe(False, f"{device} is missing")
    except _KvmUnusable as error:
        return KvmProbe(False, str(error))
    except OSError as error:
        return KvmProbe(False, f"{device} does not work: {error.strerror or error}")
    if slowest > LIMIT_SECONDS:
        return KvmProbe(False, _too_slow(device))
    return KvmProbe(True, f"{device} executed {ROUNDS:,} loop iterations in {slowest * 1000:.1f} ms")


def _too_slow(device: str) -> str:
    return (
        f"{device} emulates guest code in software: {ROUNDS:,} loop iterations take over {LIMIT_SECONDS:g} s, "
        "hardware needs about 1 ms"
    )


def _timed(device: str, long_mode: bool) -> float:
    """Seconds that the program takes in a new VM. Raises _KvmUnusable, OSError."""
    with contextlib.ExitStack() as stack:

        def owned(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        system = owned(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        version = fcntl.ioctl(system, _GET_API_VERSION, 0)
        if version != 12:
            raise _KvmUnusable(f"{device} has KVM API version {version}, expected 12")
        machine = owned(fcntl.ioctl(system, _CREATE_VM, 0))
        memory = mmap.mmap(-1, _MEMORY)
        memory[_CODE : _CODE + len(_PROGRAM)] = _PROGRAM
        _page_tables(memory)
        view = (ctypes.c_char * _MEMORY).from_buffer(memory)
        fcntl.ioctl(machine, _SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, _MEMORY, ctypes.addressof(view)))
        cpu = owned(fcntl.ioctl(machine, _CREATE_VCPU, 0))
        _set_mode(cpu, long_mode)
        run = mmap.mmap(cpu, fcntl.ioctl(system, _GET_VCPU_MMAP_SIZE, 0))
        seconds = _run(device, cpu)
        reason = int(struct.unpack_from("=I", run, 8)[0])
        registers = fcntl.ioctl(cpu, _GET_REGS, bytes(144))
        accumulator, _, counter = struct.unpack_from("=QQQ", registers)
        if reason != _EXIT_HLT or accumulator != _MAGIC or counter != 0:
            raise _KvmUnusable(f"{device} executed guest code incorrectly (exit reason {reason})")
        return seconds


def _page_tables(memory: mmap.mmap) -> None:
    """Identity mapping of the first 2 MiB: one entry in each of three levels, the last a large page."""
    for level in range(3):
        flags = 0x83 if level == 2 else 0x03
        target = 0 if level == 2 else _TABLES + (level + 1) * 0x1000
        struct.pack_into("<Q", memory, _TABLES + level * 0x1000, target | flags)


def _set_mode(cpu: int, long_mode: bool) -> None:
    sregs = _Sregs.from_buffer_copy(fcntl.ioctl(cpu, _GET_SREGS, bytes(ctypes.sizeof(_Sregs))))
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        code = name == "cs"
        setattr(
            sregs,
            name,
            _Segment(
                base=0,
                limit=0xFFFFFFFF,
                selector=8 if code else 16,
                type=11 if code else 3,
                present=1,
                s=1,
                g=1,
                db=0 if code and long_mode else 1,
                l=1 if code and long_mode else 0,
            ),
        )
    sregs.cr0 = 0x11  # PE, ET
    if long_mode:
        sregs.cr3, sregs.cr4, sregs.efer = _TABLES, 0x20, 0x500  # PAE; LME, LMA
        sregs.cr0 |= 0x80000000  # PG
    fcntl.ioctl(cpu, _SET_SREGS, bytes(sregs))
    registers = bytearray(144)
    struct.pack_into("=QQ", registers, 16 * 8, _CODE, 0x2)  # rip, rflags
    fcntl.ioctl(cpu, _SET_REGS, bytes(registers))


def _run(device: str, cpu: int) -> float:
    """Seconds until the guest halts. Raises _KvmUnusable when the limit is reached."""

    def late(number: int, frame: object) -> None:
        raise _KvmUnusable(_too_slow(device))

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    start = time.perf_counter()
    try:
        fcntl.ioctl(cpu, _RUN, 0)
        return time.perf_counter() - start
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


if __name__ == "__main__":
    # Ends this process even if its parent has died.
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * DEADLINE_SECONDS)
    print(json.dumps(measure(sys.argv[1])._asdict()))
