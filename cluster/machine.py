"""Changes to the machine outside the cluster's namespaces: control groups and a few sysctls.

`restore_sysctls` and `remove` revert all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from cluster.console import ClusterError

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC_SYS = Path("/proc/sys")

SYSCTLS = (
    # kubelet sets these when it starts (container manager, "protect kernel defaults")
    "vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes",
    # raised here: two kubelets, two containerds and many libvirtds share one user's limit
    "fs.inotify.max_user_instances", "fs.inotify.max_user_watches",
)  # fmt: skip

NEEDED_CONTROLLERS = {"cpu", "cpuset", "memory", "pids"}

MODULES = (
    "overlay", "bridge", "br_netfilter", "veth", "nf_tables", "nft_compat", "nf_conntrack", "nf_nat",
    "ip_tables", "iptable_nat", "iptable_filter", "xt_comment", "xt_mark", "xt_conntrack", "xt_addrtype",
    "tun", "fuse", "vhost_net", "vhost_vsock", "kvm_intel", "kvm_amd",
)  # fmt: skip

RAISED = {"fs.inotify.max_user_instances": 2048, "fs.inotify.max_user_watches": 524288}


def _sysctl_path(name: str) -> Path:
    return PROC_SYS / name.replace(".", "/")


def save_sysctls(saved: Path) -> None:
    """Write the present values to a file, unless it exists: then a cluster runs, and the file has the original ones."""
    if saved.exists():
        return
    values = {}
    for name in SYSCTLS:
        with contextlib.suppress(OSError):
            values[name] = _sysctl_path(name).read_text().strip()
    temporary = saved.with_suffix(".new")
    temporary.write_text(json.dumps(values, indent=1))
    temporary.rename(saved)


def raise_sysctls() -> None:
    """Raise the limits of RAISED that are lower now."""
    for name, value in RAISED.items():
        with contextlib.suppress(OSError, ValueError):
            path = _sysctl_path(name)
            if int(path.read_text()) < value:
                path.write_text(str(value))


def restore_sysctls(saved: Path) -> list[str]:
    """Restore the saved values, delete the file, and return the names of those that had changed."""
    try:
        values: dict[str, str] = json.loads(saved.read_text())
    except (OSError, ValueError):
        return []
    changed = []
    for name, value in values.items():
        path = _sysctl_path(name)
        with contextlib.suppress(OSError):
            if path.read_text().strip() != value:
                path.write_text(value)
                changed.append(name)
    saved.unlink()
    return changed


def parse_hierarchies(text: str) -> list[str]:
    """The v1 hierarchies from /proc/self/cgroup, as their mount options: "cpu,cpuacct", "memory", "name=systemd"."""
    return [name for _, name, _ in (line.split(":", 2) for line in text.splitlines()) if name]


def is_unified() -> bool:
    """Whether this machine has control groups of version 2 only."""
    return (CGROUP_ROOT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """Mount points of a node's control group hierarchies; a single one where they are unified.

    Errors: ClusterError where the kernel lacks a controller that kubelet needs.
    """
    if is_unified():
        controllers = set((CGROUP_ROOT / "cgroup.controllers").read_text().split())
        if lacking := NEEDED_CONTROLLERS - controllers:
            raise ClusterError(
                f"this machine's control groups lack {', '.join(sorted(lacking))}",
                remedy="enable them (kernel command line: cgroup_enable=memory), or run on another machine",
            )
        return [CGROUP_ROOT]
    found = []
    for name in parse_hierarchies(Path("/proc/self/cgroup").read_text()):
        path = CGROUP_ROOT / name.removeprefix("name=")
        if path.is_dir():
            found.append(path)
    if not any(path.name == "memory" for path in found):
        raise ClusterError(
            "no control groups are mounted below /sys/fs/cgroup",
            remedy="mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )
    return found


def make(group: str) -> list[Path]:
    """Create a control group (a path like "prefix/node1") in every hierarchy and return its directories."""
    made = []
    for top in hierarchies():
        path = top
        for part in group.split("/"):
            if is_unified():
                _delegate(path)
            path = path / part
            path.mkdir(exist_ok=True)
            for name in () if is_unified() else ("cpuset.cpus", "cpuset.mems"):
                # A new cpuset is empty, and no process can enter an empty one.
                if (path / name).exists() and not (path / name).read_text().strip():
                    (path / name).write_text((path.parent / name).read_text())
        made.append(path)
    return made


def _delegate(path: Path) -> None:
    """Enable every controller of a version 2 group for its children."""
    for controller in (path / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (path / "cgroup.subtree_control").write_text(f"+{controller}")


def move(pid: int, group: str) -> None:
    """Create a control group and move a process into it."""
    for path in make(group):
        (path / "cgroup.procs").write_text(str(pid))


def load_modules() -> None:
    """Load the kernel modules that are not loaded automatically inside a namespace, unless they are built in."""
    if not (PROC_SYS / "net/bridge").exists() and shutil.which("modprobe"):
        subprocess.run(["modprobe", "--all", "--quiet", *MODULES], check=False)


def _tree(group: str) -> Iterator[Path]:
    """Every directory of a control group, the deepest first."""
    if not CGROUP_ROOT.is_dir():
        return
    for top in (CGROUP_ROOT, *CGROUP_ROOT.iterdir()):
        if (top / group).is_dir():
            for folder, _, _ in os.walk(top / group, topdown=False):
                yield Path(folder)


def members(group: str) -> set[int]:
    """Pids of all processes in a control group and below it."""
    pids: set[int] = set()
    for folder in _tree(group):
        with contextlib.suppress(OSError, ValueError):
            pids.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
    pids.discard(0)
    return pids


def kill_members(group: str, *, patience: float = 10.0) -> int:
    """SIGKILL everything in a control group until it is empty; returns the number of processes."""
    end = time.monotonic() + patience
    seen: set[int] = set()
    while pids := members(group):
        seen |= pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            raise ClusterError(f"control group {group}: {len(pids)} processes could not be killed: {sorted(pids)[:8]}")
        time.sleep(0.02)
    return len(seen)


def remove(groups: Iterable[str], *, patience: float = 10.0) -> None:
    """Remove control groups and all below them. Errors: ClusterError when one stays busy."""
    for group in groups:
        end = time.monotonic() + patience
        while busy := [path for path in _tree(group) if not _rmdir(path)]:
            if time.monotonic() > end:
                raise ClusterError(
                    f"the control group {busy[0]} stays busy", remedy="run 'python -m cluster down' again"
                )
            time.sleep(0.05)


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
