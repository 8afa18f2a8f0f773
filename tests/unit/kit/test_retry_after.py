import time
from email.utils import formatdate

import pytest

from kit.retry_after import JITTER, LONGEST_SECONDS, SHORTEST_SECONDS, spread, wait_seconds


@pytest.mark.parametrize("code", [429, 503])
def test_seconds_are_bounded(code: int) -> None:
    found = [wait_seconds(code, {"Retry-After": text}) for text in ("0", "1", " 7 ", "60", "3600", "9" * 5000)]
    assert found == [SHORTEST_SECONDS, 1, 7, 60, LONGEST_SECONDS, LONGEST_SECONDS]


def test_http_date_is_bounded() -> None:
    def at(offset: float) -> float | None:
        return wait_seconds(503, {"Retry-After": formatdate(time.time() + offset, usegmt=True)})

    assert (soon := at(20)) is not None and 17 < soon <= 20
    assert (at(-1000), at(100_000)) == (SHORTEST_SECONDS, LONGEST_SECONDS)


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "soon", "\u0663", "Wed, 99 Foo 2026 00:00:00 GMT", "Wed, 21 Oct 99999 07:28:00 GMT"]
)
def test_header_that_cannot_be_understood_is_ignored(text: str) -> None:
    assert wait_seconds(429, {"Retry-After": text}) is None


@pytest.mark.parametrize("code", [200, 404, 500, 502])
def test_other_statuses_are_not_waited_for(code: int) -> None:
    assert wait_seconds(code, {"Retry-After": "1"}) is None
    assert wait_seconds(429, {}) is None


def test_clients_are_spread_but_never_early() -> None:
    found = {spread(10) for _ in range(100)}
    assert len(found) > 1 and all(10 <= seconds <= 10 * JITTER for seconds in found)
