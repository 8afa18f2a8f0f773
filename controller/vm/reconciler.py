"""The reconciler for VMs: observes VM, VMI and revisions in the caches, plans, creates and deletes VMIs."""

from collections.abc import Sequence

from api import names
from api.errors import AlreadyExists, Forbidden, InvalidObject
from api.k8s.objects import ControllerRevision
from api.kinds.kubevirt import VIRTUAL_MACHINE
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from controller.actions import Action, Create
from controller.cache.cluster import ClusterCache
from controller.kind_reconciler import KindReconciler, ValidationCache, now, on_other_settings
from controller.undecodable import UndecodableObjects
from controller.vm import plan as vm_plan
from kit.cache import Key, key_of
from kit.kube import Kube
from kit.reconcile import RequeueAfter


class VmReconciler(KindReconciler[VirtualMachine, vm_plan.ObservedVm]):
    """Reconciles VMs: creates and deletes VMIs, and writes the VM status."""

    name = "vm"
    kind = VIRTUAL_MACHINE

    def __init__(self, kube: Kube, cluster: ClusterCache) -> None:
        super().__init__(kube, cluster)
        self._faults = ValidationCache(self.kind)
        self._undecodable = UndecodableObjects(
            self._store, VirtualMachine, (names.CONDITION_FAILURE, True), "status", self.queue.add
        )
        cluster.vmis.on_change(self._vmi_changed)
        on_other_settings(cluster, self.add_all)

    def _vmi_changed(self, old: VirtualMachineInstance | None, new: VirtualMachineInstance | None) -> None:
        key = key_of(new or old)
        if self._cluster.vms.get(*key) is not None:
            self.queue.add(key)

    async def observe(self, key: Key) -> vm_plan.ObservedVm | None:
        """The VM with the VMI of its name, revisions and faults; None if it does not exist."""
        obj = self._cluster.vms.get(*key)
        if obj is None:
            self._faults.forget(key)
            await self._undecodable.record_fault(key, self._executor, now())
            return None
        return vm_plan.ObservedVm(
            vm=obj,
            now=now(),
            vmi=self._cluster.vmis.get(*key),
            revisions=self._cluster.revisions.by("owner", obj.metadata.uid or ""),
            faults=self._faults.of(obj, self._cluster.settings.configuration),
            configuration=self._cluster.settings.configuration,
        )

    def plan(self, observed: vm_plan.ObservedVm) -> Sequence[Action | RequeueAfter]:
        """See controller.vm.plan."""
        return vm_plan.plan(observed)

    async def apply(self, observed: vm_plan.ObservedVm, action: Action) -> None:
        """Executes one action. If the API server refuses the VMI, the VM's status reports it."""
        try:
            await self._executor.execute(action)
        except AlreadyExists:
            # The name contains the generation, so this is the same revision, from a create whose response was lost.
            if not isinstance(action, Create) or action.kind is not ControllerRevision:
                raise
        except (Forbidden, InvalidObject) as error:
            if isinstance(action, Create):
                for report in vm_plan.refused(observed.vm, error.message, now()):
                    await self._executor.execute(report)
            raise
