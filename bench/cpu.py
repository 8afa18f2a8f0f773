"""CPU time per created VMI: controller, handlers, and the whole machine by program."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from bench import objects, processes
from bench.figures import BenchResult, Cell, Figure, FigureTable
from bench.options import BenchOptions
from bench.session import Session, say

GUESTS = 10
IDLE_SECONDS = 20.0
SETTLE_SECONDS = 2.0
HANDLER_BASELINE, MACHINE_BASELINE = 0.14, 1.8
SMALLEST_SHOWN = 0.005


@dataclass(frozen=True)
class CpuSnapshot:
    """CPU seconds so far. `roles` includes reaped children; `programs` is by pid."""

    at: float
    machine: float
    roles: Mapping[str, float]
    programs: Mapping[int, tuple[str, float]]


@dataclass(frozen=True)
class Spent:
    """CPU seconds between two snapshots."""

    seconds: float
    machine: float
    roles: Mapping[str, float]
    programs: Mapping[str, float]


def spent(before: CpuSnapshot, after: CpuSnapshot) -> Spent:
    """The difference of two snapshots. New processes count fully, ended ones not at all. Pure."""
    programs: defaultdict[str, float] = defaultdict(float)
    for pid, (name, seconds) in after.programs.items():
        old = before.programs.get(pid, ("", 0.0))[1]
        # Less CPU time than before: the pid has been reused.
        programs[name] += seconds - (old if seconds >= old else 0.0)
    roles = {role: seconds - before.roles.get(role, 0.0) for role, seconds in after.roles.items()}
    return Spent(after.at - before.at, after.machine - before.machine, roles, dict(programs))


def analyse(idle: Spent, work: Spent, guests: int) -> BenchResult:
    """CPU seconds per guest, minus the idle load. Pure."""
    scale = work.seconds / idle.seconds

    def each(worked: float, idled: float) -> float:
        return (worked - idled * scale) / guests

    result = BenchResult("cpu")
    for role, seconds in sorted(work.roles.items()):
        baseline = HANDLER_BASELINE if role == "handler" else None
        result.figures.append(
            Figure(f"{role}, for each VMI created", each(seconds, idle.roles.get(role, 0.0)), "CPU s", None, baseline)
        )
    result.figures.append(
        Figure("whole machine, for each VMI created", each(work.machine, idle.machine), "CPU s", None, MACHINE_BASELINE)
    )
    for role, seconds in sorted(idle.roles.items()):
        result.figures.append(Figure(f"{role}, idle", 100 * seconds / idle.seconds, "% of a CPU"))
    result.figures.append(Figure("whole machine, idle", 100 * idle.machine / idle.seconds, "% of a CPU"))
    programs = {name: each(seconds, idle.programs.get(name, 0.0)) for name, seconds in work.programs.items()}
    rest = each(work.machine, idle.machine) - sum(programs.values())
    rows: list[list[Cell]] = [
        [name, seconds]
        for name, seconds in sorted(programs.items(), key=lambda item: -item[1])
        if abs(seconds) >= SMALLEST_SHOWN
    ]
    rows.append(["(programs that ended meanwhile, interrupts, rounding)", rest])
    result.tables = [
        FigureTable(f"CPU seconds for each of {guests} VMIs created, by program", ["program", "CPU s"], rows)
    ]
    result.notes.append("the benchmark's own watches and requests are included in the whole machine")
    return result


def run(session: Session, options: BenchOptions) -> BenchResult:
    """Measures an idle period, then the concurrent creation of guests until all are Running."""
    session.launcher()
    guests = 3 if options.quick else GUESTS
    time.sleep(SETTLE_SECONDS * 2)
    first = snapshot(session)
    time.sleep(5.0 if options.quick else IDLE_SECONDS)
    before = snapshot(session)
    with session.running(objects.vmi(session.name("cpu")) for _ in range(guests)):
        time.sleep(SETTLE_SECONDS)
        after = snapshot(session)
    say(f"cpu: {guests} VMIs ran after {after.at - before.at - SETTLE_SECONDS:.1f} s")
    return analyse(spent(first, before), spent(before, after), guests)


def snapshot(session: Session) -> CpuSnapshot:
    """The current CPU times."""
    roles = {pod["metadata"]["uid"]: role for role in ("controller", "handler") for pod in session.system_pods(role)}
    sums = dict.fromkeys(roles.values(), 0.0)
    programs = {}
    for process in processes.everything():
        role = roles.get(process.pod)
        if role:
            sums[role] += processes.cpu_seconds(process.pid, children=True)
        name = role or (f"launcher: {process.label}" if process.pod else process.label)
        programs[process.pid] = (name, processes.cpu_seconds(process.pid))
    return CpuSnapshot(time.monotonic(), processes.machine_seconds(), sums, programs)
