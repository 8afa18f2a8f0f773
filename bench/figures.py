"""Benchmark results: figures with targets, tables, and their rendering as text and JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Cell = str | float | int | None


def percentile(samples: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile (0 to 100), linear between the two nearest samples (Hyndman and Fan's type 7).

    Raises ValueError when there are no samples.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Figure:
    """One measured number. `target` is its maximum; `baseline` is KubeVirt's on the same kind of cluster."""

    label: str
    value: float
    unit: str = "s"
    target: float | None = None
    baseline: float | None = None

    @property
    def verdict(self) -> str:
        """ "ok", "MISSED", or empty without a target. Compares the number as printed."""
        if self.target is None:
            return ""
        return "ok" if round(self.value, digits(self.value)) <= self.target else "MISSED"


@dataclass(frozen=True)
class FigureTable:
    """A table of details."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass
class BenchResult:
    """The result of one benchmark. `notes` explain the numbers."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[FigureTable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The JSON document; `samples` has every single measurement."""
        figures = [{**asdict(figure), "verdict": figure.verdict} for figure in self.figures]
        tables = [
            {"title": table.title, "rows": [dict(zip(table.header, row, strict=True)) for row in table.rows]}
            for table in self.tables
        ]
        return {
            "bench": self.name,
            "conditions": self.conditions,
            "figures": figures,
            "tables": tables,
            "notes": self.notes,
            "samples": self.samples,
        }


def digits(value: float) -> int:
    """Number of decimals to print: two below ten, one below a hundred, else none."""
    size = abs(value)
    return 2 if size < 10 else 1 if size < 100 else 0


def number(value: Cell) -> str:
    """A cell as text; empty for None. Integers have no decimals."""
    if value is None:
        return ""
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.{digits(value)}f}"


def grid(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[str]:
    """Lines with aligned columns: text left, numbers right, separated by two spaces."""
    body = [list(row) for row in rows]
    texts = [[number(cell) for cell in row] for row in body]
    widths = [max(len(line[i]) for line in [list(header), *texts]) for i in range(len(header))]
    right = [
        any(isinstance(row[i], int | float) for row in body) and not any(isinstance(row[i], str) for row in body)
        for i in range(len(header))
    ]

    def line(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, right, strict=True)
        return "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in pairs
        ).rstrip()

    return [line(header), line(["-" * width for width in widths]), *(line(row) for row in texts)]


def render(result: BenchResult) -> str:
    """The result as text for a terminal."""
    lines = [f"\n== {result.name} " + "=" * max(0, 60 - len(result.name))]
    if result.figures:
        rows = [[f.label, f.value, f.unit, f.target, f.baseline, f.verdict] for f in result.figures]
        lines += grid(["figure", "measured", "unit", "target", "KubeVirt", "verdict"], rows)
    for table in result.tables:
        lines += ["", table.title, *("  " + line for line in grid(table.header, table.rows))]
    if result.notes:
        lines += ["", *(f"* {note}" for note in result.notes)]
    return "\n".join(lines)
