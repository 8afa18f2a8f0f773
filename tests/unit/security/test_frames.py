"""A launcher that floods its handler with HTTP/2 frames: cut off, said, and met less and less often."""

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from bench.hostile import FLOODS, HostilePeer, frame
from handler.launchers import connection as launcher_connection
from handler.launchers.connection import LauncherConnection, cut_off_seconds
from handler.launchers.frame_budget import BYTES_AT_ONCE, Budget
from handler.launchers.relay import HELD, relay
from handler.launchers.start_limiter import StartLimiter
from kit import proc, rpc
from tests.waiting import until

# A socket's buffers hold some hundred KiB in either direction: that is sent, too, and read by nobody.
BUFFERS = 1 << 20


class Known(LauncherConnection):
    """A launcher whose socket and process are known: who listens is another test's matter."""

    def _find(self) -> tuple[int, proc.Process]:
        with proc.closing(os.open(self._pods, os.O_PATH)) as base:
            return rpc.open_socket(base, "s"), proc.Process(os.getpid())


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "reads-nothing"])
@pytest.mark.parametrize("name", FLOODS)
async def test_launcher_that_floods_is_cut_off_and_told(tmp_path: Path, name: str, reads: bool) -> None:
    peer = HostilePeer(tmp_path, *FLOODS[name], reads=reads)
    launcher = Known("uid", lambda: None, StartLimiter(), tmp_path, answer_seconds=5)
    try:
        if name == "DATA of a byte":
            # Flow control and the deadline are the answer to DATA: it is taken slowly, and then the call is given up.
            await until(lambda: launcher.trouble)
            assert launcher.state is None
        else:
            await until(lambda: launcher.cut_off)
            assert "cut off" in launcher.trouble and launcher.state is None
            # gRPC itself hangs up on some and connects again, until the budget is used up.
            assert peer.connections < 20
        assert peer.sent < BUFFERS
    finally:
        await launcher.close()
        peer.close()


async def test_launcher_that_floods_again_and_again_is_met_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def quick(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(launcher_connection.asyncio, "sleep", quick)
    peer = HostilePeer(tmp_path, *FLOODS["PING"])
    launcher = Known("uid", lambda: None, StartLimiter(), tmp_path)
    try:
        await asyncio.wait_for(_reach(slept, 600.0), 30)
    finally:
        await launcher.close()
        peer.close()
    long = [seconds for seconds in slept if seconds >= 2]
    assert long[:4] == [2, 4, 8, 16] and long[-1] == 600
    assert [cut_off_seconds(floods) for floods in (0, 1, 2, 50)] == [0, 2, 4, 600]


async def _reach(slept: list[float], seconds: float) -> None:
    event = asyncio.Event()
    while seconds not in slept:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), 0.05)


# ---- the relay itself


class Ends:
    """A relay with both of its ends: `client` is gRPC's, `server` the launcher's."""

    def __init__(self, folder: Path) -> None:
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(f"{folder}/s")
        self.listening.listen(1)
        self.listening.setblocking(False)

    @contextlib.asynccontextmanager
    async def open(self, folder: Path, budget: Budget) -> Any:
        loop = asyncio.get_running_loop()
        with proc.closing(os.open(f"{folder}/s", os.O_PATH)) as fd:
            async with relay(fd, budget) as way:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                client.connect(f"/proc/self/fd/{way.fd}")
                server, _ = await loop.sock_accept(self.listening)
                server.setblocking(False)
                with client, server, self.listening:
                    yield way, client, server


def _fill(end: socket.socket, data: bytes) -> int:
    """Sends until the other side takes no more for now; how much that was."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += end.send(data)
    return sent


async def _settle() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


async def test_relay_carries_both_ways_and_ends_with_either_end(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with Ends(tmp_path).open(tmp_path, Budget()) as (way, client, server):
        await loop.sock_sendall(client, b"question" * 10000)
        assert len(await _read(server, 80000)) == 80000
        answer = frame(0, 0, 1, b"x" * 16384) * 20
        await loop.sock_sendall(server, answer)
        server.shutdown(socket.SHUT_RDWR)
        assert await _read(client, len(answer)) == answer
        assert await loop.sock_recv(client, 1) == b"" and way.cut_off is None


async def _read(end: socket.socket, count: int) -> bytes:
    data = b""
    async with asyncio.timeout(30):
        while len(data) < count:
            more = await asyncio.get_running_loop().sock_recv(end, count)
            assert more, f"only {len(data)} of {count} bytes came"
            data += more
    return data


@pytest.mark.parametrize("direction", ["to-launcher", "to-grpc"])
async def test_relay_holds_little_of_what_is_not_taken(tmp_path: Path, direction: str) -> None:
    async with Ends(tmp_path).open(tmp_path, Budget()) as (_, client, server):
        giver, taker = (client, server) if direction == "to-launcher" else (server, client)
        one, sent = frame(0, 0, 1, b"x" * 16384), 0
        for _ in range(50):
            sent += _fill(giver, one)
            await _settle()
        # Four socket buffers and what the relay holds; then nobody gets any more in.
        assert sent < 2 * HELD + 4 * (1 << 20) < BYTES_AT_ONCE
        assert len(await _read(taker, sent)) == sent, "nothing is lost"


async def test_relays_socket_has_no_name(tmp_path: Path) -> None:
    with proc.closing(os.open(tmp_path, os.O_PATH)) as fd:
        async with relay(fd, Budget()) as way:
            assert str(Path(f"/proc/self/fd/{way.fd}").readlink()).endswith(" (deleted)")
