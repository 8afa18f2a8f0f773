"""The kernel modules of the guest: selection, order, devices.

A module file is an ELF relocatable whose section `.modinfo` holds 0-terminated `key=value` strings (Linux
`include/linux/module.h`, MODULE_INFO): `depends` names the modules whose symbols it uses, `alias` the devices it
drives.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

WANTED = (
    "virtio_ring", "virtio", "virtio_pci", "virtio_net", "virtio_blk", "virtio_scsi", "virtio_console", "virtio_rng",
    "virtio_balloon", "virtio_input", "virtio_mem", "virtiofs", "vmw_vsock_virtio_transport", "e1000", "e1000e",
    "8139cp", "pcnet32", "ne2k_pci", "ata_piix", "ahci", "sd_mod", "sr_mod", "isofs", "vfat", "nls_cp437", "nls_ascii",
    "nls_utf8", "ext4", "af_packet", "ipv6", "bridge", "8021q", "button", "evdev", "qemu_fw_cfg", "i6300esb", "softdog",
    "xhci_pci", "usbhid", "hid_generic",
)  # fmt: skip
"""Modules that are built into the kernel are left out, and those that a cloud kernel lacks: it has no drivers of
emulated hardware."""
CLOUD = (
    "virtio_pci", "virtio_net", "virtio_blk", "virtio_scsi", "virtio_console", "virtio_rng", "virtio_balloon",
    "isofs", "ext4", "af_packet",
)  # fmt: skip
"""The modules that the tests need of a cloud kernel; of any other kernel they need all."""


@dataclass(frozen=True)
class Module:
    """One module. `needs` are names as `.modinfo` writes them, with underscores."""

    name: str
    file: Path
    needs: tuple[str, ...]
    aliases: tuple[str, ...]


def modinfo(image: bytes) -> list[tuple[str, str]]:
    """The `key=value` pairs of a module file's `.modinfo`.

    Raises:
        ValueError: no 64-bit little-endian ELF file, or one without that section.
    """
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit ELF file")
    table, size, count, names = struct.unpack_from("<Q10xHHH", image, 0x28)
    sections = [struct.unpack_from("<II8x8xQQ", image, table + i * size) for i in range(count)]
    base = sections[names][2]
    for name, _, offset, length in sections:
        start = base + name
        if image[start : image.index(b"\0", start)] == b".modinfo":
            strings = image[offset : offset + length].split(b"\0")
            return [
                (key.decode(), value.decode("utf-8", "replace"))
                for key, _, value in (s.partition(b"=") for s in strings if s)
            ]
    raise ValueError("no .modinfo section")


def scan(folder: Path) -> dict[str, Path]:
    """Every module file below `folder` by its name, `-` written as `_` as the kernel does."""
    return {path.name.removesuffix(".ko").replace("-", "_"): path for path in sorted(folder.rglob("*.ko"))}


def read(name: str, file: Path) -> Module:
    pairs = modinfo(file.read_bytes())
    needs = [need.replace("-", "_") for key, value in pairs if key == "depends" for need in value.split(",") if need]
    aliases = [value for key, value in pairs if key == "alias" and " " not in value and ":" in value]
    return Module(name, file, tuple(needs), tuple(aliases))


def choose(folder: Path, wanted: tuple[str, ...] = WANTED) -> list[Module]:
    """The wanted modules below `folder` and their dependencies, in load order."""
    files = scan(folder)
    chosen: dict[str, Module] = {}

    def add(name: str) -> None:
        if name in chosen or name not in files:
            return
        module = read(name, files[name])
        for need in module.needs:
            add(need)
        chosen[name] = module

    for name in wanted:
        add(name)
    return list(chosen.values())


def missing(folder: Path, wanted: tuple[str, ...]) -> list[str]:
    """Those that the kernel with its modules below `folder` has neither as a module nor built in.

    Built-in modules are listed in `modules.builtin` (Documentation/kbuild/kbuild.rst).
    """
    lists = folder.rglob("modules.builtin")
    built_in = {Path(line).stem.replace("-", "_") for path in lists for line in path.read_text().split()}
    return [name for name in wanted if name not in scan(folder) and name not in built_in]


def index(modules: list[Module], place: str = "/lib/modules") -> str:
    """The index that the guest's loader (`src/modules.c`) reads. `place` is the folder of the modules in the guest."""
    return "".join(f"{m.name}\t{place}/{m.name}.ko\t{','.join(m.needs)}\t{' '.join(m.aliases)}\n" for m in modules)
