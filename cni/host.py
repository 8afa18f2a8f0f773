"""Shared resources of the daemon: netlink sockets, threads that remove devices, and the names of host devices.

The name of a host interface is derived from network, container and interface name, so DEL needs no state to find it.
Its alias has the names in clear text, for GC and for people.
"""

import contextlib
import hashlib
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, local
from typing import TypeVar

from cni.invocation import OwnNamespaces
from kit import proc
from kit.netlink import nft, route
from kit.netlink.transport import HEADER, NetlinkRefusal

T = TypeVar("T")
_PREFIX = "cnv"
_REMOVERS = 32
_REMOVE_SECONDS = 30
_RTMGRP_LINK = 1


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def host_name(network: str, container: str, interface: str) -> str:
    """The name of an attachment's host interface, 15 bytes."""
    return f"{_network_prefix(network)}{_digest(network, container, interface)[:8]}"


def _network_prefix(network: str) -> str:
    return _PREFIX + _digest(network)[:4]


def _alias_prefix(network: str) -> str:
    return f"hyperlet-cni {_digest(network)[:16]} "


def alias(network: str, container: str, interface: str) -> str:
    """The alias of an attachment's host interface, below the kernel's 255 bytes."""
    return f"{_alias_prefix(network)}{network[:60]} {container[:100]} {interface}"


def belongs(link: route.Link, network: str) -> bool:
    """Whether a host device is an attachment of a network; one without an alias is from an interrupted ADD."""
    if link.kind != "veth" or not link.name.startswith(_network_prefix(network)) or len(link.name) != 15:
        return False
    return not link.alias or link.alias.startswith(_alias_prefix(network))


class RoutePool:
    """rtnetlink sockets of the daemon's namespace, each lent to one thread at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._idle: list[route.RtnetlinkSocket] = []

    @contextmanager
    def lend(self) -> Iterator[route.RtnetlinkSocket]:
        """Borrow a socket. It is closed, not reused, after an error that leaves its state unknown."""
        with self._lock:
            one = self._idle.pop() if self._idle else None
        one = one or route.RtnetlinkSocket()
        sound = False
        try:
            try:
                yield one
                sound = True
            except NetlinkRefusal:
                sound = True
                raise
        finally:
            if sound:
                with self._lock:
                    self._idle.append(one)
            else:
                one.close()

    def close(self) -> None:
        """Close idle sockets."""
        with self._lock:
            idle, self._idle = self._idle, []
        for one in idle:
            one.close()


class HostResources:
    """Resources shared by all workers. Must be created in the host's network namespace."""

    def __init__(self, data_roots: tuple[str, ...]) -> None:
        self.own = OwnNamespaces.now()
        self.routes = RoutePool()
        self.nft = nft.NftPool()
        self.data_roots = data_roots
        self.bridges = BridgeUsers()
        self._removers = ThreadPoolExecutor(_REMOVERS, "remover")
        self._local = local()

    def remove(self, name: str) -> bool:
        """Remove a device; False if there is none. Raises OSError.

        RTM_DELLINK returns only after an RCU grace period, but the notification is sent long before. So another thread
        makes the call, and whichever comes first counts.
        """
        with self.routes.lend() as one:
            link = one.link(name)
        if link is None:
            return False
        if link.kind != "veth":
            raise OSError(0, f"{name} is not a veth device: it was not created by this plugin")
        with contextlib.closing(_DeviceRemoval(link.index)) as departure:
            future = self._removers.submit(self._remove_waiting, link.index, departure.wake())
            if departure.wait(_REMOVE_SECONDS):
                return True
            if not future.done():
                raise OSError(0, f"the kernel did not remove {name} within {_REMOVE_SECONDS} s")
            return future.result()

    def _remove_waiting(self, index: int, wake: int) -> bool:
        try:
            own: route.RtnetlinkSocket | None = getattr(self._local, "route", None)
            if own is None:
                own = self._local.route = route.RtnetlinkSocket()
            own.do(route.del_link(index=index))
        except NetlinkRefusal as refusal:
            if refusal.errno != 19:  # ENODEV: removed meanwhile, for example with its namespace
                raise
        finally:
            os.eventfd_write(wake, 1)
            os.close(wake)
        return True

    def close(self) -> None:
        """Close idle sockets."""
        self._removers.shutdown(wait=False)
        self.routes.close()
        self.nft.close()


class _DeviceRemoval:
    """Waits for the notification of a device's removal."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._news.setblocking(False)
        self._news.bind((0, _RTMGRP_LINK))
        self._done = os.eventfd(0, os.EFD_CLOEXEC)

    def wake(self) -> int:
        """A descriptor that the other thread writes to when its call returns, and closes."""
        return os.dup(self._done)

    def wait(self, seconds: float) -> bool:
        """True on the notification; False when the other thread's call returns without it, or on timeout."""
        poll = select.poll()
        poll.register(self._news, select.POLLIN)
        poll.register(self._done, select.POLLIN)
        while ready := poll.poll(seconds * 1000):
            if any(fd == self._news.fileno() for fd, _ in ready) and self._heard():
                return True
            if any(fd == self._done for fd, _ in ready):
                return False
        return False

    def _heard(self) -> bool:
        try:
            data = self._news.recv(1 << 16)
        except OSError:  # ENOBUFS: notifications were lost; wait for the other thread
            return False
        offset = 0
        while offset + 32 <= len(data):
            length, kind, *_ = HEADER.unpack_from(data, offset)
            # With family AF_BRIDGE it only means that the device has left its bridge.
            if kind == route.DELLINK and data[offset + 16] != socket.AF_BRIDGE:
                index = int.from_bytes(data[offset + 20 : offset + 24], sys.byteorder)
                if index == self._index:
                    return True
            if length < 16:
                break
            offset += (length + 3) & ~3
        return False

    def close(self) -> None:
        self._news.close()
        os.close(self._done)


class BridgeUsers:
    """Counts the ADDs that use a bridge, so that a failed ADD removes its new bridge only if no other uses it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._users: dict[str, int] = {}

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Count as a user, for the duration of an ADD."""
        with self.lock:
            self._users[name] = self._users.get(name, 0) + 1
        try:
            yield
        finally:
            with self.lock:
                self._users[name] -= 1
                if not self._users[name]:
                    del self._users[name]

    def alone(self, name: str) -> bool:
        """Whether there is at most one user; call with the lock held."""
        return self._users.get(name, 0) <= 1


def run_in_netns(netns: int, work: Callable[[], T]) -> T:
    """Run `work` in a network namespace. Sockets that it opens belong to it; do not use the pools inside.

    The calling thread enters and leaves the namespace: a new thread would cost a third of a cnv-tuning call.
    """
    with proc.closing(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as home:
        proc.setns(netns, proc.CLONE_NEWNET)
        try:
            return work()
        finally:
            try:
                proc.setns(home, proc.CLONE_NEWNET)
            except OSError:
                # The next call would run in the container's namespace. The daemon has no state to lose.
                os.abort()
