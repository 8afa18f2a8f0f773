"""Every run strategy does what it says; a stop is graceful; a deletion leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.manifests import booting, cloud_init, halting, idle, instance
from tests.e2e.processes import the
from tests.e2e.support import Machine, Space, conditions, stays
from tests.waiting import wait_for


def kill_qemu(machine: Machine) -> None:
    """SIGKILL to the machine's QEMU."""
    the(machine.pod(), lambda process: process.is_qemu).kill()


# ---- Always, and what stopping means


@pytest.fixture(scope="module")
def always(space: Space) -> Iterator[Machine]:
    machine = space.machine(booting("always", run="Always"))
    yield machine.until_status("Running")
    machine.discard()


def test_always_comes_back_when_the_guest_powers_off(always: Machine) -> None:
    first = always.answer()
    always.guest().power_off()
    assert always.answer(other_than=first["bootId"])["bootId"] != first["bootId"]
    always.until_status("Running")


def test_a_patch_to_halted_stops_gracefully(always: Machine) -> None:
    always.answer()
    with always.followed() as said:
        always.run("Halted")
        always.until_stopped()
        log = said()
    assert "guest: shutting down (power button)" in log and "guest: powered off" in log, log[-2000:]
    assert not always.vmi()
    vm = always.vm()
    assert vm and vm["spec"]["template"]["spec"]["volumes"], "stopping lost the machine's definition"
    assert conditions(vm)["Ready"]["status"] == "False"


def test_a_patch_back_to_always_starts_again(always: Machine) -> None:
    always.run("Always")
    told = always.until_status("Running").answer()
    assert told["uptime"] < 120


def test_a_deleted_instance_is_replaced(always: Machine) -> None:
    first = always.answer()
    with always.followed() as said:
        always.kubectl("delete", "vmi", "always", "--wait=false")
        always.answer(other_than=first["bootId"])
        assert "guest: powered off" in said()


def test_a_deleted_pod_is_a_graceful_shutdown_too(always: Machine) -> None:
    first = always.answer()
    with always.followed() as said:
        always.kubectl("delete", "pod", always.pod()["metadata"]["name"], "--wait=false")
        always.answer(other_than=first["bootId"])
        assert "guest: powered off" in said()
    always.until_status("Running")


def test_deletion_is_graceful_and_leaves_nothing(space: Space, always: Machine) -> None:
    always.answer()
    with always.followed() as said:
        space.kubectl("delete", "vm", "always", "--timeout=60s")
        always.until_gone()
        assert "guest: powered off" in said()


# ---- the other strategies


def test_halted_and_running_false_do_not_start(space: Space) -> None:
    machines = [space.machine(idle("halted", run="Halted")), space.machine(idle("unlit", run=False))]
    for machine in machines:
        machine.until_status("Stopped", seconds=30)
    stays(lambda: not any(machine.vmi() or machine.pods() for machine in machines), "no instance is made")
    machines[0].run("Always")
    machines[1].patch({"spec": {"running": True}})
    for machine in machines:
        machine.until_status("Running")
    machines[1].patch({"spec": {"running": False}})
    machines[1].until_stopped()
    assert not machines[1].vmi()
    for machine in machines:
        machine.discard()


def test_manual_starts_and_stops_on_request_only(space: Space) -> None:
    manual = space.machine(idle("manual", run="Manual"))
    manual.until_status("Stopped", seconds=30)
    stays(lambda: not manual.vmi(), "it does not start by itself")
    manual.ask("Start")
    manual.until_status("Running")
    first = manual.uid()
    kill_qemu(manual)
    wait_for(lambda: manual.phase() == "Failed", "the instance has failed", explain=manual.story)
    stays(lambda: (manual.uid(), manual.phase()) == (first, "Failed"), "it is kept, and not started again by itself")
    manual.until_status("Stopped")
    manual.ask("Start")
    manual.until_replaced(first)
    manual.ask("Stop")
    manual.until_stopped()
    manual.discard()


def test_rerun_on_failure_tells_a_failure_from_a_shutdown(space: Space) -> None:
    rerun = space.machine(booting("rerun", run="RerunOnFailure")).until_status("Running")
    first = rerun.answer()
    kill_qemu(rerun)
    second = rerun.answer(other_than=first["bootId"])
    assert second["bootId"] != first["bootId"]
    # The failure is over: now the guest shuts down of its own will, and stays down.
    rerun.guest().power_off()
    wait_for(lambda: rerun.phase() in ("Succeeded", ""), "the guest has shut down", explain=rerun.story)
    rerun.until_stopped()
    stays(lambda: rerun.phase() in ("Succeeded", ""), "a guest that shut itself down stays off")
    rerun.discard()


@pytest.mark.parametrize("end", ["shutdown", "failure"])
def test_once_starts_once(space: Space, end: str) -> None:
    if end == "shutdown":
        once = space.machine(booting("once-shutdown", run="Once")).until_status("Running")
        once.answer()
        once.guest().power_off()
    else:
        once = space.machine(idle("once-failure", run="Once")).until_status("Running")
        kill_qemu(once)
    final = "Succeeded" if end == "shutdown" else "Failed"
    wait_for(lambda: once.phase() == final, f"the instance has ended ({final})", explain=once.story)
    stays(lambda: once.phase() == final, "the instance is kept, and not started twice")
    once.discard()


# ---- failures


def test_when_qemu_dies_the_instance_fails_and_the_user_is_told(space: Space) -> None:
    lone = space.machine(instance("lone", halting(), memory="64Mi", network=False, grace=2)).until_phase("Running")
    kill_qemu(lone)
    lone.until_phase("Failed")
    lone.until_told("Crashed")
    wait_for(
        lambda: all(p["status"]["phase"] == "Failed" for p in lone.pods()), "its pod has failed", explain=lone.story
    )
    space.kubectl("delete", "vmi", "lone", "--timeout=60s")
    lone.until_gone()


def test_a_machine_that_fails_again_and_again_backs_off(space: Space) -> None:
    """The first restart is at once; from the second failure in a row on the machine waits, and says so."""
    loop = space.machine(idle("loop")).until_status("Running")
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
    assert not loop.living(), "a pod waits for the next try"
    loop.until_replaced(second)
    # Halting it is a fresh start for the count.
    loop.run("Halted")
    loop.until_stopped()
    assert "startFailure" not in (loop.vm() or {})["status"]
    loop.discard()


# ---- the grace period


def test_a_guest_that_will_not_go_has_its_grace_period_and_no_more(space: Space) -> None:
    """Neither its power button nor its agent gets this guest to shut down."""
    ignore = "touch /run/guest/ignore-power-button"
    deaf = space.machine(
        booting("deaf", cloud_init(f"#cloud-config\nruncmd:\n- {ignore}\n- rm /sbin/shutdown\n"), grace=6)
    ).until_status("Running")
    first = deaf.answer()
    guest = deaf.guest()
    with deaf.followed() as said:
        deaf.run("Halted")
        wait_for(lambda: "power button ignored" in deaf.log(), "it was asked to shut down", explain=deaf.story)
        deaf.until_status("Stopping", seconds=5)
        assert guest.report()["bootId"] == first["bootId"], "the guest was harmed before its time was up"
        deaf.until_stopped()
        assert "guest: powered off" not in said()
    deaf.discard()


def test_a_guest_that_halts_is_ended(space: Space) -> None:
    stone = space.machine(idle("stone", grace=2)).until_status("Running")
    stone.delete()


def test_no_grace_at_all_ends_at_once(space: Space) -> None:
    brief = space.machine(idle("brief", grace=0)).until_status("Running")
    brief.delete()
