"""Paths: state of the running cluster below `.run/`, builds in the cache."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The project's root, the folder that contains `cluster/`."""

RUN = Path(os.environ.get("HYPERLET_RUN", str(ROOT / ".run")))
"""State of the running cluster. `down` removes all of it but logs."""

CACHE = Path(os.environ.get("HYPERLET_CACHE", str(Path.home() / ".cache" / "hyperlet")))
"""Build results; safe to delete while nothing runs."""

VENV = ROOT / ".venv"
"""The virtual environment; `make` puts it there."""

KUBECONFIG = RUN / "kubeconfig"
LOGS = RUN / "logs"
PKI = RUN / "pki"
AUDIT_LOG = RUN / "audit.log"


def private_dir(path: Path) -> Path:
    """Create a directory (and its parents) that only its owner can read, and return it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.chmod(0o700)
    return path
