"""Launchers and guests that talk too much, too fast, or nonsense: the handler's work stays small."""

import asyncio
import io
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from handler.launchers import connection as launcher_connection
from handler.launchers.connection import LauncherConnection
from handler.launchers.start_limiter import StartLimiter
from handler.pod_network import router_advertiser
from handler.storage import containerd, images
from handler.storage.images import ImageMounts
from kit import log, proc, rpc
from protos import launcher_pb2 as pb
from tests.waiting import until

# ---- conversations


class Known(LauncherConnection):
    """A launcher whose socket and process are known: who listens is another test's matter."""

    def _find(self) -> tuple[int, proc.Process]:
        with proc.closing(rpc_directory(self._pods)) as base:
            return rpc.open_socket(base, "s"), proc.Process(1)


def rpc_directory(path: Path) -> int:
    return os.open(path, os.O_PATH)


class Liar:
    """A launcher's server that answers Watch as it likes."""

    def __init__(self, folder: Path, answer: Any) -> None:
        self.folder, self.calls = folder, 0
        self._answer = answer
        self._server = grpc.aio.server()

    async def __aenter__(self) -> "Liar":
        async def watch(_request: bytes, context: Any) -> Any:
            self.calls += 1
            async for message in self._answer(context):
                yield message

        handlers = {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        self._server.add_insecure_port(f"unix:{self.folder}/s")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)


SERVICE = pb.DESCRIPTOR.services_by_name["Launcher"].full_name


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is logged."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.setup("handler", "debug")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_hanging_up_at_once_makes_the_next_conversation_wait() -> None:
    pauses = [launcher_connection.retry_delay(short, 0.0) for short in range(20)]
    assert pauses == sorted(pauses) and pauses[0] <= 0.05 and pauses[1] <= 0.1 and pauses[-1] == 5.0
    # So an hour of it is some hundreds of conversations, and as many log lines.
    assert sum(pauses[:8]) < 15 and pauses[8] == 5.0


async def test_a_launcher_that_answers_and_hangs_up_is_met_less_and_less_often(
    tmp_path: Path, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def quick(seconds: float) -> None:
        if 0.05 <= seconds <= 5:
            slept.append(seconds)
        await sleep(seconds if seconds > 5 else 0)

    async def once(_context: Any) -> Any:
        yield pb.Report(state=pb.DOMAIN_STATE_RUNNING).SerializeToString()

    monkeypatch.setattr(launcher_connection.asyncio, "sleep", quick)
    async with Liar(tmp_path, once) as liar:
        launcher = Known("uid", lambda: None, StartLimiter(), tmp_path)
        await until(lambda: slept[-1:] == [5.0], pause=0)
        await launcher.close()
    assert slept[-1] == 5.0 and slept == sorted(slept)
    assert len(lines()) <= liar.calls


def asleep(pods: Path, uid: str) -> int:
    """A launcher that waits to be woken: the end of its FIFO that it reads."""
    path = pods / uid / launcher_connection.WAKE
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


def is_woken(fifo: int) -> bool:
    try:
        return os.read(fifo, 64) != b""
    except BlockingIOError:
        return False


async def test_a_launcher_that_never_comes_up_holds_the_next_one_up_for_a_moment_only(tmp_path: Path) -> None:
    limiter = StartLimiter(1, seconds=0.2)
    fifos = [asleep(tmp_path, uid) for uid in ("a", "b")]
    both = [LauncherConnection(uid, lambda: None, limiter, tmp_path) for uid in ("a", "b")]
    await until(lambda: is_woken(fifos[0]), pause=0)
    assert not is_woken(fifos[1]) and both[1].silent_seconds == 0, "who waits for its turn is not blamed for silence"
    await until(lambda: is_woken(fifos[1]), pause=0)
    assert both[0].silent_seconds > 0 and both[0].trouble
    # The first one cannot have another turn by waiting anew: it is woken without one.
    slot = await limiter.slot()
    await until(lambda: is_woken(fifos[0]), pause=0)
    slot.end()
    await asyncio.gather(*(each.close() for each in both))
    for fifo in fifos:
        os.close(fifo)


async def test_a_launcher_that_answers_lets_the_next_one_start(tmp_path: Path) -> None:
    async def steady(_context: Any) -> Any:
        yield pb.Report(state=pb.DOMAIN_STATE_RUNNING).SerializeToString()
        await asyncio.sleep(60)

    limiter = StartLimiter(1, seconds=60)
    fifos = [asleep(tmp_path, uid) for uid in ("a", "b")]
    async with Liar(tmp_path, steady):
        both = [Known("a", lambda: None, limiter, tmp_path), LauncherConnection("b", lambda: None, limiter, tmp_path)]
        for fifo in fifos:
            await until(lambda fifo=fifo: is_woken(fifo), pause=0)
        assert both[0].state is not None
        await asyncio.gather(*(each.close() for each in both))
    assert await asyncio.wait_for(limiter.slot(), 5), "who is closed has no turn any more"
    for fifo in fifos:
        os.close(fifo)


@pytest.mark.parametrize("trap", ["link", "file", "folder"])
async def test_what_only_looks_like_a_sleeping_launcher_is_not_written_to(tmp_path: Path, trap: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "uid" / launcher_connection.WAKE
    path.parent.mkdir(parents=True)
    os.mkfifo(victim)
    reader = os.open(victim, os.O_RDWR | os.O_NONBLOCK)
    if trap == "link":
        path.symlink_to(victim)
    elif trap == "file":
        path.write_text("")
    else:
        path.mkdir()
    launcher = LauncherConnection("uid", lambda: None, StartLimiter(), tmp_path)
    await until(lambda: "wake.fifo" in launcher.trouble, pause=0)
    await launcher.close()
    assert not is_woken(reader)
    if trap == "file":
        assert path.read_text() == ""
    os.close(reader)


async def test_an_answer_that_is_no_report_is_told_without_a_traceback(tmp_path: Path, lines: Any) -> None:
    async def garbage(_context: Any) -> Any:
        yield b"\xff" * 100

    async with Liar(tmp_path, garbage) as liar:
        launcher = Known("uid", lambda: None, StartLimiter(), tmp_path)
        await until(lambda: liar.calls >= 3, pause=0)
        await until(lambda: "cannot be decoded" in launcher.trouble, pause=0)
        assert launcher._short >= 2
        await launcher.close()
    assert launcher.state is None and not [line for line in lines() if "exception" in line]


async def test_words_of_a_refusal_are_bounded_and_clean(tmp_path: Path) -> None:
    async def refuse(context: Any) -> Any:
        await context.abort(grpc.StatusCode.INTERNAL, "\x1b[31m\n" + "x" * 5000)
        yield b""

    async with Liar(tmp_path, refuse):
        launcher = Known("uid", lambda: None, StartLimiter(), tmp_path)
        await until(lambda: "xxx" in launcher.trouble, pause=0)
        await launcher.close()
    assert len(launcher.trouble) < 400 and launcher.trouble.isprintable()


async def test_reports_beyond_the_size_limit_are_not_read(tmp_path: Path) -> None:
    async def huge(_context: Any) -> Any:
        yield pb.Report(state=pb.DOMAIN_STATE_RUNNING, message="x" * (2 << 20)).SerializeToString()

    async with Liar(tmp_path, huge):
        launcher = Known("uid", lambda: None, StartLimiter(), tmp_path)
        await until(lambda: "larger than max" in launcher.trouble, pause=0)
        await launcher.close()
    assert launcher.state is None


async def test_a_launcher_that_says_nothing_is_given_up_in_time(tmp_path: Path) -> None:
    async def silent(_context: Any) -> Any:
        await asyncio.sleep(600)
        yield b""

    async with Liar(tmp_path, silent):
        launcher = Known("uid", lambda: None, StartLimiter(), tmp_path, answer_seconds=0.1)
        await until(lambda: "hangs" in launcher.trouble, pause=0)
        await launcher.close()
    assert launcher.state is None


# ---- router solicitations


class Counting:
    """A socket that counts what goes out."""

    def __init__(self, real: socket.socket) -> None:
        self.real, self.sent = real, 0

    def fileno(self) -> int:
        return self.real.fileno()

    def recv(self, size: int) -> bytes:
        return self.real.recv(size)

    def sendto(self, *_: object) -> None:
        self.sent += 1

    def close(self) -> None:
        self.real.close()


async def test_a_guest_that_solicits_without_end_is_heard_twice_a_second() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        real = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        real.bind(("127.0.0.1", 0))
        guest.connect(real.getsockname())
        raw = Counting(real)
        it = router_advertiser.Advertiser(raw, 1, b"advertisement")  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        await until(lambda: raw.sent == 1)  # unasked
        guest.send(b"solicitation")
        await until(lambda: it._listening is not None, pause=0)
        # Answered, and deaf for a while: not one wake-up, however many come.
        assert raw.sent >= 2 and loop.remove_reader(raw) is False
        for _ in range(100):
            guest.send(b"solicitation")
        before = raw.sent
        await until(lambda: raw.sent > before)  # and heard again afterwards
        it.close()
        assert raw.fileno() == -1


# ---- images


class NeverThere(containerd.Containerd):
    """A containerd that has no image and gets none."""

    async def top_snapshot(self, reference: str) -> str:
        raise containerd.ImageMissing(reference)

    async def pull(self, reference: str) -> None:
        raise containerd.PullRefused("not found")


async def test_names_of_images_that_cannot_be_pulled_do_not_fill_the_memory() -> None:
    client = NeverThere("/nonexistent")
    provider = ImageMounts(client)
    for number in range(1500):
        with pytest.raises(containerd.PullRefused):
            await provider._pull(client, f"example.org/{number}")
    assert len(provider._failures) == images._REMEMBERED
    with pytest.raises(containerd.PullRefused) as again:
        await provider._pull(client, "example.org/1499")
    assert again.value.again_in > 0
    await client.close()
