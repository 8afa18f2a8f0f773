"""The start limiter: order, limits, and release of slots on failure, timeout and cancellation."""

import asyncio

import pytest

from handler.launchers.start_limiter import StartLimiter


async def test_slots_are_granted_in_order_up_to_the_limit():
    limiter, going, most, order = StartLimiter(2), 0, 0, []

    async def work(number: int) -> int:
        nonlocal going, most
        going += 1
        most = max(most, going)
        await asyncio.sleep(0.01)
        going -= 1
        order.append(number)
        return number

    assert await asyncio.gather(*(limiter.take(work(number)) for number in range(8))) == list(range(8))
    assert most == 2 and order == list(range(8))


async def test_slow_work_continues_after_its_slot_expires():
    limiter, release = StartLimiter(1, seconds=0.01), asyncio.Event()
    slow = asyncio.create_task(limiter.take(release.wait()))
    await asyncio.sleep(0)

    async def quick() -> str:
        return "done"

    assert await limiter.take(quick()) == "done"
    assert not slow.done()
    release.set()
    assert await slow is True


async def test_failed_work_releases_its_slot():
    limiter = StartLimiter(1)

    async def fail() -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await limiter.take(fail())


async def test_cancelling_cancels_the_work_and_releases_its_slot():
    limiter, cancelled = StartLimiter(1), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    running = asyncio.create_task(limiter.take(work()))
    waiting = asyncio.create_task(limiter.take(work()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    running.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    await asyncio.wait_for(cancelled.wait(), 1)
    assert await limiter.take(asyncio.sleep(0, "free")) == "free"


async def test_urgent_requests_go_first():
    limiter, order = StartLimiter(1), []
    first = await limiter.slot()

    async def come(name: str, urgent: bool) -> None:
        slot = await limiter.slot(urgent)
        order.append(name)
        slot.end()

    waiting = [asyncio.create_task(come(name, name.isupper())) for name in ("a", "b", "C", "D")]
    await asyncio.sleep(0)
    first.end()
    await asyncio.gather(*waiting)
    assert order == ["C", "D", "a", "b"]


async def test_slot_is_released_only_once():
    limiter = StartLimiter(1)
    slot = await limiter.slot()
    slot.end()
    slot.end()
    await limiter.slot()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(limiter.slot(), 0.05)


async def test_expired_slot_is_granted_to_the_next():
    limiter = StartLimiter(1, seconds=0.01)
    kept = await limiter.slot()
    await asyncio.wait_for(limiter.slot(), 5)
    kept.end()
    assert limiter._free == 0, "what was over is not given back again"


async def test_waiter_cancelled_after_its_grant_releases_the_slot():
    limiter = StartLimiter(1)
    slot = await limiter.slot()
    leaver = asyncio.create_task(limiter.slot())
    await asyncio.sleep(0)
    slot.end()
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    await asyncio.wait_for(limiter.slot(), 5)
