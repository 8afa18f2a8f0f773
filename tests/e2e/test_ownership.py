"""Ownership of a VMI: a VM, no owner, or another owner; what is deleted with it."""

from __future__ import annotations

import json

from tests.e2e.manifests import halting, idle, instance, tiny
from tests.e2e.processes import Process, wait_for_process
from tests.e2e.support import E2eNamespace, assert_stays_true
from tests.waiting import wait_for


def test_standalone_vmi_succeeds_when_guest_powers_off(space: E2eNamespace) -> None:
    alone = space.apply_vm(instance("alone", tiny())).until_phase("Running")
    vmi = alone.vmi()
    assert vmi and vmi["metadata"]["finalizers"], "a user's instance is guarded too"
    alone.answer()
    alone.guest().power_off()
    alone.until_phase("Succeeded")
    assert_stays_true(lambda: alone.phase() == "Succeeded", "an instance of its own does not run again")
    space.kubectl("delete", "vmi", "alone", "--timeout=60s")
    alone.until_gone()


def test_vm_deleted_while_starting_deletes_its_vmi(space: E2eNamespace) -> None:
    hasty = space.apply_vm(idle("hasty"))
    wait_for(hasty.vmi, "the instance is there", explain=hasty.diagnostics)
    # A kubelet takes all of the grace period over a pod that is deleted before its container is there.
    hasty.delete(seconds=150)


def test_vm_adopts_vmi_of_same_name_without_owner(space: E2eNamespace) -> None:
    """A user's VMI of that name runs already: the VM adopts it, as in KubeVirt."""
    other = space.apply_vm(instance("taken", halting(), memory="64Mi", network=False, grace=1)).until_phase("Running")
    uid = other.uid()
    machine = space.apply_vm(idle("taken"))
    machine.until_status("Running")
    assert machine.uid() == uid
    machine.delete()


def test_vm_waits_until_vmi_of_other_owner_is_deleted(space: E2eNamespace) -> None:
    """The VM reports it, and starts when the name is free."""
    other = space.apply_vm(instance("owned", halting(), memory="64Mi", network=False, grace=1)).until_phase("Running")
    uid = other.uid()
    space.kubectl("create", "configmap", "owner")
    owner = (space.kubectl.get("configmap", "owner") or {})["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner, "controller": True}
    space.kubectl(
        "patch", "vmi", "owned", "--type=merge", "-p", json.dumps({"metadata": {"ownerReferences": [reference]}})
    )
    machine = space.apply_vm(idle("owned"))
    machine.until_condition_message("has another owner")
    assert machine.uid() == uid
    space.kubectl("delete", "vmi", "owned", "--timeout=60s")
    machine.until_replaced(uid)
    machine.discard()


def test_recreated_vm_gets_new_vmi(space: E2eNamespace) -> None:
    again = space.apply_vm(idle("again")).until_status("Running")
    old = again.uid()
    again.delete()
    space.apply_vm(idle("again")).until_status("Running")
    assert again.uid() not in ("", old)
    again.delete()


def test_supervisor_ends_when_vm_is_stopped(space: E2eNamespace) -> None:
    ghost = space.apply_vm(idle("ghost")).until_status("Running")
    supervisor: Process = wait_for_process(ghost.pod(), lambda process: process.is_supervisor)
    ghost.run("Halted")
    ghost.until_stopped()
    assert not supervisor.is_alive()
    ghost.discard()
