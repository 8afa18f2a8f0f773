"""ControllerRevisions: one for each template that a VM was started with."""

import json
from typing import Any

import msgspec

from api import names
from api.k8s.objects import ControllerRevision
from api.kubevirt.vm import VirtualMachine
from controller.actions import Create, Delete
from controller.vm import revisions
from tests.unit.controller.objects import SPEC, vm


def kept(actions: list[Any]) -> list[ControllerRevision]:
    return [
        msgspec.convert(action.obj, ControllerRevision)
        for action in actions
        if isinstance(action, Create) and action.kind is ControllerRevision
    ]


def changed(generation: int, guest: str) -> VirtualMachine:
    return vm(generation=generation, spec={"domain": {"devices": {}, "memory": {"guest": guest}}})


def test_first_start_creates_revision_with_spec() -> None:
    (action,) = revisions.keep(vm(generation=3), [])
    assert isinstance(action, Create)
    assert action.obj["metadata"]["name"] == "revision-start-vm-vm-uid-3" == revisions.name_of(vm(generation=3), [])
    assert (
        msgspec.json.decode(action.obj["data"]) == {"spec": msgspec.to_builtins(vm(generation=3).spec)}
        and action.obj["revision"] == 3
    )
    (owner,) = action.obj["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("VirtualMachine", "vm-uid", True)
    assert revisions.owner_uid(kept([action])[0]) == "vm-uid"


def test_unchanged_template_creates_no_revision() -> None:
    known = kept(list(revisions.keep(vm(generation=3), [])))
    later = vm(generation=5, run="Manual")
    assert list(revisions.keep(later, known)) == []
    assert revisions.name_of(later, known) == "revision-start-vm-vm-uid-3"


def test_changed_template_creates_revision_and_deletes_oldest() -> None:
    known: list[ControllerRevision] = []
    for generation in range(1, revisions.HISTORY + 1):
        actions = list(revisions.keep(changed(generation, f"{generation}Mi"), known))
        assert len(actions) == 1
        known += kept(actions)
    oldest = known[0].metadata.name
    new = changed(9, "9Gi")
    assert [type(each) for each in revisions.keep(new, known)] == [Create, Delete]
    assert [each.name for each in revisions.keep(new, known) if isinstance(each, Delete)] == [oldest]
    spared = [each.name for each in revisions.keep(new, known, oldest) if isinstance(each, Delete)]
    assert spared == [known[1].metadata.name]


def test_revision_with_foreign_name_is_ignored() -> None:
    (made,) = kept(list(revisions.keep(vm(), [])))
    forged = msgspec.structs.replace(made, metadata=msgspec.structs.replace(made.metadata, name="mine"))
    assert len(list(revisions.keep(vm(), [forged]))) == 1
    assert names.LABEL_TEMPLATE in (made.metadata.labels or {})


def test_data_is_encoded_like_go_json() -> None:
    """The API server compares bytes: another encoding would count as a change, and metadata patches would fail."""
    user_data = "#cloud-config\nruncmd: [a && b < c > d\u2028]\n"
    volumes = [{"name": "init", "cloudInitNoCloud": {"userData": user_data}}]
    (action,) = revisions.keep(vm(spec={**SPEC, "volumes": volumes}), [])
    assert isinstance(action, Create)
    text = bytes(action.obj["data"]).decode()
    assert "a \\u0026\\u0026 b \\u003c c \\u003e d\\u2028" in text and ": " not in text.replace("runcmd: ", "")
    sorted_again = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert json.loads(sorted_again) == json.loads(text)
    assert list(json.loads(text)["spec"]["template"]["spec"]) == sorted(json.loads(text)["spec"]["template"]["spec"])
