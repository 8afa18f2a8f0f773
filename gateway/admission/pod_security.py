"""The Pod Security check: reads a namespace's labels, only for VMs with fields that could be refused.

Such fields are rare (api.validation.pod_security), so there is no watch or cache of all namespaces. Labels are cached
for a few seconds, for manifests with many VMs and because two webhooks check each of them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from api.errors import Fault, HyperletError
from api.k8s.meta import ObjectMeta, Struct
from api.k8s.resource import Resource
from api.kinds.catalog import CATALOG, Catalog
from api.validation import pod_security
from gateway.admission.review import AdmissionRequest
from kit import log
from kit.kube import Kube

KEPT_SECONDS = 4.0
KEPT = 256
"""Maximum number of cached namespaces."""
ASK_SECONDS = 3.0
"""Timeout of the request; the webhook's own timeout is 10 s."""

_log = log.logger(component="admission")


class Namespace(Struct):
    """A namespace, of which the labels are used."""

    RESOURCE = Resource("", "v1", "Namespace", "namespaces", namespaced=False)

    metadata: ObjectMeta = ObjectMeta()


def demands(request: AdmissionRequest, catalog: Catalog = CATALOG) -> list[pod_security.Demand]:
    """Fields of a new or changed VM or VMI that a namespace could refuse."""
    kind = catalog.get(request.kind.group, request.kind.kind)
    if kind is None or not kind.vmi_spec:
        return []
    keys = kind.vmi_spec.split(".")
    spec = _at(request.object, keys)
    return [] if spec == _at(request.oldObject, keys) else pod_security.demands(spec, kind.vmi_spec)


def _at(document: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


class PodSecurity:
    """Reads namespaces, with a short-lived cache."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._kept: OrderedDict[str, tuple[float, pod_security.PodSecurityPolicy]] = OrderedDict()

    async def faults(self, request: AdmissionRequest) -> list[Fault]:
        """Faults under the policy of the request's namespace.

        Empty when the namespace cannot be read: the API server then refuses the pod, which the VMI's conditions report.
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
