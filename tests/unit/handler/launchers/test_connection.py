"""Tasks of a launcher's connection."""

import asyncio
from pathlib import Path

from structlog.testing import capture_logs

from handler.launchers.connection import LauncherConnection
from handler.launchers.start_limiter import StartLimiter
from tests.unit.tasklab import assert_cancels_caller, others, settle


class SlowConnection(LauncherConnection):
    """One that takes time to disconnect."""

    async def _converse(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)


class BrokenConnection(LauncherConnection):
    """One with a bug outside of the loop that handles errors."""

    async def _keep(self) -> None:
        raise LookupError("odd")


async def test_close_leaves_no_task(tmp_path: Path) -> None:
    launcher = SlowConnection("uid", lambda: None, StartLimiter(), tmp_path)
    await settle()
    await launcher.close()
    assert not others()


async def test_cancelling_the_caller_of_close_cancels_it(tmp_path: Path) -> None:
    launcher = SlowConnection("uid", lambda: None, StartLimiter(), tmp_path)
    await settle()
    await assert_cancels_caller(launcher.close(), lambda: None)
    await launcher.close()
    assert not others()


async def test_cancelled_close_releases_the_start_slot(tmp_path: Path) -> None:
    limiter = StartLimiter(1, seconds=60)
    launcher = SlowConnection("uid", lambda: None, limiter, tmp_path)
    launcher._slot = await limiter.slot()
    await settle()
    await assert_cancels_caller(launcher.close(), lambda: None)
    async with asyncio.timeout(5):
        await limiter.slot()
    await launcher.close()


async def test_unhandled_exception_is_logged_with_the_pod(tmp_path: Path) -> None:
    with capture_logs() as lines:
        BrokenConnection("uid", lambda: None, StartLimiter(), tmp_path)
        await settle()
    (line,) = lines
    assert (line["task"], line["pod_uid"], repr(line["exc_info"])) == (
        "launcher-connection", "uid", "LookupError('odd')",
    )  # fmt: skip
