"""Memory of launcher pods without QEMU, of controller and handlers, and memory overhead of guests' pods."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import objects, processes
from bench.delete import guest_ready
from bench.figures import BenchResult, Cell, Figure, FigureTable
from bench.options import BenchOptions
from bench.session import Session, say

MIB = 1 << 20
CROWD = 20
ROUNDS = 3
SETTLE_SECONDS = 10.0
"""Delay after Running, until allocators and libvirt's capability probing have settled."""

ALONE_TARGET, ALONE_BASELINE = 64.0, 102.0
CROWD_TARGET, CROWD_BASELINE = 42.0, 61.0
CNI = "CNI daemon"
SERVICE_TARGETS = {"controller": 90.0, "handler": 90.0, CNI: 40.0}
SERVICE_BASELINE = {"controller": 123.0, "handler": 134.0}
CROWD_SERVICE_BASELINE = {"controller": 127.0, "handler": 151.0}
REQUEST_BASELINE = 172.0

PAUSE = "pause"
OVER = "pod over"
"""Milestone to wait for: a pod without processes uses no memory, even if its object still exists."""


@dataclass(frozen=True)
class PodMemory:
    """PSS of a launcher pod's processes in bytes, by label."""

    pss: dict[str, int]

    @property
    def beyond_qemu(self) -> int:
        """PSS of all processes but QEMU."""
        return sum(size for name, size in self.pss.items() if not name.startswith("qemu-"))


@dataclass(frozen=True)
class Overhead:
    """One guest's memory in bytes. `resident`: touched guest memory; `requested`: the pod's memory request."""

    case: str
    guest: int
    resident: int
    working: int
    pss: int
    kernel: int
    requested: int

    @property
    def measured(self) -> int:
        """The overhead beyond the guest's memory: the larger of two measurements.

        The kernel charges a shared page to the cgroup that touched it first, so the cgroup's usage may be too low; PSS
        covers mapped pages, but not kernel memory.
        """
        return max(self.working, self.pss + self.kernel) - self.resident


@dataclass
class MemorySample:
    """All measurements."""

    alone: list[PodMemory] = field(default_factory=list)
    crowd: list[PodMemory] = field(default_factory=list)
    services: dict[str, dict[str, int]] = field(default_factory=dict)
    """"idle" and "with <n> VMIs" → pod → RSS of its processes, bytes."""
    overheads: list[Overhead] = field(default_factory=list)
    guests: int = 0
    """Number of guests in the crowd."""


@dataclass(frozen=True)
class Case:
    """A guest whose overhead is measured: arguments of `objects.vmi`."""

    label: str
    memory: str = "64Mi"
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("halt, 1 vCPU"),
    Case("halt, 1 vCPU", "256Mi"),
    Case("halt, 1 vCPU", "1Gi"),
    Case("halt, 2 vCPUs", options={"cores": 2}),
    Case("halt, 4 vCPUs", options={"cores": 4}),
    Case("halt, no NIC", options={"nic": False}),
    Case("halt, no disk", options={"image": None}),
    Case("halt, no graphics", options={"graphics": False}),
    Case("halt, cloud-init", options={"cloud_init": True}),
    Case("halt, 4 more disks", options={"empty_disks": 4}),
    Case("Linux, 1 vCPU", "128Mi", {"image": objects.TINY}),
    Case("Linux, 1 vCPU", "512Mi", {"image": objects.TINY}),
    Case("Linux, 2 vCPUs", "512Mi", {"image": objects.TINY, "cores": 2}),
)

_FACTORS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 10**3, "M": 10**6, "G": 10**9}


def quantity(text: str) -> int:
    """Bytes of a memory quantity such as "64Mi". Raises ValueError if it is not one."""
    found = re.fullmatch(r"(\d+)(|[KMG]i|[kMG])", text)
    if not found:
        raise ValueError(f"{text!r} is not an amount of memory")
    return int(found[1]) * _FACTORS[found[2]]


def requested(pod: objects.Object) -> int:
    """Bytes of memory that a pod's containers request."""
    requests = (c.get("resources", {}).get("requests", {}) for c in pod["spec"]["containers"])
    return sum(quantity(request.get("memory", "0")) for request in requests)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean. Raises ZeroDivisionError for an empty sequence."""
    return sum(values) / len(values)


def analyse(sample: MemorySample) -> BenchResult:
    """Means over pods in MiB; for services the largest pod. Pure."""
    result = BenchResult("memory")
    for pods, words, target, baseline in (
        (sample.alone, "alone on the node", ALONE_TARGET, ALONE_BASELINE),
        (sample.crowd, f"{sample.guests} on the node", CROWD_TARGET, CROWD_BASELINE),
    ):
        if pods:
            # Fewer guests share fewer pages, so the target does not apply to a quick run.
            judged = target if pods is sample.alone or sample.guests >= CROWD else None
            used = mean([pod.beyond_qemu for pod in pods]) / MIB
            result.figures.append(Figure(f"launcher pod beyond QEMU, {words}", used, "MiB PSS", judged, baseline))
            result.tables.append(_by_process(pods, words))
    result.figures += _services(sample)
    if sample.overheads:
        extra = max(o.requested - o.guest for o in sample.overheads[:1]) / MIB
        result.figures.append(Figure("requested beyond 64 MiB guest memory", extra, "MiB", None, REQUEST_BASELINE))
        result.tables.append(_overheads(sample.overheads))
    result.samples = {
        "alone": [pod.pss for pod in sample.alone],
        "crowd": [pod.pss for pod in sample.crowd],
        "services": sample.services,
    }
    return result


def _services(sample: MemorySample) -> list[Figure]:
    figures = []
    for when, pods in sample.services.items():
        for role, target in SERVICE_TARGETS.items():
            sizes = [size for name, size in pods.items() if role in name and (role == CNI or CNI not in name)]
            if sizes:
                idle = when == "idle"
                baseline = (SERVICE_BASELINE if idle else CROWD_SERVICE_BASELINE).get(role)
                label = f"{role}, {when}" + (", the largest" if len(sizes) > 1 else "")
                figures.append(Figure(label, max(sizes) / MIB, "MiB RSS", target if idle else None, baseline))
    return figures


def _by_process(pods: Sequence[PodMemory], words: str) -> FigureTable:
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    for pod in pods:
        for name, size in pod.pss.items():
            sizes[name].append(size)
    ordered = sorted(sizes, key=lambda name: -sum(sizes[name]))
    rows: list[list[Cell]] = [
        [name, sum(sizes[name]) / len(pods) / MIB, min(sizes[name]) / MIB, max(sizes[name]) / MIB] for name in ordered
    ]
    title = f"PSS by process, {words} ({len(pods)} pods)"
    return FigureTable(title, ["process", "mean, MiB", "smallest", "largest"], rows)


def _overheads(overheads: Sequence[Overhead]) -> FigureTable:
    rows: list[list[Cell]] = []
    for o in overheads:
        spare = o.requested - o.guest - o.measured
        sizes = (o.resident, o.working, o.pss, o.kernel, o.measured, o.requested - o.guest, spare)
        rows.append([o.case, o.guest // MIB, *(size / MIB for size in sizes)])
    header = ["guest", "memory", "touched", "cgroup", "PSS", "kernel", "overhead", "requested", "spare"]
    return FigureTable("What a guest costs its pod beyond the memory it touched, MiB", header, rows)


def run(session: Session, options: BenchOptions) -> BenchResult:
    """Measures idle services, a single guest on a node, different guests, and many guests on that node."""
    session.launcher()
    taken = {vmi.get("status", {}).get("nodeName") for vmi in session.foreign()}
    nodes = session.nodes()
    free = [node for node in nodes if node not in taken]
    node = (free or nodes)[0]
    sample = MemorySample(guests=5 if options.quick else CROWD)
    time.sleep(SETTLE_SECONDS)
    sample.services["idle"] = services(session)
    for _ in range(options.rounds(ROUNDS)):
        with session.running([objects.vmi(session.name("alone"), node=node)], OVER) as names:
            time.sleep(SETTLE_SECONDS)
            sample.alone.append(pod_memory(session, names[0]))
    for case in CASES[:2] if options.quick else CASES:
        cost = overhead(session, case, node)
        sample.overheads.append(cost)
        say(f"memory: {case.label}, {case.memory}: {cost.measured / MIB:.1f} MiB beyond the guest's memory")
    crowd = [objects.vmi(session.name("crowd"), node=node) for _ in range(sample.guests)]
    with session.running(crowd, OVER) as names:
        time.sleep(SETTLE_SECONDS)
        sample.crowd = [pod_memory(session, name) for name in names]
        sample.services[f"with {sample.guests} VMIs"] = services(session)
    result = analyse(sample)
    if not free:
        result.notes.append('every node had other virtual machines: "alone on the node" was not alone')
    result.notes.append(f"measured {SETTLE_SECONDS:.0f} s after Running, on {node}")
    return result


def services(session: Session) -> dict[str, int]:
    """RSS in bytes of every controller and handler pod without pause; CNI daemons are listed separately."""
    found: dict[str, int] = {}
    running = processes.everything()
    for role in ("controller", "handler"):
        for pod in session.system_pods(role):
            own = [p for p in running if p.pod == pod["metadata"]["uid"] and p.label != PAUSE]
            name = pod["metadata"]["name"]
            found[name] = sum(processes.rss(p.pid) for p in own if p.label != "cni")
            if daemons := [p for p in own if p.label == "cni"]:
                found[f"{CNI} of {name}"] = sum(processes.rss(p.pid) for p in daemons)
    return found


def pod_memory(session: Session, name: str) -> PodMemory:
    """PSS of the processes of a VMI's pod, summed by label."""
    sizes: defaultdict[str, int] = defaultdict(int)
    for process in processes.of_pod(session.pod(name)["metadata"]["uid"]):
        sizes[process.label] += processes.pss(process.pid)
    return PodMemory(dict(sizes))


def overhead(session: Session, case: Case, node: str) -> Overhead:
    """Run one guest of a case and measure its pod."""
    made = objects.vmi(session.name("cost"), memory=case.memory, node=node, **case.options)
    guest = quantity(case.memory)
    with session.running([made], OVER) as names:
        if case.options.get("image") == objects.TINY:
            guest_ready(session, names[0])
        time.sleep(SETTLE_SECONDS)
        pod = session.pod(names[0])
        members = processes.of_pod(pod["metadata"]["uid"])
        qemu = next(process for process in members if process.is_qemu)
        smaps = (processes.PROC / str(qemu.pid) / "smaps").read_text()
        group = processes.charged(processes.memory_cgroup(qemu.cgroup))
        return Overhead(
            case.label, guest, processes.guest_ram_resident(smaps, guest), group.working,
            sum(processes.pss(process.pid) for process in members), group.kernel, requested(pod),
        )  # fmt: skip
