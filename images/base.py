"""The base of every image: a minimal Debian from mmdebstrap, so that no registry is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from images.builder import ImageBuilder
from images.keys import text_key
from images.paths import CACHE

SUITE = "trixie"
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")
COMMAND = (
    "mmdebstrap", "--mode=root", "--variant=minbase",
    *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
    # The machine's resolver is for the build, not for the image.
    "--customize-hook=rm -f $1/etc/resolv.conf $1/etc/hostname",
    SUITE,
)  # fmt: skip


def reference() -> str:
    """The base's name; it changes when its recipe does."""
    return f"hyperlet.local/base:{text_key(*COMMAND)}"


def build(builder: ImageBuilder) -> str:
    """Build the base unless the builder has it, and return its name."""
    name = reference()
    if builder.has(name):
        return name
    archive: Path = CACHE / f"base-{text_key(*COMMAND)}.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        draft = archive.with_suffix(".draft.tar")
        subprocess.run([*COMMAND, str(draft)], check=True, capture_output=True)
        draft.rename(archive)
    builder.commit_archive(archive, name)
    archive.unlink()
    return name
