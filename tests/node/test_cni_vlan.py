"""VLANs, in a guest whose kernel filters them: this machine's does not. One boot under emulation for all of them."""

import functools
import os
import py_compile
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from guests import modules, packages
from guests.cpio import CpioArchive
from tests.node import cnivlan_guest

pytestmark = pytest.mark.node
ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("HYPERLET_CACHE", Path.home() / ".cache/hyperlet")) / "cni-vlan"
MODULES = ("veth", "bridge", "8021q", "af_packet", "ipv6", "nf_tables", "nft_meta_bridge")
LISTING = (
    "import sys, tests.node.cnivlan_guest; "
    "print(*(found for each in sys.modules.values() if (found := getattr(each, '__file__', None))))"
)


def kernel() -> tuple[Path, Path]:
    """Debian's cloud kernel and the folder of its modules, unpacked once."""
    name = packages.kernel_package()
    folder = CACHE / name
    if not (folder / "done").exists():
        packages.unpack(packages.fetch([name, "busybox-static"], folder / "packages"), folder)
        (folder / "done").touch()
    (image,) = (folder / "boot").glob("vmlinuz-*")
    return image, folder


def libraries(files: list[Path]) -> set[str]:
    """The shared libraries that programs need, and their loader."""
    text = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(/\S+\.so\S*) \(0x", text))


def pack(folder: Path) -> bytes:
    """An initramfs: busybox, kernel modules, this Python and those of its modules that the program imports."""
    archive = CpioArchive()
    for name in ("proc", "sys", "dev", "run", "tmp"):
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)
    busybox = next(each for each in (folder / "bin/busybox", folder / "usr/bin/busybox") if each.exists())
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.link("bin/sh", "busybox")
    archive.file("cni/static", Path("/usr/lib/cni/static").read_bytes(), 0o755)
    place = next(each for each in (folder / "lib/modules", folder / "usr/lib/modules") if each.exists())
    chosen = modules.choose(place, MODULES)
    for module in chosen:
        archive.file(f"modules/{module.name}.ko", module.file.read_bytes())
    interpreter = Path(os.path.realpath(sys.executable))
    given = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    listing = subprocess.run(
        [sys.executable, "-c", LISTING], capture_output=True, text=True, check=True, env=given
    ).stdout
    files = [Path(each) for each in listing.split()]
    _python(archive, files)
    binaries = [interpreter, *(each for each in files if ".so" in each.name)]
    for each in binaries:
        archive.file(str(each), each.read_bytes(), 0o755)
    for library in sorted(libraries(binaries)):
        archive.file(library, Path(library).read_bytes(), 0o755)
    path = ":".join([str(ROOT), *(each for each in sys.path if "site-packages" in each)])
    archive.file("init", _init(chosen, interpreter, path).encode(), 0o755)
    return archive.to_bytes()


def _python(archive: CpioArchive, files: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch) / "x.pyc"
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        for each in files:
            if each.suffix == ".py":
                py_compile.compile(str(each), cfile=str(compiled), invalidation_mode=mode, doraise=True)
                archive.file(str(each.with_suffix(".pyc")), compiled.read_bytes())


def _init(chosen: list[modules.Module], interpreter: Path, path: str) -> str:
    load = "\n".join(f"/bin/busybox insmod /modules/{module.name}.ko" for module in chosen)
    program = f"{ROOT}/tests/node/cnivlan_guest.pyc"
    return (
        "#!/bin/busybox sh\nB=/bin/busybox\n$B mount -t proc proc /proc; $B mount -t sysfs sys /sys\n"
        f"$B mount -t devtmpfs dev /dev\n{load}\n"
        f"PYTHONHOME={sys.base_prefix} PYTHONPATH={path} {interpreter} -s -B {program}\n$B poweroff -f\n"
    )


@functools.cache
def outcome() -> tuple[dict[str, str], str]:
    """The result of each test in the guest, and its whole output."""
    image, folder = kernel()
    with tempfile.TemporaryDirectory(prefix="hlcni-test-") as scratch:
        initrd = Path(scratch) / "initrd"
        initrd.write_bytes(pack(folder))
        command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "768", "-nodefaults"]
        command += ["-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(image), "-initrd", str(initrd)]
        append = "console=ttyS0 no_timer_check quiet cryptomgr.notests panic=-1"
        try:
            done = subprocess.run(
                [*command, "-append", append],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=240,
                check=False,
            )
            text = done.stdout.decode("utf-8", "replace")
        except subprocess.TimeoutExpired as expired:
            text = (expired.stdout or b"").decode("utf-8", "replace")
    return dict(re.findall(r"RESULT (\S+) (ok|failed|done)", text)), text


@pytest.mark.parametrize("name", cnivlan_guest.TESTS)
def test_vlan_case_passes_in_guest(name: str) -> None:
    results, text = outcome()
    assert results.get(name) == "ok", text[-6000:]
