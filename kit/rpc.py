"""Unix sockets of untrusted processes, and gRPC channels to them.

To connect to a launcher: open the socket's inode without following links, get the listener's credentials from the
kernel, verify the process, then use gRPC with that inode. A restarted server binds a new inode, which is verified
again.
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
from protos import limits

Sandbox = Callable[[str], proc.Process | None]
"""Returns the first process of a pod (the sandbox), for which the runtime created the pod's namespaces, or None."""

_UCRED = struct.Struct("iII")
"""struct ucred of linux/socket.h: pid, uid, gid. A user of a user namespace may lie above 2^31."""


class PeerCredentials(NamedTuple):
    """Credentials of the process that called listen(2) on a socket (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def open_socket(directory: int, path: str) -> int:
    """An O_PATH descriptor of the socket `path` below a directory descriptor.

    Raises LauncherUnavailable if it does not exist, is reached through a link, or is not a socket.
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
    """Credentials of the listener of the socket with this O_PATH descriptor. Raises LauncherUnavailable."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        try:
            # The descriptor refers to a socket, never a link, so the magic link resolves to exactly that inode.
            probe.connect(f"/proc/self/fd/{fd}")
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError as error:
            raise LauncherUnavailable(f"cannot connect to the socket: {error.strerror or error}") from error
    return PeerCredentials(*_UCRED.unpack(credentials))


def verified_process(fd: int, pod_uid: str, uid: int, sandbox: Sandbox) -> proc.Process:
    """The process that listens on a socket, after verification; the caller closes it.

    It must be in the cgroup of pod `pod_uid`, in the user namespace that the container runtime gave the pod (the
    node's, or one of the pod's own), and run as `uid` of that namespace. A process that created a user namespace could
    also mount other directories over the container's. `sandbox` finds the pod's first process.
    Raises LauncherUnavailable.
    """
    peer = listener(fd)
    if peer.pid <= 0:
        raise LauncherUnavailable("the listener is in a PID namespace that is not visible from the node")
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
        raise LauncherUnavailable(f"cannot look up the pod's first process: {error}") from error
    if first is None:
        raise LauncherUnavailable("the pod has no process in its own network namespace")
    with first:
        if not proc.same_namespace(process, first, "user"):
            raise LauncherUnavailable(
                f"the listener (pid {process.pid}) is in another user namespace than its pod (pid {first.pid})"
            )
    # The comparison proves nothing if the pod's first process is in its container, so check the owner as well.
    if not process.shares_namespace("user") and not proc.owned_by_host_root(process):
        raise LauncherUnavailable(
            f"the listener (pid {process.pid}) is in a user namespace that was not created by the container runtime"
        )


def _check_user(process: proc.Process, peer: PeerCredentials, uid: int) -> None:
    try:
        wanted = process.host_user(uid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise LauncherUnavailable(f"the pod's user namespace has no user {uid}") from error
    expected = f"{wanted} ({uid} in its pod)" if wanted != uid else str(uid)
    if peer.uid != wanted:
        raise LauncherUnavailable(f"the listener runs as user {peer.uid}, not {expected}")
    # Check the process too: the process that called listen(2) may have ended and its pid been reused, such as by the
    # container runtime, which enters a pod's cgroup before it drops its privileges.
    if process.users != {wanted}:
        raise LauncherUnavailable(f"the listener (pid {process.pid}) does not run as user {expected} alone")


def channel(fd: int) -> grpc.aio.Channel:
    """A gRPC channel to the socket with this descriptor, which must stay open as long as the channel."""
    return grpc.aio.insecure_channel(
        f"unix:/proc/self/fd/{fd}",
        options=[
            ("grpc.max_receive_message_length", limits.MESSAGE_BYTES),
            ("grpc.max_send_message_length", limits.MESSAGE_BYTES),
            ("grpc.max_metadata_size", 16384),
            # Disable dynamic flow control windows: a flooding peer could grow this process's memory.
            ("grpc.http2.bdp_probe", 0),
            # The limit that handler/launchers/frame_budget.py accepts; gRPC's default is larger.
            ("grpc.http2.max_frame_size", 16384),
            ("grpc.enable_http_proxy", 0),
            # Descriptor numbers are reused: a shared pool could return a connection to another pod.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.default_authority", "launcher"),
        ],
    )
