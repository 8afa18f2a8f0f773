"""Timelines: when each object reached each milestone, from watch events.

The API server's timestamps have a resolution of one second, arrival times of events one of milliseconds. Names are used
once per run, so they identify a timeline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Object = Mapping[str, Any]
Marks = dict[str, float]
"""Milestone → time.monotonic()."""


def pod_owner(pod: Object) -> str:
    """The name of the VMI that owns a launcher pod, else the pod's name."""
    for reference in pod["metadata"].get("ownerReferences", []):
        if reference["kind"] == "VirtualMachineInstance":
            return str(reference["name"])
    return str(pod["metadata"]["name"])


def conditions(thing: Object) -> set[str]:
    """Types of the conditions that are True."""
    return {c["type"] for c in thing.get("status", {}).get("conditions") or [] if c["status"] == "True"}


def pod_marks(kind: str, pod: Object) -> set[str]:
    """Milestones that a pod has reached. `kind` is the watch event's type."""
    marks = {"pod created"}
    true = conditions(pod)
    for condition, mark in (
        ("PodScheduled", "pod scheduled"),
        ("ContainersReady", "containers ready"),
        ("Ready", "pod ready"),
    ):
        if condition in true:
            marks.add(mark)
    status = pod.get("status", {})
    states = [s.get("state", {}) for s in status.get("containerStatuses") or []]
    if status.get("phase") in ("Succeeded", "Failed") or (states and all("terminated" in s for s in states)):
        marks.add("containers ended")
    if pod["metadata"].get("deletionTimestamp"):
        marks.add("pod deleting")
    if kind == "DELETED":
        marks.add("pod gone")
    if marks & {"containers ended", "pod gone"}:
        marks.add("pod over")
    return marks


def vmi_marks(kind: str, vmi: Object) -> set[str]:
    """Milestones that a VMI has reached: its phase, and its end."""
    marks = {"vmi created"}
    phase = vmi.get("status", {}).get("phase")
    if phase:
        marks.add(phase)
    if phase in ("Succeeded", "Failed"):
        marks.add("guest off")
    if vmi["metadata"].get("deletionTimestamp"):
        marks.add("vmi deleting")
    if kind == "DELETED":
        marks.add("vmi gone")
    return marks


def vm_marks(kind: str, vm: Object) -> set[str]:
    """Milestones that a VM has reached: "vm <printableStatus>", and its end."""
    marks = set()
    status = vm.get("status", {}).get("printableStatus")
    if status:
        marks.add(f"vm {status}")
    if kind == "DELETED":
        marks.add("vm gone")
    return marks


MARKS: dict[str, Callable[[str, Object], set[str]]] = {
    "Pod": pod_marks,
    "VirtualMachineInstance": vmi_marks,
    "VirtualMachine": vm_marks,
}


class Timeout(Exception):
    """Objects did not reach a milestone in time, or can no longer reach it. The message has their conditions."""


class TimelineRecorder:
    """Records the first time of every milestone by name. Thread-safe: watches call it from their threads."""

    def __init__(self) -> None:
        self._marks: dict[str, Marks] = {}
        self._latest: dict[str, Object] = {}
        self._changed = threading.Condition()

    def listen(self, object_kind: str) -> Callable[[str, Object, float], None]:
        """The listener of a watch for one kind."""

        def note(kind: str, thing: Object, at: float) -> None:
            self.note(object_kind, kind, thing, at)

        return note

    def note(self, object_kind: str, kind: str, thing: Object, at: float) -> None:
        """Record one event."""
        name = pod_owner(thing) if object_kind == "Pod" else str(thing["metadata"]["name"])
        with self._changed:
            marks = self._marks.setdefault(name, {})
            for mark in MARKS[object_kind](kind, thing):
                marks.setdefault(mark, at)
            self._latest[f"{object_kind} {name}"] = thing
            self._changed.notify_all()

    def mark(self, name: str, milestone: str) -> float:
        """Record a milestone of the benchmark itself, such as "asked", now; replaces an earlier time."""
        now = time.monotonic()
        with self._changed:
            self._marks.setdefault(name, {})[milestone] = now
        return now

    def forget(self, name: str, *milestones: str) -> None:
        """Forget these milestones, for an object that reaches them more than once."""
        with self._changed:
            for milestone in milestones:
                self._marks.get(name, {}).pop(milestone, None)

    def marks(self, name: str) -> Marks:
        """A copy of an object's timeline."""
        with self._changed:
            return dict(self._marks.get(name, {}))

    def latest(self, object_kind: str, name: str) -> Object:
        """The object as last seen; a pod under its VMI's name. Raises KeyError if it was never seen."""
        with self._changed:
            return self._latest[f"{object_kind} {name}"]

    def wait(
        self, names: Iterable[str], milestone: str, seconds: float, alive: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until every name has the milestone. `alive` is called at least once a second and may raise.

        Raises Timeout after `seconds`, or immediately if an awaited VMI has failed.
        """
        missing = set(names)
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                missing = {name for name in missing if milestone not in self._marks.get(name, {})}
                if not missing:
                    return
                failed = {n for n in missing if milestone == "Running" and "Failed" in self._marks.get(n, {})}
                if failed or time.monotonic() > end:
                    raise Timeout(self._complaint(sorted(failed or missing), milestone, seconds))
                self._changed.wait(min(1.0, max(0.01, end - time.monotonic())))
                alive()

    def _complaint(self, names: list[str], milestone: str, seconds: float) -> str:
        lines = [f'{len(names)} without "{milestone}" after at most {seconds:.0f} s']
        for name in names[:3]:
            reached = [f"{m}" for m in sorted(self._marks.get(name, {}), key=lambda m: self._marks[name][m])]
            lines.append(f"  {name} reached: {', '.join(reached) or 'nothing'}")
            for object_kind in MARKS:
                for c in self._latest.get(f"{object_kind} {name}", {}).get("status", {}).get("conditions") or []:
                    if c.get("message"):
                        lines.append(f"    {object_kind} {c['type']}={c['status']}: {c['message']}")
        return "\n".join(lines)


def spans(timelines: Iterable[Marks], begin: str, end: str) -> list[float]:
    """Seconds from one milestone to another, of every timeline that has both."""
    return [marks[end] - marks[begin] for marks in timelines if begin in marks and end in marks]
