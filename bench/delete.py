"""delete → pod deleted for one guest with ACPI shutdown, compared with a bare pod of the launcher's image."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench import objects
from bench.api import ApiFailure
from bench.figures import BenchResult, Cell, Figure, FigureTable, percentile
from bench.options import BenchOptions
from bench.session import PATIENCE, Session, path, say
from bench.timeline import Marks, Timeout, spans

ROUNDS = 6
TARGET = 4.0
BASELINE_GONE, BASELINE_ENDED = 12.8, 4.2

LEGS = (
    ("delete → pod told to end", "delete asked", "pod deleting"),
    ("delete → guest off (VMI's phase)", "delete asked", "guest off"),
    ("delete → containers ended", "delete asked", "containers ended"),
    ("delete → pod gone", "delete asked", "pod gone"),
    ("delete → VMI gone", "delete asked", "vmi gone"),
    ("guest off → containers ended", "guest off", "containers ended"),
    ("containers ended → pod gone", "containers ended", "pod gone"),
)

BARE_LEGS = (
    ("bare pod (1 s of grace): delete → containers ended", "delete asked", "containers ended"),
    ("bare pod (1 s of grace): delete → pod gone", "delete asked", "pod gone"),
)


def analyse(timelines: Sequence[Marks], pods: Sequence[Marks] = ()) -> BenchResult:
    """Percentiles of the total and its parts; `pods` are the timelines of bare pods. Pure."""
    result = BenchResult("delete")
    gone = spans(timelines, "delete asked", "pod gone")
    ended = spans(timelines, "delete asked", "containers ended")
    result.figures = [
        Figure("delete → pod gone p50", percentile(gone, 50), "s", TARGET, BASELINE_GONE),
        Figure("delete → pod gone, slowest", max(gone), "s"),
    ]
    if ended:
        result.figures.append(Figure("delete → containers ended p50", percentile(ended, 50), "s", None, BASELINE_ENDED))
    rows: list[list[Cell]] = []
    compared = [(timelines, leg) for leg in LEGS] + [(pods, leg) for leg in BARE_LEGS]
    for whose, (label, begin, end) in compared:
        samples = spans(whose, begin, end)
        if samples:
            rows.append([label, percentile(samples, 50), min(samples), max(samples), len(samples)])
    header = ["leg", "p50, s", "fastest", "slowest", "samples"]
    result.tables = [FigureTable("Where the time goes", header, rows)]
    result.samples = {"delete to pod gone": gone, "bare pod": spans(pods, "delete asked", "pod gone")}
    return result


def run(session: Session, options: BenchOptions) -> BenchResult:
    """Start one guest, wait until it has booted, delete it; alternating between nodes."""
    launcher = session.launcher()
    nodes = session.nodes()
    timelines: list[Marks] = []
    pods: list[Marks] = []
    for turn in range(options.rounds(ROUNDS)):
        node = nodes[turn % len(nodes)]
        made = objects.vmi(session.name("acpi"), image=objects.TINY, memory="128Mi", node=node, grace=30)
        with session.running([made]) as names:
            guest_ready(session, names[0])
            time.sleep(1)
        timelines.append(session.recorder.marks(names[0]))
        pods.append(bare_pod(session, launcher))
        say(f"delete: round {turn + 1}: {spans(timelines[-1:], 'delete asked', 'pod gone')[0]:.2f} s")
    return analyse(timelines, pods)


def bare_pod(session: Session, launcher: objects.Object) -> Marks:
    """Start and delete a bare pod. Its timeline."""
    names = session.create("Pod", [objects.bare_pod(session.name("bare"), launcher)])
    session.wait(names, "pod ready")
    time.sleep(1)
    session.delete("Pod", names, "pod gone")
    return session.recorder.marks(names[0])


def guest_ready(session: Session, name: str) -> None:
    """Wait until the tiny guest reports on its serial console (the pod's log) that it has booted. Raises Timeout."""
    log = path("Pod", session.pod(name)["metadata"]["name"]) + "/log?tailLines=200"
    end = time.monotonic() + PATIENCE
    while objects.GUEST_READY.encode() not in _read(session, log):
        if time.monotonic() > end:
            raise Timeout(f'{name}: no "{objects.GUEST_READY}" on its serial console')
        time.sleep(0.3)


def _read(session: Session, log: str) -> bytes:
    try:
        return session.api.request("GET", log)
    except ApiFailure as failure:
        if failure.status in (400, 404):  # the container is not running yet
            return b""
        raise
