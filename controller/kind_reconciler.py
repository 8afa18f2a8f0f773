"""Base class of the controller's reconcilers: the control loop of one kind, over the objects of its store."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar

from api import names
from api.errors import Fault
from api.k8s.meta import Struct
from api.kinds.kind import Kind
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.kubevirt import KubeVirt
from controller.actions import Action, ActionExecutor
from controller.cache.cluster import ClusterCache
from kit.cache import Key, Store, key_of
from kit.kube import Kube
from kit.reconcile import Reconciler

T = TypeVar("T", bound=Struct)
O = TypeVar("O")  # noqa: E741
Faults = tuple[Fault, ...]


def now() -> datetime:
    """The current time, for timestamps in statuses."""
    return datetime.now(UTC)


class KindReconciler(Reconciler[Key, O, Action], Generic[T, O]):
    """Reconciles the objects of one kind. Keys are theirs, and every change of one queues its key."""

    kind: ClassVar[Kind]
    """Its Struct is T."""

    def __init__(self, kube: Kube, cluster: ClusterCache) -> None:
        super().__init__()
        self._kube, self._cluster = kube, cluster
        self._executor = ActionExecutor(kube, cluster.stores)
        self._store: Store[T] = cluster.stores[self.kind.struct]
        self._store.on_change(lambda old, new: self.queue.add(key_of(new or old)))

    def add_all(self) -> None:
        """Queues every object."""
        for obj in self._store.all():
            self.queue.add(key_of(obj))

    async def apply(self, observed: O, action: Action) -> None:
        """Executes one action."""
        await self._executor.execute(action)

    async def report(self, key: Key, error: str, failures: int) -> None:
        """Records a Warning Event on the object."""
        obj = self._store.get(*key)
        if obj is not None:
            message = f"Failed {failures} times, retrying: {error}"
            await self._kube.event(obj, names.REASON_SYNC_FAILED, message, "Warning")


class ValidationCache:
    """Validation faults of each object's latest generation. Validation is pure, so each generation is checked once."""

    def __init__(self, kind: Kind) -> None:
        self._validate = kind.validate
        self._known: dict[Key, tuple[tuple[Any, ...], Faults]] = {}

    def of(self, obj: Any, config: KubeVirtConfiguration) -> Faults:
        """The object's validation faults under configuration `config`."""
        key, mark = key_of(obj), (obj.metadata.uid, obj.metadata.generation, config)
        known = self._known.get(key)
        if known is None or known[0] != mark:
            found = self._validate(obj, config) if self._validate is not None else ()
            known = self._known[key] = (mark, tuple(found))
        return known[1]

    def forget(self, key: Key) -> None:
        """Drops the entry of a deleted object."""
        self._known.pop(key, None)


def on_other_settings(cluster: ClusterCache, callback: Callable[[], None]) -> None:
    """Registers `callback` for changes of the KubeVirt CR's spec: it may allow what was refused before."""

    def changed(old: KubeVirt | None, new: KubeVirt | None) -> None:
        if (old.spec if old else None) != (new.spec if new else None):
            callback()

    cluster.kubevirts.on_change(changed)
