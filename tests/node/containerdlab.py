"""A real containerd in a directory of its own, images made on the spot, and a registry of a few lines."""

import gzip
import hashlib
import io
import json
import pathlib
import subprocess
import tarfile
import time
from collections.abc import Mapping

from aiohttp import web

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = """
version = 2
root = "{0}/root"
state = "{0}/state"
[grpc]
  address = "{0}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_tcp_service = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{0}/cni"
    conf_dir = "{0}/cni.d"
"""


class Daemon:
    """containerd, until `close`."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.socket = str(directory / "containerd.sock")
        config = directory / "config.toml"
        config.write_text(CONFIG.format(directory))
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            ["containerd", "--config", str(config), "--log-level", "warn"], stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + 30
        while subprocess.run(["ctr", "-a", self.socket, "version"], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((directory / "log").read_text())
            time.sleep(0.05)

    def ctr(self, *arguments: str) -> str:
        """Runs ctr in CRI's namespace."""
        done = subprocess.run(
            ["ctr", "-a", self.socket, "-n", "k8s.io", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"ctr {arguments}: {done.stderr}")
        return done.stdout

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


class Image:
    """An OCI image of some layers, each a mapping of file names to contents."""

    def __init__(self, *layers: Mapping[str, bytes]) -> None:
        self.blobs: dict[str, bytes] = {}
        diffs, descriptors = [], []
        for files in layers:
            archive = _tar(files)
            diffs.append(_digest(archive))
            packed = gzip.compress(archive, mtime=0)
            descriptors.append(self._blob("application/vnd.oci.image.layer.v1.tar+gzip", packed))
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diffs}, "config": {}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "layers": descriptors,
            "config": self._blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode()),
        }
        self.manifest = json.dumps(manifest).encode()
        self._blob(MANIFEST, self.manifest)

    def _blob(self, kind: str, data: bytes) -> dict[str, object]:
        digest = _digest(data)
        self.blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def archive(self, path: pathlib.Path, name: str) -> pathlib.Path:
        """Writes an OCI archive for `ctr images import`."""
        index = {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": MANIFEST,
                    "digest": _digest(self.manifest),
                    "size": len(self.manifest),
                    "annotations": {"io.containerd.image.name": name},
                }
            ],
        }
        files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
        files |= {f"blobs/sha256/{digest.removeprefix('sha256:')}": data for digest, data in self.blobs.items()}
        path.write_bytes(_tar(files))
        return path


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uid, entry.gid = len(data), 0o644, 107, 107
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class Registry:
    """Serves images over HTTP on the loopback, as the OCI distribution specification has it."""

    def __init__(self) -> None:
        self.images: dict[str, Image] = {}
        self.pulls = 0
        self.requests = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v2/", self._hello)
        app.router.add_get("/v2/{name}/manifests/{tag}", self._manifest)
        app.router.add_get("/v2/{name}/blobs/{digest}", self._blob)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.host = f"localhost:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _hello(self, request: web.Request) -> web.Response:
        return web.Response(text="{}")

    async def _manifest(self, request: web.Request) -> web.Response:
        self.requests += 1
        if request.method != "HEAD":
            self.pulls += 1
        image = self.images.get(request.match_info["name"])
        if image is None:
            return web.Response(status=404)
        return web.Response(
            body=image.manifest, headers={"Content-Type": MANIFEST, "Docker-Content-Digest": _digest(image.manifest)}
        )

    async def _blob(self, request: web.Request) -> web.Response:
        image = self.images[request.match_info["name"]]
        return web.Response(body=image.blobs[request.match_info["digest"]])
