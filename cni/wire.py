"""What goes over the socket between client and daemon. `client.c` has the same in C.

A request is `HLC1`, two lengths (u32, little endian), then the environment and the standard input. The environment is
strings that each end in a zero byte: first the plugin's name (base name of argv[0]), then every `CNI_*=value`. The
network namespace's descriptor, when there is one, rides on the first byte (SCM_RIGHTS). The answer is `HLC1`, the exit
code and two lengths (u32 each), then what belongs on stdout and stderr. The client keeps its side open until it has the
answer: a hang-up means that nobody waits any more.
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
    """The other side does not keep to the protocol, or has gone."""


@dataclass
class WireRequest:
    """One call. `netns` is a descriptor or -1; whoever holds the request closes it."""

    plugin: str
    environment: dict[str, str]
    stdin: bytes
    netns: int = field(default=-1)

    def close(self) -> None:
        """Closes the namespace's descriptor."""
        if self.netns >= 0:
            os.close(self.netns)
            self.netns = -1


@dataclass(frozen=True)
class WireAnswer:
    """What the client prints, and its exit code."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""


def send_request(connection: socket.socket, request: WireRequest) -> None:
    """Sends a call. Raises OSError."""
    environment = request.plugin.encode() + b"\0"
    environment += b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in request.environment.items())
    data = REQUEST.pack(MAGIC, len(environment), len(request.stdin)) + environment + request.stdin
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [request.netns]))] if request.netns >= 0 else []
    sent = connection.sendmsg([data], rights)
    if sent < len(data):  # sending nothing fails once the answer is there and the other side closed
        connection.sendall(data[sent:])


def receive_request(connection: socket.socket, deadline: float) -> WireRequest:
    """Takes a call; `deadline` as of time.monotonic(). Raises WireError, OSError."""
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
    """Sends the outcome. Raises OSError."""
    connection.settimeout(5)
    header = ANSWER.pack(MAGIC, answer.code, len(answer.stdout), len(answer.stderr))
    connection.sendall(header + answer.stdout + answer.stderr)


def receive_answer(connection: socket.socket, seconds: float) -> WireAnswer:
    """Takes the outcome. Raises WireError, OSError (TimeoutError)."""
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
