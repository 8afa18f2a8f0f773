"""Patches as the API server applies them."""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]


class PatchFailed(Exception):
    """A JSON patch whose test fails, or whose path does not exist."""


def merge(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic(target: Json, patch: Json) -> Json:
    """A merge in which conditions are merged by type, and container statuses by name."""
    result: Json = merge(target, patch)
    for field, by in (("conditions", "type"), ("containerStatuses", "name")):
        if field in patch.get("status", {}):
            entries = {entry[by]: entry for entry in target.get("status", {}).get(field, [])}
            for entry in patch["status"][field]:
                entries[entry[by]] = {**entries.get(entry[by], {}), **entry}
            result["status"][field] = list(entries.values())
    return result


def json_patched(target: Json, operations: list[Json]) -> Json:
    """A JSON patch (RFC 6902) without move and copy. Raises PatchFailed."""
    new = copy.deepcopy(target)
    for operation in operations:
        try:
            _apply(new, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise PatchFailed(f"{operation['op']} {operation['path']}: {error!r}") from error
    return new


def _apply(document: Json, operation: Json) -> None:
    *parents, last = [step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]]
    node: Any = document
    for step in parents:
        node = node[int(step)] if isinstance(node, list) else node[step]
    at: Any = int(last) if isinstance(node, list) and last != "-" else last
    match operation["op"]:
        case "test":
            if node[at] != operation["value"]:
                raise PatchFailed(f"the test of {operation['path']} failed")
        case "remove":
            del node[at]
        case "add" if isinstance(node, list):
            node.insert(len(node) if last == "-" else at, operation["value"])
        case "add":
            node[at] = operation["value"]
        case "replace":
            node[at]  # RFC 6902: the target of a replacement must exist.
            node[at] = operation["value"]
        case other:
            raise PatchFailed(f"unknown operation {other}")
