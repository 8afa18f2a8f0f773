"""Cgroup paths, paths confined to a directory, isolated threads."""

import asyncio
import os
import subprocess
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import proc

UID = "0b9e4c1e-6c58-4ad1-9a0a-3a1b2c3d4e5f"
SYSTEMD = UID.replace("-", "_")
OTHER = "11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize(
    "text",
    [
        f"0::/kubepods/burstable/pod{UID}/abc",
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice/cri-containerd-abc.scope",
        f"0::/kubepods.slice/kubepods-pod{SYSTEMD}.slice/cri-containerd-abc.scope",
        f"0::/../../pod{UID}/abc",
        f"0::/../kubepods-besteffort-pod{SYSTEMD}.slice/cri-containerd-abc.scope",
        f"12:pids:/node/kubepods/pod{UID}/abc\n11:memory:/node/kubepods/pod{UID}/abc\n1:name=systemd:/\n0::/",
        f"0::/kubelet.slice/kubelet-kubepods.slice/pod{UID.upper()}/abc",
    ],
)
def test_pod_is_recognised(text):
    assert proc.pod_of_cgroups(text) == UID


@pytest.mark.parametrize(
    "text",
    ["", "0::/", "0::/user.slice/session-1.scope", "no colon", f"0::/notpod{UID}/x", f"0::/pod{UID}x/abc", "0::/pod/x"],
)  # fmt: skip
def test_cgroup_outside_of_pods_has_no_pod(text):
    assert proc.pod_of_cgroups(text) is None


def test_outermost_pod_counts():
    assert proc.pod_of_cgroups(f"0::/kubepods/pod{OTHER}/container/pod{UID}/x") == OTHER


def test_conflicting_hierarchies_have_no_pod():
    assert proc.pod_of_cgroups(f"2:pids:/pod{UID}/x\n3:memory:/pod{OTHER}/x") is None


@given(st.text(max_size=300))
def test_arbitrary_cgroup_text_does_not_raise(text):
    assert proc.pod_of_cgroups(text) is None or "pod" in text


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_text("content")
    with proc.closing(os.open(tmp_path / "below", os.O_PATH)) as fd:
        yield tmp_path, fd


def test_read_beneath_is_limited(directory):
    _, fd = directory
    assert proc.read_beneath(fd, "file", 100) == b"content"
    assert proc.read_beneath(fd, "file", 3) == b"con"


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "link", "dir/../../outside", "dirlink/passwd"])
def test_escapes_and_links_are_refused(directory, path):
    base, fd = directory
    (base / "outside").write_text("secret")
    (base / "below/link").symlink_to("file")
    (base / "below/dirlink").symlink_to("/etc")
    (base / "below/dir").mkdir()
    with pytest.raises(OSError):
        proc.read_beneath(fd, path, 100)


def test_fifo_is_refused_without_blocking(directory):
    base, fd = directory
    os.mkfifo(base / "below/fifo")
    with pytest.raises(OSError, match="not a regular file"):
        proc.read_beneath(fd, "fifo", 100)


def test_process_reference_fails_after_exit():
    child = subprocess.Popen(["sleep", "60"])
    with proc.Process(child.pid) as process:
        assert process.alive and process.shares_namespace("net")
        assert str(child.pid).encode() in process.read("status")
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.alive  # a zombie
        child.wait()
        with pytest.raises(OSError):
            process.read("status")


def test_missing_process_raises_oserror():
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(OSError):
        proc.Process(child.pid)


async def test_isolated_runs_in_new_thread():
    first = await proc.isolated(threading.get_ident)
    assert first != threading.get_ident()
    with pytest.raises(ValueError, match="no"):
        await proc.isolated(lambda: int("no"))


async def test_isolated_thread_does_not_affect_others(tmp_path):
    def move() -> str:
        proc.unshare(proc.CLONE_FS)
        os.chdir(tmp_path)
        return os.getcwd()  # noqa: PTH109

    here = os.getcwd()  # noqa: PTH109
    try:
        assert await proc.isolated(move) == str(tmp_path)
    except PermissionError:
        pytest.skip("only root may unshare")
    assert os.getcwd() == here  # noqa: PTH109


async def test_cancelling_caller_does_not_stop_thread():
    release = threading.Event()
    task = asyncio.create_task(proc.isolated(lambda: release.wait(5)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    await asyncio.sleep(0.05)


def test_isolated_now_returns_result_and_raises_errors():
    assert proc.isolated_now(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        proc.isolated_now(lambda: 1 // 0)
