"""Command-line options of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BenchOptions:
    """repeat: rounds, 0 for the benchmark's default.  quick: smoke test.
    sizes, disk: for `start`.  audit: path of the API server's audit log."""

    repeat: int
    quick: bool
    sizes: tuple[int, ...]
    disk: bool
    audit: Path

    def rounds(self, usual: int) -> int:
        """The number of rounds for a measurement with default `usual`."""
        return self.repeat or (1 if self.quick else usual)
