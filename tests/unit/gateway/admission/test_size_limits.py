"""What one review may hold: more is refused before anything else is looked at, and little is said of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import names
from api.k8s.meta import MAX_NUMBER
from api.schema.shape import HINTS
from api.validation.validate import MAX_ANNOTATION_BYTES, validate_document
from bench import admission as bench
from bench import worst_reviews
from gateway.admission import kinds, review, size_limits
from gateway.admission.webhooks import quick_checks
from tests.unit.api.vm_manifests import machine

HANDLER = "system:serviceaccount:hyperlet:hyperlet-handler"
APPLIED = worst_reviews.APPLIED


def answered(document: dict[str, Any], user: str = "alice", old: dict[str, Any] | None = None) -> dict[str, Any]:
    """The webhook's response, from body to body."""
    body = bench._review(document, old, user)
    response: dict[str, Any] = json.loads(bench.validate(body))["response"]
    return response


def annotated(text: str) -> dict[str, Any]:
    return machine({"/metadata.annotations": {APPLIED: text}})


def test_annotations_beyond_the_api_servers_limit_are_not_even_read() -> None:
    manifest = {"kind": "VirtualMachine", **{f"unknown{n}": 1 for n in range(40_000)}}
    response = answered(annotated(json.dumps(manifest)))
    (cause,) = response["status"]["details"]["causes"]
    assert cause["field"] == "metadata.annotations" and str(MAX_ANNOTATION_BYTES) in cause["message"]
    assert "--server-side" in cause["message"]


def test_a_hundred_faults_are_told_and_that_there_are_more() -> None:
    manifest = {"kind": "VirtualMachine", **{f"unknow{n}": 1 for n in range(2000)}}
    status = answered(annotated(json.dumps(manifest)))["status"]
    assert len(status["details"]["causes"]) == review.FAULT_LIMIT


def test_what_may_be_meant_is_told_of_the_first_unknown_fields_only() -> None:
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
def test_more_than_any_vm_has_is_refused_with_one_fault(changes: dict[str, Any], path: str) -> None:
    response = answered(machine(changes))
    assert response["allowed"] is False and response["uid"]
    (cause,) = response["status"]["details"]["causes"]
    assert cause["field"] == path and "the rest of the object was not validated" in cause["message"]


def test_deep_nesting_is_refused_and_not_let_through_by_a_failure_of_the_webhook() -> None:
    body = bench._review(machine({"hostname": "here"}), None).replace(b'"here"', b"[" * 5000 + b"]" * 5000)
    response = json.loads(bench.validate(body))["response"]
    assert response["allowed"] is False and "nested" in response["status"]["message"]


def test_components_write_on_whatever_is_stored() -> None:
    huge = machine({"affinity": [0] * 60_000})
    assert answered(huge, "system:serviceaccount:hyperlet:hyperlet-controller")["allowed"] is True
    vmi = {**huge, "kind": "VirtualMachineInstance", "spec": huge["spec"]["template"]["spec"], "status": {}}
    reported = {**vmi, "status": {"phase": "Running"}}
    # Decoded and compared as any other object of a handler's: this one is on no node, and that is all.
    for new, wrong in ((reported, []), ({**reported, "spec": {}}, ["spec"])):
        causes = answered(new, HANDLER, vmi)["status"]["details"]["causes"]
        assert [cause["field"] for cause in causes] == [*wrong, "status.nodeName"]


def test_answer_shows_little_of_long_names() -> None:
    document = machine({f"domain.{'k' * 100_000}{n}": 1 for n in range(4)})
    body = bench._review(document, None)
    assert len(bench.validate(body)) < 10_000


@pytest.mark.parametrize("field", ["domain.memory.guest", "domain.resources.requests.cpu"])
def test_number_longer_than_any_is_refused_unread(field: str) -> None:
    # Matching its pattern would take hours.
    faults = validate_document(machine({field: "1" * 400_000 + "x"}))
    assert any(fault.path.endswith(field) and len(fault.message) < 300 for fault in faults)
    assert validate_document(machine({"domain.memory.guest": "0" * (MAX_NUMBER - 5) + "128Mi"})) == []


def test_every_review_made_to_be_slow_is_answered() -> None:
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
def test_the_quick_look_and_the_one_that_tells_paths_agree(spec: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, small in (("ENTRIES", 3), ("VALUES", 12), ("TEXT", 20)):
            patch.setattr(size_limits, name, small)
        assert size_limits._fits(spec) == (not list(size_limits._excess(spec)))
