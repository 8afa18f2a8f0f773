"""The process behind a launcher's socket, beyond tests/node/test_handler_sockets.py."""

import os
import subprocess
import sys

import pytest

from api.errors import LauncherUnavailable
from kit import proc, rpc
from tests.node import podlab

pytestmark = pytest.mark.node

# Listens with the effective user 107, as SO_PEERCRED notes it down, but is root's process all the same: what the
# container runtime looks like in a pod's cgroup before it gives its rights up, should it get a dead launcher's pid.
STILL_ROOT = """
import os, pathlib, socket, sys
sys.stdin.readline()
os.chdir(pathlib.Path(sys.argv[1]).parent)
os.setresgid(107, 107, 107)
os.setresuid(0, 107, 0)
listener = socket.socket(socket.AF_UNIX)
listener.bind("launcher.sock")
listener.listen()
print("up", flush=True)
sys.stdin.readline()
"""


def test_process_with_root_ids_is_refused(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with podlab.pod(tmp_path) as pod:
        process = subprocess.Popen(
            [sys.executable, "-c", STILL_ROOT, str(pod.socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin and process.stdout
        try:
            pod.cgroup.add(process.pid)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline().strip() == "up"
            with proc.closing(os.open(tmp_path, os.O_PATH)) as base:
                fd = rpc.open_socket(base, f"{pod.uid}/{podlab.SOCKET}")
            with proc.closing(fd):
                assert rpc.listener(fd).uid == 107
                with pytest.raises(LauncherUnavailable, match="does not run as user 107 alone"):
                    rpc.verified_process(fd, pod.uid, 107, podlab.sandbox)
        finally:
            process.kill()
            process.wait()


LISTENS = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setresgid(int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[2]))
os.setresuid(int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[2]))
listener = socket.socket(socket.AF_UNIX)
listener.bind("launcher.sock")
listener.listen()
print("up", flush=True)
sys.stdin.readline()
"""


def test_listener_uid_above_2_31_is_reported_unsigned(tmp_path):
    """The kubelet gives a pod any range of 65,536 users, and half of them lie there."""
    user = 2_193_817_707
    folder = tmp_path / "socket"
    folder.mkdir()
    folder.chmod(0o777)
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    command = [sys.executable, "-c", LISTENS, str(folder), str(user)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            assert process.stdout.readline().strip() == "up"
            with (
                proc.closing(os.open(folder, os.O_PATH)) as base,
                proc.closing(rpc.open_socket(base, "launcher.sock")) as fd,
            ):
                assert rpc.listener(fd) == (process.pid, user, user)
        finally:
            process.kill()
