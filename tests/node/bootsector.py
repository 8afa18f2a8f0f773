"""Guests of 512 bytes: what a test needs of a guest, in real mode, and nothing that takes time to boot.

Each is a boot sector that says `hello` on the serial port and then does one thing. Sources: the I/O ports of QEMU's
q35 machine: 0x3F8 the first serial port, 0x600 the ACPI power management block (PM1 status, enable at +2, control at
+4), 0x505 pvpanic.
"""

SIZE = 1 << 20
"""Of the disk, in bytes."""

_SAY = 0x7C80  # the subroutine `say`, at offset 0x80


def _assemble(text: str, then: bytes) -> bytes:
    """A disk whose boot sector prints `text`, and goes on with `then`."""
    message = 0x7CA0
    start = bytes([0xFA, 0x31, 0xC0, 0x8E, 0xD8, 0x8E, 0xD0, 0xBC, 0x00, 0x7C])  # cli; ds = ss = 0; sp = 0x7c00
    start += b"\xbe" + message.to_bytes(2, "little")  # mov si, message
    call_at = 0x7C00 + len(start) + 3
    start += b"\xe8" + (_SAY - call_at).to_bytes(2, "little", signed=True)  # call say
    code = (start + then).ljust(0x80, b"\x90")
    assert len(code) == 0x80
    # say: lodsb; or al, al; jz out; mov dx, 0x3f8; out dx, al; jmp say; out: ret
    code += bytes([0xAC, 0x08, 0xC0, 0x74, 0x06, 0xBA, 0xF8, 0x03, 0xEE, 0xEB, 0xF5, 0xC3])
    code = code.ljust(0xA0, b"\x90") + text.encode() + b"\0"
    assert len(code) <= 510
    return (code.ljust(510, b"\0") + b"\x55\xaa").ljust(SIZE, b"\0")


_HALT = bytes([0xF4, 0xEB, 0xFD])  # hlt; jmp $-1


def ignoring_power_button() -> bytes:
    """Halts forever and ignores the power button."""
    return _assemble("hello\r\n", _HALT)


def obeying_power_button() -> bytes:
    """Powers off when the power button is pressed."""
    then = bytes([0xBA, 0x02, 0x06, 0xB8, 0x00, 0x01, 0xEF])  # mov dx, 0x602; mov ax, 0x100; out dx, ax
    then += bytes([0xFB, 0xF4])  # again: sti; hlt (the timer wakes it)
    then += bytes([0xBA, 0x00, 0x06, 0xED])  # mov dx, 0x600; in ax, dx
    then += bytes([0xF6, 0xC4, 0x01, 0x74, 0xF5])  # test ah, 1; jz again
    then += _power_off()
    return _assemble("hello\r\n", then)


def _power_off() -> bytes:
    # mov dx, 0x604; mov ax, 0x2000; out dx, ax
    return bytes([0xBA, 0x04, 0x06, 0xB8, 0x00, 0x20, 0xEF]) + _HALT


def powering_off() -> bytes:
    """Powers off at once."""
    return _assemble("hello\r\n", _power_off())


def panicking() -> bytes:
    """Reports a kernel panic to pvpanic."""
    # mov dx, 0x505; mov al, 1; out dx, al
    return _assemble("hello\r\n", bytes([0xBA, 0x05, 0x05, 0xB0, 0x01, 0xEE]) + _HALT)


def flooding() -> bytes:
    """Writes `x` to the serial port, as fast as it can."""
    # mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp $-1
    return _assemble("hello\r\n", bytes([0xBA, 0xF8, 0x03, 0xB0, 0x78, 0xEE, 0xEB, 0xFD]))
