"""Validation of manifests: unknown fields, wrong types, unsupported fields and inconsistencies together."""

from itertools import islice
from typing import Any

from api import names
from api.errors import MAX_FAULTS, Fault, InvalidObject
from api.k8s.meta import Struct
from api.kinds.catalog import CATALOG, Catalog
from api.kinds.kind import Kind
from api.kubevirt.configuration import KubeVirtConfiguration
from api.schema.codec import decode
from api.schema.shape import knows, salvaged, shape_faults, struct_shape, unknown_fields


def validate_document(
    document: dict[str, Any], config: KubeVirtConfiguration | None = None, catalog: Catalog = CATALOG
) -> list[Fault]:
    """All faults of the manifest of a validated kind, such as a VirtualMachine.

    `config` is the installation's, which may restrict values.
    """
    kind = _kind_of(document, catalog)
    if kind is None:
        known = ", ".join(each.name for each in catalog.admitted())
        return [Fault("kind", names.FAULT_NOT_SUPPORTED, f"{str(document.get('kind'))[:63]!r} is not one of {known}")]
    return kind_faults(kind, document, config)


def _kind_of(document: dict[str, Any], catalog: Catalog) -> Kind | None:
    """The kind of a manifest. With an unknown group in `apiVersion`, which is a fault then, the first of that name."""
    named = [kind for kind in catalog.admitted() if kind.name == document.get("kind")]
    group = str(document.get("apiVersion")).rpartition("/")[0]
    return next((kind for kind in named if kind.group == group), named[0] if named else None)


def kind_faults(kind: Kind, document: dict[str, Any], config: KubeVirtConfiguration | None = None) -> list[Fault]:
    """All faults of a document of a validated kind."""
    cls = kind.struct
    try:
        more = _decoded_faults(kind, decode(cls, document), config)
        # The document decodes, so types and values are valid; only unknown fields remain.
        shape = struct_shape(cls)
        faults = [] if knows(shape, document) else list(islice(unknown_fields(shape, document), MAX_FAULTS))
    except InvalidObject as error:
        faults = list(islice(shape_faults(struct_shape(cls), document), MAX_FAULTS)) or error.faults
        more = _remaining_faults(kind, document, config) if len(faults) < MAX_FAULTS else []
    known = {fault.path for fault in faults}
    return (faults + [fault for fault in more if fault.path not in known])[:MAX_FAULTS]


def _remaining_faults(kind: Kind, document: dict[str, Any], config: KubeVirtConfiguration | None) -> list[Fault]:
    """Further faults of a document that does not decode, best effort.

    Missing fields are not reported: they may have been dropped here.
    """
    try:
        rest = decode(kind.struct, salvaged(struct_shape(kind.struct), document))
    except (InvalidObject, ValueError):
        return list(kind.supported.faults(document.get("spec"))) if kind.supported else []
    return [fault for fault in _decoded_faults(kind, rest, config) if fault.reason != names.FAULT_REQUIRED]


def _decoded_faults(kind: Kind, value: Struct, config: KubeVirtConfiguration | None) -> list[Fault]:
    return kind.validate(value, config) if kind.validate is not None else []
