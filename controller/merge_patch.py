"""JSON merge patches (RFC 7386). Pure."""

from typing import Any


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The merge patch that turns `old` into `new`; empty if they are equal. A changed list is replaced as a whole."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if changed := difference(before, value):
                patch[key] = changed
        elif key not in old or before != value:
            patch[key] = value
    return patch
