"""Event recorder: repeated Events are counted, floods are dropped.

Same rules as client-go's event correlator (tools/record/events_cache.go): a repeated Event is a PATCH of its count; a
token bucket per object allows a burst of 25 Events, and one more every five minutes.
"""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from api.errors import HyperletError, NotFound
from api.k8s.objects import Event
from api.k8s.resource import resource_of
from kit import log

if TYPE_CHECKING:
    from kit.kube import Kube

BURST = 25
REFILL_SECONDS = 300.0
REMEMBERED = 4096
SECONDS = 5.0
MESSAGE_LIMIT = 1024
"""Bytes of `message` that the API server accepts."""
GROUP_SECONDS = 600.0
"""Time during which a repetition is counted on the existing Event instead of creating a new one."""

_log = log.logger(component="events")


@dataclass(slots=True)
class _Recorded:
    name: str
    namespace: str
    count: int
    at: float


@dataclass(slots=True)
class _TokenBucket:
    tokens: float
    at: float

    def take(self, now: float) -> bool:
        self.tokens = min(BURST, self.tokens + (now - self.at) / REFILL_SECONDS)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


V = TypeVar("V")


class _Recent(OrderedDict[str, V]):
    """The REMEMBERED most recently used entries."""

    def keep(self, key: str, value: V) -> V:
        self[key] = value
        self.move_to_end(key)
        while len(self) > REMEMBERED:
            self.popitem(last=False)
        return value


class EventRecorder:
    """Writes Events with source `component`, on node `host` if given."""

    def __init__(self, kube: "Kube", component: str, host: str = "") -> None:
        self._kube = kube
        self._component = component
        self._host = host
        self._recorded: _Recent[_Recorded] = _Recent()
        self._buckets: _Recent[_TokenBucket] = _Recent()

    async def record(self, obj: Any, reason: str, message: str, type: str) -> None:
        """Records an Event about `obj` (a Struct with metadata). Errors are logged, not raised."""
        message = message.encode()[:MESSAGE_LIMIT].decode(errors="ignore")
        meta, now = obj.metadata, time.monotonic()
        owner = f"{meta.namespace}/{meta.name}/{meta.uid}"
        bucket = self._buckets.get(owner) or _TokenBucket(BURST, now)
        if not self._buckets.keep(owner, bucket).take(now):
            _log.info("Too many Events about this object: dropped", reason=reason, message=message, **log.about(obj))
            return
        key = f"{owner}/{type}/{reason}/{message}"
        try:
            async with asyncio.timeout(SECONDS):
                await self._write(key, obj, reason, message, type, now)
        except (HyperletError, TimeoutError) as error:
            _log.warning("Cannot record an Event", reason=reason, why=str(error) or "timed out", **log.about(obj))

    async def _write(self, key: str, obj: Any, reason: str, message: str, type: str, now: float) -> None:
        recorded = self._recorded.get(key)
        if recorded is not None and now - recorded.at < GROUP_SECONDS:
            recorded.count, recorded.at = recorded.count + 1, now
            patch = {"count": recorded.count, "lastTimestamp": _stamp()}
            try:
                await self._kube.patch(Event, recorded.namespace, recorded.name, patch)
                return
            except NotFound:
                pass
        event = self._event(obj, reason, message, type)
        name, namespace = event["metadata"]["name"], event["metadata"]["namespace"]
        # Remember it before sending: concurrent tasks with the same Event must not both create it.
        self._recorded.keep(key, _Recorded(name, namespace, 1, now))
        try:
            await self._kube.create(Event, event)
        except BaseException:
            self._recorded.pop(key, None)
            raise

    def _event(self, obj: Any, reason: str, message: str, type: str) -> dict[str, Any]:
        meta = obj.metadata
        place = resource_of(obj.__class__)
        namespace = meta.namespace or "default"
        involved = {
            "apiVersion": place.api_version,
            "kind": place.kind,
            "name": meta.name,
            "uid": meta.uid,
            "namespace": meta.namespace,
            "resourceVersion": meta.resourceVersion,
        }
        stamp = _stamp()
        return {
            "metadata": {"name": f"{meta.name[:230]}.{uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {name: value for name, value in involved.items() if value},
            "reason": reason,
            "message": message,
            "type": type,
            "count": 1,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "source": {"component": self._component} | ({"host": self._host} if self._host else {}),
            "reportingComponent": self._component,
        }


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
