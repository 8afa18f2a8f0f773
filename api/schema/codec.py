"""Encoding and decoding of Structs as JSON.

`decode` is for stored objects: unknown fields, possibly from another version, are skipped.
`decode_strict` is for manifests: every unknown field and invalid value is reported with its path.
"""

from functools import cache
from itertools import islice
from typing import Any, TypeVar

import msgspec

from api import names
from api.errors import MAX_FAULTS, Fault, InvalidObject
from api.k8s.meta import Struct
from api.schema.shape import shape_faults, struct_shape, unknown_fields

T = TypeVar("T", bound=Struct)
Document = bytes | str | dict[str, Any]

_encoder = msgspec.json.Encoder()


@cache
def _decoder(cls: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(cls)


def decode(cls: type[T], document: Document) -> T:
    """Decodes JSON or a decoded document; unknown fields are skipped.

    Raises InvalidObject with all faults.
    """
    try:
        if isinstance(document, dict):
            return msgspec.convert(document, cls)
        decoded: T = _decoder(cls).decode(document)
        return decoded
    except msgspec.ValidationError as error:
        raise InvalidObject(_all_faults(cls, load(document), error, strict=False)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidObject([Fault("", names.FAULT_TYPE, f"not JSON: {error}")]) from error


def decode_strict(cls: type[T], document: Document) -> T:
    """Like `decode`, but an unknown field is a fault. Raises InvalidObject with all faults."""
    raw = load(document)
    try:
        decoded = msgspec.convert(raw, cls)
    except msgspec.ValidationError as error:
        raise InvalidObject(_all_faults(cls, raw, error, strict=True)) from error
    faults = list(islice(unknown_fields(struct_shape(cls), raw), MAX_FAULTS))
    if faults:
        raise InvalidObject(faults)
    return decoded


def load(document: Document) -> dict[str, Any]:
    """Decodes JSON to plain data. Raises InvalidObject if it is not a JSON object."""
    if isinstance(document, dict):
        return document
    try:
        raw = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidObject([Fault("", names.FAULT_TYPE, f"not JSON: {error}")]) from error
    if not isinstance(raw, dict):
        raise InvalidObject([Fault("", names.FAULT_TYPE, "expected a JSON object")])
    return raw


def _all_faults(cls: type[Struct], raw: dict[str, Any], error: Exception, *, strict: bool) -> list[Fault]:
    found = shape_faults(struct_shape(cls), raw)
    wanted = (fault for fault in found if strict or fault.reason != names.FAULT_UNKNOWN)
    return list(islice(wanted, MAX_FAULTS)) or [Fault("", names.FAULT_TYPE, str(error))]


def encode(value: Struct | dict[str, Any]) -> bytes:
    """Encodes as compact JSON, without absent fields."""
    return _encoder.encode(value)


def to_dict(value: Struct) -> dict[str, Any]:
    """Converts to new dicts and lists, without absent fields."""
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain
