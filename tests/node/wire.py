"""Ethernet frames in network namespaces, DHCP among them; and the launcher's DHCP servers in a process of their own.

A missing frame is detected without waiting: a mark is sent after it, and all frames before the mark are
checked.
"""

import asyncio
import ipaddress
import os
import pathlib
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

from google.protobuf import json_format

from kit import proc
from protos import launcher_pb2 as pb
from tests.node import netlab

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BROADCAST = "ff:ff:ff:ff:ff:ff"
_MARK = 0x88B5  # IEEE 802 local experiments
_ALL_FRAMES = 3
_COOKIE = b"\x63\x82\x53\x63"
_OUTGOING = 4


class Datagram(NamedTuple):
    """A UDP datagram and who sent its frame."""

    mac: str
    source: str
    port: int
    to_port: int
    payload: bytes


class Wire:
    """A device's end of a wire, with everything that comes in by it from now on."""

    def __init__(self, where: netlab.Namespace, device: str, mac: str = "06:00:00:00:00:01") -> None:
        def body() -> socket.socket:
            with proc.Process(where.pid) as process, proc.closing(process.namespace("net")) as namespace:
                proc.setns(namespace, proc.CLONE_NEWNET)
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_FRAMES))
            sock.bind((device, _ALL_FRAMES))
            return sock

        self._socket = proc.isolated_now(body)
        self._mac = _bytes(mac)
        self._marks = 0

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def mark(self) -> bytes:
        """Sends a frame that marks the end of the frames sent so far."""
        self._marks += 1
        frame = _bytes(BROADCAST) + self._mac + struct.pack("!HQ", _MARK, self._marks) + bytes(40)
        self.send(frame)
        return frame

    def until(self, wanted: Callable[[bytes], bool]) -> list[bytes]:
        """The frames that came, up to the first that is wanted."""
        found: list[bytes] = []
        deadline = time.monotonic() + 20
        while True:
            assert select.select([self._socket], [], [], deadline - time.monotonic())[0], f"only {len(found)} frames"
            frame, address = self._socket.recvfrom(1 << 16)
            if address[2] == _OUTGOING:
                continue
            found.append(frame)
            if wanted(frame):
                return found

    def before(self, mark: bytes) -> list[bytes]:
        """The frames that came before a mark."""
        return self.until(lambda frame: frame[12:22] == mark[12:22])[:-1]

    def wait_connected(self, other: "Wire") -> None:
        """Sends marks until one arrives: a new bridge port does not forward at first."""
        for _ in range(200):
            mark = self.mark()
            while select.select([other._socket], [], [], 0.05)[0]:
                frame, _ = other._socket.recvfrom(1 << 16)
                if frame[12:22] == mark[12:22]:
                    return
        raise AssertionError("no frame passes")

    def close(self) -> None:
        self._socket.close()


@contextmanager
def wires(one: tuple[netlab.Namespace, str], other: tuple[netlab.Namespace, str], *macs: str):
    """Two ends until the end of the block, from when frames pass in both directions. `macs`: who sends their marks."""
    made = [Wire(*end, *macs[place : place + 1]) for place, end in enumerate((one, other))]
    try:
        for here, there in (made, made[::-1]):
            here.wait_connected(there)
        yield made
    finally:
        for wire in made:
            wire.close()


def datagram(frame: bytes) -> Datagram | None:
    """The IPv4 or IPv6 datagram in a frame."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and frame[23] == 17:
        start, source = 14 + (frame[14] & 15) * 4, socket.inet_ntop(socket.AF_INET, frame[26:30])
    elif kind == b"\x86\xdd" and frame[20] == 17:
        start, source = 54, socket.inet_ntop(socket.AF_INET6, frame[22:38])
    else:
        return None
    port, to_port = struct.unpack_from("!HH", frame, start)
    return Datagram(frame[6:12].hex(":"), source, port, to_port, frame[start + 8 :])


def dhcp(frames: list[bytes]) -> list[Datagram]:
    """The DHCP datagrams of both versions among frames."""
    found = [datagram(frame) for frame in frames]
    return [item for item in found if item is not None and {item.port, item.to_port} & {67, 68, 546, 547}]


def udp(mac: str, source: str, target: str, port: int, to_port: int, payload: bytes) -> bytes:
    """A broadcast frame with a UDP datagram."""
    body = struct.pack("!HHHH", port, to_port, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target)
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return _bytes(BROADCAST) + _bytes(mac) + b"\x08\x00" + head + body


def discover(mac: str, transaction: int) -> bytes:
    """A DHCPDISCOVER with option 80 (Rapid Commit)."""
    return udp(mac, "0.0.0.0", "255.255.255.255", 68, 67, _bootp(1, mac, transaction, b"\x35\x01\x01\x50\x00\xff"))


def offer(mac: str, client: str, transaction: int) -> bytes:
    """A server's lease for a client."""
    return udp(mac, "10.99.99.1", "255.255.255.255", 67, 68, _bootp(2, client, transaction, b"\x35\x01\x05\xff"))


def _bootp(operation: int, mac: str, transaction: int, options: bytes) -> bytes:
    head = struct.pack("!BBBBIHH", operation, 1, 6, 0, transaction, 0, 0x8000)
    return head + bytes(16) + _bytes(mac).ljust(16, b"\0") + bytes(192) + _COOKIE + options


def transaction_of(payload: bytes) -> int:
    """The transaction ID of a DHCPv4 message."""
    return int(struct.unpack_from("!I", payload, 4)[0])


def lease(payload: bytes) -> tuple[str, dict[int, bytes]]:
    """The address and the options of a DHCPv4 answer."""
    options, position = {}, 240
    while payload[position] != 255:
        code, length = payload[position], payload[position + 1]
        options[code] = payload[position + 2 : position + 2 + length]
        position += 2 + length
    return socket.inet_ntoa(payload[16:20]), options


def arp(mac: str, source: str, target: str) -> bytes:
    """An ARP request for the target."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + _bytes(mac) + ipaddress.ip_address(source).packed
    return _bytes(BROADCAST) + _bytes(mac) + b"\x08\x06" + body + bytes(6) + ipaddress.ip_address(target).packed


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@contextmanager
def launchers_dhcp(pod: netlab.Namespace, nics: list[pb.Nic]):
    """The launcher's own DHCP servers for some NICs, as user 107 in the pod's namespace."""
    texts = [json_format.MessageToJson(nic, indent=None) for nic in nics]
    server = subprocess.Popen(
        ["nsenter", f"--net=/proc/{pod.pid}/ns/net", sys.executable, "-m", "tests.node.wire", *texts],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout and server.stdout.readline() == "up\n"
        yield
    finally:
        server.kill()
        server.wait()


async def _serve(texts: list[str]) -> None:
    from launcher.network.dhcp_service import DhcpService

    os.setgroups([])
    os.setgid(netlab.LAUNCHER)
    os.setuid(netlab.LAUNCHER)
    service = DhcpService()
    service.serve([json_format.Parse(text, pb.Nic()) for text in texts], {})
    print("up", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
