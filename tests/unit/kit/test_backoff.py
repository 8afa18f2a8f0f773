from kit import backoff


def test_delays_double_up_to_the_longest() -> None:
    assert [backoff.delay(failures, 0.5, 5) for failures in (1, 2, 3, 4, 5, 50, 10**9)] == [0.5, 1, 2, 4, 5, 5, 5]
