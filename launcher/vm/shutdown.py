"""Shutdown of the VM: asks the guest repeatedly, and kills QEMU after the grace period."""

import asyncio
import contextlib
from collections.abc import Callable

from launcher.hypervisor.connection import Hypervisor, HypervisorError
from launcher.log import log
from launcher.vm.errors import OperationRefused
from protos import launcher_pb2 as pb

PRESS_SECONDS = (1.0, 1.0, 2.0)
"""Intervals of the first requests, which a booting guest may miss. LATER_SECONDS follow."""
LATER_SECONDS = 5.0
_AGAIN_SECONDS = 0.2


class ShutdownControl:
    """Shutdown state of the VM. `over`: whether it has ended."""

    def __init__(self, hypervisor: Hypervisor, report: Callable[[], pb.Report], over: Callable[[], bool]) -> None:
        self._hypervisor, self._report, self._is_over = hypervisor, report, over
        self.stopping = False
        """The guest must shut down, now or as soon as it has started."""
        self.forced = False
        """The grace period was over and QEMU was killed."""

    def refuse_when_stopping(self) -> None:
        """Refuse to start anything while stopping. Raises OperationRefused."""
        if self.stopping:
            raise OperationRefused("FAILED_PRECONDITION", "the pod is being terminated")

    async def request_shutdown(self, domain: str) -> None:
        """Ask the guest to shut down, by ACPI and by its agent in turn, until the VM has ended."""
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
        """Kill QEMU after `grace` seconds, unless the VM has ended by then."""
        await asyncio.sleep(grace)
        if not self._is_over():
            self.forced = True
            with contextlib.suppress(HypervisorError):
                await self._hypervisor.destroy(domain)
