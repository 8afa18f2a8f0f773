"""The cluster's programs: built from two Go modules into the cache, or taken from a folder.

A group is built as a whole into its own folder, whose name contains the hash of all inputs of the build.
`HYPERLET_KUBERNETES` selects another version of Kubernetes; `HYPERLET_KUBERNETES_BIN` names a folder with existing
programs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster import toolchain
from cluster.console import ClusterError, ProgressConsole, ProgressStep
from cluster.paths import CACHE, ROOT, private_dir
from cluster.toolchain import Toolchain

VERSIONS = {"1.34": "1.34.4", "1.35": "1.35.4", "1.36": "1.36.3", "1.37": "1.37.2"}
"""The supported series of Kubernetes, oldest first, and the release of each."""

DEFAULT = "1.36"
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
"""Names of the multi-call Kubernetes program, one for each component."""

VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Group:
    """Programs that are built together. `programs`: file name → Go package, relative to the module."""

    name: str
    module: str
    programs: Mapping[str, str]
    links: tuple[str, ...] = ()
    """Other names of the first program."""
    tags: str = ""
    cgo: bool = False
    what: str = field(default="", compare=False)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file name in the group's folder."""
        return (*self.programs, *self.links)


NEARLY = 0.9
"""The share of a group's packages after which the next group may start to compile: the last ones and the linker leave
cores idle, and what both groups need is in the compiler's cache by then."""

MAIN_PROGRAM = "github.com/coredns/coredns"
"""The Go packages of the module `services` that make its main program."""

_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_CSI = "github.com/kubernetes-csi"

KUBERNETES = Group(
    "kubernetes", "kubernetes", {"kubernetes": ".", "kubectl": "./kubectl"}, COMPONENTS, what="Kubernetes"
)
CORE = Group(
    "core",
    "services",
    {
        "etcd": "go.etcd.io/etcd/server/v3",
        "containerd": f"{_CONTAINERD}/containerd",
        "containerd-shim-runc-v2": f"{_CONTAINERD}/containerd-shim-runc-v2",
        "ctr": f"{_CONTAINERD}/ctr",
    },
    tags="no_btrfs no_zfs no_devmapper",
    what="etcd, containerd",
)
EXTRAS = Group(
    "extras",
    "services",
    {
        "csi-provisioner": f"{_CSI}/external-provisioner/v6/cmd/csi-provisioner",
        "csi-attacher": f"{_CSI}/external-attacher/v4/cmd/csi-attacher",
        "csi-resizer": f"{_CSI}/external-resizer/v2/cmd/csi-resizer",
        "csi-snapshotter": f"{_CSI}/external-snapshotter/v8/cmd/csi-snapshotter",
        "snapshot-controller": f"{_CSI}/external-snapshotter/v8/cmd/snapshot-controller",
        "csi-sanity": f"{_CSI}/csi-test/v5/cmd/csi-sanity",
    },
    what="CSI sidecars",
)
DNS = Group("dns", "services", {"coredns": "."}, what="CoreDNS")
RUNC = Group("runc", "services", {"runc": "github.com/opencontainers/runc"}, tags="seccomp", cgo=True, what="runc")
GROUPS = {group.name: group for group in (KUBERNETES, CORE, DNS, EXTRAS, RUNC)}
NEEDED = (KUBERNETES, CORE)
"""The groups that an example VM needs; others are built on first use."""


def choose(names: Sequence[str]) -> list[Group]:
    """The groups of these names: `all` is every one, no name is what `up` needs. Errors: ClusterError for an unknown
    one."""
    unknown = [name for name in names if name != "all" and name not in GROUPS]
    if unknown:
        raise ClusterError(
            f"no group {unknown[0]!r} of programs", remedy=f"the groups are {', '.join(GROUPS)}, and all"
        )
    if "all" in names:
        return list(GROUPS.values())
    return [GROUPS[name] for name in names] or list(NEEDED)


def version() -> str:
    """The release of Kubernetes to run, by HYPERLET_KUBERNETES: a series (1.34) or a release (1.34.4).

    Errors: ClusterError when it is neither.
    """
    wanted = os.environ.get("HYPERLET_KUBERNETES", "").removeprefix("v") or DEFAULT
    if wanted in VERSIONS:
        return VERSIONS[wanted]
    if re.fullmatch(r"1\.\d+\.\d+", wanted):
        return wanted
    raise ClusterError(
        f"HYPERLET_KUBERNETES={wanted} is not a version of Kubernetes",
        remedy=f"set it to one of {', '.join(VERSIONS)}, or to a release such as {VERSIONS[DEFAULT]}",
    )


def release(group: Group) -> str:
    """The release of the module's main dependency, which is part of the folder's name."""
    if group is KUBERNETES:
        return version()
    package = MAIN_PROGRAM if group is DNS else next(iter(group.programs.values()))
    text = _module_file(group)
    requirements: list[tuple[str, str]] = re.findall(
        r"^(?:require\s+|\s+)(\S+/\S+) v(\S+)(?: // indirect)?$", text, re.MULTILINE
    )
    return next(number for module, number in requirements if package.startswith(module))


def module_dir(group: Group) -> Path:
    """The module's folder in the repository."""
    return ROOT / "cluster" / group.module


def _module_file(group: Group) -> str:
    return (module_dir(group) / "go.mod").read_text()


def key(group: Group, go_version: str) -> str:
    """Names the result: the release and a hash of the module's files, the Go and the flags."""
    parts = [go_version, repr(flags(group)), repr(sorted(group.programs.items()))]
    for path in sorted(path for path in module_dir(group).rglob("*") if path.is_file()):
        # The requirements of another release follow from its number.
        if path.suffix == ".go" or not is_other_release(group):
            parts.append(f"{path.name}\n{path.read_text()}")
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]
    return f"{group.name}-{release(group)}-{digest}"


def is_other_release(group: Group) -> bool:
    """Whether the group's module must be generated, for a release without a go.mod in the repository."""
    return group is KUBERNETES and version() != VERSIONS[DEFAULT]


def flags(group: Group) -> list[str]:
    """The arguments of `go build`, without output and packages."""
    linker = "-s -w"
    if group is KUBERNETES:
        major, minor, _ = version().split(".")
        values = {"gitVersion": f"v{version()}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        linker += "".join(f" -X {VERSION_PACKAGE}.{name}={value}" for name, value in values.items())
    # Do not generate what the linker would strip: that saves a seventh of the compile time.
    compiler = "all=-dwarf=false"
    return ["-trimpath", *(["-tags", group.tags] if group.tags else []), "-gcflags", compiler, "-ldflags", linker]


def needed_go(group: Group) -> toolchain.Version:
    """The Go version that the group's module requires."""
    if is_other_release(group):
        known = _other_module_file(version())
        # Until the release's own go.mod has been read: the version that compiles our main program.
        return toolchain.required(known.read_text()) if known.exists() else toolchain.required(_module_file(group))
    return toolchain.required(_module_file(group))


def given_dir(group: Group) -> Path | None:
    """The folder of HYPERLET_KUBERNETES_BIN if it has the group. Errors: ClusterError when the group is incomplete."""
    setting = os.environ.get("HYPERLET_KUBERNETES_BIN", "")
    if not setting:
        return None
    folder = Path(setting).absolute()
    # In a folder of other builds each component is a separate program.
    names = [name for name in group.files if name != KUBERNETES.name]
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        return folder
    if group is not KUBERNETES and len(missing) == len(names):
        return None
    raise ClusterError(
        f"HYPERLET_KUBERNETES_BIN={setting} lacks {', '.join(missing)}",
        remedy="put them there, or unset it to build everything",
    )


def find(group: Group) -> Path | None:
    """The folder with the group's programs, None if they are not built."""
    given = given_dir(group)
    if given is not None:
        return given
    go = toolchain.find(needed_go(group))
    if go is None:
        return None
    folder = CACHE / "binaries" / key(group, go.version)
    return folder if all((folder / name).exists() for name in group.files) else None


def folder(group: Group) -> Path:
    """The folder with the group's programs. Errors: ClusterError when they are not built."""
    found = find(group)
    if found is None:
        raise ClusterError(f"{group.what} are not built", remedy=f"run 'python -m cluster build {group.name}'")
    return found


def extras_dir() -> Path:
    """The folder with the CSI sidecars and csi-sanity. Errors: ClusterError when they are not built."""
    return folder(EXTRAS)


def program(name: str) -> Path:
    """The path of one program. Errors: ClusterError when its group is not built."""
    group = next(group for group in GROUPS.values() if name in group.files)
    return folder(group) / name


def build(
    console: ProgressConsole,
    group: Group,
    *,
    turn: Callable[[], object] | None = None,
    nearly: Callable[[], object] | None = None,
) -> Path:
    """Build a group's programs if needed and return their folder.

    `turn` is called before the compiler starts, and may wait; `nearly` when NEARLY of the packages are compiled.

    Errors: ClusterError when a step fails; the log is kept.
    """
    there = find(group)
    if there is not None:
        with console.step(group.what) as step:
            step.note = f"{release(group)}, in {'the given folder' if given_dir(group) else 'the cache'}"
        return there
    with _alone(group):
        there = find(group)
        return there if there is not None else _build(console, group, turn or _nothing, nearly or _nothing)


def _nothing() -> None:
    pass


def _build(console: ProgressConsole, group: Group, turn: Callable[[], object], nearly: Callable[[], object]) -> Path:
    log = private_dir(CACHE / "binaries") / f"{group.name}.log"
    log.unlink(missing_ok=True)
    module = module_dir(group)
    if is_other_release(group):
        module = _other_module(console, version(), log)
    go = toolchain.ensure(console, needed_go(group))
    with console.step(f"{group.what}: Go modules") as step:
        step.progress("downloading")
        _go(go, group, ["mod", "download"], module, log, "download the Go modules")
        step.note = release(group)
    final = CACHE / "binaries" / key(group, go.version)
    draft = final.with_name(f"{final.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    turn()
    with console.step(f"{group.what}: go build") as step:
        _compile(go, group, module, draft, log, step, nearly)
        step.note = f"{release(group)}, {sum(f.stat().st_size for f in draft.iterdir()) >> 20} MiB"
    for name in group.links:
        (draft / name).symlink_to(next(iter(group.programs)))
    # The rename comes last, so that the folder appears complete.
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    return final


@contextmanager
def _alone(group: Group) -> Iterator[None]:
    """Prevents two concurrent builds of the same group."""
    with (private_dir(CACHE / "binaries") / f"{group.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _go(go: Toolchain, group: Group, words: Sequence[str], module: Path, log: Path, what: str) -> str:
    """Run go(1) in a module and return its output. Errors: ClusterError that names `what`."""
    with log.open("ab") as stream:
        stream.write(f"$ go {' '.join(words)}\n".encode())
        stream.flush()
        done = subprocess.run(
            [go.go, *words],
            cwd=module,
            env=go.environment(cgo=group.cgo),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise ClusterError(
            f"could not {what} of {group.what} {release(group)} ({go.version})",
            log=log,
            remedy="check that this machine reaches a Go module proxy ('go env GOPROXY'), then run this again;\n"
            "        or set HYPERLET_KUBERNETES_BIN to a folder that has the programs",
        )
    return done.stdout


def module_source(console: ProgressConsole, group: Group, module: str) -> Path:
    """The folder with the source of a module that a group is built from, in the version of the group's go.mod.

    Errors: ClusterError when it cannot be fetched.
    """
    go = toolchain.ensure(console, needed_go(group))
    log = private_dir(CACHE / "binaries") / f"{group.name}.log"
    told = _go(go, group, ["mod", "download", "-json", module], module_dir(group), log, f"fetch the module {module}")
    return Path(json.loads(told)["Dir"])


def _compile(
    go: Toolchain,
    group: Group,
    module: Path,
    out: Path,
    log: Path,
    step: ProgressStep,
    nearly: Callable[[], object],
) -> None:
    """`go build` with progress by package. Errors: ClusterError when it fails."""
    packages = list(group.programs.values())
    tags = ["-tags", group.tags] if group.tags else []
    total = len(_go(go, group, ["list", *tags, "-deps", *packages], module, log, "list the packages").splitlines())
    done = 0
    step.progress(f"0 of {total} packages")
    for name, package in group.programs.items():
        # -v prints each package on a line when it has been compiled.
        command: list[str | Path] = [go.go, "build", "-v", *flags(group), "-o", out / name, package]
        with log.open("ab") as stream:
            stream.write(f"$ {' '.join(map(str, command))}\n".encode())
            stream.flush()
            process = subprocess.Popen(
                command,
                cwd=module,
                env=go.environment(cgo=group.cgo),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.PIPE,
            )
            assert process.stderr is not None
            for line in process.stderr:
                stream.write(line)
                done += 1
                if done >= NEARLY * total:
                    nearly()
                step.progress(f"{min(done, total)} of {total} packages")
        if process.wait() != 0:
            raise ClusterError(
                f"go build of {name} ended with status {process.returncode}",
                log=log,
                remedy=f"run 'python -m cluster build {group.name}' again; the compiler needs about 2 GiB",
            )


def _other_module_file(release_wanted: str) -> Path:
    return CACHE / "binaries" / f"kubernetes-{release_wanted}.module" / "go.mod"


def _other_module(console: ProgressConsole, release_wanted: str, log: Path) -> Path:
    """Generate the module for another release of Kubernetes: the release's own go.mod lists its parts.

    Errors: ClusterError when the module proxy does not have the release.
    """
    place = _other_module_file(release_wanted).parent
    sources = [path.relative_to(module_dir(KUBERNETES)) for path in module_dir(KUBERNETES).rglob("*.go")]
    own = module_dir(KUBERNETES)
    if (place / "go.sum").exists() and all(_same(own / name, place / name) for name in sources):
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with console.step(f"Kubernetes {release_wanted}: resolving its modules"):
        (place / "go.mod").write_text(
            f"module hyperlet.local/cluster/kubernetes\n\ngo {_go_line(_module_file(KUBERNETES))}\n"
        )
        go = toolchain.ensure(console, toolchain.required(_module_file(KUBERNETES)))
        wanted = f"k8s.io/kubernetes@v{release_wanted}"
        told = _go(go, KUBERNETES, ["mod", "download", "-json", wanted], place, log, "fetch the module")
        theirs = Path(json.loads(told)["GoMod"]).read_text()
        (place / "go.mod").write_text(other_go_mod(theirs, release_wanted))
        for name in sources:
            (place / name).parent.mkdir(exist_ok=True)
            shutil.copy(own / name, place / name)
        go = toolchain.ensure(console, toolchain.required(theirs))
        _go(go, KUBERNETES, ["mod", "tidy"], place, log, "resolve the modules")
    return place


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


def _go_line(module_file: str) -> str:
    return ".".join(map(str, toolchain.required(module_file)))


def other_go_mod(own: str, release_wanted: str) -> str:
    """Our go.mod for a release of Kubernetes, from that release's own.

    Kubernetes requires its staging modules at v0.0.0, which only its own tree can replace; they are published as
    v0.MINOR.PATCH.
    """
    parts = sorted(set(re.findall(r"^\s+(k8s\.io/\S+) v0\.0\.0$", own, re.MULTILINE)))
    published = "v0." + release_wanted.split(".", 1)[1]
    replacements = "".join(f"\t{part} => {part} {published}\n" for part in parts)
    return (
        f"module hyperlet.local/cluster/kubernetes\n\ngo {_go_line(own)}\n\n"
        f"require k8s.io/kubernetes v{release_wanted}\n\nreplace (\n{replacements})\n"
    )


def build_all(console: ProgressConsole, groups: Sequence[Group]) -> None:
    """Build groups one after the other: each uses all cores."""
    for group in groups:
        build(console, group)
