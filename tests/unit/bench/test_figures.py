import pytest

from bench.figures import BenchResult, Figure, FigureTable, grid, percentile, render


@pytest.mark.parametrize(
    ("samples", "percent", "expected"),
    [([3.0], 95, 3.0), ([1, 2, 3, 4], 50, 2.5), ([4, 1, 3, 2], 0, 1), ([1, 2, 3, 4], 100, 4), ([0, 10], 95, 9.5)],
)
def test_percentile_is_linear_between_samples(samples: list[float], percent: float, expected: float) -> None:
    assert percentile(samples, percent) == pytest.approx(expected)


def test_percentile_of_no_samples_raises_valueerror() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("value", "target", "verdict"),
    [(2.004, 2.0, "ok"), (2.006, 2.0, "MISSED"), (1.0, None, ""), (64.4, 64.0, "MISSED")],
)
def test_verdict_compares_printed_number(value: float, target: float | None, verdict: str) -> None:
    assert Figure("f", value, "s", target).verdict == verdict


def test_grid_right_aligns_numbers() -> None:
    assert grid(["what", "n"], [["a", 1.5], ["longer", 100]]) == [
        "what       n",
        "------  ----",
        "a       1.50",
        "longer   100",
    ]


def test_document_has_column_names() -> None:
    result = BenchResult("x", [Figure("f", 3.0, "s", 2.0, 4.0)], [FigureTable("t", ["a", "b"], [["one", 2]])])
    document = result.document()
    assert document["tables"][0]["rows"] == [{"a": "one", "b": 2}]
    assert document["figures"][0]["verdict"] == "MISSED"


def test_render_shows_target_baseline_and_verdict() -> None:
    text = render(BenchResult("x", [Figure("start", 1.234, "s", 2.0, 3.5)], notes=["quiet machine"]))
    assert text.splitlines()[-3].split() == ["start", "1.23", "s", "2.00", "3.50", "ok"]
    assert "* quiet machine" in text
