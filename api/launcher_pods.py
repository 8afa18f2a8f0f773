"""Launcher pods: which VMI a pod was made for, whether it has ended, and which pods may still run a VMI's QEMU. Pure.

Used by controller and handler. A pod's labels and owner references can be edited while it runs; the environment of its
containers cannot, so a pod is identified by that (docs/architecture.md, "Never two copies").
"""

from typing import NamedTuple

from api import names
from api.k8s.objects import ContainerStatus, Pod
from api.kubevirt.vmi import VirtualMachineInstance

ENV_NAMESPACE, ENV_NAME, ENV_UID = "HYPERLET_NAMESPACE", "HYPERLET_NAME", "HYPERLET_UID"
"""Environment variables of the container `compute`: the VMI of the pod."""
END_PHASES = frozenset({"Succeeded", "Failed"})
RESTART_POLICY = "Never"
"""Of every launcher pod; immutable, and supported as a field selector of watches."""


class Origin(NamedTuple):
    """The VMI that a launcher pod was created for."""

    name: str
    uid: str


def origin(pod: Pod) -> Origin | None:
    """The VMI that a pod was created for, in the pod's namespace; None if the pod is not a launcher pod."""
    for container in pod.spec.containers:
        if container.name == names.COMPUTE_CONTAINER:
            given = {variable.name: variable.value or "" for variable in container.env or ()}
            name, uid = given.get(ENV_NAME), given.get(ENV_UID)
            if name and uid and given.get(ENV_NAMESPACE) == pod.metadata.namespace:
                return Origin(name, uid)
    return None


def compute(pod: Pod) -> ContainerStatus | None:
    """Status of the container `compute`, which runs QEMU."""
    statuses = pod.status.containerStatuses or ()
    return next((status for status in statuses if status.name == names.COMPUTE_CONTAINER), None)


def is_running(pod: Pod) -> bool:
    """Whether the launcher is running. Readiness is not used: a readiness probe waits for the guest."""
    status = compute(pod)
    return bool(pod.spec.nodeName and status and status.state and status.state.running)


def has_ended(pod: Pod) -> bool:
    """Whether all containers of the pod have terminated, as reported by the kubelet.

    The phase is not sufficient: on preemption, eviction or node shutdown the kubelet may write Failed before it stops
    the containers. Nor is deletionTimestamp: containers on a partitioned node keep running.
    """
    statuses = [*(pod.status.containerStatuses or ()), *(pod.status.initContainerStatuses or ())]
    terminated = all(status.state is not None and status.state.terminated is not None for status in statuses)
    return pod.status.phase in END_PHASES and compute(pod) is not None and terminated


def may_run_qemu(vmi: VirtualMachineInstance) -> dict[str, str]:
    """Node by UID of the VMI's pods that may still run QEMU, from `status.activePods`.

    An entry is added before a handler may start QEMU, and removed with evidence of termination: by the controller on
    the kubelet's report or a fence, by the node's handler when no process of the pod is left.
    """
    known = (vmi.status.activePods if vmi.status else None) or {}
    return {uid: node for uid, node in known.items() if node}
