"""Builds the Kubernetes server binaries from Debian's source package into the cache.

Debian ships no kube-apiserver, only the source. Two repairs are needed to build that source with the Go of the same
release (see PATCHES and `_replace_reflect2`). The result is kept under a key that is the hash of the whole recipe.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.console import Console, Problem
from cluster.paths import CACHE, private_dir

SOURCE_PACKAGE = "kubernetes"
SUITE = "bookworm"
"""The newest Debian release whose source package holds the servers; later ones build only kubectl."""

VERSION = "1.20.2"
BINARIES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
TAGS = "providerless dockerless"
REFLECT2 = Path("/usr/share/gocode/src/github.com/modern-go/reflect2")
"""Where golang-github-modern-go-reflect2-dev puts its files."""

_ZERO_VALUE_TEST = "if data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data)) {"
_NIL_TEST = "if data == nil {"

PATCHES: dict[str, tuple[str, str]] = {
    # Since Go 1.19 DeepEqual looks into reflect.Value, so that "" counts as null and is refused in every typed field.
    "vendor/github.com/go-openapi/validate/type.go": (_ZERO_VALUE_TEST, _NIL_TEST),
    "vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go": (_ZERO_VALUE_TEST, _NIL_TEST),
}


def key() -> str:
    """Names the result: the version and a hash of everything that decides what comes out."""
    recipe = repr((VERSION, SUITE, BINARIES, TAGS, sorted(PATCHES.items()), ldflags(), "reflect2 from Debian"))
    return f"kubernetes-{VERSION}-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"


def bin_dir() -> Path:
    """The folder with the built binaries (it need not exist yet)."""
    return CACHE / key() / "bin"


def is_built() -> bool:
    """Whether every binary of the current recipe is in the cache."""
    return all((bin_dir() / name).exists() for name in BINARIES)


def ldflags() -> str:
    """Linker flags: no symbols, and the version the servers report."""
    major, minor, _ = VERSION.split(".")
    values = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "archive"}
    vendor = "k8s.io/kubernetes/vendor/k8s.io"
    packages = (f"{vendor}/component-base/version", f"{vendor}/client-go/pkg/version")
    settings = (f"-X {package}.{name}={value}" for package in packages for name, value in values.items())
    return " ".join(["-s -w", *settings])


def build(console: Console) -> Path:
    """Make sure that the binaries exist and return their folder.

    Errors: Problem when a step fails; the work folder and its log stay for a look.
    """
    if is_built():
        with console.step("Kubernetes binaries") as step:
            step.note = f"{VERSION}, in the cache"
        return bin_dir()
    work = private_dir(CACHE / f"{key()}.work")
    log = work / "build.log"
    log.unlink(missing_ok=True)
    with console.step("Kubernetes source") as step:
        tree = _source(work, log)
        step.note = _unpacked_version(work)
    with console.step("Kubernetes: repairs for this Go"):
        apply_patches(tree)
        _replace_reflect2(tree)
    with console.step("Kubernetes: generated OpenAPI"):
        _openapi(work, tree, log)
    with console.step("Kubernetes: go build (2 to 4 minutes)") as step:
        built = _compile(work, tree, log)
        step.note = f"{sum(f.stat().st_size for f in built.iterdir()) >> 20} MiB"
    # The rename comes last: whoever sees the folder sees all of it.
    final = bin_dir()
    shutil.rmtree(final.parent, ignore_errors=True)
    final.parent.mkdir(parents=True)
    built.rename(final)
    shutil.rmtree(work, ignore_errors=True)
    return final


def _run(command: Sequence[str | Path], log: Path, *, cwd: Path, env: dict[str, str] | None = None) -> None:
    """Run a command with its output in the log."""
    with log.open("ab") as stream:
        stream.write(f"$ {' '.join(map(str, command))[:400]}\n".encode())
        stream.flush()
        done = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    if done.returncode != 0:
        raise Problem(
            f"{command[0]} ended with status {done.returncode} while building Kubernetes",
            log=log,
            remedy="run 'python -m cluster deps', then 'python -m cluster build' again",
        )


def archive_addresses(targets: Iterable[str], suite: str) -> str | None:
    """The machine's own Debian archive out of `apt-get indextargets` lines of the form ORIGIN|CODENAME|URI."""
    found = None
    for line in targets:
        origin, codename, uri = line.split("|")[:3]
        if origin == "Debian" and (codename == suite or found is None) and "security" not in uri:
            found = uri
            if codename == suite:
                break
    return found


def _source(work: Path, log: Path) -> Path:
    """Fetch and unpack the source package with an apt configuration of our own: the machine's stays as it is."""
    tree = work / "go" / "src" / "k8s.io" / "kubernetes"
    shutil.rmtree(work / "go", ignore_errors=True)
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(CODENAME)|$(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    uri = archive_addresses(lines, SUITE)
    if uri is None:
        raise Problem("this machine's apt knows no Debian archive", remedy="run 'apt-get update' and try again")
    sources = work / "sources.list"
    sources.write_text(f"deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {SUITE} main\n")
    for folder in ("lists/partial", "apt-cache/archives/partial", "download"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "apt-cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    download = work / "download"
    _run([*apt, "update"], log, cwd=download)
    _run([*apt, "source", "--download-only", SOURCE_PACKAGE], log, cwd=download)
    tree.parent.mkdir(parents=True)
    description = next(download.glob("*.dsc"))
    _run(["dpkg-source", "--no-check", "-x", description, tree], log, cwd=download)
    return tree


def _unpacked_version(work: Path) -> str:
    name = next((work / "download").glob("*.dsc")).name
    found = re.search(r"really(\d+\.\d+\.\d+)", name) or re.search(r"_(\d+\.\d+\.\d+)", name)
    version = found.group(1) if found else "?"
    if version != VERSION:
        raise Problem(
            f"Debian's source package is Kubernetes {version}, the recipe is for {VERSION}",
            remedy="adjust VERSION and PATCHES in cluster/kubernetes_build.py to the new version",
        )
    return version


def apply_patches(tree: Path) -> None:
    """Apply PATCHES to an unpacked source tree.

    Errors: Problem when a place to repair is not there exactly once.
    """
    for name, (old, new) in PATCHES.items():
        path = tree / name
        text = path.read_text()
        if text.count(old) != 1:
            raise Problem(
                f"cannot repair {name}: the line to replace is there {text.count(old)} times",
                remedy="adjust PATCHES in cluster/kubernetes_build.py to the source's version",
            )
        path.write_text(text.replace(old, new))


def _replace_reflect2(tree: Path) -> None:
    """The vendored reflect2 1.0.1 relies on runtime internals that changed in Go 1.18; Debian's 1.0.2 does not."""
    if not (REFLECT2 / "reflect2.go").exists():
        raise Problem(f"{REFLECT2} is missing", remedy="run 'python -m cluster deps'")
    vendored = tree / "vendor" / "github.com" / "modern-go" / "reflect2"
    shutil.rmtree(vendored)
    shutil.copytree(REFLECT2, vendored, ignore=shutil.ignore_patterns("*_test.go", "test"))


def _go_environment(work: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(work),
        "GOPATH": str(work / "go"),
        "GOCACHE": str(work / "go-build"),
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }


def _openapi(work: Path, tree: Path, log: Path) -> None:
    """Write the one generated file that the source package lacks."""
    env = _go_environment(work)
    generator = work / "openapi-gen"
    _run(["go", "build", "-o", generator, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"], log, cwd=tree, env=env)
    command: list[str | Path] = [
        generator, "--logtostderr",
        "-i", ",".join(f"k8s.io/kubernetes/{folder}" for folder in openapi_packages(tree)),
        "-p", "k8s.io/kubernetes/pkg/generated/openapi",
        "-O", "zz_generated.openapi",
        "-h", tree / "vendor/k8s.io/code-generator/hack/boilerplate.go.txt",
        "-r", work / "violations.report",
    ]  # fmt: skip
    _run(command, log, cwd=tree, env=env)


def openapi_packages(tree: Path) -> list[str]:
    """Folders (relative to the tree) whose Go files ask for OpenAPI definitions, as the upstream makefile has them."""
    mark = re.compile(r"^// ?\+k8s:openapi-gen=", re.MULTILINE)
    vendor = tree / "vendor" / "k8s.io"
    found = set()
    for top in (tree / "pkg", tree / "cmd", tree / "plugin", *sorted(vendor.iterdir())):
        if top.name in ("code-generator", "sample-apiserver"):
            continue
        for folder, _, names in os.walk(top.resolve()):
            relative = Path(top, Path(folder).relative_to(top.resolve())).relative_to(tree)
            if any(_marked(Path(folder, n), mark) for n in names if n.endswith(".go") and not n.endswith("_test.go")):
                found.add(str(relative))
    return sorted(found)


def _marked(path: Path, mark: re.Pattern[str]) -> bool:
    return mark.search(path.read_text(errors="replace")) is not None


def _compile(work: Path, tree: Path, log: Path) -> Path:
    built = work / "bin"
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir()
    targets = [f"./cmd/{name}" for name in BINARIES]
    command = ["go", "build", "-tags", TAGS, "-ldflags", ldflags(), "-o", f"{built}/", *targets]
    _run(command, log, cwd=tree, env=_go_environment(work))
    missing = [name for name in BINARIES if not (built / name).exists()]
    if missing:
        raise Problem(f"go build made no {', '.join(missing)}", log=log)
    return built
