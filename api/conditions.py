"""Status conditions: build, find, merge. lastTransitionTime changes only when the status changes."""

from collections.abc import Iterable, Sequence
from typing import Any

from api import names
from api.k8s.meta import Json

MESSAGE_LIMIT = 1500
"""Maximum length of a condition's message, in characters: texts of webhooks, kubelets and launchers can be long."""


def make(type: str, status: bool, reason: str = "", message: str = "") -> Json:
    """A condition without timestamps."""
    made = {"type": type, "status": names.TRUE if status else names.FALSE}
    return made | ({"reason": reason} if reason else {}) | ({"message": message[:MESSAGE_LIMIT]} if message else {})


def find(conditions: Sequence[Any] | None, type: str) -> Any:
    """The condition of type `type`, or None."""
    return next((condition for condition in conditions or () if condition.type == type), None)


def holds(conditions: Sequence[Any] | None, type: str) -> bool:
    """Whether the condition exists and its status is True."""
    found = find(conditions, type)
    return found is not None and found.status == names.TRUE


def merged(old: Sequence[Any] | None, wanted: Iterable[Json], drop: Iterable[str], now: str) -> list[Json]:
    """The list to write: `old`, with the conditions of `wanted` replacing those of their types, and without `drop`.

    An unchanged condition keeps its timestamps. `now` is the lastTransitionTime of changed ones.
    """
    new = {condition["type"]: condition for condition in wanted}
    gone, result = set(drop), []
    for condition in old or ():
        if condition.type in gone and condition.type not in new:
            continue
        result.append(_renewed(condition, new.pop(condition.type, None), now))
    return result + [{**condition, "lastTransitionTime": now} for condition in new.values()]


def _renewed(old: Any, new: Json | None, now: str) -> Json:
    kept = {
        "type": old.type,
        "status": old.status,
        "reason": old.reason,
        "message": old.message,
        "lastTransitionTime": old.lastTransitionTime,
    }
    if new is not None:
        kept |= {"reason": None, "message": None, **new}
        kept["lastTransitionTime"] = (old.lastTransitionTime or now) if new["status"] == old.status else now
    return {key: value for key, value in kept.items() if value is not None}


def differ(old: Sequence[Any] | None, new: Sequence[Json]) -> bool:
    """Whether the lists differ in anything but timestamps."""
    before = {(c.type, c.status, c.reason or "", c.message or "") for c in old or ()}
    return before != {(c["type"], c["status"], c.get("reason") or "", c.get("message") or "") for c in new}
