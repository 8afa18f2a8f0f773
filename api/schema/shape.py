"""The shape of a Struct, derived from its annotations; used by the strict decoder and the CRD generator."""

import difflib
from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from api import names
from api.errors import Fault
from api.k8s.meta import Struct

_NESTED = (dict, list)


class Shape(NamedTuple):
    """One node. `kind` is struct, list, map or leaf; `hint` is the annotation without `None`; `nullable` whether it
    allowed None, so that an explicit null means absent."""

    kind: str
    hint: Any
    metas: tuple[msgspec.Meta, ...]
    fields: "dict[str, Shape]"
    required: frozenset[str]
    item: "Shape | None"
    nullable: bool

    @property
    def words(self) -> str | None:
        """The description of valid values in the annotation, if any."""
        options = map(shape_of, get_args(self.hint)) if _is_union(self.hint) else ()
        for option in (self, *options):
            for meta in option.metas:
                if meta.extra and "words" in meta.extra:
                    return str(meta.extra["words"])
        return None


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _unwrap(hint: Any) -> tuple[Any, tuple[msgspec.Meta, ...], bool]:
    """The hint without Annotated and None, the collected Metas, and whether None was allowed."""
    metas: tuple[msgspec.Meta, ...] = ()
    nullable = False
    while True:
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            metas += tuple(extra for extra in extras if isinstance(extra, msgspec.Meta))
        elif _is_union(hint) and NoneType in get_args(hint):
            rest = [arg for arg in get_args(hint) if arg is not NoneType]
            nullable = True
            hint = rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 - built at run time
        else:
            return hint, metas, nullable


def shape_of(annotation: Any) -> Shape:
    """The shape of an annotation."""
    hint, metas, nullable = _unwrap(annotation)
    if isinstance(hint, type) and issubclass(hint, Struct):
        return struct_shape(hint)._replace(metas=metas, nullable=nullable)
    if get_origin(hint) is list:
        return Shape("list", hint, metas, {}, frozenset(), shape_of(get_args(hint)[0]), nullable)
    if get_origin(hint) is dict:
        return Shape("map", hint, metas, {}, frozenset(), shape_of(get_args(hint)[1]), nullable)
    return Shape("leaf", hint, metas, {}, frozenset(), None, nullable or hint is Any)


@cache
def struct_shape(cls: type[Struct]) -> Shape:
    """The shape of a Struct class."""
    hints = get_type_hints(cls, include_extras=True)
    fields = {name: shape_of(hints[name]) for name in cls.__struct_fields__}
    required = frozenset(field.name for field in msgspec.structs.fields(cls) if field.required)
    return Shape("struct", cls, (), fields, required, None, False)


HINTS = 5
"""Unknown fields per document for which similar names are suggested, which is slow."""
LONGEST_CHOICE = 100
SHOWN = 80
"""Maximum length of a user-supplied key in a path."""


def unknown_fields(shape: Shape, value: Any, path: str = "") -> Iterator[Fault]:
    """A Fault for every unknown field of a document."""
    for count, (owner, key, here) in enumerate(_unknown_keys(shape, value, path)):
        yield _unknown(owner, key, here, hint=count < HINTS)


def _unknown_keys(shape: Shape, value: Any, path: str) -> Iterator[tuple[Shape, str, str]]:
    if shape.kind == "struct" and isinstance(value, dict):
        for key, child in value.items():
            field = shape.fields.get(key)
            if field is None:
                yield shape, str(key), path
            elif field.kind != "leaf":
                yield from _unknown_keys(field, child, f"{path}.{key}" if path else key)
    elif shape.kind == "list" and isinstance(value, list) and shape.item and shape.item.kind != "leaf":
        for index, child in enumerate(value):
            yield from _unknown_keys(shape.item, child, f"{path}[{index}]")
    elif shape.kind == "map" and isinstance(value, dict) and shape.item and shape.item.kind != "leaf":
        for key, child in value.items():
            yield from _unknown_keys(shape.item, child, f"{path}.{key[:SHOWN]}")


def knows(shape: Shape, value: Any) -> bool:
    """Whether there are no unknown fields: a fast check for the common case."""
    if shape.kind == "struct" and value.__class__ is dict:
        fields = shape.fields
        for key, child in value.items():
            field = fields.get(key)
            if field is None or (child.__class__ in _NESTED and field.kind != "leaf" and not knows(field, child)):
                return False
    elif shape.item is not None and shape.item.kind != "leaf":
        item = shape.item
        if shape.kind == "list" and value.__class__ is list:
            return all(knows(item, child) for child in value)
        if shape.kind == "map" and value.__class__ is dict:
            return all(knows(item, child) for child in value.values())
    return True


def _unknown(shape: Shape, key: str, path: str, hint: bool) -> Fault:
    near = difflib.get_close_matches(key, shape.fields, n=1, cutoff=0.75) if hint and len(key) <= SHOWN else []
    words = f"; did you mean {near[0]}?" if near else ""
    key = key[:SHOWN]
    return Fault(f"{path}.{key}" if path else key, names.FAULT_UNKNOWN, f"unknown field {key!r}{words}")


def shape_faults(shape: Shape, value: Any, path: str = "") -> Iterator[Fault]:
    """A Fault for every invalid value, missing required field and unknown field."""
    return _shape_faults(shape, value, path, iter(range(HINTS)))


def _shape_faults(shape: Shape, value: Any, path: str, hints: Iterator[int]) -> Iterator[Fault]:
    if shape.kind == "struct":
        yield from _struct_faults(shape, value, path, hints)
    elif shape.kind == "list" and shape.item:
        if not isinstance(value, list):
            yield _wrong(path, "a list", value)
            return
        for index, child in enumerate(value):
            yield from _shape_faults(shape.item, child, f"{path}[{index}]", hints)
    elif shape.kind == "map" and shape.item:
        if not isinstance(value, dict):
            yield _wrong(path, "a map of keys to values", value)
            return
        for key, child in value.items():
            yield from _shape_faults(shape.item, child, f"{path}.{key[:SHOWN]}", hints)
    else:
        yield from _leaf_faults(shape, value, path)


def salvaged(shape: Shape, value: Any) -> Any:
    """A copy without unknown fields and invalid optional scalars, for validation of the rest.

    Raises ValueError for other faults.
    """
    if shape.kind == "struct" and isinstance(value, dict):
        return {
            key: salvaged(field, child)
            for key, child in value.items()
            if (field := shape.fields.get(key)) and not _hopeless(field, child, optional=key not in shape.required)
        }
    if shape.kind == "list" and isinstance(value, list) and shape.item:
        return [salvaged(shape.item, child) for child in value]
    if shape.kind == "map" and isinstance(value, dict) and shape.item:
        item = shape.item
        return {key: salvaged(item, child) for key, child in value.items() if not _hopeless(item, child, optional=True)}
    if shape.kind != "leaf" or (value is not None and next(_leaf_faults(shape, value, ""), None)):
        raise ValueError("cannot be salvaged")
    return value


def _hopeless(shape: Shape, value: Any, *, optional: bool) -> bool:
    """Whether to drop a field: an explicit null, or an invalid optional scalar."""
    if not optional or shape.kind != "leaf":
        return value is None and shape.nullable
    return value is None or next(_leaf_faults(shape, value, ""), None) is not None


def _struct_faults(shape: Shape, value: Any, path: str, hints: Iterator[int]) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield _wrong(path, "an object", value)
        return
    dot = f"{path}." if path else ""
    for key in sorted(shape.required):
        if value.get(key) is None:
            yield Fault(dot + key, names.FAULT_REQUIRED, "this field is required")
    for key, child in value.items():
        field = shape.fields.get(key)
        if field is None:
            yield _unknown(shape, str(key), path, hint=next(hints, None) is not None)
        elif child is None and not field.nullable and key not in shape.required:
            yield _wrong(dot + key, "a value", child)
        elif child is not None:
            yield from _shape_faults(field, child, dot + key, hints)


def _leaf_faults(shape: Shape, value: Any, path: str) -> Iterator[Fault]:
    hint = Annotated[(shape.hint, *shape.metas)] if shape.metas else shape.hint
    if isinstance(value, str) and get_origin(shape.hint) is Literal:
        value = value[:LONGEST_CHOICE]  # the error message contains the whole value
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        if get_origin(shape.hint) is Literal and isinstance(value, str):
            allowed = ", ".join(map(str, get_args(shape.hint)))
            yield Fault(path, names.FAULT_NOT_SUPPORTED, f"{value[:100]!r} is not one of: {allowed}")
        elif shape.words:
            yield Fault(path, names.FAULT_INVALID, f"{_shown(value)} is not {shape.words}")
        else:
            yield Fault(path, names.FAULT_TYPE, f"{_shown(value)}: {_lower(str(error))}")


def _wrong(path: str, expected: str, value: Any) -> Fault:
    return Fault(path, names.FAULT_TYPE, f"expected {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return repr(value[:100] if isinstance(value, str) else value)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].replace("`", "")
