"""Who owns an instance: a machine, nobody, or another machine of the same name. Each takes along what is its own."""

from __future__ import annotations

import json

from tests.e2e.manifests import halting, idle, instance, tiny
from tests.e2e.processes import Process, the
from tests.e2e.support import Space, stays
from tests.waiting import wait_for


def test_an_instance_of_its_own_runs_and_ends_with_its_guest(space: Space) -> None:
    alone = space.machine(instance("alone", tiny())).until_phase("Running")
    vmi = alone.vmi()
    assert vmi and vmi["metadata"]["finalizers"], "a user's instance is guarded too"
    alone.answer()
    alone.guest().power_off()
    alone.until_phase("Succeeded")
    stays(lambda: alone.phase() == "Succeeded", "an instance of its own does not run again")
    space.kubectl("delete", "vmi", "alone", "--timeout=60s")
    alone.until_gone()


def test_the_machine_takes_its_instance_along_while_it_still_starts(space: Space) -> None:
    hasty = space.machine(idle("hasty"))
    wait_for(hasty.vmi, "the instance is there", explain=hasty.story)
    # A kubelet takes all of the grace period over a pod that is deleted before its container is there.
    hasty.delete(seconds=150)


def test_an_instance_of_the_same_name_without_an_owner_is_taken_over(space: Space) -> None:
    """A person's instance of that name runs already: the machine takes it over, as KubeVirt's does."""
    other = space.machine(instance("taken", halting(), memory="64Mi", network=False, grace=1)).until_phase("Running")
    uid = other.uid()
    machine = space.machine(idle("taken"))
    machine.until_status("Running")
    assert machine.uid() == uid
    machine.delete()


def test_an_instance_of_another_owner_is_left_alone(space: Space) -> None:
    """It says so, and starts when the name is free."""
    other = space.machine(instance("owned", halting(), memory="64Mi", network=False, grace=1)).until_phase("Running")
    uid = other.uid()
    space.kubectl("create", "configmap", "owner")
    owner = (space.kubectl.get("configmap", "owner") or {})["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner, "controller": True}
    space.kubectl(
        "patch", "vmi", "owned", "--type=merge", "-p", json.dumps({"metadata": {"ownerReferences": [reference]}})
    )
    machine = space.machine(idle("owned"))
    machine.until_condition_tells("has another owner")
    assert machine.uid() == uid
    space.kubectl("delete", "vmi", "owned", "--timeout=60s")
    machine.until_replaced(uid)
    machine.discard()


def test_a_machine_deleted_twice_and_made_again_is_a_new_one(space: Space) -> None:
    again = space.machine(idle("again")).until_status("Running")
    old = again.uid()
    again.delete()
    space.machine(idle("again")).until_status("Running")
    assert again.uid() not in ("", old)
    again.delete()


def test_the_supervisor_of_a_stopped_machine_is_gone(space: Space) -> None:
    ghost = space.machine(idle("ghost")).until_status("Running")
    supervisor: Process = the(ghost.pod(), lambda process: process.is_supervisor)
    ghost.run("Halted")
    ghost.until_stopped()
    assert not supervisor.lives()
    ghost.discard()
