"""Launchers are noticed as soon as they show, each once, and nobody is looked for who is not expected."""

import asyncio
from pathlib import Path

import pytest

from handler.launchers.discovery import LauncherDiscovery

PLACE = "volumes/hyperlet/wake.fifo"


@pytest.fixture
async def met(tmp_path: Path):
    found: list[str] = []
    discovery = LauncherDiscovery(found.append, tmp_path, PLACE)
    task = asyncio.create_task(discovery.run())
    yield discovery, found
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
    discovery, found = met
    for uid in ("a", "b"):
        discovery.expect(uid)
    await asyncio.sleep(0.05)
    assert found == []
    show(tmp_path, "b")
    await until(found, ["b"])
    show(tmp_path, "a")
    await until(found, ["b", "a"])
    # Later, others.
    await asyncio.sleep(0.05)
    show(tmp_path, "c")
    discovery.expect("c")
    await until(found, ["b", "a", "c"])


async def test_who_is_not_expected_any_more_is_not_met(met, tmp_path: Path) -> None:
    discovery, found = met
    discovery.expect("a")
    discovery.forget("a")
    discovery.forget("never expected")
    show(tmp_path, "a")
    discovery.expect("b")
    show(tmp_path, "b")
    await until(found, ["b"])


async def test_a_link_counts_as_shown_and_is_not_followed(met, tmp_path: Path) -> None:
    """Whether it is what it seems is the conversation's business, which says so if not."""
    discovery, found = met
    path = tmp_path / "a" / PLACE
    path.parent.mkdir(parents=True)
    path.symlink_to("/nonexistent")
    discovery.expect("a")
    await until(found, ["a"])
