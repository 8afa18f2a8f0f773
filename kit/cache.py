"""In-memory store of one kind's objects, kept up to date by list and watch.

A Store lists once, then watches from there. After a lost connection it resumes the watch at the last resourceVersion;
if that has expired (410) it lists again and reports only differences.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from api.errors import ApiUnavailable, Expired, HyperletError
from api.k8s.resource import resource_of
from kit import log
from kit.kube import Kube, Selector, Undecodable
from kit.tasks import BackgroundTasks

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace (empty for cluster-wide kinds) and name."""
OnChange = Callable[[T | None, T | None], None]

BACKOFF_SECONDS = (0.5, 5.0)
STEADY_SECONDS = 10.0
"""After a watch of this length the back-off is reset."""

_log = log.logger(component="cache")


def key_of(obj: Any) -> Key:
    """The namespace and name of an object."""
    return (obj.metadata.namespace or "", obj.metadata.name or "")


def _version(obj: Any) -> int:
    """resourceVersion as a number, 0 if it is not numeric. Versions of one resource are comparable (KEP-5504)."""
    text = obj.metadata.resourceVersion or ""
    return int(text) if text.isdigit() else 0


class Store(Generic[T]):
    """All objects of one kind that match the selectors. Start it with `start()` or by running `run()` in a task.

    `learn` stores the response of a write, so that the writer sees its own write immediately; the watch event of the
    same version is then ignored.
    """

    def __init__(
        self,
        kube: Kube,
        kind: type[T],
        labels: Selector = None,
        fields: Selector = None,
        namespace: str | None = None,
        keep: Callable[[T], bool] | None = None,
    ) -> None:
        """`keep` filters objects after decoding, for criteria that no selector can express."""
        self._kube = kube
        self._keep = keep
        self._kind = kind
        self._query: dict[str, Any] = {"labels": labels, "fields": fields, "namespace": namespace}
        self.plural = resource_of(kind).plural
        self._objects: dict[Key, T] = {}
        self._seen = 0
        self._position = ""
        self._callbacks: list[OnChange[T]] = []
        self._bad_callbacks: list[Callable[[Undecodable], None]] = []
        self._indexes: dict[str, tuple[Callable[[T], Iterable[str]], dict[str, set[Key]]]] = {}
        self._synced = asyncio.Event()
        self._tasks = BackgroundTasks(log.task_failed)
        self.connected = False
        """Whether the watch is established; while it is not, objects may be stale."""

    # ---- reading -----------------------------------------------------------------------------------------------------

    def get(self, namespace: str | None, name: str) -> T | None:
        """The object, or None."""
        return self._objects.get((namespace or "", name))

    def all(self) -> Iterator[T]:
        """Iterates over all objects. Make a list() of it before awaiting anything."""
        return iter(self._objects.values())

    def __len__(self) -> int:
        return len(self._objects)

    def index(self, name: str, keys: Callable[[T], Iterable[str]]) -> None:
        """Adds an index: `keys` returns the values that an object is indexed under. Before or after `start()`."""
        entries: dict[str, set[Key]] = defaultdict(set)
        self._indexes[name] = (keys, entries)
        for key, obj in self._objects.items():
            for value in keys(obj):
                entries[value].add(key)

    def by(self, index: str, value: str) -> list[T]:
        """The objects indexed under `value`, in key order."""
        _, entries = self._indexes[index]
        return [self._objects[key] for key in sorted(entries.get(value, ()))]

    def on_change(self, callback: OnChange[T]) -> None:
        """Registers `callback(old, new)` for every change; None: does not exist. It must not block or raise."""
        self._callbacks.append(callback)

    def on_undecodable(self, callback: Callable[[Undecodable], None]) -> None:
        """Registers `callback` for every object that cannot be decoded."""
        self._bad_callbacks.append(callback)

    async def synced(self) -> None:
        """Waits for the first list."""
        await self._synced.wait()

    @property
    def is_synced(self) -> bool:
        """Whether the first list has been received."""
        return self._synced.is_set()

    # ---- writing -----------------------------------------------------------------------------------------------------

    def learn(self, obj: T) -> None:
        """Stores the object returned by a create or patch, unless the watch is already past its version."""
        if _version(obj) > self._seen:
            self._put(obj)

    def forget(self, namespace: str | None, name: str, uid: str | None) -> None:
        """Removes a deleted object: the server returned NotFound, or its last finalizer has been removed."""
        key = (namespace or "", name)
        known = self._objects.get(key)
        if known is not None and known.metadata.uid == uid:  # type: ignore[attr-defined]
            self._drop(key, 0)

    def _put(self, new: T) -> None:
        if self._keep is not None and not self._keep(new):
            return
        key = key_of(new)
        old = self._objects.get(key)
        if old is not None and (stale := _version(old)) and _version(new) <= stale:
            return
        self._objects[key] = new
        self._reindex(key, old, new)
        self._tell(old, new)

    def _drop(self, key: Key, version: int) -> None:
        old = self._objects.get(key)
        if old is None or (version and _version(old) > version):
            return
        del self._objects[key]
        self._reindex(key, old, None)
        self._tell(old, None)

    def _reindex(self, key: Key, old: T | None, new: T | None) -> None:
        for keys, entries in self._indexes.values():
            before = set(keys(old)) if old is not None else set()
            after = set(keys(new)) if new is not None else set()
            for value in before - after:
                entries[value].discard(key)
                if not entries[value]:
                    del entries[value]
            for value in after - before:
                entries[value].add(key)

    def _tell(self, old: T | None, new: T | None) -> None:
        for callback in self._callbacks:
            try:
                callback(old, new)
            except Exception:
                namespace, name = key_of(new or old)
                _log.exception(
                    "Unhandled exception in a change callback", resource=self.plural, namespace=namespace, name=name
                )

    # ---- list and watch ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Runs `run()` in a background task until `stop()`."""
        self._tasks.start("cache", self.run(), resource=self.plural)

    async def stop(self) -> None:
        """Cancels the background task."""
        await self._tasks.close()

    async def run(self) -> None:
        """Lists and watches. Never returns."""
        loop = asyncio.get_running_loop()
        pause, longest = BACKOFF_SECONDS
        failures = 0
        while True:
            began = loop.time()
            try:
                if not self._position:
                    await self._relist()
                await self._follow()
                failure = ""
            except Expired:
                # List again without a pause: changes have been missed.
                self._position, failure = "", ""
            except HyperletError as error:
                failure = error.message
                if isinstance(error, ApiUnavailable):
                    pause = max(pause, error.retry_seconds)
            except Exception as error:
                _log.exception("Unhandled exception in list and watch: listing again", resource=self.plural)
                self._position, failure = "", str(error)
            self.connected = False
            if loop.time() - began > STEADY_SECONDS:
                pause, failures = BACKOFF_SECONDS[0], 0
            failures = failures + 1 if failure else 0
            if failures & (failures - 1) == 0 and failure:
                # Log failures 1, 2, 4, ...: an outage must not fill the log.
                _log.warning("Watch failed: retrying", resource=self.plural, why=failure, failures=failures)
            # A watch that ends immediately, even without an error, is not restarted immediately.
            brief = loop.time() - began < BACKOFF_SECONDS[0]
            await asyncio.sleep((pause if failure or brief else 0.05) * random.uniform(0.5, 1))
            pause = min(pause * 2, longest) if failure else BACKOFF_SECONDS[0]

    async def _relist(self) -> None:
        bad: list[Undecodable] = []
        items, self._position = await self._kube.list(self._kind, bad=bad.append, **self._query)
        found = {key_of(obj) for obj in items}
        listed = int(self._position) if self._position.isdigit() else 0
        if listed < self._seen:
            # The API server was restored from a backup: stored objects may be newer than the server's state.
            for key in list(self._objects):
                self._drop(key, 0)
        self._seen = listed
        for key in [key for key in self._objects if key not in found]:
            # Keep objects created after the list, which `learn` stored.
            self._drop(key, listed)
        for obj in items:
            self._put(obj)
        for item in bad:
            self._refuse(item)
        self._synced.set()

    async def _follow(self) -> None:
        self.connected = True
        async for change, item in self._kube.watch(self._kind, self._position, bad=self._refuse, **self._query):
            if isinstance(item, str):
                self._advance(item)
                continue
            self._advance(item.metadata.resourceVersion)  # type: ignore[attr-defined]
            if change == "DELETED":
                self._drop(key_of(item), _version(item))
            else:
                self._put(item)

    def _advance(self, version: str | None) -> None:
        if version:
            self._position = version
            self._seen = max(self._seen, int(version) if version.isdigit() else 0)

    def _refuse(self, item: Undecodable) -> None:
        self._drop((item.metadata.get("namespace", ""), item.metadata.get("name", "")), 0)
        for callback in self._bad_callbacks:
            callback(item)
