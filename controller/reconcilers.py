"""The loops: what a plan needs is observed from the caches, and its actions are carried out."""

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
from kit.reconcile import Reconciler

Faults = tuple[Fault, ...]


def now() -> datetime:
    """The time that goes into statuses."""
    return datetime.now(UTC)


HOST_USERS_KEPT = 4096
"""VMIs whose pods are remembered to have no user namespace. One that is forgotten fails and is told again."""


class _ValidationCache:
    """Faults of the latest generation of each object: validation is pure, so once is enough."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[tuple[Any, ...], Faults]] = {}

    def of(self, obj: Any, config: KubeVirtConfiguration) -> Faults:
        """The object's faults in an installation of that configuration."""
        key, mark = key_of(obj), (obj.metadata.uid, obj.metadata.generation, config)
        known = self._known.get(key)
        if known is None or known[0] != mark:
            check = validate.validate_vm if isinstance(obj, VirtualMachine) else validate.validate_vmi
            known = self._known[key] = (mark, tuple(check(obj, config)))
        return known[1]

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._known.pop(key, None)


def _on_other_settings(cluster: ClusterCache, tell: Callable[[], None]) -> None:
    """Has `tell` called when the KubeVirt CR says something else: it may allow what was refused."""

    def changed(old: KubeVirt | None, new: KubeVirt | None) -> None:
        if (old.spec if old else None) != (new.spec if new else None):
            tell()

    cluster.kubevirts.on_change(changed)


class LauncherPodReconciler(Reconciler[Key, vmi_plan.ObservedVmi]):
    """VMI → launcher pod."""

    name = "vmi"

    def __init__(self, kube: Kube, cluster: ClusterCache) -> None:
        super().__init__()
        self._kube, self._cluster, self._executor = kube, cluster, ActionExecutor(kube, cluster.stores())
        self._faults = _ValidationCache()
        self._bound: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._heard: set[str] = set()
        """UIDs of pods that had ended, by the kubelet's word, when their objects went."""
        self._vanished: dict[str, float] = {}
        self._host_users: OrderedDict[Key, None] = OrderedDict()
        """VMIs, by name, whose pods could not start in user namespaces: their successors would fail as well."""
        cluster.pods.on_change(self._pod_changed)
        synchronized = (names.CONDITION_SYNCHRONIZED, False)
        self._undecodable = UndecodableObjects(cluster.vmis, VirtualMachineInstance, synchronized, None, self.queue.add)
        cluster.on_vmi_news(self.queue.add)
        _on_other_settings(cluster, self.add_all)

    def add_all(self) -> None:
        """Has every object looked at."""
        for obj in self._cluster.vmis.all():
            self.queue.add(key_of(obj))

    async def observe(self, key: Key) -> vmi_plan.ObservedVmi | None:
        """The VMI with its pod, claims and clocks."""
        obj = self._cluster.vmis.get(*key)
        if obj is None:
            self._faults.forget(key)
            self._prune()
            await self._undecodable.record_fault(key, self._executor, now())
            return None
        pod, uid = self._cluster.pod_of(obj) or await self._unseen(obj), obj.metadata.uid or ""
        over = pod is None or pod.status.phase in END_PHASES
        strays = self._cluster.strays_of(obj)
        # Before the hand-over Events say what keeps the pod from running, and of an ended one why the kubelet ended it.
        told = pod is not None and (phase_of(obj) in vmi_plan.OWN_CONDITIONS or pod.status.phase in END_PHASES)
        warning = self._cluster.warning_about(pod) if pod and told else None
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
            ended=frozenset(self._heard & (listed.keys() | there.keys())),
            fences={node: fence for node in nodes if (fence := self._cluster.health.fence(node)) is not None},
            vanished={uid: _since(self._vanished, uid, uid not in there) for uid in listed},
        )

    def plan(self, observed: vmi_plan.ObservedVmi) -> Sequence[Any]:
        """See controller.vmi.plan."""
        return vmi_plan.plan(observed)

    async def apply(self, observed: vmi_plan.ObservedVmi, action: Action) -> None:
        """One action; a pod that is refused is a matter for the VMI's status."""
        try:
            await self._do(observed, action)
        except AlreadyExists:
            if isinstance(action, Create) and action.kind is Pod:
                await self._adopt(observed.vmi)
        except (Forbidden, InvalidObject) as error:
            if isinstance(action, Create):
                message = quota_errors.explain(error.message)
                for words in vmi_plan.refused(observed.vmi, names.REASON_FAILED_CREATE, message, now()):
                    await self._executor.execute(words)
            raise

    async def _do(self, observed: vmi_plan.ObservedVmi, action: Action) -> None:
        """A pod that the namespace's quota or LimitRange refuses for want of limits is made with them."""
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
        """A Warning Event on the VMI."""
        obj = self._cluster.vmis.get(*key)
        if obj is not None:
            words = f"Tried {failures} times, will try again: {error}"
            await self._kube.event(obj, names.REASON_SYNC_FAILED, words, "Warning")

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if old is not None and new is None and has_ended(old):
            self._heard.add(old.metadata.uid or "")

    async def _unseen(self, obj: VirtualMachineInstance) -> Pod | None:
        """The pod of a VMI that seems to have lost it: the cache of pods may be behind that of VMIs."""
        phase, name = phase_of(obj), pods.pod_name(obj)
        if (
            phase in (names.PHASE_UNSET, names.PHASE_PENDING, *names.FINAL_PHASES)
            or may_run_qemu(obj).keys() & self._heard
        ):
            return None
        try:
            found = await self._kube.get(Pod, obj.metadata.namespace, name)
        except NotFound:
            return None
        return found if _made_for(found, obj) else None

    async def _adopt(self, obj: VirtualMachineInstance) -> None:
        """The pod's name is taken: by the pod of an earlier try whose answer got lost, or by a stranger."""
        found = await self._kube.get(Pod, obj.metadata.namespace, pods.pod_name(obj))
        if not _made_for(found, obj):
            raise Conflict(f"Pod {found.metadata.name} exists and does not belong to this VirtualMachineInstance")
        self._cluster.pods.learn(found)

    def _prune(self) -> None:
        """Forgets the clocks of VMIs that are gone, now and then."""
        clocks = (self._ended, self._bound, self._vanished)
        if sum(map(len, clocks)) + len(self._heard) <= 5 * len(self._cluster.vmis) + 64:
            return
        alive = {obj.metadata.uid or "" for obj in self._cluster.vmis.all()}
        listed = {uid for obj in self._cluster.vmis.all() for uid in may_run_qemu(obj)}
        self._heard &= listed
        for known in clocks:
            for uid in known.keys() - alive - listed:
                del known[uid]


def _made_for(pod: Pod, obj: VirtualMachineInstance) -> bool:
    made_for = origin(pod)
    return made_for is not None and (made_for.name, made_for.uid) == (obj.metadata.name, obj.metadata.uid)


def _since(clocks: dict[str, float], uid: str, holds: bool) -> float:
    """Seconds since `holds` was first seen to hold."""
    if not holds:
        clocks.pop(uid, None)
        return 0.0
    return time.monotonic() - clocks.setdefault(uid, time.monotonic())


class VmReconciler(Reconciler[Key, vm_plan.ObservedVm]):
    """VM → VMI."""

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
        """Has every object looked at."""
        for obj in self._cluster.vms.all():
            self.queue.add(key_of(obj))

    async def observe(self, key: Key) -> vm_plan.ObservedVm | None:
        """The VM with the VMI of its name."""
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

    def plan(self, observed: vm_plan.ObservedVm) -> Sequence[Any]:
        """See controller.vm.plan."""
        return vm_plan.plan(observed)

    async def apply(self, observed: vm_plan.ObservedVm, action: Action) -> None:
        """One action; a VMI that is refused is a matter for the VM's status."""
        try:
            await self._executor.execute(action)
        except AlreadyExists:
            # A revision of this name holds this very generation: an earlier try made it, and its answer got lost.
            if not isinstance(action, Create) or action.kind is not ControllerRevision:
                raise
        except (Forbidden, InvalidObject) as error:
            if isinstance(action, Create):
                for words in vm_plan.refused(observed.vm, error.message, now()):
                    await self._executor.execute(words)
            raise

    async def report(self, key: Key, error: str, failures: int) -> None:
        """A Warning Event on the VM."""
        obj = self._cluster.vms.get(*key)
        if obj is not None:
            words = f"Tried {failures} times, will try again: {error}"
            await self._kube.event(obj, names.REASON_SYNC_FAILED, words, "Warning")


class InstallationReconciler(Reconciler[Key, KubeVirt]):
    """The KubeVirt CR's status."""

    name = "kubevirt"

    def __init__(self, kube: Kube, cluster: ClusterCache, version: str, policies: PolicyWatcher) -> None:
        super().__init__()
        self._cluster, self._version, self._executor = cluster, version, ActionExecutor(kube, cluster.stores())
        self._policies = policies
        policies.on_change(self.add_all)
        cluster.kubevirts.on_change(lambda old, new: self.queue.add(key_of(new or old)))

    def add_all(self) -> None:
        """Has every object looked at."""
        for obj in self._cluster.kubevirts.all():
            self.queue.add(key_of(obj))

    async def observe(self, key: Key) -> KubeVirt | None:
        """The object."""
        return self._cluster.kubevirts.get(*key)

    def plan(self, observed: KubeVirt) -> Sequence[Any]:
        """See controller.installation.status."""
        faults = validate.validate_kubevirt(observed)
        return installation_status.plan(observed, self._version, faults, self._policies.verdict, now())

    async def apply(self, observed: KubeVirt, action: Action) -> None:
        """One action."""
        await self._executor.execute(action)
