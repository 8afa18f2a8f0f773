"""Size limits of a review: checked first, with a short response."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import names
from api.k8s.meta import MAX_NUMBER
from api.schema.shape import HINTS
from api.validation.document import validate_document
from api.validation.validate import MAX_ANNOTATION_BYTES
from bench import admission as bench
from bench import worst_reviews
from gateway.admission import kinds, review, size_limits
from gateway.admission.webhooks import quick_checks
from tests.unit.api.vm_manifests import machine

HANDLER = "system:serviceaccount:hyperlet:hyperlet-handler"
APPLIED = worst_reviews.APPLIED


def answered(document: dict[str, Any], user: str = "alice", old: dict[str, Any] | None = None) -> dict[str, Any]:
    """The webhook's response to a request body."""
    body = bench._review(document, old, user)
    response: dict[str, Any] = json.loads(bench.validate(body))["response"]
    return response


def annotated(text: str) -> dict[str, Any]:
    return machine({"/metadata.annotations": {APPLIED: text}})


def test_oversized_annotations_are_refused_unparsed() -> None:
    manifest = {"kind": "VirtualMachine", **{f"unknown{n}": 1 for n in range(40_000)}}
    response = answered(annotated(json.dumps(manifest)))
    (cause,) = response["status"]["details"]["causes"]
    assert cause["field"] == "metadata.annotations" and str(MAX_ANNOTATION_BYTES) in cause["message"]
    assert "--server-side" in cause["message"]


def test_faults_are_limited_to_one_hundred_and_more_is_indicated() -> None:
    manifest = {"kind": "VirtualMachine", **{f"unknow{n}": 1 for n in range(2000)}}
    status = answered(annotated(json.dumps(manifest)))["status"]
    assert len(status["details"]["causes"]) == review.FAULT_LIMIT


def test_suggestions_are_limited_to_first_unknown_fields() -> None:
    document = machine({f"domain.devices.disk{letter}": 1 for letter in "abcdefghij"})
    told = [fault.message for fault in validate_document(document) if fault.reason == names.FAULT_UNKNOWN]
    assert len(told) == 10
    assert [("did you mean disks?" in message) for message in told] == [True] * HINTS + [False] * (10 - HINTS)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"domain.devices.disks": [{"name": "a"}] * 513}, "spec.template.spec.domain.devices.disks"),
        ({"nodeSelector": {f"k{n}": "v" for n in range(513)}}, "spec.template.spec.nodeSelector"),
        ({"/metadata.labels": {f"k{n}": "v" for n in range(513)}}, "metadata.labels"),
        ({"/metadata.finalizers": ["a"] * 513}, "metadata.finalizers"),
        ({"affinity": {"a": [[{"b": n} for n in range(100)] for _ in range(100)]}}, "spec"),
        ({"hostname": "x" * (size_limits.TEXT + 1)}, "spec"),
        ({"affinity": {"k" * 4000 + str(n): n for n in range(200)}}, "spec"),
        ({"affinity": [0] * 60_000}, ""),
    ],
)
def test_oversized_spec_is_refused_with_one_fault(changes: dict[str, Any], path: str) -> None:
    response = answered(machine(changes))
    assert response["allowed"] is False and response["uid"]
    (cause,) = response["status"]["details"]["causes"]
    assert cause["field"] == path and "the rest of the object was not validated" in cause["message"]


def test_deep_nesting_is_refused_with_a_valid_response() -> None:
    body = bench._review(machine({"hostname": "here"}), None).replace(b'"here"', b"[" * 5000 + b"]" * 5000)
    response = json.loads(bench.validate(body))["response"]
    assert response["allowed"] is False and "nested" in response["status"]["message"]


def test_components_may_update_oversized_objects() -> None:
    huge = machine({"affinity": [0] * 60_000})
    assert answered(huge, "system:serviceaccount:hyperlet:hyperlet-controller")["allowed"] is True
    vmi = {**huge, "kind": "VirtualMachineInstance", "spec": huge["spec"]["template"]["spec"], "status": {}}
    reported = {**vmi, "status": {"phase": "Running"}}
    # Decoded and checked like any other object of a handler; its only fault is the missing node.
    for new, wrong in ((reported, []), ({**reported, "spec": {}}, ["spec"])):
        causes = answered(new, HANDLER, vmi)["status"]["details"]["causes"]
        assert [cause["field"] for cause in causes] == [*wrong, "status.nodeName"]


def test_long_names_are_truncated_in_response() -> None:
    document = machine({f"domain.{'k' * 100_000}{n}": 1 for n in range(4)})
    body = bench._review(document, None)
    assert len(bench.validate(body)) < 10_000


@pytest.mark.parametrize("field", ["domain.memory.guest", "domain.resources.requests.cpu"])
def test_overlong_quantity_is_refused_unparsed(field: str) -> None:
    # Matching the pattern would take hours.
    faults = validate_document(machine({field: "1" * 400_000 + "x"}))
    assert any(fault.path.endswith(field) and len(fault.message) < 300 for fault in faults)
    assert validate_document(machine({"domain.memory.guest": "0" * (MAX_NUMBER - 5) + "128Mi"})) == []


def test_slow_reviews_get_a_response() -> None:
    titles = []
    for title, document in worst_reviews.bodies(bench.full_vm):
        if ":" in title and not title.startswith("digits"):
            continue
        asked, refusal = quick_checks(bench._review(document, None), bench.NAMESPACE)
        verdict = refusal or kinds.validate(asked, bench.KubeVirtConfiguration(), bench.NAMESPACE)
        titles.append(title)
        assert len(review.answer(asked, verdict)) < 200_000
    assert len(titles) > 300


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=5),
        max_leaves=30,
    )
)
def test_fits_agrees_with_excess(spec: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, small in (("ENTRIES", 3), ("VALUES", 12), ("TEXT", 20)):
            patch.setattr(size_limits, name, small)
        assert size_limits._fits(spec) == (not list(size_limits._excess(spec)))
