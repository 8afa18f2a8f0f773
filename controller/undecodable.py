"""Objects in the API server that cannot be decoded: reported by condition and Event, otherwise not reconciled."""

from collections.abc import Callable
from typing import Any

import msgspec

from api import conditions
from api.errors import HyperletError, InvalidObject
from api.k8s.meta import ObjectMeta, format_time
from api.k8s.resource import resource_of
from controller.actions import ActionExecutor, Patch, RecordEvent
from kit import log
from kit.cache import Key, Store
from kit.kube import UNDECODABLE, Undecodable

REASON = "InvalidSpec"
_REMEMBERED = 1000
"""Maximum number of remembered reports. An evicted object is reported again when it changes."""

_log = log.logger(component="undecodable")


class UndecodableObjects:
    """Collects the objects that a store could not decode, and reports each fault once."""

    def __init__(
        self,
        store: Store[Any],
        kind: type[Any],
        condition: tuple[str, bool],
        subresource: str | None,
        add: Callable[[Key], None],
    ) -> None:
        """`add(key)` queues an undecodable object; its reconciler then calls `record_fault`.

        `condition` is the type and status of the condition to write, `subresource` where status is written.
        """
        self._kind, self._condition, self._subresource = kind, condition, subresource
        self._waiting: dict[Key, Undecodable] = {}
        self._reported: dict[str, str] = {}
        self._add = add
        store.on_undecodable(self._found)

    def _found(self, item: Undecodable) -> None:
        key = (str(item.metadata.get("namespace", "")), str(item.metadata.get("name", "")))
        self._waiting[key] = item
        self._add(key)

    async def record_fault(self, key: Key, executor: ActionExecutor, now: Any) -> None:
        """Writes the fault as a condition and an Event, unless it has been reported before."""
        item = self._waiting.pop(key, None)
        if item is None or self._reported.get(uid := str(item.metadata.get("uid"))) == item.message:
            return
        self._reported[uid] = item.message
        if len(self._reported) > _REMEMBERED:
            del self._reported[next(iter(self._reported))]
        type, status = self._condition
        made = conditions.make(type, status, REASON, item.message)
        whole = {"status": {"conditions": [{**made, "lastTransitionTime": format_time(now)}]}}
        try:
            await executor.execute(Patch(self._kind, *key, whole, self._subresource))
        except InvalidObject as error:
            # UNDECODABLE: the patch was applied, and the returned object cannot be decoded either.
            if any(fault.reason != UNDECODABLE for fault in error.faults):
                _log.warning("Cannot write the condition of an undecodable object", why=error.message, name=key[1])
        except HyperletError as error:
            _log.warning("Cannot write the condition of an undecodable object", why=error.message, name=key[1])
        await executor.execute(RecordEvent(_stub(self._kind, item), REASON, item.message, "Warning"))


def _stub(kind: type[Any], item: Undecodable) -> Any:
    """A placeholder with the object's metadata, as involvedObject of an Event."""
    known = {field: item.metadata.get(field) for field in ("name", "namespace", "uid", "resourceVersion")}
    meta = msgspec.convert({key: value for key, value in known.items() if value}, ObjectMeta)
    resource = resource_of(kind)
    return kind(apiVersion=resource.api_version, kind=resource.kind, metadata=meta, spec=None)
