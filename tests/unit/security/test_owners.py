"""Whose pod, whose Event: by what the pod was made for, which cannot be edited; labels, owners, names prove nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.k8s.objects import Event, Pod
from api.launcher_pods import origin
from controller.cache.cluster import ClusterCache
from controller.launcher_pod import pod as pods
from tests.unit.controller.objects import vmi


class _NoKube:
    """Never asked: the caches are filled by hand."""


def cluster(*objects: Any) -> ClusterCache:
    made = ClusterCache(_NoKube())  # type: ignore[arg-type]
    for obj in objects:
        (made.pods if isinstance(obj, Pod) else made.warnings).learn(obj)
    return made


def pod(namespace: str, name: str, uid: str, **given: str) -> Pod:
    environment = {"HYPERLET_NAMESPACE": namespace, "HYPERLET_NAME": "web", "HYPERLET_UID": "vmi-uid", **given}
    variables = [{"name": key, "value": value} for key, value in environment.items()]
    meta = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": "9"}
    spec = {"containers": [{"name": "compute", "env": variables}]}
    return msgspec.convert({"metadata": meta, "spec": spec, "status": {"phase": "Failed"}}, Pod)


def test_a_pod_of_another_namespace_is_not_the_vmis_whatever_it_is_called() -> None:
    """Its end would be taken for the VM's, and its going for leave to start the VM a second time."""
    name = pods.pod_name(vmi())
    forged = pod("a-namespace-that-sorts-first", name, "forged")
    assert cluster(forged).pod_of(vmi()) is None
    true = pod("default", name, "true")
    found = cluster(forged, true).pod_of(vmi())
    assert found is not None and found.metadata.uid == "true"


def test_the_pod_of_the_derived_name_wins_over_others_that_claim_to_be_made_for_it() -> None:
    name = pods.pod_name(vmi())
    found = cluster(pod("default", "a-forgery", "forged"), pod("default", name, "true")).pod_of(vmi())
    assert found is not None and found.metadata.uid == "true"


def test_the_pod_that_the_vmi_was_handed_over_to_wins_over_all() -> None:
    later = pod("default", pods.pod_name(vmi()), "forged")
    found = cluster(later, pod("default", "odd-name", "pod-uid")).pod_of(vmi("Running"))
    assert found is not None and found.metadata.uid == "pod-uid"


@pytest.mark.parametrize(
    "given",
    [
        {"HYPERLET_NAMESPACE": "elsewhere"},
        {"HYPERLET_NAME": ""},
        {"HYPERLET_UID": ""},
    ],
)
def test_a_pod_that_does_not_say_what_it_was_made_for_is_no_launcher(given: dict[str, str]) -> None:
    assert origin(pod("default", "virt-launcher-web-x", "y", **given)) is None


def test_a_launcher_is_known_without_its_label_and_owner() -> None:
    """Both can be edited while it runs: a pod that is not seen would be believed gone, and a second copy started."""
    bare = pod("default", "virt-launcher-web-x", "true")
    assert bare.metadata.labels is None and bare.metadata.ownerReferences is None
    found = cluster(bare).pod_of(vmi())
    assert found is not None and found.metadata.uid == "true"


def test_a_pod_of_an_earlier_vmi_of_the_name_is_a_stray_and_not_the_vmis() -> None:
    world = cluster(pod("default", "virt-launcher-web-old", "old", HYPERLET_UID="earlier"))
    assert world.pod_of(vmi()) is None
    assert [stray.metadata.uid for stray in world.strays_of(vmi())] == ["old"]


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
