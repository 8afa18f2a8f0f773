"""Image archives: their contents, importing them into nodes, and the pause image, built without a registry."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import binaries, node
from cluster.components import PAUSE_IMAGE
from cluster.console import ClusterError, ProgressConsole
from cluster.paths import CACHE

PAUSE_SOURCE = Path(__file__).with_name("pause.c")
LAYER = "layer.tar"
DIGEST = re.compile(r"[0-9a-f]{64}")
NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True)
class ImageArchive:
    """An archive and the images in it: reference → digest (of the config, or of the manifest in an OCI archive)."""

    path: Path
    images: dict[str, str]
    docker: bool = False
    """Whether it is a docker-archive (manifest.json)."""


def inspect(path: Path) -> ImageArchive:
    """Read which images an archive holds (docker-archive or OCI, compressed or not).

    Errors: ClusterError when the file is neither.
    """
    try:
        with tarfile.open(path) as tar:
            members = {member.name.removeprefix("./"): member for member in tar}
            for name, read in (("manifest.json", docker_images), ("index.json", oci_images)):
                stream = tar.extractfile(members[name]) if name in members else None
                if stream is not None:
                    return ImageArchive(path, read(json.load(stream)), docker=name == "manifest.json")
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ClusterError(f"{path} is not an image archive: {error}", remedy="use 'buildah push'") from error
    raise ClusterError(f"{path} is not an image archive: it has neither manifest.json nor index.json")


def docker_images(manifest: Any) -> dict[str, str]:
    """References → config digests from a docker-archive's manifest.json."""
    found = {}
    for image in manifest:
        digest = Path(image["Config"]).name.removesuffix(".json")
        for tag in image.get("RepoTags") or []:
            found[full_reference(tag)] = digest
    return found


def oci_images(index: Any) -> dict[str, str]:
    """References → manifest digests from an OCI archive's index.json."""
    found = {}
    for manifest in index.get("manifests", []):
        annotations = manifest.get("annotations") or {}
        name = next((annotations[key] for key in NAME_ANNOTATIONS if key in annotations), None)
        if name:
            found[full_reference(name)] = manifest["digest"]
    return found


def full_reference(name: str) -> str:
    """The reference with a tag. Names here always have a host, as nothing is pulled."""
    return name if ":" in name.rsplit("/", 1)[-1] or "@" in name else f"{name}:latest"


def _loaded_file(name: str) -> Path:
    return node.folder(name) / "disk" / "loaded-images.json"


def _loaded(name: str) -> dict[str, str]:
    """The imported images that the node still has: reference → digest as in the archive."""
    try:
        noted: dict[str, str] = json.loads(_loaded_file(name).read_text())
    except (OSError, ValueError):
        return {}
    listing = node.run(name, ["ctr", "--namespace=k8s.io", "images", "list", "-q"])
    present = set(listing.stdout.split())
    return {reference: digest for reference, digest in noted.items() if reference in present}


def load(console: ProgressConsole, paths: Sequence[Path], names: Sequence[str]) -> None:
    """Import archives into all nodes in parallel, except images that a node already has.

    Errors: ClusterError naming the archive and the node where an import failed.
    """
    archives = [inspect(path) for path in paths]
    for archive in archives:
        for reference in archive.images:
            if reference.endswith(":latest"):
                console.say(f"  ! {reference}: with the tag 'latest' Kubernetes pulls every time; give it another tag")
    missing = {name: _missing(console, archives, name) for name in names}
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        bundles: dict[tuple[Path, ...], list[ImageArchive]] = {}
        for name, found in missing.items():
            key = tuple(archive.path for archive in found)
            if key not in bundles:  # usually all nodes lack the same images
                bundles[key] = _bundled(found, Path(folder) / f"{name}.tar")
            missing[name] = bundles[key]
        with ThreadPoolExecutor(max_workers=len(names) or 1) as pool:
            list(pool.map(lambda name: _import(console, missing[name], name), names))


def _missing(console: ProgressConsole, archives: Sequence[ImageArchive], name: str) -> list[ImageArchive]:
    """The archives of which the node lacks an image."""
    loaded, found = _loaded(name), []
    for archive in archives:
        if archive.images and all(loaded.get(ref) == digest for ref, digest in archive.images.items()):
            with console.step(f"{name}: {', '.join(archive.images)}") as step:
                step.note = "already there"
        else:
            found.append(archive)
    return found


def _bundled(archives: Sequence[ImageArchive], target: Path) -> list[ImageArchive]:
    """The same images in as few archives as possible, so that shared layers are imported into a node once."""
    together = [archive for archive in archives if archive.docker]
    if len(together) < 2:
        return list(archives)
    bundle([archive.path for archive in together], target)
    images = {reference: digest for archive in together for reference, digest in archive.images.items()}
    return [ImageArchive(target, images, docker=True), *(archive for archive in archives if not archive.docker)]


def bundle(paths: Sequence[Path], target: Path) -> None:
    """Write one docker-archive with the images of several archives, and each layer once."""
    listing: list[Any] = []
    written: set[str] = set()
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as made:
        for path in paths:
            with tarfile.open(path) as source:
                members = {member.name.removeprefix("./"): member for member in source}
                stream = source.extractfile(members["manifest.json"])
                assert stream is not None  # inspected before
                for image in json.load(stream):
                    names = {name: _own_name(name, image["Config"]) for name in (image["Config"], *image["Layers"])}
                    for name, own in names.items():
                        if own in written:
                            continue
                        written.add(own)
                        info = tarfile.TarInfo(own)
                        info.size = members[name].size
                        made.addfile(info, source.extractfile(members[name]))
                    layers = [names[name] for name in image["Layers"]]
                    listing.append({**image, "Config": names[image["Config"]], "Layers": layers})
        _add_bytes(made, "manifest.json", json.dumps(listing).encode(), 0o644)


def _own_name(name: str, config: str) -> str:
    """The name of a part in a bundle: a file named by its digest is the same in every archive."""
    return name if DIGEST.search(name) else f"{Path(config).name.removesuffix('.json')}-{name}"


def _import(console: ProgressConsole, archives: Sequence[ImageArchive], name: str) -> None:
    loaded = _loaded(name)
    for archive in archives:
        count = len(archive.images)
        title = f"{count} images" if count > 3 else ", ".join(archive.images) or archive.path.name
        with console.step(f"{name}: {title}"):
            # containerd makes no reference by id for a name that it knows already, and pods need that one.
            replaced = [ref for ref, digest in archive.images.items() if loaded.get(ref, digest) != digest]
            if replaced:
                node.run(name, ["ctr", "--namespace=k8s.io", "images", "remove", *replaced])
            # Without --local, ctr streams the archive to the daemon, which takes twice the time.
            command = ["ctr", "--namespace=k8s.io", "images", "import", "--local", "-"]
            done = node.run(name, command, stdin=archive.path)
            if done.returncode != 0:
                raise ClusterError(
                    f"{name} did not import {archive.path}: {done.stderr.strip()[-400:]}",
                    remedy=f"see 'python -m cluster logs {name}-containerd'",
                )
            loaded.update(archive.images)
            _loaded_file(name).write_text(json.dumps(loaded))


def pause_archive() -> Path:
    """Build the pause image into the cache, unless it is there. Errors: ClusterError when the compiler fails."""
    source = PAUSE_SOURCE.read_bytes()
    path = CACHE / f"pause-{hashlib.sha256(source + PAUSE_IMAGE.encode()).hexdigest()[:10]}.tar"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    binary = path.with_suffix(".bin")
    command: list[str | Path] = ["musl-gcc", "-Os", "-static", "-s", "-Wall", "-Werror", "-o", binary, PAUSE_SOURCE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"musl-gcc cannot build pause: {done.stderr.strip()}", remedy="run 'python -m cluster deps'")
    temporary = path.with_suffix(".new")
    temporary.write_bytes(single_file_archive(PAUSE_IMAGE, "pause", binary.read_bytes()))
    temporary.rename(path)
    binary.unlink()
    return path


def program_archive(name: str) -> tuple[str, Path]:
    """The reference and the archive of an image that contains and runs one of the cluster's programs.

    Errors: ClusterError when the program is not built.
    """
    program = binaries.program(name)
    # The folder's name ends with the hash of the program's inputs; the archive also depends on this file.
    recipe = f"{program.resolve().parent.name} {Path(__file__).read_text()}"
    tag = hashlib.sha256(recipe.encode()).hexdigest()[:10]
    reference = f"hyperlet.local/{name}:{tag}"
    archive = CACHE / "images" / f"cluster-{name}-{tag}.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        draft = archive.with_suffix(".new")
        draft.write_bytes(single_file_archive(reference, name, program.read_bytes()))
        draft.rename(archive)
    return reference, archive


def single_file_archive(reference: str, name: str, content: bytes, *, user: str = "65535:65535") -> bytes:
    """A docker-archive of an image that contains and runs one executable. The same input gives the same bytes."""
    layer = _tar({name: (content, 0o755)})
    digest = hashlib.sha256(layer).hexdigest()
    config, config_name = _config({"Entrypoint": [f"/{name}"], "User": user}, digest, f"one file: {name}")
    manifest = _manifest(reference, config_name)
    return _tar({"manifest.json": (manifest, 0o644), config_name: (config, 0o644), LAYER: (layer, 0o644)})


def programs_archive(reference: str, programs: Sequence[Path], target: Path) -> None:
    """Write the docker-archive of an image with these programs in its root. The same input gives the same bytes.

    The programs may be large, so they are not read into memory.
    """
    layer, draft = target.with_suffix(".layer"), target.with_suffix(".new")
    with tarfile.open(layer, "w", format=tarfile.USTAR_FORMAT) as tar:
        for program in programs:
            _add_file(tar, program, program.name, 0o755)
    with layer.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    config, name = _config({}, digest, f"programs: {', '.join(program.name for program in programs)}")
    with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in (("manifest.json", _manifest(reference, name)), (name, config)):
            _add_bytes(tar, member, content, 0o644)
        _add_file(tar, layer, LAYER, 0o644)
    layer.unlink()
    draft.rename(target)


def _config(config: dict[str, Any], layer: str, created_by: str) -> tuple[bytes, str]:
    """An image's configuration for one layer with that SHA-256, and the name of its file."""
    text = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
            "history": [{"created_by": created_by}],
        }
    ).encode()
    return text, f"{hashlib.sha256(text).hexdigest()}.json"


def _manifest(reference: str, config_name: str) -> bytes:
    return json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": [LAYER]}]).encode()


def _add_file(tar: tarfile.TarFile, path: Path, name: str, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = path.stat().st_size, mode
    with path.open("rb") as stream:
        tar.addfile(info, stream)


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, (content, mode) in files.items():
            _add_bytes(tar, name, content, mode)
    return buffer.getvalue()


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
