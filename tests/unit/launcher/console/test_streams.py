"""Connecting to QEMU's VNC socket while its backlog is full."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.console import streams
from launcher.vm.errors import OperationRefused


def client() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A listener with a full backlog, like QEMU's, and its path."""
    path = str(tmp_path / "vnc")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(path)
        listener.listen(1)
        with pytest.raises(BlockingIOError):
            while True:
                stack.enter_context(client()).connect(path)
        yield listener, path


async def test_vnc_connect_retries_while_the_backlog_is_full(screen: tuple[socket.socket, str]) -> None:
    listener, path = screen
    with client() as late:
        coming = asyncio.create_task(streams._connect(late, path, seconds=60))
        await asyncio.sleep(3 * streams.KNOCK_SECONDS)
        assert not coming.done()
        taken, _ = listener.accept()
        with taken:
            await coming
            assert late.getpeername() == path


async def test_vnc_connect_fails_after_timeout(screen: tuple[socket.socket, str]) -> None:
    _, path = screen
    with client() as late, pytest.raises(OperationRefused, match="QEMU is too busy") as refusal:
        await streams._connect(late, path, seconds=2 * streams.KNOCK_SECONDS)
    assert refusal.value.code == "RESOURCE_EXHAUSTED"


async def test_missing_vnc_socket_fails_at_once(tmp_path: Path) -> None:
    with client() as late, pytest.raises(OperationRefused, match="has no screen") as refusal:
        await streams._connect(late, str(tmp_path / "none"), seconds=600)
    assert refusal.value.code == "FAILED_PRECONDITION"
