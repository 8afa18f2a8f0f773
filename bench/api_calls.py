"""Number of API calls by hyperlet's components for each VMI and VM, from the API server's audit log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import audit, objects
from bench.audit import AuditedCall
from bench.figures import BenchResult, Cell, Figure, FigureTable
from bench.options import BenchOptions
from bench.session import Session, path, say

SIZES = (1, 5)
ROUNDS = 3
SETTLE_SECONDS = 3.0
"""Pause after the last milestone, for Events and late status writes."""

ACTIONS: dict[str, tuple[float | None, float | None]] = {
    "VMI create → Running": (7.0, 13.3),
    "VMI delete": (4.0, 8.1),
    "VM start": (10.0, 34.0),
    "VM stop": (8.0, 26.0),
    "VM create, to run always → Running": (None, None),
}
"""Action → target and KubeVirt's figure, in calls per object."""


@dataclass(frozen=True)
class Window:
    """The calls during one action on `size` objects."""

    action: str
    size: int
    calls: Sequence[AuditedCall]


def analyse(windows: Sequence[Window]) -> BenchResult:
    """Mean number of calls per object, by action. Pure."""
    result = BenchResult("api-calls")
    for action, (target, baseline) in ACTIONS.items():
        for size in sorted({w.size for w in windows if w.action == action}):
            chosen = [w for w in windows if w.action == action and w.size == size]
            objects_done = size * len(chosen)
            counted = [call for w in chosen for call in w.calls if call.kind == audit.COUNTED]
            label = f"{action}, {size} at once"
            result.figures.append(Figure(label, len(counted) / objects_done, "calls", target, baseline))
            result.tables.append(_breakdown(label, counted, objects_done))
    background = Counter((c.kind, *c.what) for w in windows for c in w.calls if c.kind != audit.COUNTED)
    rows: list[list[Cell]] = [[*what, count] for what, count in sorted(background.items())]
    header = ["why", "component", "verb", "resource", "calls in all"]
    result.tables.append(FigureTable("Not counted: what goes on without any VM", header, rows))
    return result


def _breakdown(label: str, calls: Sequence[AuditedCall], objects_done: int) -> FigureTable:
    failed = Counter(call.what for call in calls if call.code >= 400)
    rows: list[list[Cell]] = [
        [*what, count / objects_done, failed[what] or None]
        for what, count in sorted(audit.by_what(calls).items(), key=lambda item: (item[0][0], -item[1], item[0]))
    ]
    return FigureTable(f"{label}: calls for each", ["component", "verb", "resource", "each", "refused, in all"], rows)


def run(session: Session, options: BenchOptions) -> BenchResult:
    """Runs every action with one object and with several."""
    session.launcher()
    windows: list[Window] = []
    for size in SIZES[:1] if options.quick else SIZES:
        for turn in range(options.rounds(ROUNDS)):
            windows += instances(session, options, size)
            windows += machines(session, options, size)
            say(f"api-calls: {size} at once, round {turn + 1} done")
    return analyse(windows)


def window(options: BenchOptions, action: str, size: int, act: Callable[[], None]) -> Window:
    """Run `act`, wait until it has settled, and return the calls logged meanwhile."""
    time.sleep(SETTLE_SECONDS)
    log = audit.Log(options.audit)
    act()
    time.sleep(SETTLE_SECONDS)
    return Window(action, size, log.calls())


def instances(session: Session, options: BenchOptions, size: int) -> list[Window]:
    """Create and delete VMIs."""
    made = [objects.vmi(session.name("calls")) for _ in range(size)]
    names = [str(thing["metadata"]["name"]) for thing in made]

    def create() -> None:
        session.run(made)

    def remove() -> None:
        session.delete("VirtualMachineInstance", names, "vmi gone")

    actions = list(ACTIONS)
    return [window(options, actions[0], size, create), window(options, actions[1], size, remove)]


def machines(session: Session, options: BenchOptions, size: int) -> list[Window]:
    """Start and stop existing VMs, and create VMs with run strategy Always."""
    words = [session.name("calls-vm") for _ in range(size)]
    names = session.create("VirtualMachine", [objects.vm(word, objects.vmi(word)) for word in words])
    session.wait(names, "vm Stopped")

    def switch(strategy: str, milestone: str) -> Callable[[], None]:
        def act() -> None:
            for name in names:
                session.recorder.forget(name, milestone)
                session.api.patch(path("VirtualMachine", name), {"spec": {"runStrategy": strategy}})
            session.wait(names, milestone)

        return act

    actions = list(ACTIONS)
    windows = [
        window(options, actions[2], size, switch("Always", "vm Running")),
        window(options, actions[3], size, switch("Halted", "vm Stopped")),
    ]
    session.delete("VirtualMachine", names, "vm gone")
    others = [objects.vm(word, objects.vmi(word), "Always") for word in (session.name("calls-vm") for _ in range(size))]

    def create() -> None:
        session.wait(session.create("VirtualMachine", others), "vm Running")

    windows.append(window(options, actions[4], size, create))
    session.delete("VirtualMachine", [str(thing["metadata"]["name"]) for thing in others], "vm gone")
    return windows
