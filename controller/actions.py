"""Actions that a plan consists of, and the executor that sends them to the API server."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from api.errors import InvalidObject, NotFound
from api.k8s.meta import Json
from kit.cache import Store
from kit.kube import Kube, PatchKind


@dataclass(frozen=True, slots=True)
class Create:
    """Create `obj`, an object of class `kind`."""

    kind: type[Any]
    obj: Json


@dataclass(frozen=True, slots=True)
class Patch:
    """Patch an object or its subresource."""

    kind: type[Any]
    namespace: str
    name: str
    patch: Json
    subresource: str | None = None
    patch_kind: PatchKind = "merge"


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete an object, with preconditions on its UID and, if `version` is given, its resourceVersion.

    `grace_seconds` None: the object's own grace period.
    """

    kind: type[Any]
    namespace: str
    name: str
    uid: str
    grace_seconds: int | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class RecordEvent:
    """Record an Event with involvedObject `about`."""

    about: Any = field(compare=False)
    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True, slots=True)
class Concurrently:
    """Independent actions, executed concurrently."""

    actions: tuple["Action", ...]


Action = Create | Patch | Delete | RecordEvent | Concurrently


class ActionExecutor:
    """Executes actions and puts the returned objects into the caches."""

    def __init__(self, kube: Kube, stores: Mapping[type[Any], Store[Any]]) -> None:
        self._kube = kube
        self._stores = stores

    async def execute(self, action: Action) -> None:
        """Executes one action. A patch of a deleted object is skipped. Raises `api.errors`."""
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
            case _:
                assert_never(action)

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
                # UID precondition failed: the object was replaced by another of the same name. Drop the patch.
                return
            raise
        metadata = action.patch.get("metadata", {})
        if changed.metadata.deletionTimestamp and "finalizers" in metadata and not metadata["finalizers"]:
            # Removing the last finalizer deletes the object, but the response still contains it.
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
