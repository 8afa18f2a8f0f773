"""Unix sockets that untrusted parties own, and gRPC channels over them.

The way to a launcher: open the socket's inode without following links, ask the kernel who listens on it, and only then
speak gRPC, to that very inode. A server that starts again binds a new inode, so the checks are made anew.
"""

import os
import socket
import stat
import struct
from typing import NamedTuple

import grpc.aio

from api.errors import LauncherUnavailable
from kit import proc

MAX_MESSAGE = 1 << 20

_UCRED = struct.Struct("iii")  # struct ucred of linux/socket.h: pid, uid, gid


class Peer(NamedTuple):
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


def listener(fd: int, timeout: float = 1.0) -> Peer:
    """The process that listens on the socket with this O_PATH descriptor. Raises LauncherUnavailable if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        try:
            # The descriptor is a socket's, never a link's, so this magic link leads to that inode and nowhere else.
            probe.connect(f"/proc/self/fd/{fd}")
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError as error:
            raise LauncherUnavailable(f"nobody answers on the socket: {error.strerror or error}") from error
    return Peer(*_UCRED.unpack(credentials))


def verified_process(fd: int, pod_uid: str, uid: int) -> proc.Process:
    """The process that listens on a socket, after checks; the caller closes it.

    It must run as `uid`, in the cgroup of the pod `pod_uid` and in our own user namespace (somebody who made a user
    namespace could also make mounts, and show us other directories than the container's). Raises LauncherUnavailable.
    """
    peer = listener(fd)
    if peer.pid <= 0:
        raise LauncherUnavailable("the listener is in a pid namespace that cannot be seen from here")
    if peer.uid != uid:
        raise LauncherUnavailable(f"the listener runs as user {peer.uid}, not {uid}")
    try:
        process = proc.Process(peer.pid)
    except OSError as error:
        raise LauncherUnavailable("the listener has ended") from error
    try:
        _check_home(process, pod_uid, uid)
    except BaseException:
        process.close()
        raise
    return process


def _check_home(process: proc.Process, pod_uid: str, uid: int) -> None:
    try:
        # Of the process itself too: who called listen(2) may have ended since, and its pid be somebody else's by now:
        # the container runtime's, say, which enters a pod's cgroup before it gives up what it may do.
        users = process.users
        owner = proc.pod_of_cgroups(process.read("cgroup").decode("utf-8", "replace"))
        same_user_namespace = process.shares_namespace("user")
    except OSError as error:
        raise LauncherUnavailable("the listener has ended") from error
    if owner != pod_uid.lower():
        raise LauncherUnavailable(f"the listener (pid {process.pid}) is not in the pod's cgroup")
    if users != {uid}:
        raise LauncherUnavailable(f"the listener (pid {process.pid}) does not run as user {uid} alone")
    if not same_user_namespace:
        raise LauncherUnavailable(f"the listener (pid {process.pid}) is in a user namespace of its own")


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
            # What handler/frame_budget.py takes; gRPC announces more by itself.
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
