"""Stuck calls: the daemon is killed before they use up the threads."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.hypervisor import call_pool, connection
from launcher.hypervisor.call_pool import CallPool
from launcher.hypervisor.connection import Hypervisor, Unavailable
from launcher.paths import Paths
from tests.unit.tasklab import assert_cancels_caller

SECONDS = 20.0


class LibvirtError(Exception):
    """libvirt.libvirtError of a lost connection."""

    def get_error_message(self) -> str:
        return str(self)

    def get_error_domain(self) -> int:
        return 7

    def get_error_code(self) -> int:
        return 38


class Daemon:
    """A process in place of libvirt's daemon, with its PID file and socket. Restarted like by the supervisor."""

    def __init__(self, paths: Paths) -> None:
        self.folder = Path(paths.libvirt_runtime)
        self.folder.mkdir(parents=True)
        Path(paths.libvirt_socket("libvirtd")).touch()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        self.processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        (self.folder / "libvirtd.pid").write_text(str(self.processes[-1].pid))

    def stop(self) -> None:
        """Stops the process: it hangs."""
        os.kill(self.process.pid, signal.SIGSTOP)
        while not self.stopped():
            time.sleep(0.001)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.processes[-1]

    def stopped(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"


class Libvirt:
    """The module: its calls return as long as the daemon is not stopped, and fail when it is killed."""

    libvirtError = LibvirtError
    VIR_FROM_RPC, VIR_FROM_REMOTE, VIR_ERR_NO_DOMAIN = 7, 13, 42

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.lost: list[Any] = []
        self.inside = 0
        self.most = 0
        self.count = threading.Lock()

    def __getattr__(self, name: str) -> int:
        assert name.startswith("VIR_DOMAIN_EVENT_ID_"), name
        return 0

    def registerErrorHandler(self, *_: object) -> None:
        """Nothing to register."""

    def virEventRegisterDefaultImpl(self) -> None:
        """No event loop."""

    def virEventRunDefaultImpl(self) -> None:
        time.sleep(600)

    def open(self, _uri: str) -> Any:
        self.call()
        found = SimpleNamespace(
            registerCloseCallback=lambda callback, _: self.lost.append(callback),
            setKeepAlive=lambda *_: None, domainEventRegisterAny=lambda *_: None, close=lambda: None,
            lookupByName=lambda _: SimpleNamespace(reset=self.call),
        )  # fmt: skip
        return found

    def call(self) -> None:
        process = self.daemon.process
        with self.count:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            while process.poll() is None and self.daemon.stopped():
                time.sleep(0.01)
        finally:
            with self.count:
                self.inside -= 1
        if process.poll() is not None:
            raise LibvirtError("the connection was closed")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(Paths(str(tmp_path)))
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


@pytest.fixture
def libvirt(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    made = Libvirt(daemon)
    monkeypatch.setitem(sys.modules, "libvirt", made)  # type: ignore[arg-type]
    monkeypatch.setattr(connection, "_OPEN_SECONDS", 0.2)
    return made


@contextlib.asynccontextmanager
async def connected(tmp_path: Path) -> Any:
    hypervisor = Hypervisor(Paths(str(tmp_path)), lambda: None, lambda: None, lambda _: None)
    keeping = asyncio.create_task(hypervisor.keep_connected())
    async with asyncio.timeout(SECONDS):
        while not hypervisor.is_connected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    yield hypervisor
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_daemon_is_killed_when_calls_are_stuck(tmp_path: Path, daemon: Daemon, libvirt: Libvirt) -> None:
    async with connected(tmp_path) as hypervisor:
        hangs = daemon.process
        daemon.stop()

        async def reset() -> None:
            await hypervisor._call(lambda each: each.lookupByName("vm").reset(), 0.2)

        results = await asyncio.gather(*(reset() for _ in range(3 * connection.THREADS)), return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results), results
        async with asyncio.timeout(SECONDS):
            while hangs.poll() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert hangs.returncode == -signal.SIGKILL and libvirt.most == connection.THREADS
        daemon.start()
        for lost in libvirt.lost:
            lost()
        async with asyncio.timeout(SECONDS):
            while libvirt.inside:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await reset()


async def test_fewer_stuck_calls_do_not_kill_the_daemon(tmp_path: Path, daemon: Daemon, libvirt: Libvirt) -> None:
    async with connected(tmp_path) as hypervisor:
        daemon.stop()
        for _ in range(connection.STUCK_CALLS - 1):
            with pytest.raises(Unavailable, match="did not answer"):
                await hypervisor._call(lambda each: each.lookupByName("vm").reset(), 0.05)
        await asyncio.sleep(0.3)
        assert daemon.process.poll() is None
        os.kill(daemon.process.pid, signal.SIGCONT)
        await hypervisor._call(lambda each: each.lookupByName("vm").reset(), SECONDS)


async def test_daemon_that_accepts_no_connection_is_killed(tmp_path: Path, daemon: Daemon, libvirt: Libvirt) -> None:
    hangs = daemon.process
    daemon.stop()
    hypervisor = Hypervisor(Paths(str(tmp_path)), lambda: None, lambda: None, lambda _: None)
    keeping = asyncio.create_task(hypervisor.keep_connected())
    async with asyncio.timeout(SECONDS):
        while hangs.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        daemon.start()
        while not hypervisor.is_connected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_cancelling_the_caller_of_a_call_cancels_it(tmp_path: Path, daemon: Daemon, libvirt: Libvirt) -> None:
    async with connected(tmp_path) as hypervisor:
        ends = threading.Event()
        await assert_cancels_caller(hypervisor._call(lambda _: ends.wait(SECONDS)), ends.set)


async def stuck(pool: CallPool, ends: threading.Event, count: int) -> list[asyncio.Task[bool]]:
    return [asyncio.create_task(pool.run(ends.wait, SECONDS, seconds=0.02)) for _ in range(count)]


async def test_call_whose_caller_left_counts_as_stuck() -> None:
    seen, ends = list[int](), threading.Event()
    pool = CallPool("test", 2, 1, seen.append)
    (call,) = await stuck(pool, ends, 1)
    await asyncio.sleep(0)
    call.cancel()
    async with asyncio.timeout(SECONDS):
        while not seen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    ends.set()
    assert seen == [1]


async def test_calls_that_wait_for_a_thread_are_not_stuck() -> None:
    seen, ends = list[int](), threading.Event()
    pool = CallPool("test", 2, 3, seen.append)
    calls = await stuck(pool, ends, 6)
    await asyncio.sleep(0.2)
    assert seen == []
    ends.set()
    assert await asyncio.gather(*calls) == [True] * 6


async def test_restarts_are_limited_but_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_pool, "PAUSE_SECONDS", 0.3)
    seen, ends = list[float](), threading.Event()
    pool = CallPool("test", 4, 1, lambda _: seen.append(time.monotonic()))
    calls = await stuck(pool, ends, 4)
    async with asyncio.timeout(SECONDS):
        while len(seen) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    ends.set()
    await asyncio.gather(*calls)
    assert seen[1] - seen[0] >= 0.25
    count = len(seen)
    await asyncio.sleep(0.7)
    assert len(seen) == count, "nothing is stuck any more"
