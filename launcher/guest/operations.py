"""Operations on a running guest: reset, reboot, freeze, users, file systems. Imported with the first such call."""

import asyncio
import math
import time
from typing import Any

from launcher.guest.agent import items, text
from launcher.hypervisor.connection import HypervisorError
from launcher.log import log
from launcher.vm.controller import VmController
from launcher.vm.errors import OperationRefused
from protos import launcher_pb2 as pb
from protos import limits

ASK_SECONDS = 5
FREEZE_SECONDS = 30
"""Timeout of a freeze: the guest flushes its file systems."""
THAW_AFTER = 300.0
LONGEST_FREEZE = 3600.0
_THAW_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_THAW_AT = "thaw_at"


class GuestOperations:
    """The operations. All raise OperationRefused, HypervisorError."""

    def __init__(self, machine: VmController) -> None:
        self._machine = machine
        self._freezing = asyncio.Lock()
        self._thawing: asyncio.Task[None] | None = None

    # -- the VM

    async def reset(self) -> pb.Report:
        """Reset the VM."""
        await self._machine.hypervisor.reset(self._machine.running())
        return await self._machine.poll()

    async def soft_reboot(self) -> pb.Report:
        """Ask the guest to reboot: by its agent if it is connected and accepts, else by ACPI."""
        domain, report = self._machine.running(), await self._machine.poll()
        if report.state != pb.DOMAIN_STATE_RUNNING:
            raise OperationRefused("FAILED_PRECONDITION", "the virtual machine is paused: its guest cannot reboot")
        if report.agent_connected:
            try:
                await self._machine.hypervisor.reboot(domain, agent=True)
                return await self._machine.poll()
            except HypervisorError as error:
                log("info", "the guest agent does not reboot the guest, trying ACPI", error=str(error))
        await self._machine.hypervisor.reboot(domain, agent=False)
        return await self._machine.poll()

    # -- the agent

    async def _ask(self, command: str, seconds: int = ASK_SECONDS) -> Any:
        domain = self._machine.running()
        try:
            return await self._machine.hypervisor.agent_command(domain, command, seconds)
        except (ValueError, AttributeError, RecursionError):
            raise HypervisorError(f"the guest agent's response to {command} cannot be decoded") from None

    async def _need_agent(self) -> None:
        self._machine.running()
        if not (await self._machine.poll()).agent_connected:
            raise OperationRefused(
                "FAILED_PRECONDITION", "no guest agent is connected: install and start it in the guest"
            )

    async def users(self) -> pb.UsersReply:
        """Logged-in users."""
        await self._need_agent()
        return users(await self._ask("guest-get-users"))

    async def filesystems(self) -> pb.FilesystemsReply:
        """Mounted file systems."""
        await self._need_agent()
        return filesystems(await self._ask("guest-get-fsinfo"))

    # -- freeze and thaw

    async def freeze(self, seconds: int) -> None:
        """Freeze the guest's file systems; they thaw automatically after `seconds` (0: 300, at most an hour)."""
        await self._need_agent()
        after = min(float(seconds) or THAW_AFTER, LONGEST_FREEZE)
        async with self._freezing:
            # Scheduled before the freeze: if this process fails, its successor thaws the guest.
            self._thaw_at(time.monotonic() + after + FREEZE_SECONDS)
            self._machine.agent.hushed = True
            try:
                if await self._ask("guest-fsfreeze-status") != "frozen":
                    await self._ask("guest-fsfreeze-freeze", FREEZE_SECONDS)
            except BaseException:
                # The guest may be frozen although the response was lost.
                self._thaw_at(time.monotonic())
                raise
            self._thaw_at(time.monotonic() + after)

    async def unfreeze(self) -> None:
        """Thaw the file systems now."""
        await self._need_agent()
        async with self._freezing:
            await self._thaw()

    def resume(self) -> None:
        """Schedule the thaw of a freeze begun by an earlier server."""
        if at := self._machine.recall(_THAW_AT):
            self._machine.agent.hushed = True
            self._thaw_at(at)

    async def _thaw(self) -> None:
        await self._ask("guest-fsfreeze-thaw", FREEZE_SECONDS)
        if self._thawing and self._thawing is not asyncio.current_task():
            self._thawing.cancel()
        self._thawing = None
        self._machine.remember(_THAW_AT, 0)
        self._machine.agent.hushed = False

    def _thaw_at(self, moment: float) -> None:
        """`moment`: monotonic seconds, comparable between processes since the pod does not survive a reboot."""
        if self._thawing:
            self._thawing.cancel()
        self._machine.remember(_THAW_AT, moment)
        self._thawing = self._machine.tasks.start("thaw", self._thaw_later(moment))

    async def _thaw_later(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - time.monotonic()))
        pauses = [*_THAW_PAUSES]
        while True:
            try:
                async with self._freezing:
                    await self._thaw()
                return
            except OperationRefused:
                return  # the VM has ended
            except HypervisorError as error:
                log("warning", "cannot thaw the guest's file systems, retrying", error=str(error))
            await asyncio.sleep(pauses.pop(0) if len(pauses) > 1 else pauses[0])


# -- the agent's responses, bounded


def users(answer: object) -> pb.UsersReply:
    """guest-get-users."""
    reply = pb.UsersReply()
    for item in items(answer, limits.USERS):
        reply.users.add(
            name=text(item.get("user")), domain=text(item.get("domain")), login_time=_seconds(item.get("login-time"))
        )
    return reply  # at most 1000 times 540 bytes


def _seconds(value: object) -> float:
    number = float(value) if type(value) in (int, float) and abs(value) < 2**53 else 0.0  # type: ignore[arg-type]
    return number if math.isfinite(number) else 0.0


def filesystems(answer: object) -> pb.FilesystemsReply:
    """guest-get-fsinfo."""
    reply = pb.FilesystemsReply()
    size = 0
    for item in items(answer, limits.FILESYSTEMS):
        added = pb.GuestFilesystem(
            name=text(item.get("name")),
            mount_point=text(item.get("mountpoint")),
            type=text(item.get("type")),
            used_bytes=_bytes(item.get("used-bytes")),
            total_bytes=_bytes(item.get("total-bytes")),
            disks=[
                pb.GuestDisk(serial=text(disk.get("serial")), bus=text(disk.get("bus-type")))
                for disk in items(item.get("disk"), limits.FILESYSTEM_DISKS)
            ],
        )
        size += added.ByteSize() + 8
        if size > limits.REPLY_BYTES:
            break
        reply.filesystems.append(added)
    return reply


def _bytes(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**64 else 0
