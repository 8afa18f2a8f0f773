"""Processes of pods from this machine's /proc: their pod, memory and CPU time.

The nodes of `make up` are process trees on this machine, so that all processes are visible. Parsers are pure; few
functions read files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
KERNEL = "kernel threads"
TICKS = os.sysconf("SC_CLK_TCK")
# cgroupfs writes "pod<uid>", systemd "pod<uid with underscores>.slice".
_POD = re.compile(r"pod([0-9a-f]{8}([-_])[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12})")
_RANGE = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S{4}) ")


@dataclass(frozen=True)
class MeasuredProcess:
    """One process. `pod` is the UID of its pod or empty, `cgroup` the text of /proc/<pid>/cgroup."""

    pid: int
    label: str
    pod: str
    cgroup: str

    @property
    def is_qemu(self) -> bool:
        """Whether it is a QEMU process."""
        return self.label.startswith("qemu-")


def pod_uid(cgroup: str) -> str:
    """The UID of the pod in the text of /proc/<pid>/cgroup; empty if there is none."""
    found = _POD.search(cgroup)
    return found.group(1).replace("_", "-") if found else ""


def label(argv: list[str], comm: str) -> str:
    """The label of a process: its program, or for Python the module or script it runs."""
    if not argv or not argv[0]:
        # Kernel threads have no arguments; names of workers change with their work.
        return KERNEL if comm.startswith(("kworker", "ksoftirqd", "rcu_", "migration/")) else comm
    # A program may overwrite its arguments with a title ("containerd-shim …"): take the first word.
    program = Path(argv[0].split()[0]).name
    if not re.fullmatch(r"python[\d.]*", program):
        return program
    words = argv[1:]
    while words:
        word = words.pop(0)
        if word == "-m" and words:
            return words[0]
        if word == "-c":
            return comm
        if word in ("-X", "-W") and words:
            words.pop(0)
        elif not word.startswith("-"):
            return Path(word).name
    return comm


def everything() -> list[MeasuredProcess]:
    """All processes of the machine, without those that end meanwhile."""
    found = []
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            argv = (folder / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
            comm = (folder / "comm").read_text().strip()
            cgroup = (folder / "cgroup").read_text()
        except OSError:
            continue
        found.append(MeasuredProcess(int(folder.name), label(argv, comm), pod_uid(cgroup), cgroup))
    return found


def of_pod(uid: str) -> list[MeasuredProcess]:
    """The processes of a pod, including its pause process."""
    return [process for process in everything() if process.pod == uid]


def parse_kilobytes(text: str) -> dict[str, int]:
    """The kB fields of /proc/<pid>/status or smaps_rollup, in bytes."""
    return {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def pss(pid: int) -> int:
    """Proportional set size in bytes: a page mapped by n processes counts 1/n. 0 if the process has ended."""
    try:
        return parse_kilobytes((PROC / str(pid) / "smaps_rollup").read_text()).get("Pss", 0)
    except OSError:
        return 0


def rss(pid: int) -> int:
    """Resident set size in bytes. 0 if the process has ended."""
    try:
        return parse_kilobytes((PROC / str(pid) / "status").read_text()).get("VmRSS", 0)
    except OSError:
        return 0


def guest_ram_resident(smaps: str, guest: int) -> int:
    """Resident bytes of the guest's memory, from the text of QEMU's smaps.

    Guest memory is the smallest rw- mapping of at least `guest` bytes; TCG's code buffer may be as large, but is
    executable. 0 if there is none.
    """
    best: tuple[int, int] | None = None
    for mapping in _mappings(smaps):
        permissions, fields = mapping
        size = fields.get("Size", 0)
        if permissions.startswith("rw-") and size >= guest and (best is None or size < best[0]):
            best = (size, fields.get("Rss", 0))
    return best[1] if best else 0


def _mappings(smaps: str) -> Iterable[tuple[str, dict[str, int]]]:
    permissions, lines = "", list[str]()
    for line in smaps.splitlines():
        found = _RANGE.match(line)
        if found:
            if permissions:
                yield permissions, parse_kilobytes("\n".join(lines))
            permissions, lines = found.group(1), []
        else:
            lines.append(line)
    if permissions:
        yield permissions, parse_kilobytes("\n".join(lines))


def parse_ticks(stat: str) -> tuple[int, int]:
    """Clock ticks of a process, and of its reaped children (proc(5), fields 14 to 17)."""
    fields = stat.rsplit(")", 1)[1].split()
    own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return own, children


def cpu_seconds(pid: int, children: bool = False) -> float:
    """CPU time of a process so far; with `children` including reaped ones; 0 if it has ended."""
    try:
        own, ended = parse_ticks((PROC / str(pid) / "stat").read_text())
    except OSError:
        return 0.0
    return (own + (ended if children else 0)) / TICKS


def parse_machine(stat: str) -> float:
    """Busy CPU seconds of the machine from the text of /proc/stat: all but idle and iowait."""
    user, nice, system, _idle, _wait, irq, softirq = (int(word) for word in stat.split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def machine_seconds() -> float:
    """Busy CPU seconds of the machine since boot."""
    return parse_machine((PROC / "stat").read_text())


def memory_cgroup(cgroup: str) -> str:
    """The cgroup path of a pod in the memory or unified hierarchy, from the text of /proc/<pid>/cgroup."""
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(",") or (number == "0" and _POD.search(path)):
            parts = path.split("/")
            pods = [i for i, part in enumerate(parts) if _POD.search(part)]
            if pods:
                return "/".join(parts[: pods[0] + 1])
    raise LookupError("no pod in the memory hierarchy")


@dataclass(frozen=True)
class Charged:
    """Memory charged to a pod, in bytes. `working`: usage minus inactive file pages, as the kubelet computes it."""

    working: int
    file: int
    kernel: int


def charged(path: str) -> Charged:
    """Memory charged to a cgroup (v1 or v2). Raises OSError if it does not exist."""
    old = CGROUPS / "memory" / path.lstrip("/")
    if old.is_dir():
        stat = parse_words((old / "memory.stat").read_text())
        usage = int((old / "memory.usage_in_bytes").read_text())
        kernel = old / "memory.kmem.usage_in_bytes"
        return Charged(
            usage - stat["total_inactive_file"],
            stat["total_inactive_file"] + stat["total_active_file"],
            int(kernel.read_text()) if kernel.exists() else 0,
        )
    new = CGROUPS / path.lstrip("/")
    stat = parse_words((new / "memory.stat").read_text())
    usage = int((new / "memory.current").read_text())
    return Charged(usage - stat["inactive_file"], stat["inactive_file"] + stat["active_file"], stat.get("kernel", 0))


def parse_words(text: str) -> dict[str, int]:
    """Parses lines of a name and a number."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines() if line)}
