"""The gRPC connection to each launcher of this node, kept for as long as its pod exists.

A launcher is found by its pod's directory, verified by the cgroup of its listener (`kit.rpc`), and then watched. Every
failure restarts this from the beginning, since a restarted server has another socket.
"""

import asyncio
import contextlib
import os
import pathlib
import time
from collections.abc import Callable

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from api import names
from api.errors import HyperletError, LauncherUnavailable
from handler.launchers import reports
from handler.launchers.frame_budget import Budget, OverBudget
from handler.launchers.relay import relay
from handler.launchers.reports import LauncherState
from handler.launchers.start_limiter import StartLimiter, StartSlot
from handler.node import pod_processes
from kit import backoff, log, proc, rpc
from kit.tasks import BackgroundTasks, until_one_ends
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc as services
from protos import limits

PODS = pathlib.Path("/var/lib/kubelet/pods")
SOCKET = "volumes/kubernetes.io~empty-dir/hyperlet/launcher.sock"
WAKE = "volumes/kubernetes.io~empty-dir/hyperlet/wake.fifo"
SYNC_SECONDS = 90.0
ANSWER_SECONDS = 10.0
HEARTBEAT_SECONDS = 30.0
"""Interval between requests to a launcher that sends no reports."""
_EAGER_SECONDS, _EAGER_PAUSE, _PATIENT_PAUSE = 15.0, 0.05, 0.5
_PACE_SECONDS = 0.02
_STEADY_SECONDS, _LONGEST_PAUSE = 10.0, 5.0
_SHORTEST_BANISHMENT, _LONGEST_BANISHMENT = 2.0, 600.0
_CUT_OFF_RESET_SECONDS = 600.0
"""A connection of this length resets the count of budget violations."""


class SyncRefused(HyperletError):
    """The launcher rejected Sync. `permanent`: a retry cannot succeed."""

    reason = names.REASON_SYNC_FAILED

    def __init__(self, message: str, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


def retry_delay(short: int, silent_seconds: float) -> float:
    """Seconds before the next connection attempt, after `short` connections in a row that ended at once.

    A restarting server is reconnected within moments; one that keeps closing the connection is retried ever less often.
    """
    usual = _EAGER_PAUSE if silent_seconds < _EAGER_SECONDS else _PATIENT_PAUSE
    return max(usual, backoff.delay(short + 1, _EAGER_PAUSE, _LONGEST_PAUSE)) if short else usual


def cut_off_seconds(floods: int) -> float:
    """Seconds for which a launcher that exceeded its budget `floods` times is not reconnected."""
    return backoff.delay(floods, _SHORTEST_BANISHMENT, _LONGEST_BANISHMENT) if floods else 0.0


class LauncherConnection:
    """One launcher. `state`: its last checked report. `changed` is called when `state` or `trouble` changes."""

    def __init__(
        self,
        pod_uid: str,
        changed: Callable[[], None],
        limiter: StartLimiter,
        pods: pathlib.Path = PODS,
        uid: int = names.LAUNCHER_UID,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        sandbox: rpc.Sandbox = pod_processes.sandbox,
    ) -> None:
        self.pod_uid = pod_uid
        self.state: LauncherState | None = None
        self.trouble = ""
        """Why there is no connection; empty while connected."""
        self.since = time.monotonic()
        """Monotonic time of the last change of `state.state`."""
        self.cut_off = ""
        """Why the launcher was disconnected, if it exceeded its frame budget."""
        self._budget = Budget()
        self._floods = 0
        self._sequence = 0
        self._short = 0
        self._began = 0.0
        """Monotonic start time of the connection; 0: none since the last attempt."""
        self._since = time.monotonic()
        self._changed = changed
        self._start_limiter = limiter
        self._slot: StartSlot | None = None
        """The slot in the start limiter; at most one per launcher."""
        self._queues = False
        self._pods = pods
        self._uid = uid
        self._sandbox = sandbox
        self._heartbeat_seconds = heartbeat_seconds
        self._answer_seconds = answer_seconds
        self._process: proc.Process | None = None
        self._stub: services.LauncherStub | None = None
        self._log = log.logger(component="launcher", pod_uid=pod_uid)
        self._tasks = BackgroundTasks(log.task_failed)
        self._tasks.start("launcher-connection", self._keep(), pod_uid=pod_uid)

    @property
    def silent_seconds(self) -> float:
        """Seconds without a connection; 0 while connected or queued in the start limiter."""
        return 0.0 if self._stub or self._queues else time.monotonic() - self._since

    @property
    def process(self) -> proc.Process:
        """The verified process of the launcher. Raises LauncherUnavailable."""
        if self._process is None:
            raise LauncherUnavailable(self.trouble or "the launcher is not connected yet")
        return self._process

    @property
    def stub(self) -> services.LauncherStub:
        """The stub for other calls, while connected. Raises LauncherUnavailable."""
        if self._stub is None:
            raise LauncherUnavailable(self.trouble or "the launcher is not connected yet")
        return self._stub

    async def report(self) -> pb.Report:
        """The launcher's current report, unchecked. Raises LauncherUnavailable, TimeoutError, AioRpcError."""
        report = await self._answer(self.stub)
        if report is None:
            raise LauncherUnavailable("the launcher's response cannot be decoded")
        return report

    async def close(self) -> None:
        """Disconnect and stop reconnecting."""
        try:
            await self._tasks.close()
        finally:
            if self._slot is not None:
                self._slot.end()

    async def sync(self, request: pb.SyncRequest) -> LauncherState:
        """Call Sync: the launcher applies the VMI. Raises SyncRefused, LauncherUnavailable."""
        stub = self.stub
        if request.ByteSize() > limits.MESSAGE_BYTES:
            raise SyncRefused(f"the VMI is larger than {limits.MESSAGE_BYTES >> 20} MiB", permanent=True)
        try:
            report = await stub.Sync(request, timeout=SYNC_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _sync_error(error) from error
        try:
            self._take(report)
        except DecodeError as error:
            raise LauncherUnavailable(str(error)) from error
        return reports.check(report)

    # ---- connection ------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            self._began = 0.0
            try:
                await self._converse()
                trouble = "the launcher closed the connection"
            except LauncherUnavailable as error:
                trouble = error.message
            except OverBudget as error:
                trouble = self.cut_off = error.message
                self._floods += 1
                self._log.error("Launcher cut off: it exceeded its frame budget", why=error.message, times=self._floods)
            except grpc.aio.AioRpcError as error:
                trouble = f"the launcher does not answer: {reports.text(error.details() or error.code().name)}"
            except DecodeError:
                trouble = "the launcher's response cannot be decoded"
                self._short += 1
            except TimeoutError:
                trouble = f"the launcher hangs: no answer within {self._answer_seconds:g} s"
            except Exception as error:
                self._log.exception("Unhandled exception in the launcher connection")
                trouble = str(error)
                self._short += 1
            if self._began and time.monotonic() - self._began >= _CUT_OFF_RESET_SECONDS:
                self._floods = 0
            if self._began:
                steady = time.monotonic() - self._began >= _STEADY_SECONDS
                self._short = 0 if steady else self._short + 1
            self._silence(trouble)
            if self.state is not None and self.state.ended:
                return  # the state is final
            await asyncio.sleep(max(retry_delay(self._short, self.silent_seconds), cut_off_seconds(self._floods)))

    async def _wake(self) -> None:
        """Wake a launcher that waits on its FIFO, once the start limiter grants a slot."""
        if self._slot is None:
            if not os.path.lexists(self._pods / self.pod_uid / WAKE):
                return
            self._queues = True
            try:
                self._slot = await self._start_limiter.slot()
            finally:
                self._queues, self._since = False, time.monotonic()
            self._changed()
        with self._directory() as base:
            try:
                proc.write_fifo(base, f"{self.pod_uid}/{WAKE}", b"!")
            except OSError as error:
                raise LauncherUnavailable(f"{WAKE}: {error.strerror}") from error

    async def _converse(self) -> None:
        await self._wake()
        with contextlib.ExitStack() as stack:
            fd, process = await asyncio.to_thread(self._find)
            stack.callback(os.close, fd)
            stack.callback(process.close)
            async with relay(fd, self._budget, pod_uid=self.pod_uid) as way:
                try:
                    async with rpc.channel(way.fd) as channel:
                        await self._talk(services.LauncherStub(channel), process)
                finally:
                    # gRPC reports a generic error; this is the cause.
                    if way.cut_off is not None:
                        raise way.cut_off

    async def _talk(self, stub: services.LauncherStub, process: proc.Process) -> None:
        self._sequence = 0
        self._take(await self._answer(stub))
        self._process, self._stub, self._began = process, stub, time.monotonic()
        if self._slot is not None:
            self._slot.end()
        if self.trouble:
            self._log.info("Connected to the launcher")
        self.trouble = self.cut_off = ""
        self._changed()
        try:
            await self._follow(stub)
        finally:
            self._process = self._stub = None

    def _directory(self) -> contextlib.AbstractContextManager[int]:
        try:
            return proc.closing(os.open(self._pods, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise LauncherUnavailable(f"{self._pods}: {error.strerror}") from error

    def _find(self) -> tuple[int, proc.Process]:
        with self._directory() as base:
            fd = rpc.open_socket(base, f"{self.pod_uid}/{SOCKET}")
        try:
            return fd, rpc.verified_process(fd, self.pod_uid, self._uid, self._sandbox)
        except BaseException:
            os.close(fd)
            raise

    async def _answer(self, stub: services.LauncherStub) -> pb.Report:
        """One report. Raises TimeoutError, AioRpcError."""
        async with asyncio.timeout(self._answer_seconds):
            call = stub.Watch(pb.WatchRequest())
            try:
                report: pb.Report
                async for report in call:
                    return report
            finally:
                call.cancel()
        raise LauncherUnavailable("the launcher closed the connection")

    async def _follow(self, stub: services.LauncherStub) -> None:
        """Process reports until the stream ends. Periodic requests detect a launcher that hangs."""
        await until_one_ends(self._ask_now_and_then(stub), self._read(stub))

    async def _read(self, stub: services.LauncherStub) -> None:
        async for report in stub.Watch(pb.WatchRequest()):
            self._take(report)
            del report  # up to the message limit in size: do not keep it until the next one
            # Bounds the rate of reports: the rest waits in the stream's flow control window.
            await asyncio.sleep(_PACE_SECONDS)

    async def _ask_now_and_then(self, stub: services.LauncherStub) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            self._take(await self._answer(stub))

    def _take(self, report: pb.Report | None) -> None:
        if report is None:  # gRPC's result for an undecodable message
            raise DecodeError("the launcher's response cannot be decoded")
        if self.state is not None and self.state.ended:
            return  # the state is final
        if report.sequence < self._sequence:
            return  # overtaken by a newer report
        self._sequence = report.sequence
        state = reports.check(report)
        if state == self.state:
            return
        if self.state is None or state.state != self.state.state:
            self.since = time.monotonic()
        self.state = state
        self._changed()

    def _silence(self, trouble: str) -> None:
        if not self.trouble:
            self._since = time.monotonic()
        if self.trouble != trouble:
            self.trouble = trouble
            self._changed()


def _sync_error(error: grpc.aio.AioRpcError) -> HyperletError:
    words = reports.text(error.details() or error.code().name, limits.REASON_BYTES)
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.NOT_FOUND:
            return SyncRefused(words, permanent=True)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return LauncherUnavailable(words)
    return SyncRefused(words, permanent=False)
