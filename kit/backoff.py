"""Delays between attempts, which double with each failure."""

_DOUBLINGS = 20
"""2^20 times the first delay exceeds every limit in use; more could overflow."""


def delay(failures: int, first: float, longest: float) -> float:
    """Seconds before the next attempt: `first` after the first failure, twice that after the second, and so on."""
    return min(longest, first * 2.0 ** min(max(failures, 1) - 1, _DOUBLINGS))
