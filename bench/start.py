"""create → Running for 1, 5 and 20 idle guests, compared with as many bare pods of the launcher's image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import objects
from bench.figures import BenchResult, Cell, Figure, FigureTable, percentile
from bench.options import BenchOptions
from bench.session import Session, say
from bench.timeline import Marks, spans

ROUNDS = {1: 8, 5: 3, 20: 3}
QUIET_SECONDS = 3.0
"""Pause between bursts, so that the teardown of one does not load the next."""

TARGETS: dict[tuple[int, str], float] = {(1, "p50"): 2.0, (20, "p95"): 11.5}
READY_TO_RUNNING: dict[int, float] = {1: 0.7, 20: 3.0}
BASELINE: dict[tuple[int, bool], tuple[float, float]] = {
    (1, True): (3.5, 3.9),
    (5, True): (6.3, 7.0),
    (10, True): (8.6, 11.0),
    (20, True): (18.2, 23.0),
    (1, False): (2.6, 2.6),
}
"""(number of guests, with containerDisk) → KubeVirt's p50 and p95 of create → Running in seconds."""

BASELINE_LAST_LEG: dict[tuple[int, bool], float] = {
    (1, True): 0.8, (1, False): 1.7, (5, True): 2.5, (10, True): 2.9, (20, True): 6.5,
}  # fmt: skip
"""KubeVirt's p50 of Scheduled → Running in seconds."""

LEGS = (
    ("create → pod created", "asked", "pod created"),
    ("pod created → scheduled", "pod created", "pod scheduled"),
    ("scheduled → containers ready", "pod scheduled", "containers ready"),
    ("containers ready → phase Scheduled", "containers ready", "Scheduled"),
    ("phase Scheduled → Running", "Scheduled", "Running"),
    ("containers ready → Running", "containers ready", "Running"),
    ("containers ready → pod Ready", "containers ready", "pod ready"),
    ("create → containers ready", "asked", "containers ready"),
    ("create → Running", "asked", "Running"),
)


@dataclass(frozen=True)
class Burst:
    """Timelines of `size` objects created at once, over all rounds: guests and bare pods."""

    size: int
    guests: Sequence[Marks]
    pods: Sequence[Marks]


def analyse(bursts: Sequence[Burst], disk: bool) -> BenchResult:
    """Percentiles over all objects of all rounds of a size, and their ratio to bare pods. Pure."""
    result = BenchResult("start" if disk else "start-no-disk")
    ratios: list[list[Cell]] = []
    for burst in bursts:
        result.figures += _figures(burst, disk)
        running, bare = spans(burst.guests, "asked", "Running"), spans(burst.pods, "asked", "pod ready")
        for percent in (50, 95):
            guest, pod = percentile(running, percent), percentile(bare, percent)
            ratios.append([burst.size, f"p{percent}", guest, pod, guest / pod])
        result.tables.append(_legs(burst))
        result.samples[str(burst.size)] = {"create to Running": running, "bare pod create to Ready": bare}
    header = ["at once", "", "VMI create → Running, s", "bare pod create → Ready, s", "ratio"]
    result.tables.insert(
        0, FigureTable("Beside bare pods of the launcher's image with its resources, in turns", header, ratios)
    )
    result.notes.append(
        '"containers ready" is the moment a bare pod would be Ready; a launcher pod has a readiness gate after it'
    )
    return result


def _figures(burst: Burst, disk: bool) -> list[Figure]:
    size = burst.size
    running = spans(burst.guests, "asked", "Running")
    last_leg = spans(burst.guests, "containers ready", "Running")
    judged = disk  # the targets are for guests with a disk
    figures = []
    for place, percent in enumerate((50, 95)):
        label = f"{size} at once: create → Running p{percent}"
        target = TARGETS.get((size, f"p{percent}")) if judged else None
        baseline = BASELINE.get((size, disk))
        figures.append(Figure(label, percentile(running, percent), "s", target, baseline[place] if baseline else None))
    target = READY_TO_RUNNING.get(size) if judged else None
    label = f"{size} at once: pod ready → Running p50"
    figures.append(Figure(label, percentile(last_leg, 50), "s", target, BASELINE_LAST_LEG.get((size, disk))))
    return figures


def _legs(burst: Burst) -> FigureTable:
    rows: list[list[Cell]] = []
    for label, begin, end in LEGS:
        samples = spans(burst.guests, begin, end)
        if samples:
            rows.append([label, percentile(samples, 50), percentile(samples, 95), max(samples), len(samples)])
    return FigureTable(
        f"Where the time goes, {burst.size} at once", ["leg", "p50, s", "p95, s", "max, s", "samples"], rows
    )


def run(session: Session, options: BenchOptions) -> BenchResult:
    """Runs guests and bare pods alternately, `rounds` times for each size."""
    launcher = session.launcher()
    bursts = []
    for size in options.sizes:
        guests: list[Marks] = []
        pods: list[Marks] = []
        for turn in range(options.rounds(ROUNDS.get(size, 3))):
            guests += burst_of_guests(session, size, options.disk)
            pods += burst_of_pods(session, size, launcher)
            last = spans(guests[-size:], "asked", "Running")
            say(f"start: {size} at once, round {turn + 1}: slowest {max(last):.2f} s")
        bursts.append(Burst(size, guests, pods))
    return analyse(bursts, options.disk)


def cleared(size: int) -> str:
    """The milestone to wait for after a burst. For a single pod its end suffices: a leftover object is no load."""
    return "pod over" if size == 1 else "pod gone"


def burst_of_guests(session: Session, size: int, disk: bool) -> list[Marks]:
    """Create `size` VMIs at once, wait until all run, delete them. Their timelines."""
    image = objects.HALT if disk else None
    made = [objects.vmi(session.name("vmi"), image=image) for _ in range(size)]
    with session.running(made, cleared(size)) as names:
        # The pods' condition Ready may follow after Running.
        session.wait(names, "pod ready")
    time.sleep(QUIET_SECONDS)
    return [session.recorder.marks(name) for name in names]


def burst_of_pods(session: Session, size: int, launcher: objects.Object) -> list[Marks]:
    """Create `size` bare pods at once, wait until all are ready, delete them. Their timelines."""
    names = session.create("Pod", [objects.bare_pod(session.name("bare"), launcher) for _ in range(size)])
    session.wait(names, "pod ready")
    session.delete("Pod", names, cleared(size), cleared(size))
    time.sleep(QUIET_SECONDS)
    return [session.recorder.marks(name) for name in names]
