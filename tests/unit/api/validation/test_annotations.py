"""KubeVirt's annotations: each is supported, refused or warned about; none is ignored."""

from pathlib import Path

import pytest

from api.validation import annotations
from api.validation.annotations import KNOWN, annotation_faults, annotation_warnings

DOCS = Path(__file__).resolve().parents[4] / "docs" / "annotations.md"


def test_docs_contain_the_annotations_table() -> None:
    assert annotations.table() in DOCS.read_text()


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_a_known_annotation(known: annotations.KnownAnnotation) -> None:
    name = known.name + "x" if known.name[-1] in "/-" else known.name
    faults = [(fault.path, fault.message) for fault in annotation_faults({name: "some"}, "metadata.annotations")]
    told = list(annotation_warnings({name: "some"}, "metadata.annotations"))
    works = "*" in known.harmless
    assert bool(faults) == (not works and not known.warned)
    assert bool(told) == (not works and known.warned)
    for path, message in faults:
        assert path == f"metadata.annotations.{name}" and known.answer in message
    for value in known.harmless:
        assert not list(annotation_faults({name: value}, "")) and not list(annotation_warnings({name: value}, ""))


@pytest.mark.parametrize("name", ["vm.kubevirt.io/os", "description", "kubevirt.io/nonrootx", "hooks.example/x"])
def test_unknown_annotations_are_accepted(name: str) -> None:
    assert not list(annotation_faults({name: "x"}, "")) and not list(annotation_warnings({name: "x"}, ""))
