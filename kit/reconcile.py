"""Work queue and reconciler base class: workers observe, plan, apply and report.

Level-triggered: a queued key only means that the object has to be reconciled. A key is processed by one worker at a
time; if it is added meanwhile, it is processed once more. After an error the key is retried with back-off.
"""

import asyncio
import heapq
import random
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from api.errors import ApiUnavailable, HyperletError
from kit import backoff, log

K = TypeVar("K", bound=Hashable)
O = TypeVar("O")  # noqa: E741
A = TypeVar("A")

FIRST_SECONDS = 0.2
LONGEST_SECONDS = 60.0
PATIENCE = 4
"""Consecutive failures before `report` is called; then at every doubling: 4, 8, 16, ..."""

DEPTH = Gauge("kubevirt_workqueue_depth", "Keys waiting in a work queue", ["name"])
ADDS = Counter("kubevirt_workqueue_adds_total", "Keys put into a work queue", ["name"])
RETRIES = Counter("kubevirt_workqueue_retries_total", "Keys retried after a failure", ["name"])
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
    """Work queue of keys. A key that is added while it is being processed is queued again afterwards."""

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
        """Queues `key` for immediate processing."""
        self._due.pop(key, None)
        if key in self._busy:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = time.monotonic()
            ADDS.labels(self.name).inc()
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Queues `key` after `seconds`, unless it is queued earlier anyway."""
        due = time.monotonic() + seconds
        if key in self._ready or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._serial += 1
        heapq.heappush(self._later, (due, self._serial, key))
        self._wake.set()

    def fail(self, key: K, at_least: float = 0.0) -> tuple[int, float]:
        """Counts a failure and schedules a retry, after `at_least` seconds. Returns the consecutive failures and the
        seconds until the retry."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = backoff.delay(failures, FIRST_SECONDS, LONGEST_SECONDS) * random.uniform(0.8, 1.2)
        seconds = max(seconds, at_least)
        RETRIES.labels(self.name).inc()
        self.add_after(key, seconds)
        return failures, seconds

    def forget(self, key: K) -> None:
        """Resets the key's failure count after a success."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key. The caller must call `done` afterwards."""
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
        """Marks the processing of `key` as finished."""
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def idle(self) -> bool:
        """Whether no key is ready or being processed. Delayed keys do not count."""
        self._promote()
        return not (self._ready or self._busy or self._again)

    def _promote(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            # Skip stale entries: the key was rescheduled or queued meanwhile.
            if self._due.get(key) == due:
                self.add(key)


@dataclass(frozen=True, slots=True)
class RequeueAfter:
    """An action that queues the key again after `seconds`."""

    seconds: float


class Reconciler(Generic[K, O, A]):
    """Control loop for one kind, with the types of key, observation and action (a closed union).

    Subclasses implement observe, plan, apply and report.

    `observe` collects the input of `plan` (from caches); None means that there is nothing to do. `plan` is pure. Its
    actions are applied in order; the first failure ends the round, and the next round starts with `observe`.
    """

    name = "reconciler"

    def __init__(self) -> None:
        self.queue: Queue[K] = Queue(self.name)
        self.log = log.logger(component=self.name)

    async def observe(self, key: K) -> O | None:
        """The input of `plan` for the object; None if there is nothing to do."""
        raise NotImplementedError

    def plan(self, observed: O) -> Sequence[A | RequeueAfter]:
        """The actions for the object. Pure."""
        raise NotImplementedError

    async def apply(self, observed: O, action: A) -> None:
        """Executes one action. Raises `api.errors`."""
        raise NotImplementedError

    async def report(self, key: K, error: str, failures: int) -> None:
        """Reports `failures` consecutive failures to the user, such as by an Event. Exceptions are only logged."""

    def describe(self, key: K) -> dict[str, Any]:
        """The log keys that identify a queue key's object."""
        if isinstance(key, tuple) and len(key) == 2:
            return {"namespace": key[0], "name": key[1]}
        return {"name": str(key)}

    async def run(self, workers: int = 8) -> None:
        """Processes keys until cancelled."""
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
        """Reconciles one key once. Never raises."""
        try:
            await self._round(key)
        except HyperletError as error:
            await self._failed(key, error.message, error.retry_seconds if isinstance(error, ApiUnavailable) else 0.0)
        except Exception as error:
            self.log.exception("Unhandled exception while reconciling", **self.describe(key))
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

    async def _failed(self, key: K, error: str, at_least: float = 0.0) -> None:
        failures, seconds = self.queue.fail(key, at_least)
        self.log.warning(
            "Reconciliation failed: retrying",
            why=error,
            failures=failures,
            again_in=round(seconds, 1),
            **self.describe(key),
        )
        if failures >= PATIENCE and failures & (failures - 1) == 0:
            try:
                await self.report(key, error, failures)
            except Exception as report_error:
                self.log.warning("Cannot report a failure", why=repr(report_error), **self.describe(key))
