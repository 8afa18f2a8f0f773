"""Works take turns, and none that is slow or fails keeps its turn."""

import asyncio

import pytest

from handler.turns import Turns


async def test_so_many_at_a_time_in_order():
    turns, going, most, order = Turns(2), 0, 0, []

    async def work(number: int) -> int:
        nonlocal going, most
        going += 1
        most = max(most, going)
        await asyncio.sleep(0.01)
        going -= 1
        order.append(number)
        return number

    assert await asyncio.gather(*(turns.take(work(number)) for number in range(8))) == list(range(8))
    assert most == 2 and order == list(range(8))


async def test_slow_work_goes_on_without_its_turn():
    turns, release = Turns(1, seconds=0.01), asyncio.Event()
    slow = asyncio.create_task(turns.take(release.wait()))
    await asyncio.sleep(0)

    async def quick() -> str:
        return "done"

    assert await turns.take(quick()) == "done"
    assert not slow.done()
    release.set()
    assert await slow is True


async def test_failure_gives_its_turn_back():
    turns = Turns(1)

    async def fail() -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await turns.take(fail())


async def test_cancelling_cancels_the_work_and_frees_its_turn():
    turns, cancelled = Turns(1), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    running = asyncio.create_task(turns.take(work()))
    waiting = asyncio.create_task(turns.take(work()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    running.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    await asyncio.wait_for(cancelled.wait(), 1)
    assert await turns.take(asyncio.sleep(0, "free")) == "free"


async def test_who_is_urgent_goes_first():
    turns, order = Turns(1), []
    first = await turns.turn()

    async def come(name: str, urgent: bool) -> None:
        turn = await turns.turn(urgent)
        order.append(name)
        turn.end()

    waiting = [asyncio.create_task(come(name, name.isupper())) for name in ("a", "b", "C", "D")]
    await asyncio.sleep(0)
    first.end()
    await asyncio.gather(*waiting)
    assert order == ["C", "D", "a", "b"]


async def test_a_turn_ends_once_however_often_it_is_told():
    turns = Turns(1)
    turn = await turns.turn()
    turn.end()
    turn.end()
    await turns.turn()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(turns.turn(), 0.05)


async def test_a_turn_whose_time_is_over_goes_to_the_next():
    turns = Turns(1, seconds=0.01)
    kept = await turns.turn()
    await asyncio.wait_for(turns.turn(), 5)
    kept.end()
    assert turns._free == 0, "what was over is not given back again"


async def test_who_is_called_and_leaves_gives_the_turn_back():
    turns = Turns(1)
    turn = await turns.turn()
    leaver = asyncio.create_task(turns.turn())
    await asyncio.sleep(0)
    turn.end()
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    await asyncio.wait_for(turns.turn(), 5)
