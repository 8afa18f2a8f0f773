"""Image archives: reading, and writing the pause image."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from cluster import images
from cluster.console import ClusterError


def archive(path: Path, **files: object) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name.replace("_json", ".json"))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_docker_archive_is_read(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tar", manifest_json=[{"Config": "abc.json", "RepoTags": ["x.local/a:1", "x.local/b:2"]}]
    )
    assert images.inspect(path).images == {"x.local/a:1": "abc", "x.local/b:2": "abc"}


def test_oci_archive_is_read(tmp_path: Path) -> None:
    manifests = [
        {"digest": "sha256:1", "annotations": {"org.opencontainers.image.ref.name": "x.local/a:1"}},
        {"digest": "sha256:2"},
    ]
    path = archive(tmp_path / "a.tar", index_json={"manifests": manifests})
    assert images.inspect(path).images == {"x.local/a:1": "sha256:1"}


def test_compressed_archive_is_read(tmp_path: Path) -> None:
    plain = archive(tmp_path / "a.tar", manifest_json=[{"Config": "blobs/sha256/abc", "RepoTags": ["x.local/a:1"]}])
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert images.inspect(packed).images == {"x.local/a:1": "abc"}


def test_file_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    for path in (archive(tmp_path / "a.tar", other={}), tmp_path / "b.tar"):
        path.touch()
        with pytest.raises(ClusterError, match="not an image archive"):
            images.inspect(path)


@pytest.mark.parametrize(
    ("name", "full"),
    [("x.local/a", "x.local/a:latest"), ("x.local:5000/a", "x.local:5000/a:latest"), ("x.local/a:1", "x.local/a:1")],
)
def test_references_are_completed(name: str, full: str) -> None:
    assert images.full_reference(name) == full


def test_archive_is_reproducible_and_readable(tmp_path: Path) -> None:
    first = images.single_file_archive("x.local/a:1", "run", b"\x7fELF")
    assert first == images.single_file_archive("x.local/a:1", "run", b"\x7fELF")
    path = tmp_path / "a.tar"
    path.write_bytes(first)
    found = images.inspect(path)
    assert list(found.images) == ["x.local/a:1"]
    with tarfile.open(path) as tar:
        config = json.load(tar.extractfile(f"{found.images['x.local/a:1']}.json") or io.BytesIO())
        layer = tar.extractfile("layer.tar")
        assert layer is not None
        with tarfile.open(fileobj=layer) as inner:
            member = inner.getmember("run")
            assert member.mode & 0o111
    assert config["config"]["Entrypoint"] == ["/run"]


def test_bundle_has_each_layer_once_and_renames_conflicts(tmp_path: Path) -> None:
    shared, paths = "a" * 64, []
    for name in ("one", "two"):
        image = {"Config": f"{name}.json", "RepoTags": [f"x.local/{name}:1"], "Layers": [f"{shared}.tar", "layer.tar"]}
        files = {f"{name}_json": name, f"{shared}.tar": "shared", "layer.tar": f"own of {name}"}
        paths.append(archive(tmp_path / f"{name}.tar", manifest_json=[image], **files))
    target = tmp_path / "both.tar"
    images.bundle(paths, target)
    assert images.inspect(target).images == {"x.local/one:1": "one-one", "x.local/two:1": "two-two"}
    with tarfile.open(target) as tar:
        assert len(tar.getnames()) == len(set(tar.getnames())) == 6
        for image in json.load(tar.extractfile("manifest.json") or io.BytesIO()):
            read = [json.load(tar.extractfile(name) or io.BytesIO()) for name in (image["Config"], *image["Layers"])]
            name = image["RepoTags"][0].removeprefix("x.local/").removesuffix(":1")
            assert read == [name, "shared", f"own of {name}"]
