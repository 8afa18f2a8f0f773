"""buildah, with its own store in the cache: no daemon, no registry, nothing shared with other builders."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from images.paths import ROOT, STORAGE


class ImageBuildError(Exception):
    """buildah failed. The message has its last lines of output."""


class ImageBuilder:
    """Runs buildah. The `overlay` driver needs root, as all image builds here do."""

    def __init__(self, storage: Path = STORAGE) -> None:
        self._storage = storage

    def _run(self, *words: str) -> str:
        store = [
            "--root",
            str(self._storage / "root"),
            "--runroot",
            str(self._storage / "run"),
            "--storage-driver",
            "overlay",
        ]
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(["buildah", *store, *words], capture_output=True, text=True, env=environment, cwd=ROOT)
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
            raise ImageBuildError(f"buildah {words[0]} failed with {done.returncode}:\n{tail}")
        return done.stdout.strip()

    def has(self, name: str) -> bool:
        """Whether the store has an image of this name."""
        return name in self._run("images", "--format", "{{.Name}}:{{.Tag}}").split()

    def commit_archive(self, archive: Path, name: str) -> None:
        """Create an image of one layer from a root file system's tar."""
        container = self._run("from", "scratch")
        try:
            self._run("add", container, str(archive), "/")
            self._run("commit", "--disable-compression", container, name)
        finally:
            self._run("rm", container)

    def build(self, target: str, base: str, name: str) -> None:
        """Build one target of the Containerfile. Layers of earlier builds are reused."""
        words = [
            "bud",
            "--isolation",
            "chroot",
            "--layers",
            "--pull-never",
            "--target",
            target,
            "--build-arg",
            f"BASE={base}",
        ]
        authorities = os.environ.get("PIP_CERT")
        if authorities:
            words += ["--secret", f"id=pip-ca,src={authorities}"]
        self._run(*words, "--tag", name, "--file", str(ROOT / "Containerfile"), str(ROOT))

    def export(self, name: str, archive: Path) -> None:
        """Write an image to an archive for `ctr images import`, atomically."""
        draft = archive.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        archive.parent.mkdir(parents=True, exist_ok=True)
        self._run("push", name, f"docker-archive:{draft}:{name}")
        draft.rename(archive)
