"""Image archives written by `images.archive`."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from images.archive import ArchiveEntry, write_archive


def entries() -> list[ArchiveEntry]:
    return [
        ArchiveEntry("disk/a.img", b"guest", mode=0o440, uid=107, gid=107),
        ArchiveEntry("etc/deep/er/readme", b"text"),
    ]


def read(archive: Path) -> tuple[dict[str, object], dict[str, object], bytes]:
    """The manifest's only element, the configuration, the layer."""
    with tarfile.open(archive) as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    (manifest,) = json.loads(content["manifest.json"])
    return manifest, json.loads(content[manifest["Config"]]), content[manifest["Layers"][0]]


def test_file_names_are_content_digests(tmp_path: Path) -> None:
    out = tmp_path / "a.tar"
    digest = write_archive("local/x:1", entries(), out)
    manifest, config, layer = read(out)
    assert manifest["RepoTags"] == ["local/x:1"]
    assert manifest["Config"] == f"{digest}.json"
    assert config["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    with tarfile.open(out) as tar:
        raw = tar.extractfile(f"{digest}.json")
        assert raw is not None
        assert hashlib.sha256(raw.read()).hexdigest() == digest


def test_layer_has_files_and_folders_with_owners(tmp_path: Path) -> None:
    out = tmp_path / "a.tar"
    write_archive("local/x:1", entries(), out)
    with tarfile.open(fileobj=io.BytesIO(read(out)[2])) as layer:
        found = {m.name: (m.isdir(), m.mode, m.uid, m.gid) for m in layer.getmembers()}
        data = layer.extractfile("disk/a.img")
        assert data is not None
        assert data.read() == b"guest"
    assert found == {
        "disk": (True, 0o755, 107, 107),
        "disk/a.img": (False, 0o440, 107, 107),
        "etc": (True, 0o755, 0, 0),
        "etc/deep": (True, 0o755, 0, 0),
        "etc/deep/er": (True, 0o755, 0, 0),
        "etc/deep/er/readme": (False, 0o644, 0, 0),
    }


def test_archive_does_not_depend_on_file_times(tmp_path: Path) -> None:
    source = tmp_path / "source"
    archives = []
    for name in ("a", "b"):
        source.write_bytes(b"x" * 70000)
        out = tmp_path / f"{name}.tar"
        write_archive("local/x:1", [ArchiveEntry("f", source)], out)
        archives.append(out.read_bytes())
    assert archives[0] == archives[1]


@pytest.mark.parametrize("reference", ["local/x", "local/x:latest", "host:5000/x", ":1"])
def test_reference_needs_a_tag_other_than_latest(reference: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tag"):
        write_archive(reference, entries(), tmp_path / "a.tar")


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", ""])
def test_no_path_leaves_the_image(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path inside an image"):
        write_archive("local/x:1", [ArchiveEntry(path, b"")], tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


def test_duplicate_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same path"):
        write_archive("local/x:1", [ArchiveEntry("a", b"1"), ArchiveEntry("a", b"2")], tmp_path / "a.tar")
