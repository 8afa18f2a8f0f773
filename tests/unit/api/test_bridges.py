"""The bridge policy in annotations of the KubeVirt object."""

from typing import Any

import pytest

from api import names
from api.bridges import BridgePolicy, bridge_policy, bridge_policy_of, faults
from api.k8s.meta import ObjectMeta
from api.k8s.objects import K8sObject

ALLOWED, DENIED = names.ANNOTATION_BRIDGES_ALLOWED, names.ANNOTATION_BRIDGES_DENIED


@pytest.mark.parametrize(
    ("annotations", "offered"),
    [
        (None, ["br1", "br2", "house", "mgmt0"]),
        ({}, ["br1", "br2", "house", "mgmt0"]),
        ({ALLOWED: "br*, house"}, ["br1", "br2", "house"]),
        ({DENIED: "mgmt?"}, ["br1", "br2", "house"]),
        ({ALLOWED: "br*", DENIED: "br2"}, ["br1"]),
        ({ALLOWED: ""}, []),
        ({DENIED: ""}, ["br1", "br2", "house", "mgmt0"]),
        ({DENIED: "*"}, []),
        ({ALLOWED: "BR1"}, []),
        # An invalid list must not permit a bridge that was meant to be denied.
        ({DENIED: "mgmt0 br2"}, []),
        ({DENIED: "br[12]"}, []),
    ],
)
def test_annotations_define_bridge_policy(annotations: dict[str, str] | None, offered: list[str]) -> None:
    made = bridge_policy(annotations)
    assert [name for name in ("br1", "br2", "house", "mgmt0") if made.permits(name)] == offered


@pytest.mark.parametrize("text", ["a bridge", "br[12]", "a/b", "x" * 16, "brücke"])
@pytest.mark.parametrize("key", [ALLOWED, DENIED])
def test_invalid_pattern_is_reported_with_its_path(key: str, text: str) -> None:
    (fault,) = faults({key: f"br1,{text}"})
    assert fault.path == f"metadata.annotations.{key}" and repr(text)[:20] in fault.message


def kubevirt(name: str, created: str, annotations: Any) -> K8sObject:
    return K8sObject(metadata=ObjectMeta(name=name, creationTimestamp=created, annotations=annotations))


def test_oldest_kubevirt_object_defines_bridge_policy() -> None:
    old = kubevirt("b", "2026-01-01T00:00:00Z", {ALLOWED: "br1"})
    new = kubevirt("a", "2026-02-01T00:00:00Z", {ALLOWED: "br2"})
    assert bridge_policy_of([new, old]) == BridgePolicy(allowed=("br1",))
    assert bridge_policy_of([]) == BridgePolicy()
