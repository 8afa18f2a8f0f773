"""Paths of build results."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The project's root, the build context of every image."""

CACHE = Path(os.environ.get("HYPERLET_CACHE", str(Path.home() / ".cache" / "hyperlet")))
ARCHIVES = CACHE / "images"
"""Image archives, `<role>-<tag>.tar`."""
STORAGE = CACHE / "buildah"
"""The builder's own image store, separate from any other on this machine."""
GUESTS = CACHE / "guests"
