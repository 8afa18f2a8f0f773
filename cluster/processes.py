"""Processes that outlive the command that started them: started, recorded, found again, ended.

A record holds the pid together with the process's start time, so that a reused pid is never mistaken for the recorded
process or killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.console import ClusterError

PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessRecord:
    """One process: its pid and its start time in clock ticks since boot (proc_pid_stat(5), field 22)."""

    name: str
    pid: int
    start_ticks: int


def parse_stat(text: str) -> tuple[str, int, int]:
    """State letter, parent's pid and start time from /proc/PID/stat. The name in it may contain spaces and brackets."""
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1]), int(fields[19])


def _stat(pid: int) -> tuple[str, int, int] | None:
    try:
        return parse_stat((PROC / str(pid) / "stat").read_text())
    except (OSError, ValueError):
        return None


def record(name: str, pid: int) -> ProcessRecord:
    """The record of a running process. Errors: ClusterError when it has ended."""
    stat = _stat(pid)
    if stat is None:
        raise ClusterError(f"{name} (pid {pid}) ended at once")
    return ProcessRecord(name, pid, stat[2])


def is_alive(rec: ProcessRecord) -> bool:
    """Whether the recorded process still runs. A zombie does not count."""
    stat = _stat(rec.pid)
    return stat is not None and stat[0] not in "ZX" and stat[2] == rec.start_ticks


def first_child(pid: int) -> int | None:
    """The pid of a process's oldest child, if it has one."""
    children = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            stat = _stat(int(entry.name))
            if stat is not None and stat[1] == pid:
                children.append((stat[2], int(entry.name)))
    return min(children)[1] if children else None


def age(rec: ProcessRecord) -> float:
    """Seconds since the process started."""
    uptime = float((PROC / "uptime").read_text().split()[0])
    return uptime - rec.start_ticks / os.sysconf("SC_CLK_TCK")


def pss(pids: Iterable[int]) -> int:
    """Proportional set size of the processes together, in bytes. Ended processes count 0."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
                    break
    return total


def send(rec: ProcessRecord, number: signal.Signals) -> bool:
    """Send a signal to the recorded process. Returns whether it existed."""
    try:
        handle = os.pidfd_open(rec.pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        # Once the pidfd is open the pid cannot be reused for it, so the start time is compared after that.
        if not is_alive(rec):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def kill(records: Iterable[ProcessRecord], *, patience: float = 10.0) -> None:
    """SIGKILL, and wait until all have ended. Errors: ClusterError when one has not after `patience` seconds."""
    killed = [rec for rec in records if send(rec, signal.SIGKILL)]
    if not wait_until(lambda: not any(map(is_alive, killed)), patience, pause=0.01):
        stuck = [f"{rec.name} (pid {rec.pid})" for rec in killed if is_alive(rec)]
        raise ClusterError(f"could not end {', '.join(stuck)}", remedy="see /proc/PID/stack for what it waits for")


def terminate(records: Iterable[ProcessRecord], *, patience: float = 3.0) -> None:
    """SIGTERM, a short wait, then SIGKILL."""
    asked = [rec for rec in records if send(rec, signal.SIGTERM)]
    wait_until(lambda: not any(map(is_alive, asked)), patience, pause=0.01)
    kill(asked)


def wait_until(condition: Callable[[], bool], seconds: float, *, pause: float = 0.05) -> bool:
    """Poll a condition; whether it became true within the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def spawn(command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> int:
    """Start a process in its own session, its output appended to the log, and return its pid."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, env=env, cwd="/", start_new_session=True, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    # The process outlives this one; without this the interpreter warns about it at exit.
    process.returncode = 0
    return process.pid


class ProcessRecords:
    """The records of one running cluster, one small file per process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, rec: ProcessRecord) -> None:
        """Write a record, replacing an existing one of that name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{rec.name}"
        temporary.write_text(json.dumps(asdict(rec)))
        temporary.rename(self.folder / f"{rec.name}.json")

    def get(self, name: str) -> ProcessRecord | None:
        """The record of that name, None if there is no readable one."""
        try:
            return ProcessRecord(**json.loads((self.folder / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def alive(self, name: str) -> ProcessRecord | None:
        """The record of that name if its process still runs."""
        rec = self.get(name)
        return rec if rec is not None and is_alive(rec) else None

    def drop(self, name: str) -> None:
        """Delete a record."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Names of all records."""
        return sorted(path.stem for path in self.folder.glob("*.json"))
