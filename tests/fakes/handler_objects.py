"""A VMI and its launcher pod as a handler finds them."""

from __future__ import annotations

from typing import Any


def vmi(
    name: str = "vm",
    uid: str = "vmi-uid",
    node: str = "node1",
    phase: str = "Scheduled",
    pod: str = "pod-uid",
    **spec: Any,
) -> dict[str, Any]:
    """A VMI as the controller hands it over to the pod of that UID."""
    then = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "False", "reason": "GuestNotRunning", "lastTransitionTime": then}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"namespace": "test", "name": name, "uid": uid, "labels": {"kubevirt.io/nodeName": node}},
        "spec": {"domain": {"devices": {"autoattachPodInterface": False}, "memory": {"guest": "64Mi"}}, **spec},
        "status": {
            "phase": phase,
            "nodeName": node,
            "activePods": {pod: node},
            "conditions": [ready],
            "phaseTransitionTimestamps": [{"phase": "Scheduled", "phaseTransitionTimestamp": then}],
        },
    }


def pod(
    uid: str, owner: str = "vmi-uid", name: str = "virt-launcher-vm-abcde", node: str = "node1", vm: str = "vm"
) -> dict[str, Any]:
    """A launcher pod that runs."""
    reference = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": vm, "uid": owner}
    given = {"HYPERLET_NAMESPACE": "test", "HYPERLET_NAME": vm, "HYPERLET_UID": owner}
    compute = {"name": "compute", "env": [{"name": name, "value": value} for name, value in given.items()]}
    return {
        "metadata": {
            "namespace": "test",
            "name": name,
            "uid": uid,
            "labels": {"kubevirt.io": "virt-launcher"},
            "ownerReferences": [{**reference, "controller": True}],
        },
        "spec": {"nodeName": node, "containers": [compute]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "ContainersReady", "status": "True"}],
            "containerStatuses": [
                {"name": "compute", "ready": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
            ],
        },
    }
