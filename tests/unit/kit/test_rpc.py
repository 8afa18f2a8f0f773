"""Verification of a socket's listener. Pods, cgroups and links: tests/node/test_handler_sockets.py."""

import os
import socket

import pytest

from api.errors import LauncherUnavailable
from kit import proc, rpc


@pytest.fixture
def base(tmp_path):
    with proc.closing(os.open(tmp_path, os.O_PATH)) as fd:
        yield tmp_path, fd


def test_listener_is_this_process(base):
    path, fd = base
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "s"))
        server.listen()
        with proc.closing(rpc.open_socket(fd, "s")) as found:
            assert rpc.listener(found) == (os.getpid(), os.getuid(), os.getgid())


def test_listener_outside_of_any_pod_is_refused(base):
    path, fd = base
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "s"))
        server.listen()
        with proc.closing(rpc.open_socket(fd, "s")) as found, pytest.raises(LauncherUnavailable, match="cgroup"):
            rpc.verified_process(found, "0b9e4c1e-6c58-4ad1-9a0a-3a1b2c3d4e5f", os.getuid(), lambda _: None)


def test_missing_socket_is_refused(base):
    with pytest.raises(LauncherUnavailable, match="No such file"):
        rpc.open_socket(base[1], "s")


def test_full_backlog_does_not_block_for_long(base):
    path, fd = base
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(path / "s"))
        server.listen(0)
        first.connect(str(path / "s"))
        with proc.closing(rpc.open_socket(fd, "s")) as found, pytest.raises(LauncherUnavailable):
            rpc.listener(found, timeout=0.1)


@pytest.mark.parametrize(
    "make", [lambda path: path.touch(), lambda path: path.mkdir(), lambda path: path.symlink_to("x")]
)
def test_file_that_is_not_a_socket_is_refused(base, make):
    path, fd = base
    make(path / "s")
    with pytest.raises(LauncherUnavailable):
        rpc.open_socket(fd, "s")
