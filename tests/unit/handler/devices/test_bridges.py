"""The tasks that advertise bridges."""

import asyncio
from pathlib import Path

from structlog.testing import capture_logs

from api.bridges import BridgePolicy
from handler.devices.bridges import BridgePlugins
from tests.unit.tasklab import others, settle


class Plugins(BridgePlugins):
    """Plugins whose first start fails with a bug."""

    starts = 0

    async def _serve(self, name: str) -> None:
        self.starts += 1
        if self.starts == 1:
            raise LookupError("odd")
        await asyncio.Event().wait()


def plugins(tmp_path: Path) -> Plugins:
    async def pod_network() -> frozenset[str]:
        return frozenset()

    return Plugins(lambda: {"br1"}, tmp_path, 0.001, pod_network=pod_network, choice=BridgePolicy)


async def test_unhandled_exception_is_logged_with_the_bridge_which_is_advertised_again(tmp_path: Path) -> None:
    made = plugins(tmp_path)
    with capture_logs() as lines:
        await made._follow({"br1"})
        await settle()
        await made._follow({"br1"})
        await settle()
    (failure,) = [line for line in lines if line["log_level"] == "error"]
    assert (failure["bridge"], repr(failure["exc_info"])) == ("br1", "LookupError('odd')")
    assert made.starts == 2 and made.offered == {"br1"}
    await made._follow(set())


async def test_cancelled_plugins_leave_no_task(tmp_path: Path) -> None:
    made = plugins(tmp_path)
    made.starts = 1
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(10):
        while not made.offered:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.wait([running])
    assert not others() and made.offered == set()
