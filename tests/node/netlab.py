"""A node, a pod and a guest as three network namespaces, joined as the real ones are.

node ──veth── pod ──tap── relay ──tap── guest. The relay stands in for QEMU: it opens the pod's tap as user 107 and
copies frames to a tap in the guest's namespace, so the guest is a whole kernel network stack.
"""

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import threading
from collections.abc import Iterator

from kit import proc

LAUNCHER = 107
NODE4, POD4, GUEST4 = "192.168.77.1", "192.168.77.5", "10.0.2.2"
NODE6, POD6, GUEST6 = "fd00:77::1", "fd00:77::5", "fd10:0:2::2"
MAC = "52:54:00:12:34:56"
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0


class Namespace:
    """A network namespace that lives as long as a sleeping process in it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up; echo up; exec sleep 600"], stdout=subprocess.PIPE
        )
        assert self._process.stdout and self._process.stdout.readline() == b"up\n"
        self.pid = self._process.pid

    def run(self, command: str) -> str:
        """Runs a shell command inside; raises with its output if it fails."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", "sh", "-ec", command],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}{done.stdout}")
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Starts a program inside."""
        return subprocess.Popen(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def node_and_pod(ipv6: bool = True, mtu: int = 1500) -> Iterator[tuple[Namespace, Namespace]]:
    """A node and a pod that reach each other. No other way leads out of either."""
    with contextlib.ExitStack() as stack:
        node, pod = Namespace(), Namespace()
        stack.callback(node.close)
        stack.callback(pod.close)
        node.run(
            f"ip link add hlveth type veth peer name eth0 netns {pod.pid}; ip link set hlveth mtu {mtu} up; "
            f"ip addr add {NODE4}/24 dev hlveth"
        )
        pod.run(f"ip link set eth0 mtu {mtu} up; ip addr add {POD4}/24 dev eth0; ip route add default via {NODE4}")
        if ipv6:
            node.run(f"ip addr add {NODE6}/64 dev hlveth nodad")
            pod.run(f"ip addr add {POD6}/64 dev eth0 nodad; ip route add default via {NODE6}")
        yield node, pod


@contextlib.contextmanager
def guest_of(
    pod: Namespace, multi_queue: bool = False, tap: str = "tap0", mac: str = MAC, masqueraded: bool = True
) -> Iterator[Namespace]:
    """A guest behind a tap of the pod, its card up; behind masquerade with the addresses that DHCP would give it."""
    guest = Namespace()
    inner = outer = -1
    stop, wake = os.pipe()
    try:
        outer = _tap(pod, tap, multi_queue, LAUNCHER)
        inner = _tap(guest, "eth0", False, 0)
        relay = threading.Thread(target=_relay, args=(outer, inner, stop), daemon=True)
        relay.start()
        guest.run(f"ip link set eth0 address {mac}; ip link set eth0 up")
        if masqueraded:
            guest.run(f"ip addr add {GUEST4}/24 dev eth0; ip route add default via 10.0.2.1")
        yield guest
    finally:
        os.write(wake, b"x")
        with contextlib.suppress(UnboundLocalError):
            relay.join()
        for fd in (outer, inner, stop, wake):
            if fd >= 0:
                os.close(fd)
        guest.close()


def _tap(where: Namespace, name: str, multi_queue: bool, uid: int) -> int:
    """Opens (or makes) a tap in a namespace, as `uid` without capabilities when that is not root."""

    def body() -> int:
        with proc.Process(where.pid) as process, proc.closing(process.namespace("net")) as namespace:
            proc.setns(namespace, proc.CLONE_NEWNET)
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        if uid:
            proc.syscall(119, uid, uid, uid)  # setresgid, this thread only
            proc.syscall(117, uid, uid, uid)  # setresuid
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), 0x5002 | (0x100 if multi_queue else 0)))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, 1)
        return fd

    return proc.isolated_now(body)


def _relay(left: int, right: int, stop: int) -> None:
    while True:
        ready, _, _ = select.select([left, right, stop], [], [])
        if stop in ready:
            return
        for source, target in ((left, right), (right, left)):
            if source in ready:
                with contextlib.suppress(OSError):
                    os.write(target, os.read(source, 1 << 17))
