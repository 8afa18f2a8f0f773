"""Out-of-range numbers: each effective integer and quantity in a manifest has a minimum and a maximum."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from api import names
from api.kubevirt.vm import VirtualMachine
from api.schema.shape import Shape, struct_shape
from api.validation import document as document_validation
from api.validation.document import validate_document
from tests.unit.api.documents import full
from tests.unit.api.vm_manifests import machine

HUGE, NEGATIVE = 2**63 - 1, -(2**63)
QUANTITIES = ("9e999", "9223372036854775807Ei", "-1Gi", "9" * 5000)
SPEC = "spec.template.spec"
KEPT = {
    f"{SPEC}.tolerations[0].tolerationSeconds": "a negative number means at once, to Kubernetes",
    f"{SPEC}.topologySpreadConstraints[0].maxSkew": "the scheduler compares it with a count of pods",
    f"{SPEC}.topologySpreadConstraints[0].minDomains": "the scheduler compares it with a count of nodes",
    f"{SPEC}.domain.clock.utc.offsetSeconds": "a guest's clock may be decades off",
    f"{SPEC}.domain.devices.disks[0].bootOrder": "only the order counts",
    f"{SPEC}.domain.devices.interfaces[0].bootOrder": "only the order counts",
    f"{SPEC}.domain.features.hyperv.spinlocks.spinlocks": "the largest number means never, to Windows",
}
"""Numbers limited only by their type, with the reason."""


Number = tuple[str, tuple[Any, ...], list[Any]]


def numbers(shape: Shape, value: Any, path: str = "", keys: tuple[Any, ...] = ()) -> Iterator[Number]:
    """Path, keys and out-of-range values of every number in the document."""
    if shape.kind == "struct":
        for name, field in shape.fields.items():
            if name in value and name not in ("status", "metadata"):
                yield from numbers(field, value[name], f"{path}.{name}" if path else name, (*keys, name))
    elif shape.item is not None:
        for key, child in value.items() if shape.kind == "map" else enumerate(value):
            step = f".{key}" if shape.kind == "map" else f"[{key}]"
            yield from numbers(shape.item, child, path + step, (*keys, key))
    elif shape.hint is int or (shape.words and "quantity" in shape.words):
        # Including the maximum of the type: 2147483647 seconds are 68 years.
        ends = [meta.le for meta in shape.metas if meta.le is not None and meta.le > 2**16]
        yield path, keys, [HUGE, NEGATIVE, *(QUANTITIES if shape.hint is not int else ends)]


def changed(document: dict[str, Any], keys: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copied = copy.deepcopy(document)
    node: Any = copied
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return copied


DOCUMENT = full("VirtualMachine")
ALL = list(numbers(struct_shape(VirtualMachine), DOCUMENT))


def test_document_contains_all_numbers() -> None:
    found = {path for path, _, _ in ALL}
    assert len(found) > 30
    assert "spec.template.spec.terminationGracePeriodSeconds" in found
    assert "spec.template.spec.domain.memory.guest" in found


@pytest.mark.parametrize(("path", "keys", "values"), ALL, ids=[path for path, _, _ in ALL])
def test_out_of_range_number_is_refused_with_its_path(
    path: str, keys: tuple[Any, ...], values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The document has many unsupported fields: the expected fault may be beyond the first hundred.
    monkeypatch.setattr(document_validation, "MAX_FAULTS", 10_000)
    for value in values:
        document = changed(DOCUMENT, keys, value)
        faults = validate_document(document)
        # An ancestor is unsupported: the whole feature is refused.
        features = [fault.path for fault in faults if fault.reason == names.FAULT_NOT_SUPPORTED]
        told = {fault.path for fault in faults}
        # The number of vCPUs is the product of three fields.
        factor = path.startswith(f"{SPEC}.domain.cpu.") and f"{SPEC}.domain.cpu" in told
        hit = factor or path in told or any(path.startswith((f"{at}.", f"{at}[")) for at in features)
        in_type = path in KEPT and abs(value) < 2**40
        assert hit or in_type or path.endswith("tolerationSeconds"), f"{path}: {value}"


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("terminationGracePeriodSeconds", 86400, 86401),
        ("domain.memory.guest", "64Ti", "65Ti"),
        ("domain.memory.guest", "1Mi", "1023Ki"),
        ("domain.resources.requests.cpu", "100", "4097"),
    ],
)
def test_maximum_is_accepted_and_larger_value_is_refused(field: str, good: Any, bad: Any) -> None:
    assert [fault for fault in validate_document(machine({field: good})) if fault.path.endswith(field)] == []
    faults = [fault for fault in validate_document(machine({field: bad})) if fault.path.endswith(field)]
    assert len(faults) == 1 and faults[0].reason == names.FAULT_INVALID
