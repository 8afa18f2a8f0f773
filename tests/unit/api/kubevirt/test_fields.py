"""The Structs contain every field of the KubeVirt API, and documents round-trip."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.schema.codec import decode, decode_strict, encode, to_dict
from api.schema.shape import struct_shape
from tests.unit.api.documents import ROOTS, documents, full
from tests.unit.api.kubevirt.fieldlist import NOT_REQUIRED, kinds, listed_name, struct_of, type_name

KINDS = sorted(kinds())


@pytest.mark.parametrize(("kind", "version"), KINDS)
def test_every_listed_field_has_the_listed_type(kind: str, version: str) -> None:
    shape = struct_shape(struct_of(kind, version))
    for field in kinds()[kind, version]:
        assert field.name in shape.fields, f"{kind}.{field.name} is not declared"
        assert type_name(shape.fields[field.name]) == listed_name(field.type), f"{kind}.{field.name}"
        if kind not in ROOTS:
            required = field.required and (kind, field.name) not in NOT_REQUIRED
            assert (field.name in shape.required) == required, f"{kind}.{field.name}"


@pytest.mark.parametrize(("kind", "version"), KINDS)
def test_no_struct_field_is_missing_from_the_list(kind: str, version: str) -> None:
    listed = {field.name for field in kinds()[kind, version]}
    assert set(struct_shape(struct_of(kind, version)).fields) - listed <= {"apiVersion", "kind"}


@pytest.mark.parametrize("kind", ROOTS)
def test_document_with_every_field_round_trips(kind: str) -> None:
    document = full(kind)
    decoded = decode_strict(struct_of(kind), document)
    assert to_dict(decoded) == document
    assert msgspec.json.decode(encode(decoded)) == document


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(*(documents(kind) for kind in ROOTS)))
def test_any_valid_document_round_trips(document: dict[str, Any]) -> None:
    cls = struct_of(document["kind"])
    assert to_dict(decode_strict(cls, document)) == document
    assert msgspec.json.decode(encode(decode(cls, msgspec.json.encode(document)))) == document


def test_null_decodes_as_absent() -> None:
    document = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "a", "creationTimestamp": None},
        "spec": {"template": {"spec": None}},
    }
    vm = decode_strict(struct_of("VirtualMachine"), document)
    assert to_dict(vm)["metadata"] == {"name": "a"}
