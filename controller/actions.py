"""What a plan is made of, and how it is carried out."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from api.errors import InvalidObject, NotFound
from kit.cache import Store
from kit.kube import Kube, PatchKind

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Create:
    """Create `obj`."""

    kind: type[Any]
    obj: Json


@dataclass(frozen=True, slots=True)
class Patch:
    """Change parts of an object."""

    kind: type[Any]
    namespace: str
    name: str
    patch: Json
    subresource: str | None = None
    patch_kind: PatchKind = "merge"


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object of that UID, and of that version if one is given.

    `grace_seconds` None leaves the object's own grace period.
    """

    kind: type[Any]
    namespace: str
    name: str
    uid: str
    grace_seconds: int | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class RecordEvent:
    """Record an Event about `about`."""

    about: Any = field(compare=False)
    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True, slots=True)
class Concurrently:
    """Actions that do not depend on each other: at the same time."""

    actions: tuple["Action", ...]


Action = Create | Patch | Delete | RecordEvent | Concurrently


class ActionExecutor:
    """Carries actions out, and lets the caches learn what came of it."""

    def __init__(self, kube: Kube, stores: Mapping[type[Any], Store[Any]]) -> None:
        self._kube = kube
        self._stores = stores

    async def execute(self, action: Action) -> None:
        """One action. Raises `api.errors`; an object that is gone needs no patch."""
        match action:
            case Create(kind, obj):
                self._learn(kind, await self._kube.create(kind, obj))
            case Patch():
                await self._patch(action)
            case Delete(kind, namespace, name, uid, grace, version):
                gone = await self._kube.delete(
                    kind, namespace, name, uid=uid, grace_seconds=grace, resource_version=version
                )
                self._learn(kind, gone)
            case RecordEvent(about, reason, message, type):
                await self._kube.event(about, reason, message, type)
            case Concurrently(actions):
                done = await asyncio.gather(*map(self.execute, actions), return_exceptions=True)
                for outcome in done:
                    if isinstance(outcome, BaseException):
                        raise outcome

    async def _patch(self, action: Patch) -> None:
        try:
            changed = await self._kube.patch(
                action.kind,
                action.namespace,
                action.name,
                action.patch,
                subresource=action.subresource,
                patch_kind=action.patch_kind,
            )
        except NotFound:
            self._forget(action)
            return
        except InvalidObject as error:
            if any(fault.path == "metadata.uid" for fault in error.faults):
                # The object has been replaced by another of its name: the patch was not for that one.
                return
            raise
        metadata = action.patch.get("metadata", {})
        if changed.metadata.deletionTimestamp and "finalizers" in metadata and not metadata["finalizers"]:
            # With its last finalizer the object is gone; the answer shows it as it was before.
            self._forget(action)
        else:
            self._learn(action.kind, changed)

    def _forget(self, action: Patch) -> None:
        store, uid = self._stores.get(action.kind), action.patch.get("metadata", {}).get("uid")
        if store is not None and uid:
            store.forget(action.namespace, action.name, uid)

    def _learn(self, kind: type[Any], obj: Any) -> None:
        store = self._stores.get(kind)
        if store is not None and obj is not None:
            store.learn(obj)
