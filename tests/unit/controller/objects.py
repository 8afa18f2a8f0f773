"""Builders of VMs, VMIs and pods as stored in the API server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from api import names
from api.k8s.objects import PersistentVolumeClaim, Pod
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from controller.cache.definitions import NetworkMetadata

Json = dict[str, Any]

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STAMP = "2026-01-02T03:04:05Z"
LONG_AGO = "2026-01-01T00:00:00Z"
SPEC: Json = {"domain": {"devices": {}, "memory": {"guest": "64Mi"}}, "terminationGracePeriodSeconds": 5}


def vmi(
    phase: str = "",
    *,
    finalizer: bool = True,
    deleting: bool = False,
    spec: Json | None = None,
    stamps: dict[str, str] | None = None,
    owner: str = "",
    uid: str = "vmi-uid",
    annotations: Json | None = None,
    **status: Any,
) -> VirtualMachineInstance:
    meta: Json = {
        "name": "web",
        "namespace": "default",
        "uid": uid,
        "resourceVersion": "7",
        "generation": 1,
        "annotations": annotations or {},
    }
    if finalizer:
        meta["finalizers"] = [names.FINALIZER_VMI]
    if deleting:
        meta["deletionTimestamp"] = STAMP
    if owner:
        meta["ownerReferences"] = [
            {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "web", "uid": owner, "controller": True}
        ]
    if phase in ("Scheduled", "Running", "Succeeded", "Failed"):
        # As written by the hand-over.
        status = {"activePods": {"pod-uid": "node1"}, "nodeName": "node1", **status}
        meta["labels"] = {names.LABEL_NODE_NAME: status["nodeName"]}
    transitions = [{"phase": name, "phaseTransitionTimestamp": at} for name, at in (stamps or {}).items()]
    return msgspec.convert(
        {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": meta,
            "spec": spec or SPEC,
            "status": {"phase": phase, "phaseTransitionTimestamps": transitions, **status} if phase else {},
        },
        VirtualMachineInstance,
    )


def vm(
    *,
    run: str | bool = "Always",
    deleting: bool = False,
    finalizer: bool = True,
    generation: int = 1,
    spec: Json | None = None,
    **status: Any,
) -> VirtualMachine:
    meta: Json = {
        "name": "web",
        "namespace": "default",
        "uid": "vm-uid",
        "resourceVersion": "5",
        "generation": generation,
    }
    if finalizer:
        meta["finalizers"] = [names.FINALIZER_VM]
    if deleting:
        meta["deletionTimestamp"] = STAMP
    strategy = {"running": run} if isinstance(run, bool) else {"runStrategy": run}
    return msgspec.convert(
        {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": meta,
            "spec": {**strategy, "template": {"spec": spec or SPEC}},
            "status": status,
        },
        VirtualMachine,
    )


def pod(
    state: str = "pending",
    *,
    deleting: bool = False,
    gate: str | None = None,
    message: str | None = None,
    exit_code: int = 0,
    waiting: Json | None = None,
    unschedulable: str | None = None,
    limits: Json | None = None,
    uid: str = "pod-uid",
    made_for: tuple[str, str] = ("web", "vmi-uid"),
    owner: str | None = "vmi-uid",
    **status: Any,
) -> Pod:
    """A launcher pod. `state`: pending (not bound), bound, running, ended."""
    conditions: list[Json] = []
    if unschedulable:
        conditions.append(
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable}
        )
    if gate:
        conditions.append({"type": names.READINESS_GATE, "status": gate})
    container: Json = {"name": "compute", "state": {}}
    if waiting:
        container["state"] = {"waiting": waiting}
    elif state == "running":
        container["state"] = {"running": {"startedAt": STAMP}}
    elif state == "ended":
        container["state"] = {"terminated": {"exitCode": exit_code, "message": message}}
    phases = {"running": "Running", "ended": "Succeeded" if exit_code == 0 else "Failed"}
    meta: Json = {"name": "virt-launcher-web-x", "namespace": "default", "uid": uid, "resourceVersion": "9"}
    if owner:
        reference = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": made_for[0]}
        meta["ownerReferences"] = [{**reference, "uid": owner, "controller": True}]
    if deleting:
        meta["deletionTimestamp"] = STAMP
    environment = {"HYPERLET_NAMESPACE": "default", "HYPERLET_NAME": made_for[0], "HYPERLET_UID": made_for[1]}
    compute = {
        "name": "compute",
        "image": "launcher:1",
        "resources": {"limits": limits or {}},
        "env": [{"name": name, "value": value} for name, value in environment.items()],
    }
    return msgspec.convert(
        {
            "metadata": meta,
            "spec": {
                "nodeName": None if state == "pending" else "node1",
                "terminationGracePeriodSeconds": 35,
                "containers": [compute],
            },
            "status": {
                "phase": phases.get(state, "Pending"),
                "qosClass": "Burstable",
                "conditions": conditions,
                "containerStatuses": [] if state == "pending" else [container],
                **status,
            },
        },
        Pod,
    )


def claim(name: str, phase: str = "Bound", mode: str = "Filesystem") -> PersistentVolumeClaim:
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "volumeMode": mode,
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
            "status": {"phase": phase, "capacity": {"storage": "1Gi"}},
        },
        PersistentVolumeClaim,
    )


def definition(name: str, resource: str | None = None, namespace: str = "default") -> NetworkMetadata:
    annotations = {} if resource is None else {"k8s.v1.cni.cncf.io/resourceName": resource}
    meta = {"name": name, "namespace": namespace, "uid": f"uid-of-{name}", "annotations": annotations}
    return msgspec.convert({"metadata": meta}, NetworkMetadata)


def definitions(*found: NetworkMetadata) -> dict[str, NetworkMetadata]:
    """The definitions by namespace/name, as the plan of a VMI gets them."""
    return {f"{each.metadata.namespace}/{each.metadata.name}": each for each in found}
