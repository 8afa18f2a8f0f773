"""The loops: what a plan needs is observed from the caches, and its actions are carried out."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from api import names, validate
from api.configuration import KubeVirtConfiguration
from api.errors import AlreadyExists, Conflict, Fault, Forbidden, InvalidObject, NotFound
from api.k8s import Pod
from api.kubevirt import KubeVirt
from api.vm import VirtualMachine
from api.vmi import VirtualMachineInstance
from controller import installation, launcher, vm, vmi
from controller import pod as pods
from controller.actions import Action, Create, Hands
from controller.cluster import Cluster, owner_uid
from controller.odd import Odd
from controller.policies import Policies
from controller.vmi_status import phase_of
from kit.cache import Key, key_of
from kit.kube import Kube
from kit.reconcile import Reconciler

Faults = tuple[Fault, ...]
HIDDEN_SECONDS = 5.0
"""How often a launcher pod is looked at that has lost its label."""


def now() -> datetime:
    """The time that goes into statuses."""
    return datetime.now(UTC)


class _Verdicts:
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


def _on_other_settings(cluster: Cluster, tell: Callable[[], None]) -> None:
    """Has `tell` called when the KubeVirt CR says something else: it may allow what was refused."""

    def changed(old: KubeVirt | None, new: KubeVirt | None) -> None:
        if (old.spec if old else None) != (new.spec if new else None):
            tell()

    cluster.kubevirts.on_change(changed)


class VmiLoop(Reconciler[Key, vmi.Observed]):
    """VMI → launcher pod."""

    name = "vmi"

    def __init__(self, kube: Kube, cluster: Cluster) -> None:
        super().__init__()
        self._kube, self._cluster, self._hands = kube, cluster, Hands(kube, cluster.stores())
        self._faults = _Verdicts()
        self._bound: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._gone: set[str] = set()
        """UIDs of VMIs whose pod was seen to go: it had ended or was being deleted."""
        cluster.pods.on_change(self._pod_changed)
        synchronized = (names.CONDITION_SYNCHRONIZED, False)
        self._odd = Odd(cluster.vmis, VirtualMachineInstance, synchronized, None, self.queue.add)
        cluster.on_vmi_news(self.queue.add)
        _on_other_settings(cluster, self.add_all)

    def add_all(self) -> None:
        """Has every object looked at."""
        for obj in self._cluster.vmis.all():
            self.queue.add(key_of(obj))

    async def observe(self, key: Key) -> vmi.Observed | None:
        """The VMI with its pod, claims and clocks."""
        obj = self._cluster.vmis.get(*key)
        if obj is None:
            self._faults.forget(key)
            self._prune()
            await self._odd.tell(key, self._hands, now())
            return None
        pod, uid = self._cluster.pod_of(obj) or await self._hidden(obj), obj.metadata.uid or ""
        over = pod is None or launcher.has_ended(pod)
        return vmi.Observed(
            vmi=obj,
            now=now(),
            pod=pod,
            claims=self._cluster.claims_of(obj),
            definitions=self._cluster.definitions_of(obj),
            knows_definitions=self._cluster.definitions.served,
            settings=self._cluster.settings,
            faults=self._faults.of(obj, self._cluster.settings.configuration) if pod is None else (),
            warning=self._cluster.warning_about(pod) if pod and phase_of(obj) in vmi.OURS else None,
            node_silent_for=self._cluster.health.silent_for(obj.status.nodeName if obj.status else None),
            bound_for=_since(self._bound, uid, bool(pod and pod.spec.nodeName)),
            ended_for=_since(self._ended, uid, over),
        )

    def plan(self, observed: vmi.Observed) -> Sequence[Any]:
        """See controller.vmi."""
        return vmi.plan(observed)

    async def apply(self, observed: vmi.Observed, action: Action) -> None:
        """One action; a pod that is refused is a matter for the VMI's status."""
        try:
            await self._hands.do(action)
        except AlreadyExists:
            await self._adopt(observed.vmi)
        except (Forbidden, InvalidObject) as error:
            if isinstance(action, Create):
                for words in vmi.refused(observed.vmi, names.REASON_FAILED_CREATE, error.message, now()):
                    await self._hands.do(words)
            raise

    async def report(self, key: Key, error: str, failures: int) -> None:
        """A Warning Event on the VMI."""
        obj = self._cluster.vmis.get(*key)
        if obj is not None:
            words = f"Tried {failures} times, will try again: {error}"
            await self._kube.event(obj, names.REASON_SYNC_FAILED, words, "Warning")

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if old is not None and new is None and (old.metadata.deletionTimestamp or launcher.has_ended(old)):
            self._gone.add(owner_uid(old) or "")

    async def _hidden(self, obj: VirtualMachineInstance) -> Pod | None:
        """The pod of a VMI that seems to have lost it, if it is only out of sight: somebody took its label away.

        Believing that it is gone would start a second copy of the VM on the same disks.
        """
        phase, deleting = phase_of(obj), bool(obj.metadata.deletionTimestamp)
        made_none_yet = phase in (names.PHASE_UNSET, names.PHASE_PENDING)
        if made_none_yet or obj.metadata.uid in self._gone or (phase in names.FINAL_PHASES and not deleting):
            return None
        try:
            found = await self._kube.get(Pod, obj.metadata.namespace, pods.pod_name(obj))
        except NotFound:
            return None
        if owner_uid(found) != obj.metadata.uid:
            return None
        # No watch tells of it any more.
        self.queue.add_after(key_of(obj), HIDDEN_SECONDS)
        return found

    async def _adopt(self, obj: VirtualMachineInstance) -> None:
        """The pod's name is taken: by the pod of an earlier try whose answer got lost, or by a stranger."""
        found = await self._kube.get(Pod, obj.metadata.namespace, pods.pod_name(obj))
        if owner_uid(found) != obj.metadata.uid:
            raise Conflict(f"Pod {found.metadata.name} exists and does not belong to this VirtualMachineInstance")
        self._cluster.pods.learn(found)

    def _prune(self) -> None:
        """Forgets the clocks of VMIs that are gone, now and then."""
        if len(self._ended) + len(self._bound) + len(self._gone) <= 4 * len(self._cluster.vmis) + 64:
            return
        alive = {obj.metadata.uid or "" for obj in self._cluster.vmis.all()}
        self._gone &= alive
        for clocks in (self._ended, self._bound):
            for uid in [uid for uid in clocks if uid not in alive]:
                del clocks[uid]


def _since(clocks: dict[str, float], uid: str, holds: bool) -> float:
    """Seconds since `holds` was first seen to hold."""
    if not holds:
        clocks.pop(uid, None)
        return 0.0
    return time.monotonic() - clocks.setdefault(uid, time.monotonic())


class VmLoop(Reconciler[Key, vm.Observed]):
    """VM → VMI."""

    name = "vm"

    def __init__(self, kube: Kube, cluster: Cluster) -> None:
        super().__init__()
        self._kube, self._cluster, self._hands = kube, cluster, Hands(kube, cluster.stores())
        self._faults = _Verdicts()
        self._odd = Odd(cluster.vms, VirtualMachine, (names.CONDITION_FAILURE, True), "status", self.queue.add)
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

    async def observe(self, key: Key) -> vm.Observed | None:
        """The VM with the VMI of its name."""
        obj = self._cluster.vms.get(*key)
        if obj is None:
            self._faults.forget(key)
            await self._odd.tell(key, self._hands, now())
            return None
        return vm.Observed(
            vm=obj,
            now=now(),
            vmi=self._cluster.vmis.get(*key),
            faults=self._faults.of(obj, self._cluster.settings.configuration),
            configuration=self._cluster.settings.configuration,
        )

    def plan(self, observed: vm.Observed) -> Sequence[Any]:
        """See controller.vm."""
        return vm.plan(observed)

    async def apply(self, observed: vm.Observed, action: Action) -> None:
        """One action; a VMI that is refused is a matter for the VM's status."""
        try:
            await self._hands.do(action)
        except (Forbidden, InvalidObject) as error:
            if isinstance(action, Create):
                for words in vm.refused(observed.vm, error.message, now()):
                    await self._hands.do(words)
            raise

    async def report(self, key: Key, error: str, failures: int) -> None:
        """A Warning Event on the VM."""
        obj = self._cluster.vms.get(*key)
        if obj is not None:
            words = f"Tried {failures} times, will try again: {error}"
            await self._kube.event(obj, names.REASON_SYNC_FAILED, words, "Warning")


class InstallationLoop(Reconciler[Key, KubeVirt]):
    """The KubeVirt CR's status."""

    name = "kubevirt"

    def __init__(self, kube: Kube, cluster: Cluster, version: str, policies: Policies) -> None:
        super().__init__()
        self._cluster, self._version, self._hands = cluster, version, Hands(kube, cluster.stores())
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
        """See controller.installation."""
        faults = validate.validate_kubevirt(observed)
        return installation.plan(observed, self._version, faults, self._policies.verdict, now())

    async def apply(self, observed: KubeVirt, action: Action) -> None:
        """One action."""
        await self._hands.do(action)
