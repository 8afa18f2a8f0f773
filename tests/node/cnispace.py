"""Network namespaces and frames between them, with nothing but the standard library and the plugins' own netlink."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable
from typing import TypeVar

from kit import proc
from kit.netlink import route

T = TypeVar("T")
ETHERTYPE = 0x88B5  # for local experiments (IEEE 802)
BROADCAST = b"\xff" * 6


class Space:
    """A network namespace that lives as long as its descriptor. It starts with the loopback device up."""

    def __init__(self) -> None:
        def make() -> int:
            proc.unshare(proc.CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        self.fd = proc.isolated_now(make)

    @property
    def path(self) -> str:
        """What CNI_NETNS can be."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def inside(self, work: Callable[[], T]) -> T:
        """Runs `work` in a thread in the namespace."""

        def body() -> T:
            proc.setns(self.fd, proc.CLONE_NEWNET)
            return work()

        return proc.isolated_now(body)

    def run(self, command: str) -> str:
        """Runs a shell command inside; raises with its output if it fails."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", "sh", "-ec", command],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}{done.stdout}")
        return done.stdout

    def routes(self) -> route.RtnetlinkSocket:
        """A route socket of the namespace."""
        return self.inside(route.RtnetlinkSocket)

    def links(self) -> dict[str, route.Link]:
        """The devices by name."""
        with contextlib.closing(self.routes()) as one:
            return {link.name: link for link in one.links()}

    def packets(self, device: str, kind: int = ETHERTYPE) -> socket.socket:
        """A packet socket on a device."""

        def body() -> socket.socket:
            found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
            found.bind((device, kind))
            found.settimeout(5)
            return found

        return self.inside(body)

    def reaches(self, address: str) -> bool:
        """Whether an address responds: a closed port refuses the connection."""

        def body() -> bool:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as one:
                one.settimeout(5)
                try:
                    one.connect((address, 9))
                except ConnectionRefusedError:
                    return True
                except OSError:
                    return False
            return True

        return self.inside(body)

    def close(self) -> None:
        os.close(self.fd)


def frame(source: str, payload: bytes, tag: int = 0) -> bytes:
    """A broadcast frame, with a VLAN tag if `tag`."""
    vlan = b"\x81\x00" + tag.to_bytes(2, "big") if tag else b""
    return BROADCAST + route.mac_bytes(source) + vlan + ETHERTYPE.to_bytes(2, "big") + payload.ljust(46, b"\0")


def received_payloads(receiver: socket.socket, last: bytes) -> list[bytes]:
    """The payloads received up to and including `last`. Raises TimeoutError if it does not arrive."""
    found = []
    while not found or found[-1] != last:
        found.append(receiver.recv(2048)[14:].rstrip(b"\0"))
    return found


def passing_macs(sender: Space, device: str, macs: list[str], receiver: Space, other: str) -> set[str]:
    """The source MACs whose frames arrive; that of the last must."""
    with contextlib.closing(sender.packets(device)) as out, contextlib.closing(receiver.packets(other)) as into:
        for mac in macs:
            out.send(frame(mac, mac.encode()))
        return {payload.decode() for payload in received_payloads(into, macs[-1].encode())}
