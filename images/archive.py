"""Writes image archives with one layer, in the format of `docker save` and `ctr images import`.

Format: a tar with `manifest.json` (a list of Config, RepoTags, Layers), the image configuration named by its SHA-256,
and the layer (Docker Image Specification v1.2). It needs no registry and no builder, and the same entries give the
same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

CREATED = "2024-01-01T00:00:00Z"
CHUNK = 1024 * 1024


@dataclass(frozen=True)
class ArchiveEntry:
    """A file of the image. `path` is relative to the image's root; `source` is a file of this machine or bytes."""

    path: str
    source: Path | bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0

    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def open(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


def _check(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise ValueError(f"not a path inside an image: {path!r}")


def _folders(entries: list[ArchiveEntry]) -> list[tarfile.TarInfo]:
    """Every parent folder, once, parents first, with the owner of the first file in it."""
    owners: dict[str, ArchiveEntry] = {}
    for entry in entries:
        for parent in reversed(PurePosixPath(entry.path).parents):
            if str(parent) != ".":
                owners.setdefault(str(parent), entry)
    folders = []
    for name, entry in owners.items():
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, 0o755, entry.uid, entry.gid
        folders.append(info)
    return folders


def write_layer(entries: list[ArchiveEntry], out: Path) -> None:
    """Write the layer tar. Every time stamp in it is 0, so its hash depends on the content only.

    Raises:
        ValueError: a path that leaves the image, or two entries of one path.
    """
    paths = [entry.path for entry in entries]
    for path in paths:
        _check(path)
    if len(set(paths)) != len(paths):
        raise ValueError("two entries have the same path")
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        for folder in _folders(entries):
            tar.addfile(folder)
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.size, info.mode, info.uid, info.gid = entry.size(), entry.mode, entry.uid, entry.gid
            with entry.open() as data:
                tar.addfile(info, data)


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image_config(layer_digest: str, labels: dict[str, str]) -> bytes:
    """The image's configuration (OCI image-spec config.md) for linux/amd64, without a command."""
    config = {
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created": CREATED, "created_by": "hyperlet"}],
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


def write_archive(reference: str, entries: list[ArchiveEntry], out: Path, labels: dict[str, str] | None = None) -> str:
    """Write an image of one layer with these files to `out`, atomically; return its configuration's digest.

    Args:
        reference: the image's name after import, with a tag other than `latest` (which nodes would always pull).

    Raises:
        ValueError: a reference without a tag or with `:latest`, a path that leaves the image, two entries of one path.
    """
    name, _, tag = reference.rpartition(":")
    if not name or "/" in tag or tag == "latest":
        raise ValueError(f"an image reference needs a tag other than latest: {reference!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    layer, draft = out.with_suffix(".layer"), out.with_suffix(".draft")
    try:
        write_layer(entries, layer)
        digest = file_digest(layer)
        config = image_config(digest, labels or {})
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        layer_name = f"{digest}.tar"
        manifest = [{"Config": config_name, "RepoTags": [reference], "Layers": [layer_name]}]
        with tarfile.open(draft, "w", format=tarfile.GNU_FORMAT) as tar:
            _add_bytes(tar, "manifest.json", json.dumps(manifest).encode())
            _add_bytes(tar, config_name, config)
            info = tarfile.TarInfo(layer_name)
            info.size, info.mode = layer.stat().st_size, 0o644
            with layer.open("rb") as data:
                tar.addfile(info, data)
        draft.replace(out)
    finally:
        layer.unlink(missing_ok=True)
        draft.unlink(missing_ok=True)
    return config_name.removesuffix(".json")
