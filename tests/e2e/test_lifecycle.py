"""Run strategies, graceful stop, deletion, grace periods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.manifests import booting, cloud_init, halting, idle, instance
from tests.e2e.processes import wait_for_process
from tests.e2e.support import E2eNamespace, VmUnderTest, assert_stays_true, conditions
from tests.waiting import wait_for


def kill_qemu(machine: VmUnderTest) -> None:
    """Send SIGKILL to the VM's QEMU."""
    wait_for_process(machine.pod(), lambda process: process.is_qemu).kill()


# ---- Always, and what stopping means


@pytest.fixture(scope="module")
def always(space: E2eNamespace) -> Iterator[VmUnderTest]:
    machine = space.apply_vm(booting("always", run="Always"))
    yield machine.until_status("Running")
    machine.discard()


def test_always_vm_restarts_after_guest_power_off(always: VmUnderTest) -> None:
    first = always.answer()
    always.guest().power_off()
    assert always.answer(other_than=first["bootId"])["bootId"] != first["bootId"]
    always.until_status("Running")


def test_patch_to_halted_powers_off_guest(always: VmUnderTest) -> None:
    always.answer()
    with always.follow_log() as said:
        always.run("Halted")
        always.until_stopped()
        log = said()
    assert "guest: shutting down (power button)" in log and "guest: powered off" in log, log[-2000:]
    assert not always.vmi()
    vm = always.vm()
    assert vm and vm["spec"]["template"]["spec"]["volumes"], "stopping lost the machine's definition"
    assert conditions(vm)["Ready"]["status"] == "False"


def test_patch_to_always_starts_stopped_vm(always: VmUnderTest) -> None:
    always.run("Always")
    told = always.until_status("Running").answer()
    assert told["uptime"] < 120


def test_deleted_vmi_is_powered_off_and_replaced(always: VmUnderTest) -> None:
    first = always.answer()
    with always.follow_log() as said:
        always.kubectl("delete", "vmi", "always", "--wait=false")
        always.answer(other_than=first["bootId"])
        assert "guest: powered off" in said()


def test_deleted_pod_powers_off_guest_and_vm_restarts(always: VmUnderTest) -> None:
    first = always.answer()
    with always.follow_log() as said:
        always.kubectl("delete", "pod", always.pod()["metadata"]["name"], "--wait=false")
        always.answer(other_than=first["bootId"])
        assert "guest: powered off" in said()
    always.until_status("Running")


def test_vm_deletion_powers_off_guest_and_removes_all_objects(space: E2eNamespace, always: VmUnderTest) -> None:
    always.answer()
    with always.follow_log() as said:
        space.kubectl("delete", "vm", "always", "--timeout=60s")
        always.until_gone()
        assert "guest: powered off" in said()


# ---- the other strategies


def test_halted_and_running_false_vms_do_not_start(space: E2eNamespace) -> None:
    machines = [space.apply_vm(idle("halted", run="Halted")), space.apply_vm(idle("unlit", run=False))]
    for machine in machines:
        machine.until_status("Stopped", seconds=30)
    assert_stays_true(lambda: not any(machine.vmi() or machine.pods() for machine in machines), "no instance is made")
    machines[0].run("Always")
    machines[1].patch({"spec": {"running": True}})
    for machine in machines:
        machine.until_status("Running")
    machines[1].patch({"spec": {"running": False}})
    machines[1].until_stopped()
    assert not machines[1].vmi()
    for machine in machines:
        machine.discard()


def test_manual_vm_starts_and_stops_only_on_request(space: E2eNamespace) -> None:
    manual = space.apply_vm(idle("manual", run="Manual"))
    manual.until_status("Stopped", seconds=30)
    assert_stays_true(lambda: not manual.vmi(), "it does not start by itself")
    manual.ask("Start")
    manual.until_status("Running")
    first = manual.uid()
    kill_qemu(manual)
    wait_for(lambda: manual.phase() == "Failed", "the instance has failed", explain=manual.diagnostics)
    assert_stays_true(
        lambda: (manual.uid(), manual.phase()) == (first, "Failed"), "it is kept, and not started again by itself"
    )
    manual.until_status("Stopped")
    manual.ask("Start")
    manual.until_replaced(first)
    manual.ask("Stop")
    manual.until_stopped()
    manual.discard()


def test_rerun_on_failure_vm_restarts_after_failure_and_not_after_shutdown(space: E2eNamespace) -> None:
    rerun = space.apply_vm(booting("rerun", run="RerunOnFailure")).until_status("Running")
    first = rerun.answer()
    kill_qemu(rerun)
    second = rerun.answer(other_than=first["bootId"])
    assert second["bootId"] != first["bootId"]
    # After the failure: the guest shuts itself down, and stays stopped.
    rerun.guest().power_off()
    wait_for(lambda: rerun.phase() in ("Succeeded", ""), "the guest has shut down", explain=rerun.diagnostics)
    rerun.until_stopped()
    assert_stays_true(lambda: rerun.phase() in ("Succeeded", ""), "a guest that shut itself down stays off")
    rerun.discard()


@pytest.mark.parametrize("end", ["shutdown", "failure"])
def test_once_vm_is_not_restarted(space: E2eNamespace, end: str) -> None:
    if end == "shutdown":
        once = space.apply_vm(booting("once-shutdown", run="Once")).until_status("Running")
        once.answer()
        once.guest().power_off()
    else:
        once = space.apply_vm(idle("once-failure", run="Once")).until_status("Running")
        kill_qemu(once)
    final = "Succeeded" if end == "shutdown" else "Failed"
    wait_for(lambda: once.phase() == final, f"the instance has ended ({final})", explain=once.diagnostics)
    assert_stays_true(lambda: once.phase() == final, "the instance is kept, and not started twice")
    once.discard()


# ---- failures


def test_killed_qemu_fails_vmi_with_crashed_message(space: E2eNamespace) -> None:
    lone = space.apply_vm(instance("lone", halting(), memory="64Mi", network=False, grace=2)).until_phase("Running")
    kill_qemu(lone)
    lone.until_phase("Failed")
    lone.until_message("Crashed")
    wait_for(
        lambda: all(p["status"]["phase"] == "Failed" for p in lone.pods()),
        "its pod has failed",
        explain=lone.diagnostics,
    )
    space.kubectl("delete", "vmi", "lone", "--timeout=60s")
    lone.until_gone()


def test_vm_failing_twice_enters_crash_loop_back_off(space: E2eNamespace) -> None:
    """The first restart is immediate; from the second consecutive failure on the VM waits, and reports it."""
    loop = space.apply_vm(idle("loop")).until_status("Running")
    first = loop.uid()
    kill_qemu(loop)
    loop.until_replaced(first)
    second = loop.uid()
    kill_qemu(loop)
    loop.until_status("CrashLoopBackOff")
    failure = (loop.vm() or {})["status"]["startFailure"]
    assert failure["consecutiveFailCount"] == 2
    assert failure["lastFailedVMIUID"] == second
    assert failure["retryAfterTimestamp"]
    assert not loop.active_pods(), "a pod waits for the next try"
    loop.until_replaced(second)
    # Halting the VM resets the count.
    loop.run("Halted")
    loop.until_stopped()
    assert "startFailure" not in (loop.vm() or {})["status"]
    loop.discard()


# ---- the grace period


def test_guest_ignoring_shutdown_is_ended_after_grace_period(space: E2eNamespace) -> None:
    """This guest ignores its power button and has no working shutdown command for the agent."""
    ignore = "touch /run/guest/ignore-power-button"
    deaf = space.apply_vm(
        booting("deaf", cloud_init(f"#cloud-config\nruncmd:\n- {ignore}\n- rm /sbin/shutdown\n"), grace=6)
    ).until_status("Running")
    first = deaf.answer()
    guest = deaf.guest()
    with deaf.follow_log() as said:
        deaf.run("Halted")
        wait_for(lambda: "power button ignored" in deaf.log(), "it was asked to shut down", explain=deaf.diagnostics)
        deaf.until_status("Stopping", seconds=5)
        assert guest.report()["bootId"] == first["bootId"], "the guest ended before its grace period"
        deaf.until_stopped()
        assert "guest: powered off" not in said()
    deaf.discard()


def test_halted_guest_is_ended_by_deletion(space: E2eNamespace) -> None:
    stone = space.apply_vm(idle("stone", grace=2)).until_status("Running")
    stone.delete()


def test_zero_grace_period_ends_guest_immediately(space: E2eNamespace) -> None:
    brief = space.apply_vm(idle("brief", grace=0)).until_status("Running")
    brief.delete()
