"""Adversarial admission reviews of up to 3 MB, the largest request that the API server accepts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from api.k8s.meta import Json
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from api.schema.shape import Shape, struct_shape

SIZE = 3 << 20
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
STRINGS = {
    "digits": "1" * 440_000 + "x",
    "letters": "a" * 440_000 + "!",
    "hyphens": "a-" * 220_000,
    "slashes": "/a" * 220_000 + "!",
    "dots": "a." * 220_000,
    "quotes": "é\n" * 220_000,
}
"""Strings of maximum length on which a bad regular expression takes quadratic time or worse."""


def bodies(vm: Callable[[], Json]) -> Iterator[tuple[str, Json]]:
    """Titles and objects. `vm` creates a valid VM."""
    yield "unknown fields in last-applied", _annotated(vm(), {f"unknown{n}": 1 for n in range(40_000)})
    yield "unknown fields below spec, in last-applied", _annotated(vm(), {"spec": _many("x", 20_000)})
    yield (
        "unknown fields in last-applied, at its limit",
        _annotated(vm(), {"spec": {f"mem{n}": 1 for n in range(15_000)}}),
    )
    yield "an annotation of 3 MB", _annotated(vm(), {"a": "x" * SIZE})
    yield "unknown fields", {**vm(), "spec": {**vm()["spec"], **_many("fooo", 150_000)}}
    for field in ("disks", "interfaces", "inputs"):
        yield (
            f"{field} without end",
            _with(vm(), ("domain", "devices", field), [{"name": f"n{n}"} for n in range(100_000)]),
        )
        yield f"512 {field}", _with(vm(), ("domain", "devices", field), [{"name": "n", "oops": {}} for n in range(512)])
    for field in ("volumes", "networks", "tolerations"):
        yield f"{field} without end", _with(vm(), (field,), [{"name": f"n{n}"} for n in range(100_000)])
        yield f"512 {field}", _with(vm(), (field,), [{"name": "n", "emptyDisk": {"capacity": "x"}} for _ in range(512)])
    yield "labels without end", {**vm(), "metadata": {"name": "a", "labels": _many("a/b", 100_000)}}
    yield "512 bad labels of the template", _template(vm(), "labels", {f"&{n}": "§" * 2000 for n in range(512)})
    yield "512 long keys", {**vm(), "spec": {**vm()["spec"], **{f"{n}{'k' * 3000}": 1 for n in range(512)}}}
    yield "512 node selectors", _with(vm(), ("nodeSelector",), {f"&{n}": "§" * 2000 for n in range(512)})
    yield "lists of nothing", _with(vm(), ("affinity",), [[]] * 900_000)
    yield "nested lists", _with(vm(), ("affinity",), json.loads("[" * 900 + "]" * 900))
    yield "512 bad terms of an affinity", _with(vm(), ("affinity",), {"nodeAffinity": _terms(512)})
    yield "512 objects where texts belong", _with(vm(), ("domain", "cpu"), {"features": [{"name": {}}] * 512})
    yield "a status without end", {**vm(), "status": {"conditions": [{"type": "x"}] * 45_000}}
    yield (
        "cloud-init of 3 MB",
        _with(vm(), ("volumes",), [{"name": "a", "cloudInitNoCloud": {"userData": "é,\n" * (SIZE // 4)}}]),
    )
    for keys, shape in _leaves(struct_shape(VirtualMachineInstanceSpec)):
        for title, text in STRINGS.items():
            yield f"{title}: {'.'.join(map(str, keys))}", _with(vm(), keys, text, shape)


def _many(name: str, count: int) -> Json:
    return {f"{name}{n}": "v" for n in range(count)}


def _terms(count: int) -> Json:
    expressions = [{"key": "&", "operator": "Inn", "values": ["§"] * 5} for _ in range(count)]
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    }


def _annotated(vm: Json, applied: Json) -> Json:
    vm["metadata"]["annotations"] = {APPLIED: json.dumps({**applied, "kind": vm["kind"]})}
    return vm


def _template(vm: Json, field: str, value: Any) -> Json:
    vm["spec"]["template"]["metadata"] = {field: value}
    return vm


def _with(vm: Json, keys: tuple[Any, ...], value: Any, _shape: Shape | None = None) -> Json:
    """The VM with `value` at a path below the template's spec; missing lists and objects are created."""
    node: Any = vm["spec"]["template"]["spec"]
    for at, key in enumerate(keys[:-1]):
        empty: Any = [] if isinstance(keys[at + 1], int) else {}
        if isinstance(key, int):
            if not node:
                node.append(empty)
            node = node[0]
        else:
            if node.get(key).__class__ is not empty.__class__:
                node[key] = empty
            node = node[key]
    if isinstance(keys[-1], int):
        node[:1] = [value]
    else:
        node[keys[-1]] = value
    return vm


def _leaves(shape: Shape, keys: tuple[Any, ...] = (), depth: int = 0) -> Iterator[tuple[tuple[Any, ...], Shape]]:
    """The paths of all scalar fields of a spec."""
    if depth > 9:
        return
    if shape.kind == "struct":
        for name, field in shape.fields.items():
            yield from _leaves(field, (*keys, name), depth + 1)
    elif shape.item is not None:
        yield from _leaves(shape.item, (*keys, 0 if shape.kind == "list" else "key"), depth + 1)
    else:
        yield keys, shape
