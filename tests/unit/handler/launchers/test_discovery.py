"""Launcher discovery: each expected launcher is reported once, others are not."""

import asyncio
from pathlib import Path

import pytest

from handler.launchers.discovery import LauncherDiscovery
from tests.waiting import until

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


async def test_expected_launcher_is_reported_once_when_its_fifo_appears(met, tmp_path: Path) -> None:
    discovery, found = met
    for uid in ("a", "b"):
        discovery.expect(uid)
    await asyncio.sleep(0.05)
    assert found == []
    show(tmp_path, "b")
    await until(lambda: found == ["b"])
    show(tmp_path, "a")
    await until(lambda: found == ["b", "a"])
    # Later, others.
    await asyncio.sleep(0.05)
    show(tmp_path, "c")
    discovery.expect("c")
    await until(lambda: found == ["b", "a", "c"])


async def test_forgotten_launcher_is_not_reported(met, tmp_path: Path) -> None:
    discovery, found = met
    discovery.expect("a")
    discovery.forget("a")
    discovery.forget("never expected")
    show(tmp_path, "a")
    discovery.expect("b")
    show(tmp_path, "b")
    await until(lambda: found == ["b"])


async def test_symbolic_link_counts_as_present_and_is_not_followed(met, tmp_path: Path) -> None:
    """The connection verifies the listener."""
    discovery, found = met
    path = tmp_path / "a" / PLACE
    path.parent.mkdir(parents=True)
    path.symlink_to("/nonexistent")
    discovery.expect("a")
    await until(lambda: found == ["a"])
