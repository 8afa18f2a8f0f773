"""The tiny guest's initramfs: busybox, PID 1, kernel modules, the guest agent with its libraries."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from guests.cpio import CpioArchive
from guests.modules import Module, choose, index

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
ROOTFS = HERE / "rootfs"
LIBRARY_PLACES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64")


def compile_init(out: Path) -> None:
    """Compile `src/` to the static program that is /init. Warnings are errors."""
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    flags = ["-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-Wl,--build-id=none"]
    subprocess.run(["gcc", *flags, f"-ffile-prefix-map={HERE}=.", "-o", str(out), *sources], check=True)


def needed(binary: Path) -> list[str]:
    """Names of the shared libraries of an ELF file (DT_NEEDED)."""
    text = subprocess.run(["objdump", "-p", str(binary)], check=True, capture_output=True, text=True).stdout
    return re.findall(r"^\s+NEEDED\s+(\S+)", text, re.MULTILINE)


def find_library(root: Path, name: str) -> Path:
    """The path of `name` in the unpacked packages, links followed.

    Raises:
        FileNotFoundError: no unpacked package contains it.
    """
    for place in LIBRARY_PLACES:
        path = root / place / name
        if path.exists():
            return path.resolve()
    raise FileNotFoundError(f"{name} is in none of the unpacked packages")


def library_closure(root: Path, binary: Path) -> dict[str, Path]:
    """Every library `binary` needs, directly or not, by the name the loader looks for."""
    found: dict[str, Path] = {}
    todo = needed(binary)
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = find_library(root, name)
            todo += needed(found[name])
    return dict(sorted(found.items()))


AGENT = "usr/sbin/qemu-ga"


def _programs(archive: CpioArchive, root: Path) -> None:
    """Busybox, the guest agent, and each of their libraries once."""
    archive.file(AGENT, (root / AGENT).read_bytes(), 0o755)
    libraries = library_closure(root, _busybox(archive, root)) | library_closure(root, root / AGENT)
    for name, path in sorted(libraries.items()):
        place = "lib64" if name.startswith("ld-") else "lib/x86_64-linux-gnu"
        archive.file(f"{place}/{name}", path.read_bytes(), 0o755)


def _busybox(archive: CpioArchive, root: Path) -> Path:
    """Busybox with a link for each applet. Not the static build, in which glibc's resolver does not work."""
    binary = root / "bin/busybox"
    if not binary.exists():
        binary = root / "usr/bin/busybox"
    archive.file("bin/busybox", binary.read_bytes(), 0o755)
    applets = subprocess.run([str(binary), "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in applets:
        if applet not in ("busybox", "httpd"):
            archive.link(f"bin/{applet}", "busybox")
    return binary


def _modules(archive: CpioArchive, modules: list[Module]) -> None:
    for module in modules:
        archive.file(f"lib/modules/{module.name}.ko", module.file.read_bytes())
    archive.file("lib/modules/index", index(modules).encode())


def pack(root: Path, init: Path) -> bytes:
    """The archive from the unpacked packages below `root` and the program `init`, not compressed."""
    archive = CpioArchive()
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "home/tiny", "sbin", "usr/bin"):
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("init", init.read_bytes(), 0o755)
    for path in sorted(ROOTFS.rglob("*")):
        if path.is_file():
            mode = 0o600 if path.name == "shadow" else path.stat().st_mode & 0o755
            archive.file(str(path.relative_to(ROOTFS)), path.read_bytes(), mode)
    _modules(archive, choose(root / "lib/modules" if (root / "lib/modules").exists() else root / "usr/lib/modules"))
    _programs(archive, root)
    return archive.to_bytes()
