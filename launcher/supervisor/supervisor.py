"""PID 1 of the launcher's pod: `python3 -I -S -E /opt/hyperlet/launcher/supervisor/supervisor.py`.

Waits for the handler to write to wake.fifo, which staggers the start of many launchers. Then starts the gRPC server
and the libvirt daemon, and restarts them when they exit; QEMU is a child of this process and not affected. Copies the
guest's console to standard output. On SIGTERM the guest is asked to shut down, and QEMU is killed after
HYPERLET_GRACE_SECONDS. When QEMU has exited, writes the termination message; the exit status is 0 if the guest shut
down or was told to, else 1.

Standard library only, with few imports (contextlib is too large): this process runs once per VM, for its lifetime.
"""

import json
import os
import select
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100,PTH120

from launcher.console.serial_tail import SerialTail
from launcher.hypervisor import daemon
from launcher.log import log
from launcher.paths import Paths, from_environment
from launcher.supervisor.child_process import ChildProcess, describe, kill, trim
from launcher.supervisor.serial_log import SerialLog

WAKE_SECONDS = 20.0
"""Start without the handler after this time (HYPERLET_WAKE_SECONDS)."""
EXPLAIN_SECONDS = 3.0
"""Time for the server to learn from libvirt how QEMU ended."""
DELIVERY_SECONDS = 1.0
"""Time for the server to deliver the final report after that."""
TERM_SECONDS = 3.0
"""Time between SIGTERM and SIGKILL for QEMU."""
MAX_GRACE_SECONDS = 86400.0
"""A day (same as in api.names): upper bound of the grace period."""
TRIM_SECONDS = 10.0
_TICK_MS = 10_000
_PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """The main loop. All times are monotonic seconds."""

    def __init__(self, paths: Paths, grace: float, wake: float = WAKE_SECONDS) -> None:
        self.paths = paths
        self.grace = grace
        libvirt = daemon.find()
        daemon.prepare(libvirt, paths)
        self.libvirt = ChildProcess(
            "libvirt", daemon.command(libvirt, paths), daemon.environment(paths), paths.libvirt_output
        )
        self.server = ChildProcess("server", [sys.executable, "-s", "-m", "launcher"], server_environment(paths))
        self.console = SerialLog(paths.serial_fifo, 1, SerialTail(paths.serial_tail))
        self.wake_fd = os.open(paths.wake, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        """Descriptor of the wake FIFO, readable when the handler has written; -1: started."""
        self.wake_at = time.monotonic() + wake
        self.ends: dict[int, int] = {}
        """Exit statuses of processes not started by the supervisor, among them QEMU."""
        self.trim_at = 0.0
        self.stopping = False
        self.deadline = 0.0
        """Time of the next signal to QEMU; only while stopping."""
        self.signals = [signal.SIGTERM, signal.SIGKILL]
        self.forced = False
        self.ending = False
        """QEMU has exited: nothing is restarted."""

    # -- the loop

    def run(self) -> int:
        """Run until QEMU has exited or cannot start any more. Returns the exit status."""
        wakeup = self._catch_signals()
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(self.console.source, select.POLLIN)
        poll.register(self.wake_fd, select.POLLIN)
        while True:
            now = time.monotonic()
            self._wake(now, poll)
            self._trim(now)
            self._reap(now)
            self._start(now)
            end = self._end_of_qemu()
            if end is not None:
                return self._finish(*end)
            if self.stopping and self._stop(now):
                return self._finish_without_qemu()
            poll.register(self.console.target, select.POLLOUT) if self.console.blocked else self._forget(poll)
            poll.poll(self._timeout(now))
            self._drain(wakeup)
            self.console.pump(time.monotonic())

    def _trim(self, now: float) -> None:
        """Limit the logs of libvirt and QEMU, which a guest can fill at any rate."""
        if now < self.trim_at:
            return
        self.trim_at = now + TRIM_SECONDS
        self.libvirt.trim()
        try:
            names = os.listdir(self.paths.domain_log)  # noqa: PTH208
        except OSError:
            return
        for name in names:
            trim(f"{self.paths.domain_log}/{name}")

    def _forget(self, poll: select.poll) -> None:
        try:  # noqa: SIM105
            poll.unregister(self.console.target)
        except KeyError:
            pass

    def _catch_signals(self) -> int:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._on_stop_signal())
        return reading

    def _drain(self, wakeup: int) -> None:
        try:  # noqa: SIM105
            os.read(wakeup, 4096)
        except BlockingIOError:
            pass

    def _timeout(self, now: float) -> float:
        children = (self.libvirt, self.server)
        moments = [child.start_at for child in children if not child.pid] if self.wake_fd < 0 else [self.wake_at]
        if self.stopping:
            moments.append(self.deadline)
        return min([_TICK_MS, *(max(0.0, moment - now) * 1000 + 1 for moment in moments)])

    # -- children

    def _wake(self, now: float, poll: select.poll) -> None:
        """Start on wake-up or timeout. Unlink the FIFO first: its presence means "not started"."""
        if self.wake_fd < 0:
            return
        try:
            called = bool(os.read(self.wake_fd, 1))
        except BlockingIOError:
            called = False
        if called or now >= self.wake_at:
            os.unlink(self.paths.wake)  # noqa: PTH108
            poll.unregister(self.wake_fd)
            os.close(self.wake_fd)
            self.wake_fd = -1

    def _start(self, now: float) -> None:
        if self.wake_fd >= 0:
            return
        for child in (self.libvirt, self.server):
            if not child.pid and now >= child.start_at:
                child.start()

    def _reap(self, now: float) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for child in (self.libvirt, self.server):
                if child.pid == pid:
                    pause = child.ended(status, now)
                    if self.ending:
                        break
                    log(
                        "warning",
                        f"{child.name} exited, restarting it",
                        how=describe(status),
                        pause=pause,
                        words=child.last_words(),
                    )
                    break
            else:
                if len(self.ends) > 64:
                    self.ends.clear()
                self.ends[pid] = status

    def _state(self) -> dict[str, object]:
        """The domain's state as last written by the server; empty if never."""
        try:
            with open(self.paths.state, encoding="utf-8") as file:  # noqa: PTH123
                state = json.load(file)
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    # -- SIGTERM

    def _on_stop_signal(self) -> None:
        if self.stopping:
            return
        self.stopping = True
        self.deadline = time.monotonic() + self.grace
        self.server.env["HYPERLET_STOPPING"] = "1"
        self.server.kill(signal.SIGTERM)

    def _stop(self, now: float) -> bool:
        """Continue the shutdown. True: there is no QEMU."""
        pids = self._qemu_pids()
        if not pids:
            return True
        if now >= self.deadline:
            self.forced = True
            number = self.signals.pop(0) if len(self.signals) > 1 else self.signals[0]
            log("warning", "the guest did not shut down in time, killing QEMU", signal=number, grace=self.grace)
            for pid in pids:
                kill(pid, number)
            self.deadline = now + TERM_SECONDS
        return False

    def _qemu_pids(self) -> list[int]:
        """The QEMU processes of this pod: those with a PID file of libvirt that are children of this process."""
        found = []
        try:
            names = os.listdir(self.paths.qemu_pids)  # noqa: PTH208
        except OSError:
            return []
        for name in names:
            if name.endswith(".pid"):
                try:
                    with open(f"{self.paths.qemu_pids}/{name}", encoding="ascii") as file:  # noqa: PTH123
                        pid = int(file.read(32))
                    if pid in (self.libvirt.pid, self.server.pid):
                        continue  # libvirt's own lock file, driver.pid
                    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                        fields = file.read(4096).rpartition(b")")[2].split()
                except (OSError, ValueError):
                    continue
                if fields[0] != b"Z" and int(fields[1]) == os.getpid():
                    found.append(pid)
        return found

    # -- the end

    def _end_of_qemu(self) -> tuple[dict[str, object], int | None] | None:
        """The domain's last state and QEMU's wait status, once QEMU has exited; else None."""
        if not self.ends and self.server.status is None:
            return None
        state = self._state()
        pid = state.get("qemu_pid")
        if isinstance(pid, int) and pid in self.ends:
            return state, self.ends[pid]
        if state.get("final"):
            return state, None
        return None

    def _finish(self, state: dict[str, object], status: int | None) -> int:
        state = self._wait_for_delivery(state)
        final = state.get("final")
        if isinstance(final, dict):
            failed = final.get("phase") == "Failed"
            reason, message = str(final.get("reason", "")), str(final.get("message", ""))
        else:
            failed = status is None or status != 0
            reason = "Crashed" if failed else "Shutdown"
            message = f"QEMU ended with {describe(status)}" if status is not None else "QEMU exited"
        if self.stopping:
            failed = False
            reason = "ForceOff" if self.forced else "Terminated"
            message = "the guest did not shut down within its grace period" if self.forced else "the guest shut down"
        return self._leave("Failed" if failed else "Succeeded", reason, message)

    def _finish_without_qemu(self) -> int:
        return self._leave("Succeeded", "NeverStarted", "terminated before the guest was started")

    def _wait_for_delivery(self, state: dict[str, object]) -> dict[str, object]:
        """Wait for the server to deliver the final report; it exits when done."""
        self.ending = True
        now = time.monotonic()
        until = now + EXPLAIN_SECONDS
        explained = False
        while self.server.pid and now < until:
            self.console.pump(now)
            self._reap(now)
            if not explained and self._state().get("final"):
                explained = True
                until = min(until, now + DELIVERY_SECONDS)
            time.sleep(0.01)
            now = time.monotonic()
        return self._state() or state

    def _leave(self, phase: str, reason: str, message: str) -> int:
        for child in (self.server, self.libvirt):
            child.kill(signal.SIGKILL)
        for pid in self._qemu_pids():
            kill(pid, signal.SIGKILL)
        self.console.pump(time.monotonic())
        try:
            with open(self.paths.termination_log, "w", encoding="utf-8") as file:  # noqa: PTH123
                json.dump({"phase": phase, "reason": reason, "message": message[:1024]}, file)
        except OSError as error:
            log("warning", "the termination message cannot be written", error=str(error))
        return 0 if phase == "Succeeded" else 1


def server_environment(paths: Paths) -> dict[str, str]:
    """The server's environment: one malloc arena instead of eight per core, and as few gRPC threads as possible."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100,PTH120
    return {
        **os.environ,
        "PYTHONPATH": f"{home}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        "HOME": paths.home,
        "PYTHONNODEBUGRANGES": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MALLOC_ARENA_MAX": "1",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "GRPC_VERBOSITY": "ERROR",
    }


def prepare(paths: Paths) -> None:
    """Create directories and FIFOs. Files of an earlier run of the container are removed."""
    os.umask(0o077)
    for directory in (paths.run, paths.disks, paths.media):
        os.makedirs(directory, exist_ok=True)  # noqa: PTH103
    for leftover in (paths.wake, paths.socket, paths.state, paths.request, paths.serial_fifo, paths.serial_tail):
        try:  # noqa: SIM105
            os.unlink(leftover)  # noqa: PTH108
        except FileNotFoundError:
            pass
    os.mkfifo(paths.serial_fifo, 0o600)
    os.mkfifo(paths.wake, 0o600)


def adopt_orphans() -> None:
    """Become the parent of the daemonized QEMU; not needed as PID 1."""
    import ctypes  # 0.5 MiB that pods do not need

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main() -> int:
    """Run the pod."""
    paths = from_environment()
    prepare(paths)
    if os.getpid() != 1:
        adopt_orphans()
    grace = min(float(os.environ.get("HYPERLET_GRACE_SECONDS", "30")), MAX_GRACE_SECONDS)
    return Supervisor(paths, grace, float(os.environ.get("HYPERLET_WAKE_SECONDS", WAKE_SECONDS))).run()


if __name__ == "__main__":
    sys.exit(main())
