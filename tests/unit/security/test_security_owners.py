"""Whose pod, whose Event: by owner reference, UID and namespace, all three; labels and names prove nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.k8s import Event, Pod
from controller import pod as pods
from controller.cluster import Cluster, owner_uid
from tests.unit.controller.worlds import vmi


class _NoKube:
    """Never asked: the caches are filled by hand."""


def cluster(*objects: Any) -> Cluster:
    made = Cluster.of(_NoKube())  # type: ignore[arg-type]
    for obj in objects:
        (made.pods if isinstance(obj, Pod) else made.warnings).learn(obj)
    return made


def pod(namespace: str, name: str, uid: str, **owner: Any) -> Pod:
    reference = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "name": "web",
        "uid": "vmi-uid",
        "controller": True,
        **owner,
    }
    meta = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": "9", "ownerReferences": [reference]}
    return msgspec.convert({"metadata": meta, "spec": {"containers": []}, "status": {"phase": "Failed"}}, Pod)


def test_a_pod_of_another_namespace_is_not_the_vmis_whatever_it_is_called() -> None:
    """Its end would be taken for the VM's, and its going for leave to start the VM a second time."""
    name = pods.pod_name(vmi())
    forged = pod("a-namespace-that-sorts-first", name, "forged")
    assert cluster(forged).pod_of(vmi()) is None
    true = pod("default", name, "true")
    found = cluster(forged, true).pod_of(vmi())
    assert found is not None and found.metadata.uid == "true"


def test_the_pod_of_the_derived_name_wins_over_others_that_claim_the_owner() -> None:
    name = pods.pod_name(vmi())
    found = cluster(pod("default", "a-forgery", "forged"), pod("default", name, "true")).pod_of(vmi())
    assert found is not None and found.metadata.uid == "true"


@pytest.mark.parametrize(
    "owner", [{"controller": False}, {"kind": "Job"}, {"apiVersion": "example.org/v1"}, {"apiVersion": "v1"}]
)
def test_only_a_controlling_reference_to_our_kind_and_group_counts(owner: dict[str, Any]) -> None:
    assert owner_uid(pod("default", "x", "y", **owner)) is None


def warning(namespace: str, message: str) -> Event:
    about = {"kind": "Pod", "namespace": namespace, "name": "virt-launcher-web-x", "uid": "pod-uid"}
    meta = {"namespace": namespace, "name": f"event-in-{namespace}", "uid": f"u-{namespace}", "resourceVersion": "8"}
    document = {
        "metadata": meta,
        "involvedObject": about,
        "reason": "FailedMount",
        "message": message,
        "type": "Warning",
    }
    return msgspec.convert(document, Event)


def test_an_event_of_another_namespace_says_nothing_about_our_pod() -> None:
    ours = pod("default", "virt-launcher-web-x", "pod-uid")
    assert cluster(warning("elsewhere", "call this number")).warning_about(ours) is None
    assert cluster(warning("elsewhere", "x"), warning("default", "y")).warning_about(ours) == ("FailedMount", "y")
