"""Semantic comparison of VM specs: order, explicit defaults and equivalent spellings are no difference. Pure.

Used on specs with defaults applied. Paths of differences are for messages: entries of named lists are identified by
name, such as `disks[root].bootOrder`.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from api.k8s.meta import parse_quantity

_QUANTITIES = frozenset({"guest", "memory", "cpu", "capacity"})
_ON_BY_DEFAULT = frozenset(
    {
        "autoattachGraphicsDevice",
        "autoattachMemBalloon",
        "autoattachPodInterface",
        "autoattachSerialConsole",
        "enabled",
        "present",
    }
)
"""Booleans whose default is true; all others default to false."""
_NOTHING_IN_IT = frozenset(
    {
        "affinity",
        "chassis",
        "clock",
        "cpu",
        "dhcpOptions",
        "dnsConfig",
        "features",
        "firmware",
        "limits",
        "machine",
        "memory",
        "nodeSelector",
        "requests",
        "resources",
    }
)
"""Objects that are equivalent to absent when empty. Others are not: `masquerade: {}`."""


def differences(one: Any, other: Any, key: str = "") -> list[str]:
    """Paths of the differences between two Structs or plain values, each empty or beginning with `.` or `[`.

    `key` is the name of the field that contains them. An empty list: they are equivalent.
    """
    return list(dict.fromkeys(_walk(msgspec.to_builtins(one), msgspec.to_builtins(other), "", key)))


def _walk(one: Any, other: Any, path: str, key: str) -> Iterator[str]:
    if key in _NOTHING_IN_IT:
        one, other = one or {}, other or {}
    if one == other or _same(one, other, key):
        return
    if isinstance(one, dict) and isinstance(other, dict) and key != "nodeSelector":
        for name in sorted({*one, *other}):
            yield from _walk(one.get(name), other.get(name), f"{path}.{name}", name)
    elif isinstance(one, list) and isinstance(other, list) and _are_named([*one, *other]):
        mine, theirs = ({entry["name"]: entry for entry in entries} for entries in (one, other))
        for name in dict.fromkeys([*mine, *theirs]):
            yield from _walk(mine.get(name), theirs.get(name), f"{path}[{name}]", "")
    else:
        yield path


def _are_named(entries: list[Any]) -> bool:
    return all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in entries)


def _same(one: Any, other: Any, key: str) -> bool:
    """Whether two unequal values of field `key` are equivalent."""
    if isinstance(one, bool | None) and isinstance(other, bool | None):
        default = key in _ON_BY_DEFAULT
        return bool((default if one is None else one) == (default if other is None else other))
    if one is None or other is None:
        return bool(one == [] or other == [])
    if key == "macAddress":
        return str(one).lower().replace("-", ":") == str(other).lower().replace("-", ":")
    if key in _QUANTITIES and isinstance(one, str | int | float) and isinstance(other, str | int | float):
        return bool(_number(one) == _number(other))
    if isinstance(one, list) and isinstance(other, list) and all(isinstance(each, dict) for each in [*one, *other]):
        # Unnamed lists such as tolerations: order does not matter.
        return not _are_named([*one, *other]) and sorted(map(_text, one)) == sorted(map(_text, other))
    return False


def _number(value: str | int | float) -> Any:
    try:
        return parse_quantity(value)
    except ValueError:
        return value


def _text(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")
