"""User namespaces of launcher pods (`hostUsers: false`): when to request one, and how its failure is detected. Pure.

In such a pod UID 107 maps to a host UID from a range of 65,536 that only this pod has: a process that escapes the
container owns no files of the node or of other VMs. Pods request one if the kubelets of all schedulable nodes report
support; with HYPERLET_USER_NAMESPACES=never none does.
Sources: https://kubernetes.io/docs/concepts/workloads/pods/user-namespaces/, KEP-127.
"""

import os
import re
from collections.abc import Iterable, Mapping

from api import names
from api.k8s.objects import Node, PersistentVolumeClaim, Pod
from api.kubevirt.vmi import VirtualMachineInstance
from api.launcher_pods import compute
from controller.launcher_pod import volumes as pod_volumes

_FAILED = re.compile(r"id-?map|user ?namespace|userns|mounting \"?(proc|sysfs)", re.IGNORECASE)
"""Matches container runtimes' errors about user namespaces and about file systems without idmapped mounts."""
MESSAGE_LIMIT = 500


def offered(nodes: Iterable[Node]) -> bool:
    """Whether the kubelet of every schedulable node reports user namespace support for its default runtime handler."""
    if os.environ.get("HYPERLET_USER_NAMESPACES", "auto") != "auto":
        return False
    takes = [node for node in nodes if (node.metadata.labels or {}).get(names.LABEL_SCHEDULABLE) == "true"]
    return bool(takes) and all(_supports(node) for node in takes)


def _supports(node: Node) -> bool:
    handlers = {handler.name: handler for handler in node.status.runtimeHandlers or ()}
    default = handlers.get("")
    return bool(default and default.features and default.features.userNamespaces)


def possible(
    vmi: VirtualMachineInstance,
    claims: Mapping[str, PersistentVolumeClaim],
    *,
    image_volumes: bool,
    runtime_class: str | None,
) -> bool:
    """Whether a VMI's pod can have a user namespace on nodes that support them.

    Not with Block volumes (refused by Kubernetes), host devices or images mounted by the handler (their owners are not
    mapped into the namespace), or a RuntimeClass (support of its handler is unknown).
    """
    spec = vmi.spec
    firmware = spec.domain.firmware
    images = any(volume.containerDisk for volume in spec.volumes or ()) or (firmware and firmware.kernelBoot)
    return not (
        any(claims[name].spec.volumeMode == "Block" for name in pod_volumes.claim_names(spec) if name in claims)
        or any(interface.sriov is not None for interface in spec.domain.devices.interfaces or ())
        or (images and not image_volumes)
        or runtime_class
    )


def failure(pod: Pod, warning: tuple[str, str] | None) -> str | None:
    """The error of a pod that cannot start because of its user namespace; None for other pods.

    `warning`: reason and message of the latest Warning Event about the pod. Causes: a volume whose file system does not
    support idmapped mounts, or a node that reports support but has none.
    """
    if pod.spec.hostUsers is not False:
        return None
    messages = [warning[1]] if warning else []
    status = compute(pod)
    state = status.state if status else None
    if state is not None and state.waiting is not None:
        messages.append(state.waiting.message or "")
    if state is not None and state.terminated is not None and state.terminated.reason in _NEVER_STARTED:
        messages.append(state.terminated.message or "")
    if state is not None and state.running is not None:
        return None
    return next((message[:MESSAGE_LIMIT] for message in messages if _FAILED.search(message)), None)


_NEVER_STARTED = frozenset({"StartError", "ContainerCannotRun"})
