"""A substitute for systemd-logind on the test cluster's nodes, as far as a kubelet's graceful shutdown needs it.

    python3 -I -S -E logind.py              # serve, as the node's init starts it
    python3 -I -S -E logind.py power-off    # have the serving process power the node off

Its answers on the system bus follow logind (https://www.freedesktop.org/wiki/Software/systemd/logind/ and
/inhibit/, called by pkg/kubelet/nodeshutdown/systemd): `Inhibit` returns the writing end of a pipe: a lock, held as
long as the client keeps it open. The property `InhibitDelayMaxUSec` comes from logind.conf.d, which systemd's
`KillUnit` (SIGHUP) reloads. `PowerOff` emits `PrepareForShutdown` and waits until no client delays the shutdown, at
most that long. Then the file OFF is created, and `cluster.node` cuts the node's power.

Stdlib only, with its own D-Bus wire protocol (https://dbus.freedesktop.org/doc/dbus-specification.html): a library
would have to be in every node. Only little-endian messages and the types of these calls are supported.
"""

import array
import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BUS = "/run/dbus/system_bus_socket"
OFF = Path("/run/poweroff")
"""Created when no client delays the shutdown any more."""
READY = Path("/run/logind.ready")
"""Created when it serves: a kubelet that finds no logind when it starts does not look for it again."""
CONFIGURATION = Path("/etc/systemd/logind.conf.d")
DEFAULT_DELAY_SECONDS = 5.0
BUS_SECONDS = 20.0
"""Timeout for the bus to listen."""
LOGIN, LOGIN_PATH, MANAGER = "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"
SYSTEMD = "org.freedesktop.systemd1"
CALL, REPLY, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY_EXPECTED = 1
MAX_MESSAGE = 1 << 20
_FIELDS = {1: ("path", "o"), 2: ("interface", "s"), 3: ("member", "s"), 4: ("error", "s"), 5: ("answers", "u"),
           6: ("destination", "s"), 7: ("sender", "s"), 8: ("signature", "g"), 9: ("fds", "u")}  # fmt: skip
_ALIGNMENT = {"y": 1, "g": 1, "b": 4, "i": 4, "u": 4, "h": 4, "s": 4, "o": 4, "t": 8}
_PACKED = {"y": "<B", "b": "<I", "i": "<i", "u": "<I", "h": "<I", "t": "<Q"}


class ProtocolError(Exception):
    """The bus, or one of its clients, sent an unsupported message."""


# ---- the wire -------------------------------------------------------------------------------------------------------


def encode(signature: str, values: tuple[Any, ...], out: bytearray) -> None:
    """Append values, aligned relative to the beginning of `out`. `v` takes a pair (signature, value)."""
    for kind, value in zip(signature, values, strict=True):
        if kind == "v":
            encode("g", (value[0],), out)
            encode(value[0], (value[1],), out)
            continue
        out += bytes(-len(out) % _ALIGNMENT[kind])
        if kind in "so":
            text = value.encode()
            out += struct.pack("<I", len(text)) + text + b"\0"
        elif kind == "g":
            out += bytes([len(value)]) + value.encode() + b"\0"
        else:
            out += struct.pack(_PACKED[kind], value)


def decode(signature: str, data: bytes, at: int = 0) -> tuple[list[Any], int]:
    """The values of a signature in `data`, and their end offset. Raises ProtocolError."""
    values: list[Any] = []
    try:
        for kind in signature:
            if kind == "v":
                [inner], at = decode("g", data, at)
                [value], at = decode(inner, data, at)
                values.append(value)
                continue
            at += -at % _ALIGNMENT[kind]
            if kind in "sog":
                width = 1 if kind == "g" else 4
                length = int.from_bytes(data[at : at + width], "little")
                if at + width + length >= len(data):
                    raise ProtocolError("a string is longer than its message")
                values.append(data[at + width : at + width + length].decode())
                at += width + length + 1
            else:
                (number,) = struct.unpack_from(_PACKED[kind], data, at)
                values.append(bool(number) if kind == "b" else number)
                at += struct.calcsize(_PACKED[kind])
    except (KeyError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ProtocolError(f"a message cannot be read: {error}") from error
    return values, at


@dataclass
class Message:
    """A message of D-Bus. `fields`: path, interface, member, destination, sender, signature, answers, error."""

    kind: int
    serial: int
    fields: dict[str, Any] = field(default_factory=dict)
    body: tuple[Any, ...] = ()
    flags: int = 0

    def encoded(self) -> bytes:
        """The message's bytes."""
        body = bytearray()
        encode(self.fields.get("signature", ""), self.body, body)
        head = bytearray()
        for code, (name, kind) in _FIELDS.items():
            if name in self.fields:
                head += bytes(-len(head) % 8)
                encode("y", (code,), head)
                encode("v", ((kind, self.fields[name]),), head)
        out = bytearray(struct.pack("<cBBBIII", b"l", self.kind, self.flags, 1, len(body), self.serial, len(head)))
        out += head
        out += bytes(-len(out) % 8)
        return bytes(out + body)


def size_of(head: bytes) -> int:
    """The size of a whole message in bytes, from its first 16. Raises ProtocolError."""
    endian, _kind, _flags, version, body, _serial, fields = struct.unpack("<cBBBIII", head[:16])
    size = 16 + fields + (-fields % 8) + body
    if endian != b"l" or version != 1 or size > MAX_MESSAGE:
        raise ProtocolError(f"not a little-endian message of version 1 below {MAX_MESSAGE} bytes")
    return int(size)


def decoded(data: bytes) -> Message:
    """The message of these bytes. Raises ProtocolError."""
    _endian, kind, flags, _version, length, serial, header = struct.unpack("<cBBBIII", data[:16])
    found: dict[str, Any] = {}
    at, end = 16, 16 + header
    while at < end:
        at += -at % 8
        [code], at = decode("y", data, at)
        [value], at = decode("v", data, at)
        if code in _FIELDS:
            found[_FIELDS[code][0]] = value
    body, _ = decode(found.get("signature", ""), data[len(data) - length :]) if length else ([], 0)
    return Message(kind, serial, found, tuple(body), flags)


class BusConnection:
    """A connection to the bus, with descriptors."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        until = time.monotonic() + BUS_SECONDS
        while True:
            try:
                self.socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        self._serial = 0
        self._data = b""
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        self._expect(b"OK ")
        self.socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
        self._expect(b"AGREE_UNIX_FD")
        self.socket.sendall(b"BEGIN\r\n")
        self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")

    def _expect(self, word: bytes) -> None:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = self.socket.recv(1)
            if not byte or len(line) > 512:
                raise ProtocolError("the bus closed the connection")
            line += byte
        if not line.startswith(word):
            raise ProtocolError(f"the bus answered {line!r}")

    def send(self, kind: int, fields: dict[str, Any], body: tuple[Any, ...] = (), fd: int | None = None) -> int:
        """Send a message, with a descriptor if there is one; its serial number."""
        self._serial += 1
        present = {name: value for name, value in fields.items() if value not in (None, "")}
        if fd is not None:
            present["fds"] = 1
        data = Message(kind, self._serial, present, body).encoded()
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        sent = self.socket.sendmsg([data], rights)
        self.socket.sendall(data[sent:])
        return self._serial

    def received(self) -> Iterator[Message]:
        """The messages of one read of the socket. Raises ProtocolError when the bus is closed."""
        data, ancillary, _, _ = self.socket.recvmsg(1 << 16, 1 << 10)
        for _level, _type, rights in ancillary:  # none are expected: close received ones
            for number in array.array("i", rights[: len(rights) - len(rights) % 4]):
                os.close(number)
        if not data:
            raise ProtocolError("the bus has closed the connection")
        self._data += data
        while len(self._data) >= 16 and len(self._data) >= (size := size_of(self._data)):
            message, self._data = decoded(self._data[:size]), self._data[size:]
            yield message

    def call(self, to: str, path: str, interface: str, member: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
        """Call a method and wait for its answer. Raises ProtocolError for a refusal."""
        fields = {"destination": to, "path": path, "interface": interface, "member": member, "signature": signature}
        serial = self.send(CALL, fields, body)
        while True:
            for message in self.received():
                if message.fields.get("answers") == serial:
                    if message.kind == ERROR:
                        raise ProtocolError(f"{member}: {message.fields.get('error')} {message.body}")
                    return message.body


# ---- logind ---------------------------------------------------------------------------------------------------------


def delay_seconds(folder: Path) -> float:
    """InhibitDelayMaxSec of the configuration: the last file that sets it wins."""
    found = DEFAULT_DELAY_SECONDS
    for file in sorted(folder.glob("*.conf")):
        for line in file.read_text().splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "InhibitDelayMaxSec":
                with contextlib.suppress(ValueError):
                    found = float(value.strip().removesuffix("s"))
    return found


class Logind:
    """logind's state. `inhibitors`: the reading ends of pipes whose other ends clients hold."""

    def __init__(self, bus: BusConnection, configuration: Path = CONFIGURATION, off: Path = OFF) -> None:
        self._bus, self._configuration, self._off = bus, configuration, off
        self.delay = delay_seconds(configuration)
        self.inhibitors: dict[int, str] = {}
        self.deadline: float | None = None
        """The latest time of the power-off; None while none is requested."""
        for name in (LOGIN, SYSTEMD):
            bus.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName",
                     "su", name, 0)  # fmt: skip

    def run(self) -> None:
        """Serve until the bus is closed (ProtocolError)."""
        while True:
            now = time.monotonic()
            if self.deadline is not None and (now >= self.deadline or not self.inhibitors):
                say(f"powering off; still delayed by: {', '.join(self.inhibitors.values()) or 'none'}")
                self._off.touch()
                self.deadline = None
            left = None if self.deadline is None else max(0.0, self.deadline - now)
            bus = self._bus.socket.fileno()
            ready, _, _ = select.select([bus, *self.inhibitors], [], [], left)
            for each in ready:
                if each == bus:
                    for message in self._bus.received():
                        self._answer(message)
                elif not os.read(each, 64):
                    say(f"{self.inhibitors.pop(each)} no longer delays a shutdown")
                    os.close(each)

    def _answer(self, message: Message) -> None:
        if message.kind != CALL:
            return
        fields = {"destination": message.fields.get("sender"), "answers": message.serial}
        call = (message.fields.get("interface"), message.fields.get("member"), message.fields.get("signature", ""))
        match call, message.body:
            case ((None | "org.freedesktop.login1.Manager", "Inhibit", "ssss"), (what, who, why, mode)):
                reading, writing = os.pipe2(os.O_CLOEXEC)
                if "shutdown" in what.split(":") and mode == "delay":
                    self.inhibitors[reading] = f"{who} ({why})"
                    say(f"{who} delays a shutdown: {why}")
                else:
                    os.close(reading)
                self._bus.send(REPLY, {**fields, "signature": "h"}, (0,), writing)
                os.close(writing)
            case ((None | "org.freedesktop.DBus.Properties", "Get", "ss"), (_, "InhibitDelayMaxUSec")):
                self._bus.send(REPLY, {**fields, "signature": "v"}, (("t", int(self.delay * 1_000_000)),))
            case ((None | "org.freedesktop.systemd1.Manager", "KillUnit", "ssi"), ("systemd-logind.service", _, 1)):
                self.delay = delay_seconds(self._configuration)
                self._bus.send(REPLY, fields)
            case ((None | "org.freedesktop.login1.Manager", "PowerOff", "b"), _):
                say(f"asked to power off; delayed by: {', '.join(self.inhibitors.values()) or 'none'}")
                self.deadline = time.monotonic() + self.delay
                self._bus.send(REPLY, fields)
                signal = {"path": LOGIN_PATH, "interface": MANAGER, "member": "PrepareForShutdown", "signature": "b"}
                self._bus.send(SIGNAL, signal, (True,))
            case _:
                if not message.flags & NO_REPLY_EXPECTED:
                    name = "org.freedesktop.DBus.Error.UnknownMethod"
                    words = f"the logind substitute has no {call[0]}.{call[1]}({call[2]})"
                    self._bus.send(ERROR, {**fields, "error": name, "signature": "s"}, (words,))


def say(words: str) -> None:
    """A line of the log."""
    print(f"logind: {words}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Serve, or request a power-off."""
    bus = BusConnection(BUS)
    if arguments == ["power-off"]:
        bus.call(LOGIN, LOGIN_PATH, MANAGER, "PowerOff", "b", False)
        return 0
    served = Logind(bus)
    READY.touch()
    served.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
