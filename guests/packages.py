"""Debian packages as build inputs: downloaded with apt-get, unpacked into a folder, never installed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

KERNEL_META = "linux-image-cloud-amd64"
GENERIC_META = "linux-image-amd64"
"""Larger, with drivers of the hardware that QEMU emulates."""
FIXED = ("busybox", "qemu-guest-agent", "syslinux", "syslinux-common", "mtools", "dosfstools", "lz4")


def _apt(*words: str, cwd: Path | None = None) -> str:
    return subprocess.run(["apt-get", "-q", *words], cwd=cwd, check=True, capture_output=True, text=True).stdout


def kernel_package(meta: str = KERNEL_META) -> str:
    """The package that a kernel's metapackage depends on at present.

    Raises:
        LookupError: apt's lists do not contain it (`apt-get update` first).
    """
    text = subprocess.run(["apt-cache", "depends", meta], check=True, capture_output=True, text=True).stdout
    found = re.search(r"Depends: (linux-image-\S+)", text)
    if found is None:
        raise LookupError(f"{meta} is not in apt's lists: run apt-get update")
    return found.group(1)


def wanted(meta: str = KERNEL_META) -> list[str]:
    """`name=version` of every package of the guest, at apt's candidate version."""
    names = [kernel_package(meta), *FIXED]
    text = subprocess.run(["apt-cache", "policy", *names], check=True, capture_output=True, text=True).stdout
    versions = dict(re.findall(r"^(\S+):\n.*\n\s+Candidate: (\S+)", text, re.MULTILINE))
    missing = [name for name in names if versions.get(name, "(none)") == "(none)"]
    if missing:
        raise LookupError(f"not in apt's lists: {', '.join(missing)}: run apt-get update")
    return [f"{name}={versions[name]}" for name in names]


def libraries(name: str) -> list[str]:
    """The library packages that `name` depends on, directly or through other libraries (never through a program)."""
    found: set[str] = set()
    border = {name}
    while border:
        text = subprocess.run(
            ["apt-cache", "depends", "--important", *sorted(border)], check=True, capture_output=True, text=True
        )
        needs = set(re.findall(r"^ +(?:Pre)?Depends: ((?:lib|zlib)[a-z0-9.+-]+)$", text.stdout, re.MULTILINE))
        border = needs - found
        found |= needs
    return sorted(found)


def fetch(packages: list[str], folder: Path) -> list[Path]:
    """Download the packages into `folder` and return the archives. Existing archives are not downloaded again."""
    folder.mkdir(parents=True, exist_ok=True)
    _apt("download", "-o", "APT::Sandbox::User=root", *packages, cwd=folder)
    return sorted(folder.glob("*.deb"))


def unpack(archives: list[Path], root: Path) -> None:
    """Unpack the packages' files below `root`; their scripts do not run."""
    root.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
