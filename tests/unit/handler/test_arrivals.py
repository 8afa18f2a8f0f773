"""Launchers are noticed as soon as they show, each once, and nobody is looked for who is not expected."""

import asyncio
from pathlib import Path

import pytest

from handler.arrivals import Arrivals

PLACE = "volumes/hyperlet/wake.fifo"


@pytest.fixture
async def met(tmp_path: Path):
    found: list[str] = []
    arrivals = Arrivals(found.append, tmp_path, PLACE)
    task = asyncio.create_task(arrivals.run())
    yield arrivals, found
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled(), "it ended by itself"


def show(pods: Path, uid: str) -> None:
    path = pods / uid / PLACE
    path.parent.mkdir(parents=True)
    path.touch()


async def until(found: list[str], wanted: list[str]) -> None:
    async with asyncio.timeout(10):
        while found != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_each_is_met_once_when_it_shows(met, tmp_path: Path) -> None:
    arrivals, found = met
    for uid in ("a", "b"):
        arrivals.expect(uid)
    await asyncio.sleep(0.05)
    assert found == []
    show(tmp_path, "b")
    await until(found, ["b"])
    show(tmp_path, "a")
    await until(found, ["b", "a"])
    # Later, others.
    await asyncio.sleep(0.05)
    show(tmp_path, "c")
    arrivals.expect("c")
    await until(found, ["b", "a", "c"])


async def test_who_is_not_expected_any_more_is_not_met(met, tmp_path: Path) -> None:
    arrivals, found = met
    arrivals.expect("a")
    arrivals.forget("a")
    arrivals.forget("never expected")
    show(tmp_path, "a")
    arrivals.expect("b")
    show(tmp_path, "b")
    await until(found, ["b"])


async def test_a_link_counts_as_shown_and_is_not_followed(met, tmp_path: Path) -> None:
    """Whether it is what it seems is the conversation's business, which says so if not."""
    arrivals, found = met
    path = tmp_path / "a" / PLACE
    path.parent.mkdir(parents=True)
    path.symlink_to("/nonexistent")
    arrivals.expect("a")
    await until(found, ["a"])
