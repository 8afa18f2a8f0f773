"""The connection to libvirt; the only module that uses its Python binding.

Calls run in threads with deadlines; libvirt's event loop has its own thread. A lost connection is reestablished, and
`connected` is called. A daemon with too many stuck calls is killed: the supervisor restarts it, and QEMU survives.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from launcher.hypervisor import daemon
from launcher.hypervisor.call_pool import CallPool
from launcher.hypervisor.domain_xml import DomainDescription, describe
from launcher.hypervisor.xml_events import InvalidXml
from launcher.log import log
from launcher.paths import Paths

T = TypeVar("T")

CALL_SECONDS = 10.0
START_SECONDS = 120.0
THREADS, STUCK_CALLS = 4, 3
"""Threads for calls, and how many of them may be stuck past the deadline of their call before the daemon is killed. One
thread is left for calls that still work; the daemon itself has 4 workers, and another for calls like `destroy`."""
GUEST_STUCK_SECONDS = 150.0
"""Deadline of calls that a guest can delay: libvirt waits 30 s for its lock and 60 s for the agent, and calls queue."""
LARGEST_AGENT_ANSWER = 1 << 20
_OPEN_SECONDS = 5.0
# Constants of libvirt's ABI; the module may not be imported yet when they are needed.
_START_PAUSED, _SHUTDOWN_BY_ACPI, _SHUTDOWN_BY_AGENT, _LIVE = 1, 1, 2, 1
_REBOOT_BY_ACPI, _REBOOT_BY_AGENT = 1, 2
_RESIZE_BYTES = 1
_RETRY_SECONDS = 0.01
_LONGEST_RETRY_SECONDS = 0.5


class HypervisorError(Exception):
    """libvirt rejected a call; the message is libvirt's."""


class Unavailable(HypervisorError):
    """The daemon is not connected, or did not respond in time."""


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """An event of the domain; numbers are libvirt's."""

    kind: Literal["lifecycle", "agent", "reboot", "device"]
    event: int = 0
    detail: int = 0


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """libvirt's state of the running domain. `state` and `reason` are virDomainState and its reason."""

    state: int
    reason: int
    description: DomainDescription
    qemu_pid: int


class Hypervisor:
    """The connection to this pod's daemon and its only domain."""

    def __init__(
        self,
        paths: Paths,
        connected: Callable[[], None],
        disconnected: Callable[[], None],
        happened: Callable[[DomainEvent], None],
    ) -> None:
        self._paths = paths
        self._connected, self._disconnected, self._happened = connected, disconnected, happened
        self._loop = asyncio.get_running_loop()
        self._threads = CallPool("libvirt", THREADS, STUCK_CALLS, self._end_daemon)
        self._slow = CallPool("guest", 1, 1, self._end_daemon)
        """For calls that a guest can delay, so that they do not use up the other threads."""
        self._connection: Any = None
        self._ready = asyncio.Event()
        self._libvirt: Any = None

    # -- connection

    async def keep_connected(self) -> None:
        """Connect, and reconnect whenever the connection is lost. Never returns."""
        await self._threads.run(self._load, seconds=START_SECONDS)
        pause, told = _RETRY_SECONDS, ""
        while True:
            socket = self._find_socket()
            try:
                if socket:
                    closed = asyncio.Event()
                    self._connection = await self._connect(socket, closed)
                    pause, told = _RETRY_SECONDS, ""
                    await self._while_connected(closed)
                    continue
            except (self._libvirt.libvirtError, TimeoutError) as error:
                if str(error) != told:
                    told = str(error)
                    log("warning", "cannot connect to the libvirt daemon, retrying", error=told)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_RETRY_SECONDS)

    @property
    def is_connected(self) -> bool:
        """Whether the daemon is connected, as far as known."""
        return self._ready.is_set()

    async def _connect(self, socket: str, closed: asyncio.Event) -> Any:
        """A connection, which sets `closed` when it is lost. Raises libvirtError, TimeoutError."""
        abandoned = threading.Event()
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                return await self._threads.run(self._open, socket, closed, abandoned, seconds=_OPEN_SECONDS)
        finally:
            abandoned.set()

    async def _while_connected(self, closed: asyncio.Event) -> None:
        self._ready.set()
        self._connected()
        await closed.wait()
        log("info", "lost the connection to the libvirt daemon")
        self._ready.clear()
        self._connection = None
        self._disconnected()

    def _load(self) -> None:
        import libvirt  # 10 MiB and 20 ms: meanwhile the daemon starts

        self._libvirt = libvirt
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._run_events, name="libvirt-events", daemon=True).start()

    def _run_events(self) -> None:
        while True:
            with contextlib.suppress(self._libvirt.libvirtError):
                self._libvirt.virEventRunDefaultImpl()

    def _find_socket(self) -> str | None:
        for name in daemon.DAEMONS:
            path = self._paths.libvirt_socket(name)
            if pathlib.Path(path).exists():
                return path
        return None

    def _open(self, socket: str, closed: asyncio.Event, abandoned: threading.Event) -> Any:
        libvirt = self._libvirt
        connection = libvirt.open(f"qemu+unix:///session?socket={socket}")
        if abandoned.is_set():
            connection.close()
            return None
        connection.registerCloseCallback(lambda *_: self._post(closed.set), None)
        connection.setKeepAlive(2, 3)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, self._on_agent, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot, None)
        for change in ("DEVICE_ADDED", "DEVICE_REMOVED", "DEVICE_REMOVAL_FAILED"):
            connection.domainEventRegisterAny(
                None, getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{change}"), self._on_device, None
            )
        return connection

    def _end_daemon(self, calls: int) -> None:
        """Kill a daemon in which `calls` calls are stuck; the supervisor restarts it."""
        for name in daemon.DAEMONS:
            with contextlib.suppress(OSError, ValueError):
                pid = int(pathlib.Path(f"{self._paths.libvirt_runtime}/{name}.pid").read_text(encoding="ascii"))
                log("warning", "calls to the libvirt daemon are stuck, killing it", pid=pid, calls=calls)
                os.kill(pid, signal.SIGKILL)

    # -- events, called in libvirt's thread

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: shutting down
            self._loop.call_soon_threadsafe(function, *arguments)

    def _on_lifecycle(self, _conn: object, _dom: object, event: int, detail: int, _opaque: object) -> None:
        self._post(self._happened, DomainEvent("lifecycle", event, detail))

    def _on_agent(self, _conn: object, _dom: object, state: int, _reason: int, _opaque: object) -> None:
        self._post(self._happened, DomainEvent("agent", state))

    def _on_reboot(self, _conn: object, _dom: object, _opaque: object) -> None:
        self._post(self._happened, DomainEvent("reboot"))

    def _on_device(self, _conn: object, _dom: object, _alias: str, _opaque: object) -> None:
        self._post(self._happened, DomainEvent("device"))

    # -- calls

    async def _call(self, function: Callable[[Any], T], seconds: float = CALL_SECONDS, slow: bool = False) -> T:
        """Run `function(connection)` in a thread. Raises HypervisorError, Unavailable."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
                try:
                    if slow:
                        return await self._slow.run(function, self._connection, seconds=GUEST_STUCK_SECONDS)
                    return await self._threads.run(function, self._connection, seconds=seconds)
                except self._libvirt.libvirtError as error:
                    words = error.get_error_message() or str(error)
                    lost = error.get_error_domain() in (self._libvirt.VIR_FROM_RPC, self._libvirt.VIR_FROM_REMOTE)
                    raise (Unavailable if lost else HypervisorError)(words) from None
        except TimeoutError:
            raise Unavailable(f"the libvirt daemon did not answer within {seconds:g} s") from None

    async def create(self, xml: str, paused: bool) -> None:
        """Start a transient domain. Raises HypervisorError."""
        await self._call(lambda connection: connection.createXML(xml, _START_PAUSED if paused else 0), START_SECONDS)

    async def facts(self, name: str) -> DomainFacts | None:
        """The domain's state; None if it does not exist. Raises HypervisorError."""

        def read(connection: Any) -> DomainFacts | None:
            try:
                domain = connection.lookupByName(name)
            except self._libvirt.libvirtError as error:
                if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise
            state, reason = domain.state()
            return DomainFacts(state, reason, describe(domain.XMLDesc()), self._qemu_pid(name))

        try:
            return await self._call(read)
        except InvalidXml as error:
            raise HypervisorError(str(error)) from error

    def _qemu_pid(self, name: str) -> int:
        try:
            return int(pathlib.Path(f"{self._paths.qemu_pids}/{name}.pid").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    async def power_button(self, name: str, agent: bool) -> None:
        """Ask the guest to shut down, by ACPI or by its agent. Raises HypervisorError."""
        flags = _SHUTDOWN_BY_AGENT if agent else _SHUTDOWN_BY_ACPI
        await self._call(lambda connection: connection.lookupByName(name).shutdownFlags(flags))

    async def destroy(self, name: str) -> None:
        """Kill QEMU. Raises HypervisorError."""
        await self._call(lambda connection: connection.lookupByName(name).destroy(), 30.0)

    async def suspend(self, name: str) -> None:
        """Pause the vCPUs. Raises HypervisorError."""
        await self._call(lambda connection: connection.lookupByName(name).suspend())

    async def resume(self, name: str) -> None:
        """Resume the vCPUs. Raises HypervisorError."""
        await self._call(lambda connection: connection.lookupByName(name).resume())

    async def attach_device(self, name: str, xml: str) -> None:
        """Plug a device into the running domain. Raises HypervisorError."""
        await self._call(lambda connection: connection.lookupByName(name).attachDeviceFlags(xml, _LIVE))

    async def detach_device(self, name: str, alias: str, requested: bool) -> None:
        """Ask the guest to release a device; an event reports the removal. Raises HypervisorError.

        `requested`: it was asked before. QEMU rejects a second request while the first one is pending.
        """

        def detach(connection: Any) -> None:
            try:
                connection.lookupByName(name).detachDeviceAlias(alias, _LIVE)
            except self._libvirt.libvirtError as error:
                code = error.get_error_code()
                # QEMU's errors have no code of their own in libvirt: all are VIR_ERR_INTERNAL_ERROR.
                pending = requested and code == self._libvirt.VIR_ERR_INTERNAL_ERROR
                if code != self._libvirt.VIR_ERR_DEVICE_MISSING and not pending:
                    raise

        await self._call(detach)

    async def update_device(self, name: str, xml: str) -> None:
        """Update a device of the running domain. Raises HypervisorError."""
        await self._call(lambda connection: connection.lookupByName(name).updateDeviceFlags(xml, _LIVE))

    async def resize_disk(self, name: str, target: str, size: int) -> None:
        """Resize a disk for QEMU and the guest, in bytes; a file is extended. Raises HypervisorError."""
        await self._call(lambda connection: connection.lookupByName(name).blockResize(target, size, _RESIZE_BYTES))

    async def reset(self, name: str) -> None:
        """Reset the domain. Raises HypervisorError."""
        await self._call(lambda connection: connection.lookupByName(name).reset())

    async def reboot(self, name: str, agent: bool) -> None:
        """Ask the guest to reboot, by its agent or by ACPI. Raises HypervisorError."""
        flags = _REBOOT_BY_AGENT if agent else _REBOOT_BY_ACPI
        await self._call(lambda connection: connection.lookupByName(name).reboot(flags), slow=agent)

    async def screenshot(self, name: str, limit: int) -> tuple[str, bytes]:
        """MIME type and data of a screenshot; no data if larger than `limit`. Raises HypervisorError."""

        def take(connection: Any) -> tuple[str, bytes]:
            domain, stream = connection.lookupByName(name), connection.newStream()
            mime = domain.screenshot(stream, 0)
            data = bytearray()
            try:
                while piece := stream.recv(64 << 10):
                    data += piece
                    if len(data) > limit:
                        stream.abort()
                        return mime, b""
                stream.finish()
            except BaseException:
                with contextlib.suppress(self._libvirt.libvirtError):
                    stream.abort()
                raise
            return mime, bytes(data)

        return await self._call(take)

    async def dump_screen(self, name: str, path: str) -> None:
        """Write a PPM screenshot to a file. Raises HypervisorError."""
        import libvirt_qemu  # type: ignore[import-untyped]

        command = json.dumps({"execute": "screendump", "arguments": {"filename": path}})
        await self._call(lambda connection: libvirt_qemu.qemuMonitorCommand(connection.lookupByName(name), command, 0))

    async def agent_command(self, name: str, command: str, seconds: int) -> Any:
        """The decoded `return` of the guest agent's response.

        Raises HypervisorError; ValueError, AttributeError, RecursionError for a malformed response.
        """
        import libvirt_qemu

        def ask(connection: Any) -> Any:
            text = libvirt_qemu.qemuAgentCommand(
                connection.lookupByName(name), json.dumps({"execute": command}), seconds, 0
            )
            if len(text) > LARGEST_AGENT_ANSWER:
                raise ValueError("the answer is too long")
            return json.loads(text).get("return")

        return await self._call(ask, seconds + 2.0, slow=True)
