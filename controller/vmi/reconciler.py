"""The reconciler for VMIs: observes VMI, pods and claims in the caches, plans, creates and deletes launcher pods."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from api import names
from api.errors import AlreadyExists, Conflict, Forbidden, InvalidObject, NotFound
from api.k8s.objects import Pod
from api.kinds.kubevirt import VIRTUAL_MACHINE_INSTANCE
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from api.launcher_pods import END_PHASES, has_ended, may_run_qemu, origin
from controller.actions import Action, Create
from controller.cache.cluster import ClusterCache
from controller.kind_reconciler import KindReconciler, ValidationCache, now, on_other_settings
from controller.launcher_pod import pod as pods
from controller.launcher_pod import quota_errors, user_namespaces
from controller.undecodable import UndecodableObjects
from controller.vmi import plan as vmi_plan
from controller.vmi.evidence import Evidence
from kit.cache import Key
from kit.kube import Kube
from kit.reconcile import RequeueAfter

HOST_USERS_KEPT = 4096
"""Maximum number of remembered VMIs whose pods need host users. An evicted one fails and is detected again."""


class LauncherPodReconciler(KindReconciler[VirtualMachineInstance, vmi_plan.ObservedVmi]):
    """Reconciles VMIs: creates and deletes launcher pods, and writes the controller's part of the VMI status."""

    name = "vmi"
    kind = VIRTUAL_MACHINE_INSTANCE

    def __init__(self, kube: Kube, cluster: ClusterCache) -> None:
        super().__init__(kube, cluster)
        self._faults = ValidationCache(self.kind)
        self._bound: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._terminated: set[str] = set()
        """UIDs of pods that the kubelet had reported as terminated when their objects were deleted."""
        self._vanished: dict[str, float] = {}
        self._host_users: OrderedDict[Key, None] = OrderedDict()
        """Keys of VMIs whose pods could not start in a user namespace: later pods are created without one."""
        cluster.pods.on_change(self._pod_changed)
        synchronized = (names.CONDITION_SYNCHRONIZED, False)
        self._undecodable = UndecodableObjects(self._store, VirtualMachineInstance, synchronized, None, self.queue.add)
        cluster.on_vmi_news(self.queue.add)
        on_other_settings(cluster, self.add_all)

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
