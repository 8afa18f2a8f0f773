"""Launcher pods keep to the Pod Security Standard `restricted`; what a VM asks for beyond it is told at admission."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.validation import pod_security
from api.validation.pod_security import LATEST, PodSecurityPolicy, policy_of
from gateway.admission import kinds, review
from gateway.admission.pod_security import PodSecurity
from gateway.admission.review import AdmissionRequest
from kit.kube import Kube
from tests import podstandard
from tests.fakes.apiserver import FakeApi, Refusal
from tests.unit.api.vm_manifests import machine
from tests.unit.controller.launcher_pod.test_pod import CASES, pod_of

Json = dict[str, Any]
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "pod"
PROBED = {"readinessProbe": {"tcpSocket": {"port": 22, "host": "192.0.2.1"}}}
WHERE = "spec.template.spec.readinessProbe.tcpSocket.host"


# ---- the pods


@pytest.mark.parametrize("case", CASES)
def test_a_launcher_pod_breaks_no_rule_of_the_restricted_standard(case: str) -> None:
    assert podstandard.violations(yaml.safe_load((GOLDEN / case / "pod.yaml").read_text())) == set()


def test_the_checker_finds_what_breaks_a_rule() -> None:
    found = list(podstandard.broken(pod_of("minimal")))
    assert {rule for rule, _ in found} == set(podstandard.RULES) - {"hostProcess", "privileged", "procMount"}
    for rule, pod in found:
        assert podstandard.violations(pod) == {rule}, rule


def test_a_pod_of_every_volume_and_network_kind_is_among_them() -> None:
    """What is checked above says nothing about a kind of volume that no golden pod has."""
    volumes = {
        kind for case in CASES for volume in pod_of(case)["spec"]["volumes"] for kind in volume if kind != "name"
    }
    assert volumes == {"emptyDir", "persistentVolumeClaim", "secret", "configMap", "projected", "image"}
    described = [yaml.safe_load((GOLDEN / case / "vmi.yaml").read_text())["spec"] for case in CASES]
    interfaces = [nic for spec in described for nic in spec["domain"]["devices"].get("interfaces", ())]
    assert {kind for nic in interfaces for kind in ("masquerade", "bridge", "sriov") if kind in nic} == {
        "masquerade",
        "bridge",
        "sriov",
    }
    assert any("volumeDevices" in pod_of(case)["spec"]["containers"][0] for case in CASES)


# ---- what a namespace's labels mean


@pytest.mark.parametrize(
    ("labels", "policy"),
    [
        (None, PodSecurityPolicy("privileged")),
        ({}, PodSecurityPolicy("privileged")),
        ({pod_security.LABEL_ENFORCE: ""}, PodSecurityPolicy("privileged")),
        ({"pod-security.kubernetes.io/warn": "restricted"}, PodSecurityPolicy("privileged")),
        ({pod_security.LABEL_ENFORCE: "baseline"}, PodSecurityPolicy("baseline")),
        ({pod_security.LABEL_ENFORCE: "restricted"}, PodSecurityPolicy("restricted")),
        ({pod_security.LABEL_ENFORCE: "restrictive"}, PodSecurityPolicy("restricted")),
        (
            {pod_security.LABEL_ENFORCE: "baseline", pod_security.LABEL_VERSION: "v1.33"},
            PodSecurityPolicy("baseline", (1, 33)),
        ),
        (
            {pod_security.LABEL_ENFORCE: "baseline", pod_security.LABEL_VERSION: "latest"},
            PodSecurityPolicy("baseline", LATEST),
        ),
        (
            {pod_security.LABEL_ENFORCE: "baseline", pod_security.LABEL_VERSION: "1.33"},
            PodSecurityPolicy("baseline", LATEST),
        ),
    ],
)
def test_labels_are_read_as_the_api_server_reads_them(labels: dict[str, str] | None, policy: PodSecurityPolicy) -> None:
    assert policy_of(labels) == policy


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe"])
@pytest.mark.parametrize("action", ["httpGet", "tcpSocket"])
def test_every_probe_with_a_host_is_found(probe: str, action: str) -> None:
    (found,) = pod_security.demands({probe: {action: {"port": 1, "host": "h"}}})
    assert (found.path, found.level, found.since) == (f"spec.{probe}.{action}.host", "baseline", (1, 34))
    assert not pod_security.demands({probe: {action: {"port": 1, "host": ""}}})


@pytest.mark.parametrize("spec", [None, 7, [], "x", {"livenessProbe": 7}, {"livenessProbe": {"httpGet": [1]}}])
def test_a_spec_of_any_shape_is_looked_at(spec: Any) -> None:
    assert pod_security.demands(spec) == []


@pytest.mark.parametrize(
    ("policy", "refused"),
    [
        (PodSecurityPolicy("privileged"), False),
        (PodSecurityPolicy("baseline"), True),
        (PodSecurityPolicy("restricted"), True),
        (PodSecurityPolicy("restricted", (1, 33)), False),
        (PodSecurityPolicy("restricted", (1, 34)), True),
    ],
)
def test_a_field_is_refused_by_its_level_and_version(policy: PodSecurityPolicy, refused: bool) -> None:
    assert bool(pod_security.faults(pod_security.demands(PROBED), "team", policy)) is refused


# ---- admission


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as made:
        yield made


@pytest.fixture
async def checked(api: FakeApi, tmp_path: Path) -> AsyncIterator[PodSecurity]:
    async with Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        yield PodSecurity(kube)


async def enforce(api: FakeApi, level: str | None) -> None:
    labels = {pod_security.LABEL_ENFORCE: level} if level else {}
    api.put("namespaces", {"metadata": {"name": "team", "labels": labels}})


def asked(spec: Json, old: Json | None = None, kind: str = "VirtualMachine") -> AdmissionRequest:
    def document(more: Json) -> Json:
        whole = copy.deepcopy(machine())
        template = whole["spec"]["template"]["spec"]
        template.update(more)
        return whole if kind == "VirtualMachine" else {**whole, "kind": kind, "spec": template}

    return AdmissionRequest(
        uid="u",
        operation="UPDATE" if old is not None else "CREATE",
        kind=review.GroupVersionKind("kubevirt.io", "v1", kind),
        namespace="team",
        object=document(spec),
        oldObject=None if old is None else document(old),
    )


async def test_what_the_namespace_would_refuse_of_the_pod_is_refused_of_the_vm(
    api: FakeApi, checked: PodSecurity
) -> None:
    await enforce(api, "restricted")
    (fault,) = await checked.faults(asked(PROBED))
    assert fault.path == WHERE
    assert fault.message == (
        "namespace team enforces the Pod Security Standard 'restricted': probes must not set a host: "
        "remove it, the probe then connects to the guest"
    )
    (of_instance,) = await checked.faults(asked(PROBED, kind="VirtualMachineInstance"))
    assert of_instance.path == "spec.readinessProbe.tcpSocket.host"
    for decide in (kinds.mutate, kinds.validate):
        verdict = decide(asked(PROBED), kinds.KubeVirtConfiguration(), "hyperlet", [fault])
        assert fault in verdict.faults and not verdict.patch


async def test_where_nothing_is_enforced_a_probe_may_name_a_host(api: FakeApi, checked: PodSecurity) -> None:
    await enforce(api, None)
    assert await checked.faults(asked(PROBED)) == []


async def test_a_vm_that_could_be_refused_nowhere_costs_no_call(api: FakeApi, checked: PodSecurity) -> None:
    await enforce(api, "restricted")
    assert await checked.faults(asked({})) == []
    assert await checked.faults(asked(PROBED, old=PROBED)) == [], "stored before the namespace enforced anything"
    assert not api.calls


async def test_many_vms_cost_one_call(api: FakeApi, checked: PodSecurity) -> None:
    await enforce(api, "baseline")
    for _ in range(5):
        assert await checked.faults(asked(PROBED))
    assert api.calls["get", "namespaces"] == 1


async def test_a_label_that_is_changed_counts_after_a_moment(
    api: FakeApi, checked: PodSecurity, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enforce(api, "baseline")
    assert await checked.faults(asked(PROBED))
    await enforce(api, None)
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 60)
    assert await checked.faults(asked(PROBED)) == []


async def test_a_namespace_that_cannot_be_asked_for_hinders_nobody(api: FakeApi, checked: PodSecurity) -> None:
    api.refuse = lambda verb, plural, body: Refusal(403, "Forbidden", "no") if plural == "namespaces" else None
    assert await checked.faults(asked(PROBED)) == []
