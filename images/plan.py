"""An image's reference and archive path: decided once per build, because sources may change meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImagePlan:
    """`role` is the name on the command line, `reference` the one in a pod, `archive` for `ctr images import`."""

    role: str
    reference: str
    archive: Path
