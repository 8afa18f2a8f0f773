"""Launcher pods: which VMI a pod was made for, whether it has ended, and which pods may still run a VMI's QEMU. Pure.

Controller and handler decide by these alone. A pod's labels and owner references can be edited while it runs; the
environment of its containers cannot, and so a pod is known by that (docs/architecture.md, "Never two copies").
"""

from typing import NamedTuple

from api import names
from api.k8s.objects import ContainerStatus, Pod
from api.kubevirt.vmi import VirtualMachineInstance

ENV_NAMESPACE, ENV_NAME, ENV_UID = "HYPERLET_NAMESPACE", "HYPERLET_NAME", "HYPERLET_UID"
"""Variables of the container `compute`: the VMI that the pod is made for."""
END_PHASES = frozenset({"Succeeded", "Failed"})
RESTART_POLICY = "Never"
"""Every launcher pod's, unchangeable like the rest of its spec, and a field that watches can select by."""


class Origin(NamedTuple):
    """The VMI that a launcher pod was made for."""

    name: str
    uid: str


def origin(pod: Pod) -> Origin | None:
    """The VMI that a pod was made for, in the pod's own namespace; None: it is no launcher."""
    for container in pod.spec.containers:
        if container.name == names.COMPUTE_CONTAINER:
            given = {variable.name: variable.value or "" for variable in container.env or ()}
            name, uid = given.get(ENV_NAME), given.get(ENV_UID)
            if name and uid and given.get(ENV_NAMESPACE) == pod.metadata.namespace:
                return Origin(name, uid)
    return None


def compute(pod: Pod) -> ContainerStatus | None:
    """The status of the container that the VM runs in."""
    statuses = pod.status.containerStatuses or ()
    return next((status for status in statuses if status.name == names.COMPUTE_CONTAINER), None)


def is_running(pod: Pod) -> bool:
    """Whether the launcher runs on a node. Readiness would be too late: a readiness probe waits for the guest."""
    status = compute(pod)
    return bool(pod.spec.nodeName and status and status.state and status.state.running)


def has_ended(pod: Pod) -> bool:
    """Whether no container of the pod is left, by the kubelet's word.

    The phase alone proves nothing: a kubelet that preempts or evicts pods, or that shuts down, may write Failed before
    it ends the containers. Neither does the deletion mark: a node that is cut off runs on.
    """
    statuses = [*(pod.status.containerStatuses or ()), *(pod.status.initContainerStatuses or ())]
    terminated = all(status.state is not None and status.state.terminated is not None for status in statuses)
    return pod.status.phase in END_PHASES and compute(pod) is not None and terminated


def may_run_qemu(vmi: VirtualMachineInstance) -> dict[str, str]:
    """Nodes by UID of the pods that the VMI was handed over to, and of which no evidence says that they have ended.

    Written before a handler may start QEMU there (`status.activePods`), taken off with the evidence: by the controller
    on the kubelet's word or a fence, by the node's handler when no process of the pod is left.
    """
    known = (vmi.status.activePods if vmi.status else None) or {}
    return {uid: node for uid, node in known.items() if node}
