"""The reconciler for the KubeVirt CR: writes its status."""

from collections.abc import Sequence

from api.kinds.kubevirt import KUBEVIRT
from api.kubevirt.kubevirt import KubeVirt
from api.validation import validate
from api.version import VERSION
from controller.actions import Action
from controller.cache.cluster import ClusterCache
from controller.installation import status as installation_status
from controller.kind_reconciler import KindReconciler, now
from kit.cache import Key
from kit.kube import Kube
from kit.reconcile import RequeueAfter


class InstallationReconciler(KindReconciler[KubeVirt, KubeVirt]):
    """Reconciles the KubeVirt CR's status."""

    name = "kubevirt"
    kind = KUBEVIRT

    def __init__(self, kube: Kube, cluster: ClusterCache) -> None:
        super().__init__(kube, cluster)
        cluster.policies.on_change(self.add_all)

    async def observe(self, key: Key) -> KubeVirt | None:
        """The KubeVirt CR; None if it does not exist."""
        return self._store.get(*key)

    def plan(self, observed: KubeVirt) -> Sequence[Action | RequeueAfter]:
        """See controller.installation.status."""
        faults = validate.validate_kubevirt(observed)
        return installation_status.plan(observed, f"v{VERSION}", faults, self._cluster.policies.verdict, now())
