"""KubeVirt's list of API fields, and its comparison with the Structs."""

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from api.k8s import meta
from api.k8s.meta import Struct
from api.kubevirt import (
    configuration,
    datavolume,
    devices,
    domain,
    kubevirt,
    migration,
    migration_state,
    networks,
    platform,
    vm,
    vmi,
    vmi_status,
    volumes,
)
from api.schema.shape import Shape, struct_shape

MODULES = (
    kubevirt,
    configuration,
    vm,
    vmi,
    vmi_status,
    migration,
    migration_state,
    domain,
    platform,
    devices,
    networks,
    volumes,
)
# Fields for which the Structs intentionally accept more than the list.
NOT_REQUIRED = {("VirtualMachineSpec", "template")}


class Field(NamedTuple):
    """One field of the list."""

    name: str
    type: str
    required: bool


@cache
def kinds() -> dict[tuple[str, str], list[Field]]:
    """(kind, version) to its fields."""
    found = {}
    for line in Path(__file__).with_name("fields.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        head, body = line.split(": ", 1)
        match = re.fullmatch(r"(\w+)(?: \((\w+)\))?", head)
        assert match is not None
        found[match[1], match[2] or "v1"] = [] if body == "object" else [_field(text) for text in body.split("; ")]
    return found


def _field(text: str) -> Field:
    name, type_ = text.split(": ", 1)
    return Field(name.rstrip("*"), type_, name.endswith("*"))


def struct_of(kind: str, version: str = "v1") -> type[Struct]:
    """The Struct of a kind."""
    modules = (datavolume,) if version == "v1beta1" else MODULES
    for module in modules:
        cls = vars(module).get(kind)
        if cls is not None:
            return cls
    raise AssertionError(f"{kind} ({version}) has no Struct")


def type_name(shape: Shape) -> str:
    """The type of a Struct's field, as named in the list."""
    if shape.kind == "list" and shape.item:
        return f"[{type_name(shape.item)}]"
    if shape.kind == "map" and shape.item:
        return "map" if shape.item.hint is str else f"map[{type_name(shape.item)}]"
    if shape.kind == "struct":
        return shape.hint.__name__
    return _leaf_name(shape.hint)


def _leaf_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        assert all(isinstance(value, str) for value in get_args(hint))
        return "string"
    if hint == meta.Quantity:
        return "Quantity"
    return {str: "string", bool: "boolean", int: "integer", float: "number"}[hint]


def listed_name(type_: str) -> str:
    """The type of a listed field, without integer widths, enumerations and string formats."""
    if type_.startswith("["):
        return f"[{listed_name(type_[1:-1])}]"
    if type_.startswith("map["):
        inner = listed_name(type_[4:-1])
        return "map" if inner == "string" else f"map[{inner}]"
    plain = re.sub(r"\(.*\)| \{.*\}|\|null", "", type_)
    return "string" if plain in ("Time", "Duration") else plain


def shape_fields(kind: str, version: str) -> dict[str, Shape]:
    """The fields of a kind's Struct."""
    return struct_shape(struct_of(kind, version)).fields
