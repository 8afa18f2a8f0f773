"""Valid documents generated from the field list: one with every field, and random ones."""

from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st

from api.k8s.meta import Struct
from api.schema.shape import Shape, struct_shape
from tests.unit.api.kubevirt.fieldlist import Field, kinds, struct_of

ROOTS = ("VirtualMachine", "VirtualMachineInstance", "VirtualMachineInstanceMigration", "KubeVirt")
QUANTITIES = ("128Mi", "1.5Gi", "100m", "1e3", 0, 7, "1GB")
DURATIONS = ("0", "90s", "1h30m", "1.5h")
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


def full(kind: str, version: str = "v1") -> dict[str, Any]:
    """A document with every field of the list set, at every depth."""
    shape = struct_shape(struct_of(kind, version))
    document: dict[str, Any] = {} if kind not in ROOTS else {"apiVersion": "kubevirt.io/v1", "kind": kind}
    for field in kinds()[kind, version]:
        document[field.name] = _example(field.type, shape.fields[field.name])
    for name in shape.required - document.keys():
        document[name] = _example("string", shape.fields[name])
    return document


def _example(type_: str, shape: Shape) -> Any:
    if shape.kind == "list" and shape.item:
        return [_example(type_[1:-1], shape.item)]
    if shape.kind == "map" and shape.item:
        return {"a/b": _example(type_[4:-1], shape.item)}
    if shape.kind == "struct":
        cls: type[Struct] = shape.hint
        version = "v1beta1" if cls.__module__ == "api.kubevirt.datavolume" else "v1"
        if (cls.__name__, version) in kinds():
            return full(cls.__name__, version)
        return {name: _example("", field) for name, field in shape.fields.items()}
    return _scalar(type_, shape)


def _scalar(type_: str, shape: Shape) -> Any:
    if get_origin(shape.hint) is Literal:
        return get_args(shape.hint)[0]
    if shape.words:
        return "90s" if "duration" in shape.words else "1.5Gi"
    if any((meta.extra_json_schema or {}).get("format") == "date-time" for meta in shape.metas):
        return "2026-08-01T12:00:00Z"
    limits = [meta.ge for meta in shape.metas if meta.ge is not None]
    least = max([0, *limits])
    examples: dict[Any, Any] = {str: "some text", bool: False, int: least, float: 0.5, str | int: 8080, Any: {"any": 1}}
    return examples[shape.hint]


def documents(kind: str, version: str = "v1") -> st.SearchStrategy[dict[str, Any]]:
    """Random valid documents of a kind, with up to four optional fields at every depth."""
    return st.deferred(lambda: _documents(kind, version))


@st.composite
def _documents(draw: st.DrawFn, kind: str, version: str) -> dict[str, Any]:
    cls = struct_of(kind, version)
    fields = kinds()[kind, version]
    chosen = draw(st.sets(st.sampled_from([field.name for field in fields]), max_size=4)) if fields else set()
    document = _head(kind, cls)
    for field in fields:
        if field.required or field.name in chosen:
            document[field.name] = draw(_values(field, cls))
    return document


def _head(kind: str, cls: type[Struct]) -> dict[str, Any]:
    shape = struct_shape(cls)
    head = {name: _scalar("string", shape.fields[name]) for name in ("kind",) if name in shape.required}
    return {"apiVersion": "kubevirt.io/v1alpha3", "kind": kind, "metadata": {}} if kind in ROOTS else head


def _values(field: Field, cls: type[Struct]) -> st.SearchStrategy[Any]:
    return _of_shape(struct_shape(cls).fields[field.name])


def _of_shape(shape: Shape) -> st.SearchStrategy[Any]:
    if shape.kind == "list" and shape.item:
        return st.lists(_of_shape(shape.item), max_size=2)
    if shape.kind == "map" and shape.item:
        return st.dictionaries(TEXT, _of_shape(shape.item), max_size=2)
    if shape.kind == "struct":
        return _of_struct(shape.hint)
    if get_origin(shape.hint) is Literal:
        return st.sampled_from(get_args(shape.hint))
    if shape.words:
        return st.sampled_from(DURATIONS if "duration" in shape.words else QUANTITIES)
    least = max([meta.ge for meta in shape.metas if meta.ge is not None], default=-(2**63))
    most = min([meta.le for meta in shape.metas if meta.le is not None], default=2**63 - 1)
    scalars: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXT,
        bool: st.booleans(),
        int: st.integers(least, most),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str | int: st.one_of(TEXT, st.integers(1, 65535)),
        Any: st.dictionaries(TEXT, st.integers(), max_size=2),
    }
    return scalars[shape.hint]


def _of_struct(cls: type[Struct]) -> st.SearchStrategy[Any]:
    version = "v1beta1" if cls.__module__ == "api.kubevirt.datavolume" else "v1"
    if (cls.__name__, version) in kinds():
        return documents(cls.__name__, version)
    shape = struct_shape(cls)
    return st.fixed_dictionaries(
        {name: _of_shape(shape.fields[name]) for name in sorted(shape.required)},
        optional={
            name: st.deferred(lambda field=field: _of_shape(field))
            for name, field in list(shape.fields.items())[:6]
            if name not in shape.required
        },
    )
