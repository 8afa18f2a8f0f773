"""Polls the guest agent. The guest is untrusted: its responses are bounded and validated.

All strings together stay below the size of a message: a guest must not be able to block its launcher's reports.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any

from api.text import printable
from kit.tasks import BackgroundTasks
from launcher.hypervisor.connection import Hypervisor, HypervisorError
from launcher.log import log
from protos import launcher_pb2 as pb
from protos import limits

PERIOD_SECONDS = 30.0
EARLY_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0)
"""Intervals after the agent has connected, while the guest still gets its addresses."""
CALL_SECONDS = 5

_OS_FIELDS = {
    "name": "name",
    "id": "id",
    "version": "version",
    "version-id": "version_id",
    "pretty-name": "pretty_name",
    "kernel-release": "kernel_release",
    "kernel-version": "kernel_version",
    "machine": "machine",
}


def text(value: object) -> str:
    """At most 256 bytes of UTF-8, control characters replaced by `?`; empty for anything but a string."""
    if not isinstance(value, str):
        return ""
    short = value[: limits.STRING_BYTES].encode(errors="ignore")[: limits.STRING_BYTES].decode(errors="ignore")
    return printable(short, mark="?")


def mapping(value: object) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def items(value: object, limit: int) -> list[dict[str, Any]]:
    """The first `limit` objects of a JSON array; empty for anything else."""
    return [mapping(item) for item in value[:limit]] if isinstance(value, list) else []


def interfaces(answer: object) -> list[pb.GuestInterface]:
    """guest-network-get-interfaces."""
    return [
        pb.GuestInterface(
            name=text(item.get("name")),
            mac=text(item.get("hardware-address")),
            addresses=[a for address in items(item.get("ip-addresses"), limits.ADDRESSES) if (a := _cidr(address))],
        )
        for item in items(answer, limits.INTERFACES)
    ]


def _cidr(address: dict[str, Any]) -> str:
    ip, prefix = text(address.get("ip-address")), address.get("prefix")
    if len(ip.encode()) > limits.ADDRESS_BYTES:
        return ""
    return f"{ip}/{prefix}" if ip and type(prefix) is int and 0 <= prefix <= 128 else ip


def os_info(answer: object) -> pb.OsInfo:
    """guest-get-osinfo."""
    given = mapping(answer)
    return pb.OsInfo(**{field: text(given.get(name)) for name, field in _OS_FIELDS.items()})


def timezone(answer: object) -> str:
    """guest-get-timezone, as `UTC, 0`."""
    given = mapping(answer)
    offset = given.get("offset")
    if type(offset) is not int or not math.fabs(offset) <= 24 * 3600:
        return ""
    return f"{text(given.get('zone'))}, {offset}"


class GuestAgent:
    """Polls the agent while it is connected: often at first, then every 30 seconds. Calls `publish` on changes."""

    def __init__(self, hypervisor: Hypervisor, publish: Callable[[pb.GuestInfo], None], tasks: BackgroundTasks) -> None:
        self._hypervisor = hypervisor
        self._publish = publish
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self._last = pb.GuestInfo()
        self.hushed = False
        """Polling is suspended: an agent with frozen file systems rejects most commands."""

    def connected(self, domain: str, is_connected: bool) -> None:
        """Start or stop polling."""
        if not is_connected and self._task:
            self._task.cancel()
            self._task = None
            self._last = pb.GuestInfo()
        elif is_connected and not self._task:
            self._task = self._tasks.start("guest-agent", self._ask_on(domain), domain=domain)

    async def _ask_on(self, domain: str) -> None:
        version = ""
        pauses = [*EARLY_SECONDS]
        while True:
            await asyncio.sleep(pauses.pop(0) if pauses else PERIOD_SECONDS)
            if self.hushed:
                continue
            version = version or text(mapping(await self._ask(domain, "guest-info")).get("version"))
            info = pb.GuestInfo(
                agent_version=version,
                hostname=text(mapping(await self._ask(domain, "guest-get-host-name")).get("host-name")),
                timezone=timezone(await self._ask(domain, "guest-get-timezone")),
                os=os_info(await self._ask(domain, "guest-get-osinfo")),
                interfaces=interfaces(await self._ask(domain, "guest-network-get-interfaces")),
            )
            if info != self._last and not self.hushed:
                self._last = info
                self._publish(info)

    async def _ask(self, domain: str, command: str) -> object:
        """The decoded response, None on any error."""
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            try:
                answer: object = await self._hypervisor.agent_command(domain, command, CALL_SECONDS)
                return answer
            except HypervisorError as error:
                log("debug", "the guest agent did not answer", command=command, error=str(error))
        return None
