"""Where things lie: state of the running cluster below `.run/`, built things in the cache."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The project's root, the folder that holds `cluster/`."""

RUN = Path(os.environ.get("HYPERLET_RUN", str(ROOT / ".run")))
"""State of the cluster that runs now. Nothing in it outlives `down` but logs."""

CACHE = Path(os.environ.get("HYPERLET_CACHE", str(Path.home() / ".cache" / "hyperlet")))
"""Things that take long to make; safe to delete while nothing runs."""

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
