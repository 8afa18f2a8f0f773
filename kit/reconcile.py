"""Bringing what is to what should be: a queue of keys and workers that observe, plan, apply and report.

Level-triggered: a key says only "look at this object again". One worker at a time looks at a key; what happens to it
meanwhile makes it come up once more, not twice. An error never ends the loop: the key is tried again, later each time.
"""

import asyncio
import heapq
import random
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from api.errors import HyperletError
from kit import log

K = TypeVar("K", bound=Hashable)
O = TypeVar("O")  # noqa: E741

FIRST_SECONDS = 0.2
LONGEST_SECONDS = 60.0
PATIENCE = 4
"""Failures in a row before the object is told (`report`); then again at every doubling: 4, 8, 16, ..."""

DEPTH = Gauge("kubevirt_workqueue_depth", "Keys waiting in a work queue", ["name"])
ADDS = Counter("kubevirt_workqueue_adds_total", "Keys put into a work queue", ["name"])
RETRIES = Counter("kubevirt_workqueue_retries_total", "Keys tried again after a failure", ["name"])
LATENCY = Histogram(
    "kubevirt_workqueue_queue_duration_seconds",
    "Time a key waits for a worker",
    ["name"],
    buckets=(0.001, 0.01, 0.1, 1, 10),
)
WORK = Histogram(
    "kubevirt_workqueue_work_duration_seconds",
    "Time a worker spends on a key",
    ["name"],
    buckets=(0.001, 0.01, 0.1, 1, 10),
)


class Queue(Generic[K]):
    """Keys to look at. A key that is being looked at and added again comes up after that look is over."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._ready: dict[K, float] = {}
        self._busy: set[K] = set()
        self._again: set[K] = set()
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()
        self._serial = 0

    def add(self, key: K) -> None:
        """Has `key` looked at as soon as a worker is free."""
        self._due.pop(key, None)
        if key in self._busy:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = time.monotonic()
            ADDS.labels(self.name).inc()
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Has `key` looked at after `seconds`, or earlier if something else asks for it earlier."""
        due = time.monotonic() + seconds
        if key in self._ready or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._serial += 1
        heapq.heappush(self._later, (due, self._serial, key))
        self._wake.set()

    def fail(self, key: K) -> tuple[int, float]:
        """Notes a failure and schedules the next try. Returns the failures in a row and the seconds until then."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(failures - 1, 20)) * random.uniform(0.8, 1.2)
        RETRIES.labels(self.name).inc()
        self.add_after(key, seconds)
        return failures, seconds

    def forget(self, key: K) -> None:
        """The key's last look went well: the next failure is its first."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key; the caller owes a `done`."""
        while True:
            self._promote()
            if self._ready:
                key = next(iter(self._ready))
                LATENCY.labels(self.name).observe(time.monotonic() - self._ready.pop(key))
                self._busy.add(key)
                DEPTH.labels(self.name).set(len(self._ready))
                if self._ready:
                    self._wake.set()
                return key
            self._wake.clear()
            wait = max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The worker is through with the key."""
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def idle(self) -> bool:
        """Whether nothing is to be done now (later is not now)."""
        self._promote()
        return not (self._ready or self._busy or self._again)

    def _promote(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            # An entry whose time was brought forward, or that was added meanwhile, is stale.
            if self._due.get(key) == due:
                self.add(key)


@dataclass(frozen=True, slots=True)
class RequeueAfter:
    """An action that asks for another look after `seconds`, whatever happens until then."""

    seconds: float


class Reconciler(Generic[K, O]):
    """The loop around one kind. Subclasses say how to observe, plan, apply and report.

    `observe` gathers all that `plan` needs (from caches); None means there is nothing to do. `plan` is pure. Its
    actions are applied in order; the first that fails ends the round, and the next round observes anew.
    """

    name = "reconciler"

    def __init__(self) -> None:
        self.queue: Queue[K] = Queue(self.name)
        self.log = log.logger(component=self.name)

    async def observe(self, key: K) -> O | None:
        """Everything known about the object."""
        raise NotImplementedError

    def plan(self, observed: O) -> Sequence[Any]:
        """What to do about it."""
        raise NotImplementedError

    async def apply(self, observed: O, action: Any) -> None:
        """Does one thing. Raises `api.errors`."""
        raise NotImplementedError

    async def report(self, key: K, error: str, failures: int) -> None:
        """Tells the object that it has failed `failures` times in a row, and why. Errors in here are logged only."""

    def describe(self, key: K) -> dict[str, Any]:
        """The log's keys for a queue key."""
        if isinstance(key, tuple) and len(key) == 2:
            return {"namespace": key[0], "name": key[1]}
        return {"name": str(key)}

    async def run(self, workers: int = 8) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            began = time.monotonic()
            try:
                await self.once(key)
            finally:
                WORK.labels(self.name).observe(time.monotonic() - began)
                self.queue.done(key)

    async def once(self, key: K) -> None:
        """One round for one key. Never raises."""
        try:
            await self._round(key)
        except HyperletError as error:
            await self._failed(key, error.message)
        except Exception as error:
            self.log.exception("A round failed in a way nobody foresaw", **self.describe(key))
            await self._failed(key, f"{type(error).__name__}: {error}")
        else:
            self.queue.forget(key)

    async def _round(self, key: K) -> None:
        observed = await self.observe(key)
        if observed is None:
            return
        for action in self.plan(observed):
            if isinstance(action, RequeueAfter):
                self.queue.add_after(key, action.seconds)
            else:
                await self.apply(observed, action)

    async def _failed(self, key: K, error: str) -> None:
        failures, seconds = self.queue.fail(key)
        self.log.warning(
            "Could not bring the object to where it should be",
            why=error,
            failures=failures,
            again_in=round(seconds, 1),
            **self.describe(key),
        )
        if failures >= PATIENCE and failures & (failures - 1) == 0:
            try:
                await self.report(key, error, failures)
            except Exception as told:
                self.log.warning("Could not report a failure", why=str(told), **self.describe(key))
