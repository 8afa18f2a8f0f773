"""A handler's connection to one hostile launcher, for `bench floods`: `python -m bench.flood_victim FOLDER SECONDS`.

Prints JSON: memory in MiB when idle, at most and afterwards, CPU seconds, and the error reported for the launcher.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from handler.launchers.connection import LauncherConnection
from handler.launchers.start_limiter import StartLimiter
from kit import memory, proc, rpc

STEP_SECONDS = 0.05
AFTER_SECONDS = 1.0


class KnownLauncher(LauncherConnection):
    """A connection to a launcher with known socket and process."""

    def _find(self) -> tuple[int, proc.Process]:
        with proc.closing(os.open(self._pods, os.O_PATH)) as base:
            return rpc.open_socket(base, "s"), proc.Process(os.getpid())


def resident_mib() -> float:
    """RSS of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS in /proc/self/status")


async def measure(folder: Path, seconds: float) -> dict[str, float | str]:
    """Connects for `seconds` to the listener at `folder`/s."""
    (folder / "idle").mkdir()
    # Start gRPC and its threads before the flood begins.
    idler = KnownLauncher("idle", lambda: None, StartLimiter(), folder / "idle")
    await asyncio.sleep(AFTER_SECONDS)
    rest = most = resident_mib()
    began, until = time.process_time(), time.monotonic() + seconds
    launcher = KnownLauncher("flood", lambda: None, StartLimiter(), folder)
    said = ""
    while time.monotonic() < until:
        await asyncio.sleep(STEP_SECONDS)
        most = max(most, resident_mib())
        said = launcher.cut_off or said or launcher.trouble
    cpu = time.process_time() - began
    await launcher.close()
    await idler.close()
    await asyncio.sleep(AFTER_SECONDS)
    memory.settle()
    return {"rest": rest, "most": most, "after": resident_mib(), "cpu": cpu, "said": said}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1]), float(sys.argv[2])))))
