"""Common parts of rtnetlink and nfnetlink: sockets, headers, attributes, extended errors.

One system call carries several messages. Sources: netlink(7), include/uapi/linux/netlink.h.
"""

import os
import socket
import struct
from collections.abc import Iterator, Sequence

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")
REQUEST, ACK, REPLACE, EXCL, CREATE, APPEND, DUMP = 0x1, 0x4, 0x100, 0x200, 0x400, 0x800, 0x300
ERROR, DONE = 2, 3
_ACK_TLVS, _CAPPED = 0x200, 0x100
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_NLMSGERR_ATTR_MSG = 1
_NESTED = 0x8000
_SO_SNDBUFFORCE = 32
_LARGEST_SEND = 128 << 10
"""Bytes that fit into the default send buffer."""

Message = tuple[int, int, bytes]
"""Type, flags beyond NLM_F_REQUEST, body."""


class NetlinkRefusal(OSError):
    """The kernel rejected one of several messages, at index `position`."""

    def __init__(self, code: int, words: str, position: int) -> None:
        super().__init__(code, words or os.strerror(code))
        self.position = position


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) & 3)


def nested(kind: int, *parts: bytes) -> bytes:
    """A nested attribute."""
    return attribute(kind | _NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message, types without flags."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, bytes(data[offset + 4 : offset + length])
        offset += (length + 3) & ~3


def string(raw: bytes | None) -> str:
    """The text of a string attribute."""
    return raw.rstrip(b"\0").decode("utf-8", "replace") if raw else ""


class NetlinkSocket:
    """A netlink socket in the network namespace of the thread that opens it. For one thread at a time."""

    def __init__(self, protocol: int, seconds: float = 10) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._socket.bind((0, 0))
            # A receive timeout in the kernel: Python's costs an extra poll().
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def talk(self, messages: Sequence[Message]) -> list[bytes]:
        """Send messages in one system call, and wait for the last one's result; returns the response bodies.

        The kernel continues after a message that it rejects; the first error is raised after all messages. Only the
        last message requests an acknowledgement: errors are reported anyway, and each response is a system call.
        Raises NetlinkRefusal, OSError (EAGAIN: timeout).
        """
        last = len(messages) - 1
        first, data = self._pack([(k, f if i == last else f & ~ACK, b) for i, (k, f, b) in enumerate(messages)])
        self._socket.send(data)
        return self._collect(first, first + last, ends_with_data=not messages[last][1] & ACK)

    def batch(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        """An nfnetlink transaction: all of the messages or none. Raises NetlinkRefusal, OSError."""
        last = len(messages) - 1
        middle = [(k, f if i == last else f & ~ACK, b) for i, (k, f, b) in enumerate(messages)]
        first, data = self._pack([begin, *middle, end])
        if len(data) > _LARGEST_SEND:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(data))
        self._socket.send(data)
        self._collect(first, first + 1 + last, ends_with_error_of_first=True)

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All objects of a type. Raises NetlinkRefusal, OSError."""
        first, data = self._pack([(kind, DUMP, body)])
        self._socket.send(data)
        return self._collect(first, first)

    def _pack(self, messages: Sequence[Message]) -> tuple[int, bytes]:
        first, parts = self._sequence + 1, []
        for kind, flags, body in messages:
            self._sequence += 1
            parts.append(HEADER.pack(16 + len(body), kind, REQUEST | flags, self._sequence, 0))
            parts.append(body + b"\0" * (-len(body) & 3))
        return first, b"".join(parts)

    def _collect(
        self, first: int, last: int, ends_with_data: bool = False, ends_with_error_of_first: bool = False
    ) -> list[bytes]:
        found: list[bytes] = []
        refusal: NetlinkRefusal | None = None
        ended = False
        while not ended:
            for kind, flags, sequence, body in _messages(self._socket.recv(1 << 17)):
                if not first <= sequence <= last:
                    continue  # a late response to an earlier call
                if kind not in (ERROR, DONE):
                    found.append(body)
                    ended = ended or (ends_with_data and sequence == last)
                    continue
                code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                if code and refusal is None:
                    refusal = NetlinkRefusal(code, _reason(body, flags), sequence - first)
                ended = ended or sequence == last or (ends_with_error_of_first and sequence == first)
        if refusal is not None:
            raise refusal
        return found

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _reason(body: bytes, flags: int) -> str:
    if not flags & _ACK_TLVS:
        return ""
    # With NLM_F_CAPPED only the header of the rejected message is repeated.
    skip = 20 if flags & _CAPPED else 4 + ((struct.unpack_from("=I", body, 4)[0] + 3) & ~3)
    return string(dict(attributes(body, skip)).get(_NLMSGERR_ATTR_MSG))
