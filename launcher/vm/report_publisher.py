"""Publishes the VM's report to its watchers."""

import asyncio
from collections.abc import AsyncGenerator

from kit.tasks import BackgroundTasks
from protos import launcher_pb2 as pb
from protos import limits

COALESCE_SECONDS = 0.05
"""Minimum interval between two reports to the same watcher."""


class ReportPublisher:
    """The current report and its changes."""

    def __init__(self, tasks: BackgroundTasks) -> None:
        self._tasks = tasks
        self._changed = asyncio.Condition()
        self._published = pb.Report()
        self.current = pb.Report()
        """Call `publish` after changing it."""

    def set_state(self, state: pb.DomainState.ValueType, reason: str, message: str) -> None:
        """Change the state and publish the report."""
        self.current.state, self.current.reason = state, reason
        self.current.message = message.encode()[: limits.REASON_BYTES].decode(errors="ignore")
        self.publish()

    def publish(self, guest: pb.GuestInfo | None = None) -> None:
        """Publish the report if it has changed. Copies the message: gRPC may still be sending the last one."""
        report = pb.Report()
        report.CopyFrom(self.current)
        if guest is not None:
            report.guest.CopyFrom(guest)
        if not report.agent_connected:
            report.ClearField("guest")
        if report == self._published:
            return
        report.sequence += 1
        self.current = report
        self._published = pb.Report()
        self._published.CopyFrom(report)
        self._tasks.start("notify", self._notify(), sequence=report.sequence)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def follow(self) -> AsyncGenerator[pb.Report, None]:
        """The report now and after every change. Never ends."""
        sequence = -1
        while True:
            async with self._changed:
                while self.current.sequence == sequence:
                    await self._changed.wait()
            sequence = self.current.sequence
            yield self.current
            await asyncio.sleep(COALESCE_SECONDS)
