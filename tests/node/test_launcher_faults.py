"""Processes of a launcher that die, hang or are killed, and the effect on the VM."""

import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from protos import launcher_pb2 as pb
from tests.node import bootsector
from tests.node.launcherlab import Pod, disk_vmi, drain, follow
from tests.waiting import wait_for

pytestmark = pytest.mark.node
SERVER, LIBVIRT = "-m\0launcher", "libvirt/config"
CALLS = 8
"""Concurrent calls: twice the launcher's threads for libvirt."""


@pytest.fixture
def pod() -> Iterator[Pod]:
    with Pod(grace=6) as pod:
        pod.image("root", bootsector.obeying_power_button())
        pod.start()
        yield pod


def killed(pod: Pod, word: str) -> None:
    """Kills a child, and waits until there is another."""
    victim = pod.child(word)
    assert victim
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: pod.child(word) not in (0, victim), "a new child")


def responsive(pod: Pod) -> bool:
    """Whether libvirt responds: the request is not answered from the server's cache."""
    with pod.client() as client:
        try:
            paused = client.Pause(pb.PauseRequest(), timeout=20).state == pb.DOMAIN_STATE_PAUSED
            return paused and client.Unpause(pb.UnpauseRequest(), timeout=20).state == pb.DOMAIN_STATE_RUNNING
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            return False


def test_sigkill_of_qemu_fails_vm(pod: Pod) -> None:
    report = pod.sync(disk_vmi())
    reports = follow(pod)
    pod.wait_state(pb.DOMAIN_STATE_RUNNING)
    os.kill(report.qemu_pid, signal.SIGKILL)
    assert pod.wait() == 1
    assert (pod.termination()["phase"], pod.termination()["reason"]) == ("Failed", "Crashed")
    assert drain(reports)[-1].state == pb.DOMAIN_STATE_CRASHED


def test_killed_server_is_restarted_and_vm_survives(pod: Pod) -> None:
    before = pod.sync(disk_vmi())
    killed(pod, SERVER)
    after = pod.wait_state(pb.DOMAIN_STATE_RUNNING)
    assert (after.qemu_pid, after.vmi_uid, after.machine) == (before.qemu_pid, before.vmi_uid, before.machine)
    assert list(after.disks) == list(before.disks)
    assert responsive(pod)
    assert pod.sync(disk_vmi()).qemu_pid == before.qemu_pid
    pod.terminate()
    assert pod.wait() == 0
    assert pod.termination()["reason"] == "Terminated"


def test_killed_libvirt_is_restarted_and_vm_survives(pod: Pod) -> None:
    before = pod.sync(disk_vmi())
    reports = follow(pod)
    killed(pod, LIBVIRT)
    wait_for(lambda: responsive(pod), "libvirt to come back")
    assert pod.report().qemu_pid == before.qemu_pid
    pod.terminate()
    assert pod.wait() == 0
    assert pod.termination()["reason"] == "Terminated"
    *running, last = drain(reports)
    assert {report.state for report in running} <= {
        pb.DOMAIN_STATE_RUNNING, pb.DOMAIN_STATE_PAUSED, pb.DOMAIN_STATE_SHUTDOWN
    }  # fmt: skip
    assert last.state == pb.DOMAIN_STATE_SHUTOFF


def test_killed_server_and_libvirt_are_restarted_and_vm_survives(pod: Pod) -> None:
    before = pod.sync(disk_vmi())
    for word in (SERVER, LIBVIRT):
        os.kill(pod.child(word), signal.SIGKILL)
    assert pod.wait_state(pb.DOMAIN_STATE_RUNNING).qemu_pid == before.qemu_pid
    assert responsive(pod)


def test_processes_killed_before_first_sync_are_restarted(pod: Pod) -> None:
    pod.report()
    killed(pod, LIBVIRT)
    killed(pod, SERVER)
    wait_for(lambda: pod.child(SERVER), "the server")
    assert pod.wait_state(pb.DOMAIN_STATE_NONE).vmi_uid == ""
    assert pod.sync(disk_vmi()).state == pb.DOMAIN_STATE_RUNNING


def test_guest_end_during_server_downtime_is_reported(pod: Pod) -> None:
    pod.sync(disk_vmi())
    report = pod.report()
    os.kill(pod.child(SERVER), signal.SIGKILL)
    os.kill(report.qemu_pid, signal.SIGKILL)
    assert pod.wait() == 1
    assert pod.termination()["phase"] == "Failed"


def test_qemu_killed_while_libvirt_hangs_is_reported(pod: Pod) -> None:
    report = pod.sync(disk_vmi())
    os.kill(pod.child(LIBVIRT), signal.SIGSTOP)
    os.kill(report.qemu_pid, signal.SIGKILL)
    assert pod.wait() == 1
    assert pod.termination()["reason"] == "Crashed"


@pytest.mark.parametrize("word", [SERVER, LIBVIRT])
def test_hanging_helper_is_killed_at_end_of_grace_period(pod: Pod, word: str) -> None:
    report = pod.sync(disk_vmi())
    os.kill(pod.child(word), signal.SIGSTOP)
    pod.terminate()
    assert pod.wait() == 0
    assert pod.termination()["phase"] == "Succeeded"
    assert not pathlib.Path(f"/proc/{report.qemu_pid}").exists()


def test_hanging_libvirt_is_replaced(pod: Pod) -> None:
    before = pod.sync(disk_vmi())
    victim = pod.child(LIBVIRT)
    os.kill(victim, signal.SIGSTOP)
    wait_for(lambda: pod.child(LIBVIRT) not in (0, victim), "another libvirt", seconds=60)
    wait_for(lambda: responsive(pod), "libvirt to come back")
    assert pod.report().qemu_pid == before.qemu_pid


def reset(pod: Pod) -> grpc.StatusCode | None:
    """The status of a Reset that failed."""
    with pod.client() as client:
        try:
            client.Reset(pb.ResetRequest(), timeout=20)
        except grpc.RpcError as error:
            return error.code()
    return None


def test_calls_to_hanging_libvirt_do_not_exhaust_threads(pod: Pod) -> None:
    before = pod.sync(disk_vmi())
    victim = pod.child(LIBVIRT)
    os.kill(victim, signal.SIGSTOP)
    with ThreadPoolExecutor(CALLS) as threads:
        failed = list(threads.map(lambda _: reset(pod), range(CALLS)))
    assert set(failed) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}, failed
    wait_for(lambda: pod.child(LIBVIRT) not in (0, victim), "another libvirt", seconds=60)
    wait_for(lambda: responsive(pod), "libvirt to come back")
    assert pod.report().qemu_pid == before.qemu_pid


def test_calls_to_hanging_qemu_do_not_exhaust_threads(pod: Pod) -> None:
    """libvirt answers keepalives meanwhile, so that only the calls' deadlines show that they hang."""
    before = pod.sync(disk_vmi())
    victim = pod.child(LIBVIRT)
    os.kill(before.qemu_pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(CALLS) as threads:
            failed = list(threads.map(lambda _: reset(pod), range(CALLS)))
            assert None not in failed, failed
            wait_for(lambda: pod.child(LIBVIRT) not in (0, victim), "another libvirt", seconds=60)
    finally:
        os.kill(before.qemu_pid, signal.SIGCONT)
    wait_for(lambda: responsive(pod), "libvirt to come back", seconds=60)
    assert pod.report().qemu_pid == before.qemu_pid


def test_sigterm_is_kept_across_server_restart(pod: Pod) -> None:
    pod.sync(disk_vmi())
    os.kill(pod.child(SERVER), signal.SIGSTOP)
    pod.terminate()
    os.kill(pod.child(SERVER), signal.SIGKILL)
    assert pod.wait() == 0
    assert pod.termination()["reason"] == "Terminated"


def test_no_process_is_left_running(pod: Pod) -> None:
    pod.sync(disk_vmi())
    pod.terminate()
    assert pod.wait() == 0
    found = subprocess.run(
        ["grep", "-l", pod.root.name, *map(str, pathlib.Path("/proc").glob("[0-9]*/cmdline"))],
        capture_output=True,
        text=True,
    ).stdout
    assert found == ""
