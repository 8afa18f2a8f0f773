"""Work queue, reconciler and leader election."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from api.errors import ApiUnavailable, Conflict
from kit import leader as leading
from kit.kube import Kube
from kit.leader import Leader, LeadershipLost
from kit.reconcile import Queue, Reconciler, RequeueAfter
from tests.fakes.apiserver import FakeApi
from tests.waiting import until


async def test_key_is_queued_once() -> None:
    queue: Queue[str] = Queue("t1")
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    queue.done("a")
    queue.done("b")
    assert queue.idle()


async def test_key_added_while_busy_is_queued_again() -> None:
    queue: Queue[str] = Queue("t2")
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    waiting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done(), "two workers would process one key"
    queue.done("a")
    assert await waiting == "a"


async def test_earlier_delay_wins() -> None:
    queue: Queue[str] = Queue("t3")
    queue.add_after("slow", 600)
    queue.add_after("slow", 900)
    queue.add_after("quick", 0.01)
    assert await queue.get() == "quick"
    queue.done("quick")
    queue.add("slow")
    assert await queue.get() == "slow"
    queue.done("slow")
    assert queue.idle(), "the earlier delay is still scheduled"


async def test_consecutive_failures_back_off_until_forgotten() -> None:
    queue: Queue[str] = Queue("t4")
    waits = [queue.fail("a")[1] for _ in range(30)]
    assert waits[0] < 0.3 < waits[3] and 40 < waits[-1] < 80
    queue.forget("a")
    assert queue.fail("a")[0] == 1


async def test_retry_is_not_earlier_than_asked_for() -> None:
    queue: Queue[str] = Queue("t5")
    assert queue.fail("a", 30.0) == (1, 30.0)
    assert queue.fail("b", 0.01)[1] > 0.1


class Loop(Reconciler[str, str, Any]):
    """A reconciler that records the applied actions."""

    def __init__(self, actions: Sequence[Any], refuse: int = 0) -> None:
        self.name = f"loop-{id(self)}"
        super().__init__()
        self.actions, self.refuse = actions, refuse
        self.done: list[Any] = []
        self.told: list[tuple[str, int]] = []

    async def observe(self, key: str) -> str | None:
        return None if key == "gone" else key

    def plan(self, observed: str) -> Sequence[Any]:
        return self.actions

    async def apply(self, observed: str, action: Any) -> None:
        if self.refuse:
            self.refuse -= 1
            raise action if isinstance(action, Exception) else Conflict("modified meanwhile")
        self.done.append(action)

    async def report(self, key: str, error: str, failures: int) -> None:
        self.told.append((error, failures))
        raise RuntimeError("even this")


async def test_exceptions_do_not_end_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.reconcile.FIRST_SECONDS", 0.0001)
    loop = Loop([ZeroDivisionError("a bug")], refuse=9)
    # Captured: structlog's traceback of nine exceptions takes seconds on a busy machine.
    with capture_logs():
        task = asyncio.create_task(loop.run(2))
        loop.queue.add("a")
        loop.queue.add("gone")
        await until(lambda: loop.done)
    assert loop.told == [("ZeroDivisionError: a bug", 4), ("ZeroDivisionError: a bug", 8)]
    task.cancel()


async def test_retry_after_of_the_api_server_delays_the_next_round(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, asked = Loop([ApiUnavailable("slow down", 30.0), Conflict("modified")], refuse=1), list[float]()
    monkeypatch.setattr(loop.queue, "fail", lambda key, at_least=0.0: (asked.append(at_least), (1, at_least))[1])
    await loop.once("a")
    loop.actions, loop.refuse = loop.actions[1:], 1
    await loop.once("a")
    assert asked == [30.0, 0.0]


async def test_first_failed_action_ends_the_round() -> None:
    loop = Loop(["one", "two"], refuse=1)
    await loop.once("a")
    assert loop.done == []
    await loop.once("a")
    assert loop.done == ["one", "two"]


async def test_plan_can_requeue() -> None:
    loop = Loop([RequeueAfter(0.001)])
    await loop.once("a")
    assert await loop.queue.get() == "a" and loop.done == []


# ---- leader election


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(leading, "RENEW_DEADLINE", 0.3)


async def test_leader_releases_lease_on_exit(tmp_path: Path, quick: None) -> None:
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        order: list[str] = []

        async def work(name: str) -> None:
            order.append(name)
            await asyncio.sleep(0.05)

        first, second = Leader(kube, "default", "lease", "first"), Leader(kube, "default", "lease", "second")
        await first.lead(work("first"))
        await second.lead(work("second"))
        assert order == ["first", "second"]
        (lease,) = api.of("leases")
        assert lease["spec"]["leaseTransitions"] == 2 and lease["spec"]["holderIdentity"] == ""


async def test_held_lease_is_not_acquired(tmp_path: Path, quick: None) -> None:
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        ended = asyncio.Event()
        holder = asyncio.create_task(Leader(kube, "default", "lease", "first").lead(ended.wait()))
        await until(lambda: api.of("leases"))
        other = Leader(kube, "default", "lease", "second")
        for _ in range(20):
            assert not await other._try()
        ended.set()
        await holder
        # A renewal in flight when the work ended may have been executed before the release.
        async with asyncio.timeout(10):
            while not await other._try():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_leader_that_cannot_renew_cancels_work(tmp_path: Path, quick: None) -> None:
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        cancelled = asyncio.Event()

        async def work() -> None:
            api.leave()
            try:
                await asyncio.sleep(600)
            finally:
                cancelled.set()

        with pytest.raises(LeadershipLost):
            await Leader(kube, "default", "lease", "first").lead(work())
        assert cancelled.is_set()


async def test_cancelled_leader_ends_work_and_releases_lease(tmp_path: Path, quick: None) -> None:
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        started, done = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            started.set()
            await done.wait()

        leading = asyncio.create_task(Leader(kube, "default", "lease", "first").lead(work()))
        await started.wait()
        done.set()
        leading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leading
        (lease,) = api.of("leases")
        assert lease["spec"]["holderIdentity"] == ""


async def test_unhandled_exception_of_a_renewal_is_raised(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_leader: Leader) -> None:
        raise LookupError("odd")

    monkeypatch.setattr(Leader, "_renew", fail)
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        with pytest.raises(LookupError, match="odd"):
            await Leader(kube, "default", "lease", "first").lead(asyncio.sleep(600))


async def test_leader_whose_lease_was_taken_cancels_work(tmp_path: Path, quick: None) -> None:
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:

        async def work() -> None:
            api.patch("leases", "lease", {"spec": {"holderIdentity": "thief"}})
            await asyncio.sleep(600)

        with pytest.raises(LeadershipLost):
            await Leader(kube, "default", "lease", "first").lead(work())
        (lease,) = api.of("leases")
        assert lease["spec"]["holderIdentity"] == "thief", "a lost lease was released"
