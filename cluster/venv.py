"""The virtual environment: created with the machine's Python, filled from PyPI."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from cluster.console import ClusterError, ProgressConsole, ProgressStep
from cluster.paths import LOGS, ROOT, VENV, private_dir

OLDEST_PYTHON = (3, 11)
READY = VENV / "ready"
"""Contains the hash of the environment's inputs."""

CONSTRAINTS = ROOT / "images" / "constraints.txt"
REMEDY = "check that pip reaches a package index ('pip config list'), then run this again"


def recipe() -> str:
    """The hash of everything that determines what is installed."""
    files = [ROOT / "pyproject.toml", CONSTRAINTS]
    parts = [sys.version, *(path.read_text() for path in files if path.exists())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_ready() -> bool:
    """Whether the environment exists and matches its input files."""
    try:
        return READY.read_text().strip() == recipe()
    except OSError:
        return False


def ensure(console: ProgressConsole) -> None:
    """Create or update the environment. Needs deps.ensure() first: libvirt-python is compiled.

    Errors: ClusterError when this Python is too old or pip fails.
    """
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise ClusterError(
            f"python3 on this machine is {sys.version.split()[0]}",
            remedy="install Python 3.11 or newer (Debian 12 has it)",
        )
    with console.step("Python packages") as step:
        if is_ready():
            step.note = "all there"
            return
        log = private_dir(LOGS) / "pip.log"
        log.unlink(missing_ok=True)
        if not (VENV / "bin" / "python").exists():
            step.progress("making .venv")
            _run([sys.executable, "-m", "venv", str(VENV)], log, step, "create a virtual environment")
        command: list[str | Path] = [
            VENV / "bin" / "pip",
            "install",
            "--disable-pip-version-check",
            "--progress-bar=off",
        ]
        constraints: list[str | Path] = ["--constraint", CONSTRAINTS] if CONSTRAINTS.exists() else []
        _run([*command, "--editable", ".[dev]", *constraints], log, step, "install the Python packages")
        check: list[str | Path] = [VENV / "bin" / "python", "-c", "import grpc, libvirt, lightkube, msgspec"]
        _run(check, log, step, "import what was installed")
        READY.write_text(recipe() + "\n")
        step.note = "installed"


def _run(command: list[str | Path], log: Path, step: ProgressStep, what: str) -> None:
    """Run a command with its output in the log; pip's current package is shown as progress."""
    with log.open("a") as stream:
        stream.write(f"$ {' '.join(map(str, command))}\n")
        stream.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        collected = 0
        for line in process.stdout:
            stream.write(line)
            words = line.split()
            if words[:1] == ["Collecting"]:
                collected += 1
                step.progress(f"{collected} packages, {words[1]}"[:50])
            elif words[:1] in (["Building"], ["Installing"]):
                step.progress(" ".join(words)[:50])
    if process.wait() != 0:
        raise ClusterError(f"could not {what}", log=log, remedy=REMEDY)
