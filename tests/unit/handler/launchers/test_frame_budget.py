"""Frame budgets: counting is independent of chunking; excess frames are rejected, excess data is delayed."""

import random
import struct

import pytest

from bench.hostile import FLOODS, HEADERS_WITHOUT_END, SETTINGS, frame
from handler.launchers.frame_budget import (
    ALLOWANCES,
    BYTES_AT_ONCE,
    BYTES_PER_SECOND,
    DATA,
    MAX_FRAME,
    Budget,
    FrameMeter,
    OverBudget,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock | None = None) -> FrameMeter:
    return FrameMeter(Budget(clock or Clock()))


PING = frame(6, 0, 0, b"12345678")
HONEST = [
    SETTINGS,
    frame(4, 1),
    frame(8, 0, 0, struct.pack(">I", 65535)),
    frame(1, 4, 1, b"\x88" * 40),
    frame(0, 0, 1, b"x" * MAX_FRAME),
    frame(0, 0, 1, b"y" * 7),
    PING,
    frame(1, 0, 3, b"\x88" * 30),
    frame(9, 4, 3, b"\x88" * 30),
    frame(3, 0, 3, struct.pack(">I", 8)),
]


class Recording(Budget):
    """A budget that records its calls."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.frames, self.kinds = 0, []

    def data(self, now: float, frames: int, size: int) -> float:
        self.frames += frames
        return super().data(now, frames, size)

    def control(self, now: float, kind: int) -> None:
        self.kinds.append(kind)
        super().control(now, kind)


@pytest.mark.parametrize("seed", range(50))
def test_counting_is_independent_of_chunking(seed: int) -> None:
    chance = random.Random(seed)
    stream = b"".join(HONEST * 3)
    whole, pieces = Recording(), Recording()
    FrameMeter(whole).feed(stream)
    one = FrameMeter(pieces)
    while stream:
        size = chance.choice((1, 2, 8, 9, 10, 17, 1000, 20000))
        one.feed(stream[:size])
        stream = stream[size:]
    assert whole.kinds == pieces.kinds and len(whole.kinds) == 8 * 3
    assert whole.frames == pieces.frames == 2 * 3


@pytest.mark.parametrize("name", FLOODS)
def test_frame_flood_raises_over_budget_for_any_chunking(name: str) -> None:
    once, again = FLOODS[name]
    for size in (1, 7, 64 << 10):
        one, sent = meter(), 0
        stream = SETTINGS + once + again * 20000
        if name == "DATA of a byte":
            assert one.feed(stream) > 1, "DATA waits"
            continue
        with pytest.raises(OverBudget) as refused:
            for at in range(0, len(stream), size):
                one.feed(stream[at : at + size])
                sent += size
        assert sent <= (64 << 10) * 2, "it took long"
        assert refused.value.reason == "LauncherCutOff" and "cut off" in refused.value.message


def test_frames_within_the_rate_are_never_rejected() -> None:
    clock = Clock()
    one = meter(clock)
    for _ in range(10000):
        clock.now += 1 / 50
        assert one.feed(PING) == 0


def test_budget_is_shared_by_successive_connections() -> None:
    budget = Budget(Clock())
    with pytest.raises(OverBudget):
        for _ in range(1000):
            FrameMeter(budget).feed(PING)


@pytest.mark.parametrize(
    "stream",
    [
        frame(0, 0, 1, b"x" * (MAX_FRAME + 1)),
        frame(0x55, 0, 0, b"x" * (1 << 20)),
        frame(5, 4, 1, struct.pack(">I", 2) + b"\x82"),
        HEADERS_WITHOUT_END + PING,
        HEADERS_WITHOUT_END + frame(0, 0, 1, b"x"),
        HEADERS_WITHOUT_END + frame(1, 4, 3, b"\x88"),
        frame(1, 0, 1, b"x" * 16000) + frame(9, 0, 1, b"x" * 16000) + frame(9, 4, 1, b"x" * 16000),
    ],
)
def test_frames_no_server_sends_are_rejected_at_once(stream: bytes) -> None:
    with pytest.raises(OverBudget):
        meter().feed(stream)


def test_excess_data_is_delayed_until_repaid() -> None:
    clock = Clock()
    one, full = meter(clock), frame(0, 0, 1, b"x" * MAX_FRAME) * 64
    sent = waited = 0.0
    while sent < BYTES_AT_ONCE + 2 * BYTES_PER_SECOND:
        sent += len(full)
        wait = one.feed(full)
        waited += wait
        clock.now += wait
    assert 1.9 < waited < 2.1
    one, small = meter(clock := Clock()), frame(0, 0, 1, b"x") * 100
    waited = 0.0
    for _ in range(int(ALLOWANCES[DATA].burst + ALLOWANCES[DATA].rate) // 100):
        wait = one.feed(small)
        waited += wait
        clock.now += wait
    assert 0.9 < waited < 1.1
