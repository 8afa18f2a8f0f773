"""What every object has: metadata, conditions, and the scalar formats of the Kubernetes API.

Sources: the Kubernetes API conventions (metadata, conditions), the `resource.Quantity` format
(https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/), Go's duration format, RFC 3339.

A field that is absent is None here; an explicit `null` is read as absent, which is what it means to the API server.
Defaults never stand in a Struct: `api.defaults` fills them in, so that what a person wrote is never lost or invented.
"""

import re
from datetime import UTC, datetime
from fractions import Fraction
from typing import Annotated, Any, dataclass_transform

import msgspec
from msgspec import Meta

# The suffixes of resource.Quantity. `2GB`, which Kubernetes itself refuses, is read as `2G`: manifests carry it.
QUANTITY_PATTERN = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[kKMGTPE]i?B|[eE][+-]?[0-9]{1,3})?$"
DURATION_PATTERN = r"^[+-]?(0|([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+)$"

# Longer is none that Kubernetes writes, and matching these patterns takes the square of the length.
MAX_NUMBER = 64
Quantity = (
    Annotated[
        str,
        Meta(max_length=MAX_NUMBER, pattern=QUANTITY_PATTERN, extra={"words": "a quantity such as 2Gi, 500M or 100m"}),
    ]
    | int
)
Duration = Annotated[
    str, Meta(max_length=MAX_NUMBER, pattern=DURATION_PATTERN, extra={"words": "a duration such as 90s, 5m or 1h30m"})
]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1, extra_json_schema={"format": "int32"})]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, extra_json_schema={"format": "int64"})]
UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1, extra_json_schema={"format": "int64"})]
Positive32 = Annotated[int, Meta(ge=1, le=2**31 - 1, extra_json_schema={"format": "int32"})]
UInt8 = Annotated[int, Meta(ge=0, le=255)]

# On a list field: the API server itself refuses two entries of one name, and server-side apply merges by name.
BY_NAME = Meta(extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]})


# For type checkers: what the class options below do at run time is inherited, but the checkers would not know.
@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Struct(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, gc=False):
    """Base of every API type: immutable, field names are the JSON names, absent fields are None and stay absent.

    `msgspec.structs.replace(obj, field=value)` makes a changed copy. `gc=False`: API documents are trees, and leaving
    them out of cycle collection is what keeps thousands of cached objects cheap.
    """


class OwnerReference(Struct):
    """The object that this one belongs to and is deleted with."""

    apiVersion: str
    """API group and version of the owner."""
    kind: str
    """Kind of the owner."""
    name: str
    """Name of the owner, in the same namespace."""
    uid: str
    """UID of the owner: a new object of the same name is not the owner."""
    controller: bool | None = None
    """The owner is the one that manages this object; at most one owner says so."""
    blockOwnerDeletion: bool | None = None
    """A foreground deletion of the owner waits until this object is gone."""


class ObjectMeta(Struct):
    """Name, labels and life cycle of an object."""

    name: str | None = None
    """Name, unique in the namespace for its kind."""
    generateName: str | None = None
    """Prefix from which the server makes a unique name when no name is given."""
    namespace: str | None = None
    """Namespace the object lives in."""
    labels: dict[str, str] | None = None
    """Keys and values to select objects by."""
    annotations: dict[str, str] | None = None
    """Keys and values for tools and people; never selected by."""
    uid: str | None = None
    """Identity in time and space, given by the server."""
    resourceVersion: str | None = None
    """Opaque version of the stored object, for watches and for detecting concurrent changes."""
    generation: int | None = None
    """Counts changes of the desired state."""
    creationTimestamp: Annotated[Time | None, Meta(extra_json_schema={"nullable": True})] = None
    """When the server stored the object first."""
    deletionTimestamp: Time | None = None
    """When the object is to be gone; set by the server on a delete."""
    deletionGracePeriodSeconds: int | None = None
    """Seconds granted for a graceful end before removal."""
    ownerReferences: list[OwnerReference] | None = None
    """The objects this one belongs to."""
    finalizers: list[str] | None = None
    """Who has to do something before the object may vanish."""
    managedFields: list[Any] | None = None
    """Which client set which field, kept by the server."""
    selfLink: str | None = None
    """Former address of the object; no longer filled in."""


class Object(Struct):
    """An object as the API server stores it. Subclasses add `spec` and `status`."""

    metadata: ObjectMeta
    """Name, namespace, labels and life cycle."""
    apiVersion: str | None = None
    """API group and version."""
    kind: str | None = None
    """Kind of the object."""


class Condition(Struct):
    """One aspect of an object's state, with the reason in words."""

    type: str
    """Name of the aspect."""
    status: str
    """True, False or Unknown."""
    reason: str | None = None
    """One CamelCase word for programs."""
    message: str | None = None
    """The reason in words for people."""
    lastTransitionTime: Annotated[Time | None, Meta(extra_json_schema={"nullable": True})] = None
    """When the status last changed."""
    lastProbeTime: Annotated[Time | None, Meta(extra_json_schema={"nullable": True})] = None
    """When the status was last looked at."""


_QUANTITY = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE])|([KMGTPE]i)|([kKMGTPE]i?)B|[eE]([+-]?\d{1,3}))?", re.ASCII
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def parse_quantity(value: str | int | float) -> Fraction:
    """The exact number that a Kubernetes quantity stands for (`"1500m"` is 3/2, `"1Ki"` is 1024).

    Raises ValueError, in words, for anything that is not a quantity.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is not a quantity: expected a number or a string such as 2Gi")
    if not isinstance(value, str):
        return Fraction(value) if isinstance(value, int) else Fraction(str(value))
    match = _QUANTITY.fullmatch(value) if len(value) <= MAX_NUMBER else None
    if match is None:
        raise ValueError(
            f"{value[:MAX_NUMBER]!r} is not a quantity: expected a number with one of the suffixes "
            "n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent such as e3"
        )
    number, decimal, binary, lenient, exponent = match.groups()
    number = Fraction(number)
    if lenient:
        binary, decimal = (lenient, None) if lenient.endswith("i") else (None, "k" if lenient == "K" else lenient)
        binary = "Ki" if binary == "ki" else binary
    if decimal:
        return number * Fraction(10) ** _DECIMAL[decimal]
    if binary:
        return number * (1 << _BINARY[binary])
    return number * Fraction(10) ** int(exponent) if exponent else number


def quantity_bytes(value: str | int | float) -> int:
    """A quantity as whole bytes, rounded up as Kubernetes does. Raises ValueError."""
    return _ceil(parse_quantity(value))


def quantity_millicores(value: str | int | float) -> int:
    """A CPU quantity in thousandths of a CPU, rounded up. Raises ValueError."""
    return _ceil(parse_quantity(value) * 1000)


def _ceil(number: Fraction) -> int:
    return -(-number.numerator // number.denominator)


def format_bytes(number: int) -> str:
    """Bytes as the shortest exact quantity: 1073741824 is `1Gi`, 1000000000 is `1G`, 1025 is `1025`."""
    forms = [str(number)]
    if number:
        forms += [f"{number >> bits}{suffix}" for suffix, bits in _BINARY.items() if number % (1 << bits) == 0]
        forms += [
            f"{number // 10**power}{suffix}"
            for suffix, power in _DECIMAL.items()
            if power > 0 and number % 10**power == 0
        ]
    return min(forms, key=len)


def format_millicores(number: int) -> str:
    """Thousandths of a CPU as a quantity: 1000 is `1`, 150 is `150m`."""
    return str(number // 1000) if number % 1000 == 0 else f"{number}m"


def format_quantity(value: str | int | float) -> str:
    """A quantity in the canonical form that Kubernetes accepts everywhere (`1GB` becomes `1G`). Raises ValueError."""
    number = parse_quantity(value)
    if number.denominator == 1:
        return format_bytes(number.numerator)
    for suffix, power in (("m", 3), ("u", 6), ("n", 9)):
        scaled = number * 10**power
        if scaled.denominator == 1:
            return f"{scaled.numerator}{suffix}"
    return f"{_ceil(number * 10**9)}n"


_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNIT_SECONDS = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
}


def parse_duration(value: str) -> float:
    """Seconds of a Go duration such as `1h30m`, `90s`, `0`. Raises ValueError, in words."""
    if len(value) > MAX_NUMBER or not re.fullmatch(DURATION_PATTERN[1:-1], value, re.ASCII):
        raise ValueError(
            f"{value[:MAX_NUMBER]!r} is not a duration: expected numbers with units, such as 90s, 5m or 1h30m"
        )
    total = sum((Fraction(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(value)), Fraction(0))
    return float(-total if value.startswith("-") else total)


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, the form of `metav1.Time`. A naive datetime is taken as UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(value: str) -> datetime:
    """An aware UTC datetime from RFC 3339, with or without fractions of a second. Raises ValueError."""
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return moment.astimezone(UTC)
