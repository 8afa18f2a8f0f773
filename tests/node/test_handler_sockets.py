"""Launcher sockets and attacks by a pod on them, on real cgroups and sockets."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import grpc.aio
import pytest

from api.errors import LauncherUnavailable
from kit import proc, rpc
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc as services
from tests.node import podlab

pytestmark = pytest.mark.node


@pytest.fixture
def pods():
    # Not pytest's folder: launchers have to reach it as user 107.
    with tempfile.TemporaryDirectory(prefix="hl-") as path:
        pathlib.Path(path).chmod(0o755)
        yield pathlib.Path(path)


@pytest.fixture
def pod(pods):
    with podlab.pod(pods) as made:
        yield made


def open_pod(pod: podlab.Pod) -> int:
    with proc.closing(os.open(pod.pods, os.O_PATH)) as base:
        return rpc.open_socket(base, f"{pod.uid}/{podlab.SOCKET}")


def verify(pod: podlab.Pod, uid: int = 107) -> int:
    """The verified listener's pid."""
    with proc.closing(open_pod(pod)) as fd, rpc.verified_process(fd, pod.uid, uid, podlab.sandbox) as process:
        return process.pid


async def test_valid_launcher_is_found_and_responds(pod):
    launcher = pod.launcher()
    assert verify(pod) == launcher.pid
    with proc.closing(open_pod(pod)) as fd:
        async with rpc.channel(fd) as channel:
            report = await services.LauncherStub(channel).Sync(pb.SyncRequest(vmi_uid="u"), timeout=5)
    assert report.vmi_uid == "u"


async def test_channel_is_bound_to_inode(pod, pods):
    """A descriptor's number is used again; a channel made for it must not lead to the next socket."""
    pod.launcher()
    with podlab.pod(pods) as other:
        other.launcher().set_behaviour(report={"reason": "Other"})
        for _ in range(3):
            for each, reason in ((pod, ""), (other, "Other")):
                with proc.closing(open_pod(each)) as fd:
                    async with rpc.channel(fd) as channel:
                        async for report in services.LauncherStub(channel).Watch(pb.WatchRequest(), timeout=5):
                            assert report.reason == reason
                            break


def test_socket_replaced_by_link_to_host_socket_is_refused(pod, pods):
    with socket.socket(socket.AF_UNIX) as host:
        host.bind(str(pods / "host.sock"))
        host.listen()
        pod.socket.symlink_to(pods / "host.sock")
        with pytest.raises(LauncherUnavailable):
            open_pod(pod)


def test_directory_replaced_by_link_is_refused(pod, pods):
    with podlab.pod(pods) as other:
        other.launcher()
        pod.socket.parent.rmdir()
        pod.socket.parent.symlink_to(other.socket.parent)
        with pytest.raises(LauncherUnavailable):
            open_pod(pod)


def test_hard_link_to_socket_of_other_pod_is_refused(pod, pods):
    with podlab.pod(pods) as other:
        other.launcher()
        os.link(other.socket, pod.socket)
        with pytest.raises(LauncherUnavailable, match="not in the pod's cgroup"):
            verify(pod)


def test_hard_link_to_host_socket_is_refused(pod, pods):
    with socket.socket(socket.AF_UNIX) as host:
        host.bind(str(pods / "host.sock"))
        host.listen()
        os.link(pods / "host.sock", pod.socket)
        with pytest.raises(LauncherUnavailable, match="not in the pod's cgroup"):
            verify(pod)


def test_listener_outside_pod_cgroup_is_refused(pod):
    pod.launcher(in_cgroup=False)
    with pytest.raises(LauncherUnavailable, match="not in the pod's cgroup"):
        verify(pod)


def test_listener_of_other_user_is_refused(pod):
    pod.launcher(uid=0)
    with pytest.raises(LauncherUnavailable, match="runs as user 0, not 107"):
        verify(pod)


@pytest.mark.parametrize("make", [os.mkfifo, pathlib.Path.touch, os.mkdir])
def test_file_that_is_not_socket_is_refused(pod, make):
    make(pod.socket)
    with pytest.raises(LauncherUnavailable, match="is not a socket"):
        open_pod(pod)


def test_socket_replaced_after_open_has_no_effect(pod, pods):
    launcher = pod.launcher()
    with proc.closing(open_pod(pod)) as fd, socket.socket(socket.AF_UNIX) as host:
        host.bind(str(pods / "host.sock"))
        host.listen()
        pod.socket.unlink()
        pod.socket.symlink_to(pods / "host.sock")
        with rpc.verified_process(fd, pod.uid, 107, podlab.sandbox) as process:
            assert process.pid == launcher.pid


def test_descriptor_of_link_is_refused(pod, pods):
    """O_PATH | O_NOFOLLOW gives a descriptor of the link itself, which /proc/self/fd would follow after all."""
    with socket.socket(socket.AF_UNIX) as host:
        host.bind(str(pods / "host.sock"))
        host.listen(1)
        pod.socket.symlink_to(pods / "host.sock")
        with pytest.raises(LauncherUnavailable):
            verify(pod)
        host.settimeout(0.2)
        with pytest.raises(TimeoutError):
            host.accept()


def test_socket_without_listener_is_refused(pod):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(pod.pods / "dead.sock"))
        (pod.pods / "dead.sock").rename(pod.socket)
    with pytest.raises(LauncherUnavailable, match="cannot connect to the socket"):
        verify(pod)


# ---- user namespaces: the pod's own, and others

LISTENER = """
import ctypes, os, pathlib, socket, sys
def enter(step):
    if step == "unshare":
        assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER
        for table, words in (("setgroups", "deny"), ("uid_map", "107 107 1"), ("gid_map", "107 107 1")):
            pathlib.Path("/proc/self", table).write_text(words)
    elif step.startswith("/"):
        with open(step) as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), 0x10000000) == 0
    else:
        os.setgroups([])
        os.setresgid(*3 * [int(step)])
        os.setresuid(*3 * [int(step)])
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: else its /proc files are root's
sys.stdin.readline()
os.chdir(pathlib.Path(sys.argv[1]).parent)
for step in sys.argv[2:]:
    enter(step)
listener = socket.socket(socket.AF_UNIX)
listener.bind("launcher.sock")
listener.listen()
print("up", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def listening(pod, *steps: str):
    """A listener in the pod's cgroup that takes these steps first: a path is a user namespace to enter, a number is a
    user to become, `unshare` makes a user namespace in which it is user 107, too."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/proc/{pod.sandbox.pid}/ns/net", sys.executable, "-c", LISTENER, str(pod.socket), *steps],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        pod.cgroup.add(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def user_namespace_pod(pods):
    """A pod with a user namespace."""
    with podlab.pod(pods, users=True) as made:
        yield made


async def test_launcher_in_pod_user_namespace_is_found_and_responds(user_namespace_pod):
    launcher = user_namespace_pod.launcher()
    assert verify(user_namespace_pod) == launcher.pid
    with proc.closing(open_pod(user_namespace_pod)) as fd:
        assert rpc.listener(fd).uid == podlab.BASE + 107
        async with rpc.channel(fd) as channel:
            report = await services.LauncherStub(channel).Sync(pb.SyncRequest(vmi_uid="u"), timeout=5)
    assert report.vmi_uid == "u"


def test_launcher_of_other_user_in_pod_is_refused(user_namespace_pod):
    user_namespace_pod.launcher(uid=108)
    with pytest.raises(LauncherUnavailable, match=rf"runs as user {podlab.BASE + 108}, not {podlab.BASE + 107} \(107"):
        verify(user_namespace_pod)


def test_listener_in_own_user_namespace_is_refused(pod):
    with listening(pod, "107", "unshare"), pytest.raises(LauncherUnavailable, match="another user name"):
        verify(pod)


def test_listener_in_nested_user_namespace_is_refused(user_namespace_pod):
    steps = f"/proc/{user_namespace_pod.sandbox.pid}/ns/user", "107", "unshare"
    with listening(user_namespace_pod, *steps), pytest.raises(LauncherUnavailable, match="another user na"):
        verify(user_namespace_pod)


def test_listener_in_host_user_namespace_of_pod_with_own_is_refused(user_namespace_pod):
    os.chown(user_namespace_pod.socket.parent, 107, 107)
    with listening(user_namespace_pod, "107"), pytest.raises(LauncherUnavailable, match="another user namespace"):
        verify(user_namespace_pod)


def test_listener_in_user_namespace_of_other_pod_is_refused(user_namespace_pod, pods):
    with podlab.pod(pods, users=True) as other:
        steps = f"/proc/{other.sandbox.pid}/ns/user", "107"
        with listening(user_namespace_pod, *steps), pytest.raises(LauncherUnavailable, match="another user namespace"):
            verify(user_namespace_pod)


def test_first_process_in_self_made_user_namespace_is_refused(pod):
    """A runtime without sandbox processes: the namespace is the first process's, but not one that a runtime made."""
    pod.sandbox.close()
    pod.sandbox = podlab.Sandbox(False)  # not in the pod's cgroup
    with listening(pod, "107", "unshare") as process:
        with pytest.raises(LauncherUnavailable, match="was not created by the container runtime"):
            verify(pod)
        assert process.poll() is None


def test_pod_without_process_in_own_network_is_refused(pod):
    pod.launcher()
    with proc.closing(open_pod(pod)) as fd, pytest.raises(LauncherUnavailable, match="in its own network namespace"):
        rpc.verified_process(fd, pod.uid, 107, lambda uid: None)


async def test_response_over_size_limit_is_refused(pod):
    launcher = pod.launcher()
    launcher.set_behaviour(report={"message": "x" * (2 << 20), "state": "DOMAIN_STATE_RUNNING"})
    with proc.closing(open_pod(pod)) as fd:
        async with rpc.channel(fd) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await services.LauncherStub(channel).Sync(pb.SyncRequest(vmi=b"{}"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_reused_pid_is_not_mistaken_for_ended_process(pod):
    launcher = pod.launcher()
    with proc.closing(open_pod(pod)) as fd, rpc.verified_process(fd, pod.uid, 107, podlab.sandbox) as process:
        assert process.alive
        launcher.kill()
        assert not process.alive
        with pytest.raises(OSError):
            process.namespace("net")
