"""The reconcilers for VMs, VMIs (launcher pods) and the KubeVirt CR: observe from the caches, plan, execute."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from api import names
from api.errors import AlreadyExists, Conflict, Fault, Forbidden, InvalidObject, NotFound
from api.k8s.objects import ControllerRevision, Pod
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.kubevirt import KubeVirt
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from api.launcher_pods import END_PHASES, has_ended, may_run_qemu, origin
from api.validation import validate
from controller.actions import Action, ActionExecutor, Create
from controller.cache.cluster import ClusterCache
from controller.installation import status as installation_status
from controller.installation.admission_policies import PolicyWatcher
from controller.launcher_pod import pod as pods
from controller.launcher_pod import quota_errors, user_namespaces
from controller.undecodable import UndecodableObjects
from controller.vm import plan as vm_plan
from controller.vmi import plan as vmi_plan
from controller.vmi.evidence import Evidence
from controller.vmi.status import phase_of
from kit.cache import Key, key_of
from kit.kube import Kube
from kit.reconcile import Reconciler, RequeueAfter

Faults = tuple[Fault, ...]


def now() -> datetime:
    """The current time, for timestamps in statuses."""
    return datetime.now(UTC)


HOST_USERS_KEPT = 4096
"""Maximum number of remembered VMIs whose pods need host users. An evicted one fails and is detected again."""


class _ValidationCache:
    """Validation faults of each object's latest generation. Validation is pure, so each generation is checked once."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[tuple[Any, ...], Faults]] = {}

    def of(self, obj: Any, config: KubeVirtConfiguration) -> Faults:
        """The object's validation faults under configuration `config`."""
        key, mark = key_of(obj), (obj.metadata.uid, obj.metadata.generation, config)
        known = self._known.get(key)
        if known is None or known[0] != mark:
            check = validate.validate_vm if isinstance(obj, VirtualMachine) else validate.validate_vmi
            known = self._known[key] = (mark, tuple(check(obj, config)))
        return known[1]

    def forget(self, key: Key) -> None:
        """Drops the entry of a deleted object."""
        self._known.pop(key, None)


def _on_other_settings(cluster: ClusterCache, callback: Callable[[], None]) -> None:
    """Registers `callback` for changes of the KubeVirt CR's spec: it may allow what was refused before."""

    def changed(old: KubeVirt | None, new: KubeVirt | None) -> None:
        if (old.spec if old else None) != (new.spec if new else None):
            callback()

    cluster.kubevirts.on_change(changed)


class LauncherPodReconciler(Reconciler[Key, vmi_plan.ObservedVmi, Action]):
    """Reconciles VMIs: creates and deletes launcher pods, and writes the controller's part of the VMI status."""

    name = "vmi"

    def __init__(self, kube: Kube, cluster: ClusterCache) -> None:
        super().__init__()
        self._kube, self._cluster, self._executor = kube, cluster, ActionExecutor(kube, cluster.stores())
        self._faults = _ValidationCache()
        self._bound: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._terminated: set[str] = set()
        """UIDs of pods that the kubelet had reported as terminated when their objects were deleted."""
        self._vanished: dict[str, float] = {}
        self._host_users: OrderedDict[Key, None] = OrderedDict()
        """Keys of VMIs whose pods could not start in a user namespace: later pods are created without one."""
        cluster.pods.on_change(self._pod_changed)
        synchronized = (names.CONDITION_SYNCHRONIZED, False)
        self._undecodable = UndecodableObjects(cluster.vmis, VirtualMachineInstance, synchronized, None, self.queue.add)
        cluster.on_vmi_news(self.queue.add)
        _on_other_settings(cluster, self.add_all)

    def add_all(self) -> None:
        """Queues every object."""
        for obj in self._cluster.vmis.all():
            self.queue.add(key_of(obj))

    async def observe(self, key: Key) -> vmi_plan.ObservedVmi | None:
        """The VMI with its pods, claims, networks, settings and evidence; None if it does not exist."""
        obj = self._cluster.vmis.get(*key)
        if obj is None:
            self._faults.forget(key)
            self._prune()
            await self._undecodable.record_fault(key, self._executor, now())
            return None
        pod, uid = self._cluster.pod_of(obj) or await self._uncached_pod(obj), obj.metadata.uid or ""
        over = pod is None or pod.status.phase in END_PHASES
        strays = self._cluster.strays_of(obj)
        # Events explain why a pod does not start (before the hand-over), and why the kubelet terminated one.
        wants_warning = pod is not None and (phase_of(obj) in vmi_plan.OWN_CONDITIONS or pod.status.phase in END_PHASES)
        warning = self._cluster.warning_about(pod) if pod and wants_warning else None
        if pod is not None and user_namespaces.failure(pod, warning):
            self._host_users[key] = None
            while len(self._host_users) > HOST_USERS_KEPT:
                self._host_users.popitem(last=False)
        return vmi_plan.ObservedVmi(
            vmi=obj,
            now=now(),
            pod=pod,
            claims=self._cluster.claims_of(obj),
            definitions=self._cluster.definitions_of(obj),
            knows_definitions=self._cluster.definitions.served,
            settings=self._cluster.settings,
            faults=self._faults.of(obj, self._cluster.settings.configuration) if pod is None else (),
            warning=warning,
            host_users=key in self._host_users,
            node_silent_for=self._cluster.health.silent_for(obj.status.nodeName if obj.status else None),
            bound_for=_since(self._bound, uid, bool(pod and pod.spec.nodeName)),
            ended_for=_since(self._ended, uid, over),
            strays=strays,
            evidence=self._evidence(obj, pod, strays),
        )

    def _evidence(self, obj: VirtualMachineInstance, pod: Pod | None, strays: Sequence[Pod]) -> Evidence:
        listed = may_run_qemu(obj)
        there = {each.metadata.uid or "": each.spec.nodeName or "" for each in (pod, *strays) if each is not None}
        nodes = filter(None, {*listed.values(), *there.values()})
        return Evidence(
            ended=frozenset(self._terminated & (listed.keys() | there.keys())),
            fences={node: fence for node in nodes if (fence := self._cluster.health.fence(node)) is not None},
            vanished={uid: _since(self._vanished, uid, uid not in there) for uid in listed},
        )

    def plan(self, observed: vmi_plan.ObservedVmi) -> Sequence[Action | RequeueAfter]:
        """See controller.vmi.plan."""
        return vmi_plan.plan(observed)

    async def apply(self, observed: vmi_plan.ObservedVmi, action: Action) -> None:
        """Executes one action. If the API server refuses the pod, the VMI's status reports it."""
        try:
            await self._do(observed, action)
        except AlreadyExists:
            if isinstance(action, Create) and action.kind is Pod:
                await self._adopt(observed.vmi)
        except (Forbidden, InvalidObject) as error:
            if isinstance(action, Create):
                message = quota_errors.explain(error.message)
                for report in vmi_plan.refused(observed.vmi, names.REASON_FAILED_CREATE, message, now()):
                    await self._executor.execute(report)
            raise

    async def _do(self, observed: vmi_plan.ObservedVmi, action: Action) -> None:
        """Executes the action. A pod refused by quota or LimitRange because it has no limits is retried with limits."""
        try:
            await self._executor.execute(action)
        except (Forbidden, InvalidObject) as error:
            if not isinstance(action, Create) or action.kind is not Pod:
                raise
            settings = observed.settings
            bounded = quota_errors.with_limits(action.obj, observed.defaulted.spec, settings, error.message)
            if bounded is None:
                raise
            await self._executor.execute(replace(action, obj=bounded))

    async def report(self, key: Key, error: str, failures: int) -> None:
        """Records a Warning Event on the VMI."""
        obj = self._cluster.vmis.get(*key)
        if obj is not None:
            message = f"Failed {failures} times, retrying: {error}"
            await self._kube.event(obj, names.REASON_SYNC_FAILED, message, "Warning")

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if old is not None and new is None and has_ended(old):
            self._terminated.add(old.metadata.uid or "")

    async def _uncached_pod(self, obj: VirtualMachineInstance) -> Pod | None:
        """The pod of a VMI, read from the API server where the pod cache may lag behind the VMI cache."""
        phase, name = phase_of(obj), pods.pod_name(obj)
        if (
            phase in (names.PHASE_UNSET, names.PHASE_PENDING, *names.FINAL_PHASES)
            or may_run_qemu(obj).keys() & self._terminated
        ):
            return None
        try:
            found = await self._kube.get(Pod, obj.metadata.namespace, name)
        except NotFound:
            return None
        return found if _made_for(found, obj) else None

    async def _adopt(self, obj: VirtualMachineInstance) -> None:
        """Adopts the existing pod of that name, from an earlier create whose response was lost.

        Raises Conflict if the pod was not created for this VMI.
        """
        found = await self._kube.get(Pod, obj.metadata.namespace, pods.pod_name(obj))
        if not _made_for(found, obj):
            raise Conflict(f"Pod {found.metadata.name} exists and does not belong to this VirtualMachineInstance")
        self._cluster.pods.learn(found)

    def _prune(self) -> None:
        """Drops entries of deleted VMIs once there are many of them."""
        clocks = (self._ended, self._bound, self._vanished)
        if sum(map(len, clocks)) + len(self._terminated) <= 5 * len(self._cluster.vmis) + 64:
            return
        alive = {obj.metadata.uid or "" for obj in self._cluster.vmis.all()}
        listed = {uid for obj in self._cluster.vmis.all() for uid in may_run_qemu(obj)}
        self._terminated &= listed
        for known in clocks:
            for uid in known.keys() - alive - listed:
                del known[uid]


def _made_for(pod: Pod, obj: VirtualMachineInstance) -> bool:
    made_for = origin(pod)
    return made_for is not None and (made_for.name, made_for.uid) == (obj.metadata.name, obj.metadata.uid)


def _since(clocks: dict[str, float], uid: str, holds: bool) -> float:
    """Seconds since `holds` was first observed as true; 0 while it is false."""
    if not holds:
        clocks.pop(uid, None)
        return 0.0
    return time.monotonic() - clocks.setdefault(uid, time.monotonic())


class VmReconciler(Reconciler[Key, vm_plan.ObservedVm, Action]):
    """Reconciles VMs: creates and deletes VMIs, and writes the VM status."""

    name = "vm"

    def __init__(self, kube: Kube, cluster: ClusterCache) -> None:
        super().__init__()
        self._kube, self._cluster, self._executor = kube, cluster, ActionExecutor(kube, cluster.stores())
        self._faults = _ValidationCache()
        self._undecodable = UndecodableObjects(
            cluster.vms, VirtualMachine, (names.CONDITION_FAILURE, True), "status", self.queue.add
        )
        cluster.vms.on_change(lambda old, new: self.queue.add(key_of(new or old)))
        cluster.vmis.on_change(self._vmi_changed)
        _on_other_settings(cluster, self.add_all)

    def _vmi_changed(self, old: VirtualMachineInstance | None, new: VirtualMachineInstance | None) -> None:
        key = key_of(new or old)
        if self._cluster.vms.get(*key) is not None:
            self.queue.add(key)

    def add_all(self) -> None:
        """Queues every object."""
        for obj in self._cluster.vms.all():
            self.queue.add(key_of(obj))

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

    async def report(self, key: Key, error: str, failures: int) -> None:
        """Records a Warning Event on the VM."""
        obj = self._cluster.vms.get(*key)
        if obj is not None:
            message = f"Failed {failures} times, retrying: {error}"
            await self._kube.event(obj, names.REASON_SYNC_FAILED, message, "Warning")


class InstallationReconciler(Reconciler[Key, KubeVirt, Action]):
    """Reconciles the KubeVirt CR's status."""

    name = "kubevirt"

    def __init__(self, kube: Kube, cluster: ClusterCache, version: str, policies: PolicyWatcher) -> None:
        super().__init__()
        self._cluster, self._version, self._executor = cluster, version, ActionExecutor(kube, cluster.stores())
        self._policies = policies
        policies.on_change(self.add_all)
        cluster.kubevirts.on_change(lambda old, new: self.queue.add(key_of(new or old)))

    def add_all(self) -> None:
        """Queues every object."""
        for obj in self._cluster.kubevirts.all():
            self.queue.add(key_of(obj))

    async def observe(self, key: Key) -> KubeVirt | None:
        """The KubeVirt CR; None if it does not exist."""
        return self._cluster.kubevirts.get(*key)

    def plan(self, observed: KubeVirt) -> Sequence[Action | RequeueAfter]:
        """See controller.installation.status."""
        faults = validate.validate_kubevirt(observed)
        return installation_status.plan(observed, self._version, faults, self._policies.verdict, now())

    async def apply(self, observed: KubeVirt, action: Action) -> None:
        """Executes one action."""
        await self._executor.execute(action)
