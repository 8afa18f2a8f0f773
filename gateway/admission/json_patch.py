"""JSON patches (RFC 6902) for additions."""

from collections.abc import Iterator
from typing import Any

Operation = dict[str, Any]


def additions(old: Any, new: Any, path: str = "") -> Iterator[Operation]:
    """Operations that turn `old` into `new`, both plain JSON. Fields only in `old` are kept."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            here = f"{path}/{pointer(key)}"
            if old.get(key) is None:
                yield {"op": "add", "path": here, "value": value}
            else:
                yield from additions(old[key], value, here)
    elif isinstance(old, list) and isinstance(new, list):
        for index, value in enumerate(new):
            if index < len(old):
                yield from additions(old[index], value, f"{path}/{index}")
            else:
                yield {"op": "add", "path": f"{path}/-", "value": value}
    elif old != new:
        yield {"op": "replace", "path": path, "value": new}


def pointer(key: str) -> str:
    """Escapes a key for a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")
