"""CustomResourceDefinitions, generated from the Structs: `python -m api.schema.crd` writes them.

The schemas are structural (apiextensions.k8s.io/v1): every object typed, no `$ref`, no defaults. The descriptions are
the docstrings below the fields in the source, which only this module reads. All served versions have the same schema,
the older ones without descriptions: `kubectl apply` stores the whole definition in an annotation, limited to 256 KiB.
"""

import ast
import inspect
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from api.k8s.meta import ObjectMeta, Struct
from api.kinds.catalog import CATALOG
from api.kinds.kind import Kind
from api.schema.shape import Shape, shape_of, struct_shape

Schema = dict[str, Any]
_SCALARS: dict[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
# Bounds already implied by `format`.
_NATURAL = {-(2**31), 2**31 - 1, -(2**63), 2**63 - 1}


def definition(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.resource.namespaced else "Cluster",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.singular or kind.name.lower(),
                "shortNames": list(kind.short_names),
                **({"categories": list(kind.categories)} if kind.categories else {}),
            },
            "versions": [
                _version(kind, version, storage=not place, described=not place)
                for place, version in enumerate(kind.versions)
            ],
        },
    }


def _version(kind: Kind, version: str, *, storage: bool, described: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": version,
        "served": True,
        "storage": storage,
    }
    if kind.columns:
        entry["additionalPrinterColumns"] = [
            {
                "name": column.name,
                "type": column.type,
                "jsonPath": column.path,
                **({"priority": column.priority} if column.priority else {}),
            }
            for column in kind.columns
        ]
    entry["schema"] = {"openAPIV3Schema": root_schema(kind, described=described)}
    if subresources := _subresources(kind):
        entry["subresources"] = subresources
    return entry


def _subresources(kind: Kind) -> dict[str, Any]:
    found: dict[str, Any] = {"status": {}} if kind.has_status else {}
    if kind.scale is not None:
        found["scale"] = {
            "specReplicasPath": kind.scale.replicas,
            "statusReplicasPath": kind.scale.status_replicas,
            "labelSelectorPath": kind.scale.selector,
        }
    return found


NOT_SUPPORTED = "Not supported by this version of hyperlet: refused when it is set. "
"""Prefix of the description of an unsupported field, for `kubectl explain`."""


def root_schema(kind: Kind, *, described: bool = True) -> Schema:
    """The root schema of a kind. The API server has its own schema for apiVersion, kind and metadata."""
    schema = struct_schema(kind.struct, described=described)
    if described and kind.supported is not None:
        _mark(schema["properties"]["spec"], "", kind.supported.refuses)
    for field in ("apiVersion", "kind"):
        schema["properties"][field] = {"type": "string"}
    schema["properties"]["metadata"] = {"type": "object"}
    schema.pop("required", None)
    if kind.required:
        schema["required"] = list(kind.required)
    return schema


def _mark(schema: Schema, path: str, refused: Callable[[str], bool]) -> None:
    """Marks refused fields in their descriptions, topmost only."""
    for name, child in schema.get("items", schema).get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        if refused(here):
            child["description"] = NOT_SUPPORTED + child.get("description", "")
        else:
            _mark(child, here, refused)


def struct_schema(cls: type[Struct], *, described: bool = True) -> Schema:
    """The schema of a Struct."""
    shape = struct_shape(cls)
    schema: Schema = {"type": "object"}
    if described and cls.__doc__:
        schema["description"] = _flat(cls.__doc__)
    if shape.fields:
        docs = field_docs(cls) if described else {}
        schema["properties"] = {
            name: _described(shape_schema(field, described=described), docs.get(name))
            for name, field in sorted(shape.fields.items())
        }
    if shape.required:
        schema["required"] = sorted(shape.required)
    return schema


def shape_schema(shape: Shape, *, described: bool = True) -> Schema:
    """The schema of any node of a Struct."""
    if shape.kind == "struct":
        schema = struct_schema(shape.hint, described=described and shape.hint is not ObjectMeta)
    elif shape.item is not None:
        item = shape_schema(shape.item, described=described)
        schema = (
            {"type": "array", "items": item}
            if shape.kind == "list"
            else {"type": "object", "additionalProperties": item}
        )
    else:
        schema = _leaf(shape)
    for meta in shape.metas:
        schema |= _constraints(meta)
    return schema


def _leaf(shape: Shape) -> Schema:
    if get_origin(shape.hint) is Literal:
        return {"type": "string", "enum": list(get_args(shape.hint))}
    if shape.hint is Any:
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if shape.hint in _SCALARS:
        return {"type": _SCALARS[shape.hint]}
    # The remaining case is str | int: a quantity or a port.
    schema: Schema = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    for option in map(shape_of, get_args(shape.hint)):
        for meta in option.metas:
            schema |= _constraints(meta)
    return schema


def _constraints(meta: Any) -> Schema:
    schema: Schema = dict(meta.extra_json_schema or {})
    if meta.ge is not None and meta.ge not in _NATURAL:
        schema["minimum"] = meta.ge
    if meta.le is not None and meta.le not in _NATURAL:
        schema["maximum"] = meta.le
    if meta.pattern is not None:
        schema["pattern"] = meta.pattern
    return schema


def _described(schema: Schema, doc: str | None) -> Schema:
    return schema | {"description": doc} if doc else schema


def _flat(doc: str) -> str:
    return " ".join(doc.split())


@cache
def _module_docs(module: str) -> dict[str, dict[str, str]]:
    """Field docstrings of every class in a module."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            fields = found.setdefault(node.name, {})
            for field, doc in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(doc, ast.Expr)
                    and isinstance(doc.value, ast.Constant)
                ):
                    fields[field.target.id] = _flat(str(doc.value.value))
    return found


def field_docs(cls: type[Struct]) -> dict[str, str]:
    """Docstrings of a Struct's fields, including inherited ones."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("api."):
            docs |= _module_docs(base.__module__).get(base.__name__, {})
    return docs


def to_yaml(value: Any, indent: int = 0) -> str:
    """Plain data as YAML, in the given order; ambiguous strings are quoted."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        return "".join(f"{pad}{_scalar(key)}:{_below(child, indent)}" for key, child in value.items())
    if isinstance(value, list) and value:
        lines = []
        for child in value:
            text = to_yaml(child, indent + 1)
            nested = isinstance(child, (dict, list)) and child
            lines.append(f"{pad}- {text.lstrip(' ') if nested else text + chr(10)}")
        return "".join(lines)
    return _scalar(value)


def _below(child: Any, indent: int) -> str:
    if isinstance(child, (dict, list)) and child:
        return "\n" + to_yaml(child, indent + 1)
    return f" {_scalar(child)}\n"


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and value.replace("-", "a").replace("_", "a").replace(".", "a").isalnum()
    if plain and value[0].isalpha() and value.isascii() and value.lower() not in _YAML_WORDS:
        return str(value)
    return json.dumps(value, ensure_ascii=False)


_YAML_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def main(folder: str = "manifests/crds") -> None:
    """Writes one CRD manifest per kind to `folder`."""
    for kind in CATALOG:
        path = Path(folder) / f"{kind.plural}.yaml"
        path.write_text(manifest(kind))


def manifest(kind: Kind) -> str:
    """The CRD manifest of a kind."""
    return "# Generated from the Structs in api/ by `make manifests`.\n" + to_yaml(definition(kind))


if __name__ == "__main__":
    main(*sys.argv[1:])
