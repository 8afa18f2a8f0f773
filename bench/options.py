"""What the command line said, for every bench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BenchOptions:
    """repeat: rounds, 0 for a bench's own number.  quick: as little as shows that it works.
    sizes, disk: for `start`.  audit: the API server's audit log."""

    repeat: int
    quick: bool
    sizes: tuple[int, ...]
    disk: bool
    audit: Path

    def rounds(self, usual: int) -> int:
        """How many rounds of a measurement whose usual number is given."""
        return self.repeat or (1 if self.quick else usual)
