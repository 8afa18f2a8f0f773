"""Unix sockets that untrusted parties own, and gRPC channels over them.

The way to a launcher: open the socket's inode without following links, ask the kernel who listens on it, and only then
speak gRPC, to that very inode. A server that starts again binds a new inode, so the checks are made anew.
"""

import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple

import grpc.aio

from api.errors import LauncherUnavailable
from kit import proc

MAX_MESSAGE = 1 << 20

Sandbox = Callable[[str], proc.Process | None]
"""The first process of a pod, which the container runtime made the pod's namespaces with; None if there is none."""

_UCRED = struct.Struct("iii")  # struct ucred of linux/socket.h: pid, uid, gid


class PeerCredentials(NamedTuple):
    """Who called listen(2) on a socket, as the kernel saw it."""

    pid: int
    uid: int
    gid: int


def open_socket(directory: int, path: str) -> int:
    """An O_PATH descriptor of the socket `path` below a directory descriptor.

    Raises LauncherUnavailable if it is not there, is reached through a link, or is no socket.
    """
    try:
        fd = proc.open_beneath(directory, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        raise LauncherUnavailable(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        raise LauncherUnavailable(f"{path} is not a socket")
    return fd


def listener(fd: int, timeout: float = 1.0) -> PeerCredentials:
    """The process that listens on the socket with this O_PATH descriptor. Raises LauncherUnavailable if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        try:
            # The descriptor is a socket's, never a link's, so this magic link leads to that inode and nowhere else.
            probe.connect(f"/proc/self/fd/{fd}")
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError as error:
            raise LauncherUnavailable(f"nobody answers on the socket: {error.strerror or error}") from error
    return PeerCredentials(*_UCRED.unpack(credentials))


def verified_process(fd: int, pod_uid: str, uid: int, sandbox: Sandbox) -> proc.Process:
    """The process that listens on a socket, after checks; the caller closes it.

    It must be in the cgroup of the pod `pod_uid`, in the user namespace that the container runtime gave the pod (the
    node's own, or one that only the pod has), and run as what is `uid` there. Somebody who made a user namespace could
    also make mounts, and show us other directories than the container's. `sandbox` finds the pod's first process.
    Raises LauncherUnavailable.
    """
    peer = listener(fd)
    if peer.pid <= 0:
        raise LauncherUnavailable("the listener is in a pid namespace that cannot be seen from here")
    try:
        process = proc.Process(peer.pid)
    except OSError as error:
        raise LauncherUnavailable("the listener has ended") from error
    try:
        _check_pod(process, pod_uid, sandbox)
        _check_user(process, peer, uid)
    except OSError as error:
        process.close()
        raise LauncherUnavailable("the listener has ended") from error
    except BaseException:
        process.close()
        raise
    return process


def _check_pod(process: proc.Process, pod_uid: str, sandbox: Sandbox) -> None:
    owner = proc.pod_of_cgroups(process.read("cgroup").decode("utf-8", "replace"))
    if owner != pod_uid.lower():
        raise LauncherUnavailable(f"the listener (pid {process.pid}) is not in the pod's cgroup")
    try:
        first = sandbox(pod_uid)
    except OSError as error:
        raise LauncherUnavailable(f"the pod's first process cannot be looked for: {error}") from error
    if first is None:
        raise LauncherUnavailable("the pod has no process in a network of its own")
    with first:
        if not proc.same_namespace(process, first, "user"):
            raise LauncherUnavailable(
                f"the listener (pid {process.pid}) is in another user namespace than its pod (pid {first.pid})"
            )
    # Of a pod without a process before its container's the comparison alone says nothing.
    if not process.shares_namespace("user") and not proc.owned_by_host_root(process):
        raise LauncherUnavailable(
            f"the listener (pid {process.pid}) is in a user namespace that the container runtime did not make"
        )


def _check_user(process: proc.Process, peer: PeerCredentials, uid: int) -> None:
    try:
        wanted = process.host_user(uid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise LauncherUnavailable(f"the pod's user namespace has no user {uid}") from error
    as_told = f"{wanted} ({uid} in its pod)" if wanted != uid else str(uid)
    if peer.uid != wanted:
        raise LauncherUnavailable(f"the listener runs as user {peer.uid}, not {as_told}")
    # Of the process itself too: who called listen(2) may have ended since, and its pid be somebody else's by now: the
    # container runtime's, say, which enters a pod's cgroup before it gives up what it may do.
    if process.users != {wanted}:
        raise LauncherUnavailable(f"the listener (pid {process.pid}) does not run as user {as_told} alone")


def channel(fd: int) -> grpc.aio.Channel:
    """A gRPC channel to the socket with this descriptor, which must stay open as long as the channel."""
    return grpc.aio.insecure_channel(
        f"unix:/proc/self/fd/{fd}",
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.max_metadata_size", 16384),
            # Without it a peer that sends all it can has the window, and so our memory, grow to several messages.
            ("grpc.http2.bdp_probe", 0),
            # What handler/launchers/frame_budget.py takes; gRPC announces more by itself.
            ("grpc.http2.max_frame_size", 16384),
            ("grpc.enable_http_proxy", 0),
            # The number of a closed descriptor is used again: a shared pool would hand out a connection to another pod.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.default_authority", "launcher"),
        ],
    )
