"""VNC viewers: discovery and command lines."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cli.problem import CliError


class VncViewer(NamedTuple):
    """Path and arguments of a viewer."""

    path: str
    arguments: tuple[str, ...]


Arguments = Callable[[int], tuple[str, ...]]


def _display(port: int) -> tuple[str, ...]:
    return (f"127.0.0.1::{port}",)


def _plain(port: int) -> tuple[str, ...]:
    return (f"127.0.0.1:{port}",)


def _real(port: int) -> tuple[str, ...]:
    return (f"127.0.0.1:{port}", "-WarnUnencrypted=0", "-Shared=1", "-ShareFiles=0")


def _address(port: int) -> tuple[str, ...]:
    return (f"vnc://127.0.0.1:{port}",)


TYPES: dict[str, Arguments] = {"tiger": _display, "chicken": _plain, "real": _real, "remote-viewer": _address}
"""Values of --vnc-type. `::` marks a port, as opposed to a display number (vncviewer(1))."""

IN_PATH: tuple[tuple[str, Arguments], ...] = (
    ("remote-viewer", _address),
    ("xtigervncviewer", _display),
    ("vncviewer", _display),
    ("realvnc-vncviewer", _real),
    ("gvncviewer", _display),
    ("krdc", _address),
    ("vinagre", _address),
    ("remmina", lambda port: ("-c", f"vnc://127.0.0.1:{port}")),
)
"""Viewers in PATH, in order of preference."""

ON_MACOS: tuple[tuple[str, Arguments], ...] = (
    ("TigerVNC Viewer*.app/Contents/MacOS/TigerVNC Viewer", _display),
    ("Chicken.app/Contents/MacOS/Chicken", _plain),
    ("VNC Viewer.app/Contents/MacOS/vncviewer", _real),
)
"""Viewers below /Applications; of several versions the last."""


def chosen(kind: str, path: str, port: int) -> VncViewer:
    """The viewer selected by --vnc-type and --vnc-path. Raises CliError."""
    program = shutil.which(path)
    if program is None:
        raise CliError(f"--vnc-path: {path} is not executable")
    return VncViewer(program, TYPES[kind](port))


def found(port: int, platform: str = sys.platform, applications: Path = Path("/Applications")) -> VncViewer:
    """The first viewer found locally. Raises CliError when there is none."""
    if platform == "darwin":
        for pattern, arguments in ON_MACOS:
            if matches := sorted(applications.glob(pattern)):
                return VncViewer(str(matches[-1]), arguments(port))
    for name, arguments in IN_PATH:
        if program := shutil.which(name):
            return VncViewer(program, arguments(port))
    raise CliError(f"no VNC viewer found: install one of {_listed(name for name, _ in IN_PATH)}, or use --proxy-only")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
