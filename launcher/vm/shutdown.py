"""The end of a VM that is asked for: its power button, pressed until the guest has shut down, and the plug."""

import asyncio
import contextlib
from collections.abc import Callable

from launcher.hypervisor.connection import Hypervisor, HypervisorError
from launcher.log import log
from launcher.vm.errors import OperationRefused
from protos import launcher_pb2 as pb

PRESS_SECONDS = (1.0, 1.0, 2.0)
"""Pauses after the first presses: a guest that is still booting misses them. Then LATER_SECONDS."""
LATER_SECONDS = 5.0
_AGAIN_SECONDS = 0.2


class ShutdownControl:
    """Whether the VM is to end, and how it is made to. `over` says whether it has."""

    def __init__(self, hypervisor: Hypervisor, report: Callable[[], pb.Report], over: Callable[[], bool]) -> None:
        self._hypervisor, self._report, self._is_over = hypervisor, report, over
        self.stopping = False
        """The guest is to shut down, now or as soon as it has started."""
        self.forced = False
        """It did not in time, and the plug was pulled."""

    def refuse_when_stopping(self) -> None:
        """Nothing starts any more. Raises OperationRefused."""
        if self.stopping:
            raise OperationRefused("FAILED_PRECONDITION", "the pod is being terminated")

    async def request_shutdown(self, domain: str) -> None:
        """Asks the guest to shut down, by ACPI and by its agent in turn, until the VM is over."""
        with_agent = False
        pauses = [*PRESS_SECONDS]
        while not self._is_over():
            try:
                if self._report().state == pb.DOMAIN_STATE_PAUSED:
                    await self._hypervisor.resume(domain)
                await self._hypervisor.power_button(domain, with_agent)
            except HypervisorError as error:
                log("info", "cannot ask the guest to shut down, retrying", error=str(error))
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            await asyncio.sleep(pauses.pop(0) if pauses else LATER_SECONDS)
            with_agent = self._report().agent_connected and not with_agent

    async def force_off(self, domain: str, grace: float) -> None:
        """Ends QEMU after `grace` seconds, unless the VM is over by then."""
        await asyncio.sleep(grace)
        if not self._is_over():
            self.forced = True
            with contextlib.suppress(HypervisorError):
                await self._hypervisor.destroy(domain)
