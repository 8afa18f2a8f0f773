"""The protocol between client and daemon."""

import os
import socket
import time
from pathlib import Path

import pytest

from cni import wire


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def test_a_request_arrives_as_it_was_sent_with_its_descriptor() -> None:
    here, there = pair()
    with here, there, Path("/proc/self/ns/net").open() as namespace:
        sent = wire.WireRequest(
            "cnv-bridge", {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=B;C=é"}, b"{}\0\xff", namespace.fileno()
        )
        wire.send_request(here, sent)
        got = wire.receive_request(there, time.monotonic() + 5)
        assert (got.plugin, got.environment, got.stdin) == (sent.plugin, sent.environment, sent.stdin)
        assert os.path.samestat(os.fstat(got.netns), os.fstat(namespace.fileno())) and got.netns != namespace.fileno()
        got.close()
        wire.send_answer(there, wire.WireAnswer(3, b"out", b"err"))
        assert wire.receive_answer(here, 5) == wire.WireAnswer(3, b"out", b"err")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HLC1",
        b"nonsense more",
        wire.REQUEST.pack(wire.MAGIC, wire.ENVIRONMENT_LIMIT + 1, 0),
        wire.REQUEST.pack(wire.MAGIC, 0, wire.INPUT_LIMIT + 1),
        wire.REQUEST.pack(wire.MAGIC, 2, 0) + b"a\0surplus",
        wire.REQUEST.pack(wire.MAGIC, 1, 0) + b"a",
        wire.REQUEST.pack(wire.MAGIC, 7, 0) + b"a\0PATH\0",
    ],
)
def test_malformed_request_raises_wire_error(data: bytes) -> None:
    here, there = pair()
    with there:
        here.sendall(data)
        here.close()
        with pytest.raises(wire.WireError):
            wire.receive_request(there, time.monotonic() + 5)


def test_surplus_descriptors_are_closed() -> None:
    here, there = pair()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with here, there:
        socket.send_fds(here, [wire.REQUEST.pack(wire.MAGIC, 2, 0)], [0, 1])
        with pytest.raises(wire.WireError):
            wire.receive_request(there, time.monotonic() + 5)
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 2
