"""The protocol between client and daemon. `client.c` implements it in C.

A request is `HLC1`, two lengths (u32, little endian), the environment and the standard input. The environment is a list
of NUL-terminated strings: the plugin's name (base name of argv[0]), then every `CNI_*=value`. The network namespace's
descriptor, if any, is passed with the first byte (SCM_RIGHTS). The response is `HLC1`, the exit code and two lengths
(u32 each), then stdout and stderr. The client keeps the connection open until it has the response: closing it means
that it no longer waits.
"""

import array
import os
import socket
import struct
import time
from dataclasses import dataclass, field

MAGIC = b"HLC1"
REQUEST = struct.Struct("<4sII")
ANSWER = struct.Struct("<4sIII")
ENVIRONMENT_LIMIT = 64 << 10
INPUT_LIMIT = 1 << 20
OUTPUT_LIMIT = 4 << 20
SOCKET = "/run/hyperlet/cni/cni.sock"


class WireError(Exception):
    """The peer violated the protocol or disconnected."""


@dataclass
class WireRequest:
    """One call. `netns` is a descriptor or -1; the holder of the request must close it."""

    plugin: str
    environment: dict[str, str]
    stdin: bytes
    netns: int = field(default=-1)

    def close(self) -> None:
        """Close the namespace's descriptor."""
        if self.netns >= 0:
            os.close(self.netns)
            self.netns = -1


@dataclass(frozen=True)
class WireAnswer:
    """The client's output and exit code."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""


def send_request(connection: socket.socket, request: WireRequest) -> None:
    """Send a call. Raises OSError."""
    environment = request.plugin.encode() + b"\0"
    environment += b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in request.environment.items())
    data = REQUEST.pack(MAGIC, len(environment), len(request.stdin)) + environment + request.stdin
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [request.netns]))] if request.netns >= 0 else []
    sent = connection.sendmsg([data], rights)
    if sent < len(data):  # avoid an empty send, which fails if the peer has answered and closed
        connection.sendall(data[sent:])


def receive_request(connection: socket.socket, deadline: float) -> WireRequest:
    """Receive a call; `deadline`: time.monotonic(). Raises WireError, OSError."""
    netns, data = _first(connection, deadline)
    try:
        while len(data) < REQUEST.size:
            data += _more(connection, REQUEST.size - len(data), deadline)
        magic, environment, stdin = REQUEST.unpack_from(data)
        if magic != MAGIC or environment > ENVIRONMENT_LIMIT or stdin > INPUT_LIMIT:
            raise WireError("invalid or oversized request")
        whole = bytearray(data)
        total = REQUEST.size + environment + stdin
        while len(whole) < total:
            whole += _more(connection, total - len(whole), deadline)
        if len(whole) > total:
            raise WireError("more than one request")
        return _parse(
            bytes(whole[REQUEST.size : REQUEST.size + environment]), bytes(whole[-stdin:] if stdin else b""), netns
        )
    except BaseException:
        if netns >= 0:
            os.close(netns)
        raise


def _first(connection: socket.socket, deadline: float) -> tuple[int, bytes]:
    connection.settimeout(max(0.001, deadline - time.monotonic()))
    data, ancillary, flags, _ = connection.recvmsg(
        64 << 10, socket.CMSG_SPACE(4 * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
    )
    found = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    if not data or len(found) > 1 or flags & socket.MSG_CTRUNC:
        for fd in found:
            os.close(fd)
        raise WireError("hung up" if not data else "more than one descriptor")
    return (found[0] if found else -1), data


def _more(connection: socket.socket, size: int, deadline: float) -> bytes:
    connection.settimeout(max(0.001, deadline - time.monotonic()))
    data = connection.recv(min(size, 256 << 10))
    if not data:
        raise WireError("hung up in the middle of a request")
    return data


def _parse(environment: bytes, stdin: bytes, netns: int) -> WireRequest:
    if not environment.endswith(b"\0"):
        raise WireError("not an environment")
    plugin, *pairs = environment.split(b"\0")[:-1] or [b""]
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition(b"=")
        if not equals or not key.startswith(b"CNI_"):
            raise WireError("not an environment")
        values[os.fsdecode(key)] = os.fsdecode(value)
    return WireRequest(os.fsdecode(plugin), values, stdin, netns)


def send_answer(connection: socket.socket, answer: WireAnswer) -> None:
    """Send the response. Raises OSError."""
    connection.settimeout(5)
    header = ANSWER.pack(MAGIC, answer.code, len(answer.stdout), len(answer.stderr))
    connection.sendall(header + answer.stdout + answer.stderr)


def receive_answer(connection: socket.socket, seconds: float) -> WireAnswer:
    """Receive the response. Raises WireError, OSError (TimeoutError)."""
    deadline = time.monotonic() + seconds
    data = b""
    while len(data) < ANSWER.size:
        data += _more(connection, ANSWER.size - len(data), deadline)
    magic, code, stdout, stderr = ANSWER.unpack(data)
    if magic != MAGIC or stdout + stderr > OUTPUT_LIMIT:
        raise WireError("not an answer")
    body = b""
    while len(body) < stdout + stderr:
        body += _more(connection, stdout + stderr - len(body), deadline)
    return WireAnswer(code, body[:stdout], body[stdout:])
