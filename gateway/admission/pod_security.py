"""What a VM's namespace enforces on pods: asked of the API server only where a VM has something that could be refused.

Almost no VM has (api.validation.pod_security), so this costs no call, no cache of every namespace and no watch. A
namespace's labels are kept for a few seconds, for manifests with many VMs and because two webhooks ask about each of
them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from api import names
from api.errors import Fault, HyperletError
from api.k8s.meta import ObjectMeta, Struct
from api.validation import pod_security
from gateway.admission.review import AdmissionRequest
from kit import log
from kit.kube import Kube

KEPT_SECONDS = 4.0
KEPT = 256
"""Namespaces in memory."""
ASK_SECONDS = 3.0
"""The API server waits 10 s for the webhook, and then goes by its failurePolicy."""
_SPECS = {names.KIND_VM: ("spec", "template", "spec"), names.KIND_VMI: ("spec",)}

_log = log.logger(component="admission")


class Namespace(Struct):
    """A namespace's labels."""

    metadata: ObjectMeta = ObjectMeta()


def demands(request: AdmissionRequest) -> list[pod_security.Demand]:
    """What a new or changed VM or VMI has that a namespace could refuse of its pod."""
    keys = _SPECS.get(request.kind.kind)
    if keys is None:
        return []
    spec = _at(request.object, keys)
    return [] if spec == _at(request.oldObject, keys) else pod_security.demands(spec, ".".join(keys))


def _at(document: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


class PodSecurity:
    """Asks for namespaces, and remembers for a moment."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._kept: OrderedDict[str, tuple[float, pod_security.PodSecurityPolicy]] = OrderedDict()

    async def faults(self, request: AdmissionRequest) -> list[Fault]:
        """What the request's namespace would refuse of the VM's pod.

        Empty when the namespace cannot be asked for: the API server still refuses the pod then, and the VMI says so.
        """
        found = demands(request)
        if not found or not request.namespace:
            return []
        try:
            async with asyncio.timeout(ASK_SECONDS):
                policy = await self._policy(request.namespace)
        except (HyperletError, TimeoutError) as error:
            why = str(error) or "timed out"
            _log.warning(
                "cannot read the Pod Security labels of a namespace; skipping the check",
                namespace=request.namespace,
                why=why,
            )
            return []
        return pod_security.faults(found, request.namespace, policy)

    async def _policy(self, namespace: str) -> pod_security.PodSecurityPolicy:
        now = asyncio.get_running_loop().time()
        kept = self._kept.get(namespace)
        if kept is not None and now <= kept[0]:
            return kept[1]
        labels = (await self._kube.get(Namespace, None, namespace)).metadata.labels
        policy = pod_security.policy_of(labels)
        self._kept[namespace] = (now + KEPT_SECONDS, policy)
        self._kept.move_to_end(namespace)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return policy
