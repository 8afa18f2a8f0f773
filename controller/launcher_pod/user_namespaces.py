"""Which launcher pods get a user namespace of their own (`hostUsers: false`), and what it looks like when that fails.

In such a pod user 107 is one of 65,536 users of the node that nothing else has: what breaks out of the container owns
nothing on the node, and nothing of other VMs. With HYPERLET_USER_NAMESPACES=auto every pod gets one where all nodes
that take VMs can, as their kubelets say; without the variable none does. Pure.
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
"""In what container runtimes say of a namespace or of a volume's file system that cannot be id-mapped."""
MESSAGE_LIMIT = 500


def offered(nodes: Iterable[Node]) -> bool:
    """Whether every node that takes VMs can have such pods, by what its kubelet says of the default runtime."""
    if os.environ.get("HYPERLET_USER_NAMESPACES", "never") != "auto":
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
    """Whether a VM's pod can have one, where the nodes can.

    Not with a claim in Block mode (Kubernetes refuses it), a device of the node's (its file belongs to no user there),
    images that the handler brings (likewise), or a runtime class (what its runtime can is not known here).
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
    """Why a pod with a user namespace cannot start, if that is because of it; `warning`: the latest Event about it.

    Such as a volume whose file system has no id-mapped mounts, or a node that promised more than it can.
    """
    if pod.spec.hostUsers is not False:
        return None
    said = [warning[1]] if warning else []
    status = compute(pod)
    state = status.state if status else None
    if state is not None and state.waiting is not None:
        said.append(state.waiting.message or "")
    if state is not None and state.terminated is not None and state.terminated.reason in _NEVER_STARTED:
        said.append(state.terminated.message or "")
    if state is not None and state.running is not None:
        return None
    return next((words[:MESSAGE_LIMIT] for words in said if _FAILED.search(words)), None)


_NEVER_STARTED = frozenset({"StartError", "ContainerCannotRun"})
