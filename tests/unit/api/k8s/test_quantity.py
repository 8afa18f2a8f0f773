"""Quantities, durations and times."""

from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.k8s import meta


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("128Mi", 128 << 20),
        ("1.5Gi", 3 << 29),
        ("1G", 10**9),
        ("1k", 1000),
        ("1Ki", 1024),
        ("100m", Fraction(1, 10)),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("1Ei", 1 << 60),
        ("2.", 2),
        (".5", Fraction(1, 2)),
        ("+1", 1),
        ("-1", -1),
        ("5u", Fraction(5, 10**6)),
        ("5n", Fraction(5, 10**9)),
        (3, 3),
        (0.25, Fraction(1, 4)),
        ("1GB", 10**9),
        ("1GiB", 1 << 30),
        ("1KB", 1000),
        ("1kB", 1000),
        ("1KiB", 1024),
    ],
)
def test_parse(text: str | int | float, number: int | Fraction) -> None:
    assert meta.parse_quantity(text) == number


@pytest.mark.parametrize(
    "text", ["", "Mi", "1Qi", "1 Gi", "12Q", "1Gb", "1.2.3", "0x10", "1e", "٣", "1\n", "--1", "NaN"]
)
def test_invalid_quantity_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity: expected a number"):
        meta.parse_quantity(text)


def test_boolean_is_not_a_quantity() -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        meta.parse_quantity(True)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1000, "1k"),
        (1024, "1Ki"),
        (1 << 30, "1Gi"),
        (10**9, "1G"),
        (1025, "1025"),
        (128 << 20, "128Mi"),
    ],
)
def test_format_bytes(number: int, text: str) -> None:
    assert meta.format_bytes(number) == text


@given(st.integers(0, 1 << 62))
def test_bytes_round_trip(number: int) -> None:
    assert meta.quantity_bytes(meta.format_bytes(number)) == number


@given(st.integers(0, 10**7))
def test_millicores_round_trip(number: int) -> None:
    assert meta.quantity_millicores(meta.format_millicores(number)) == number


def test_fractions_of_bytes_are_rounded_up() -> None:
    assert meta.quantity_bytes("100m") == 1
    assert meta.quantity_millicores("0.0001") == 1


@pytest.mark.parametrize(
    ("text", "canonical"), [("1GB", "1G"), ("1000Mi", "1000Mi"), ("0.5", "500m"), (2, "2"), ("1e-7", "100n")]
)
def test_canonical_form(text: str | int, canonical: str) -> None:
    assert meta.format_quantity(text) == canonical


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90s", 90), ("1h30m", 5400), ("-5s", -5), ("1.5s", 1.5), ("3ms", 0.003)]
)
def test_durations(text: str, seconds: float) -> None:
    assert meta.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 s", "s", "5d", "1h 5m"])
def test_invalid_duration_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        meta.parse_duration(text)


def test_times() -> None:
    moment = datetime(2026, 8, 1, 12, 30, 5, tzinfo=UTC)
    assert meta.format_time(moment) == "2026-08-01T12:30:05Z"
    assert meta.parse_time("2026-08-01T12:30:05Z") == moment
    assert meta.parse_time("2026-08-01T14:30:05.000000+02:00") == moment
    with pytest.raises(ValueError, match="no time zone"):
        meta.parse_time("2026-08-01T12:30:05")
