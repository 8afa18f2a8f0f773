"""Checks of the API server's admission policies, and their report in the KubeVirt CR."""

import itertools
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import yaml

from api.kubevirt.kubevirt import KubeVirt
from controller.actions import Patch
from controller.installation import status as installation_status
from controller.installation.admission_policies import NOT_SERVED, POLICIES, PolicyCheck, PolicyWatcher
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi

MANIFESTS = Path(__file__).resolve().parents[4] / "manifests"
NOW = datetime(2026, 12, 1, tzinfo=UTC)


async def put(api: FakeApi, name: str, actions: list[str]) -> None:
    api.put("validatingadmissionpolicies", {"metadata": {"name": name}})
    binding = {"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": actions}}
    api.put("validatingadmissionpolicybindings", binding)


def test_policies_match_manifests() -> None:
    loaded = itertools.chain.from_iterable(
        yaml.safe_load_all(path.read_text()) for path in sorted(MANIFESTS.glob("policies-*.yaml"))
    )
    names = sorted(d["metadata"]["name"] for d in loaded if d["kind"] == "ValidatingAdmissionPolicy")
    assert names == sorted(POLICIES)


async def test_all_policies_with_deny_bindings_are_in_force(tmp_path: Path) -> None:
    async with FakeApi() as api, Kube.connect("controller", api.kubeconfig(tmp_path)) as kube:
        for name in POLICIES:
            await put(api, name, ["Deny"])
        policies = PolicyWatcher(kube)
        changes: list[PolicyCheck | None] = []
        policies.on_change(lambda: changes.append(policies.verdict))
        await policies.refresh()
        await policies.refresh()
        assert [verdict.in_force for verdict in changes if verdict] == [True]


async def test_audit_only_binding_is_reported_missing(tmp_path: Path) -> None:
    async with FakeApi() as api, Kube.connect("controller", api.kubeconfig(tmp_path)) as kube:
        for name in POLICIES:
            await put(api, name, ["Audit"] if name == "hyperlet-handler-nodes" else ["Deny"])
        api.remove("validatingadmissionpolicies", "hyperlet-instances", "")
        policies = PolicyWatcher(kube)
        await policies.refresh()
        assert policies.verdict is not None and policies.verdict[:2] == (False, "PoliciesMissing")
        assert "ValidatingAdmissionPolicy hyperlet-instances" in policies.verdict.message
        assert "ValidatingAdmissionPolicyBinding of hyperlet-handler-nodes with action Deny" in policies.verdict.message
        assert "hyperlet-handler-pods" not in policies.verdict.message


async def test_server_without_policy_api_is_reported(tmp_path: Path) -> None:
    async with FakeApi() as api, Kube.connect("controller", api.kubeconfig(tmp_path)) as kube:
        api.unserved.add("validatingadmissionpolicies")
        policies = PolicyWatcher(kube)
        await policies.refresh()
        assert policies.verdict == NOT_SERVED


async def test_failed_check_keeps_verdict(tmp_path: Path) -> None:
    async with FakeApi() as api, Kube.connect("controller", api.kubeconfig(tmp_path, token="bad")) as kube:
        policies = PolicyWatcher(kube)
        await policies.refresh()
        assert policies.verdict is None


def test_verdict_is_reported_in_kubevirt_status() -> None:
    metadata = {"name": "kubevirt", "namespace": "hyperlet"}
    document = {"apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": metadata, "spec": {}}
    kubevirt = msgspec.convert(document, KubeVirt)
    told = []
    for verdict in (None, NOT_SERVED):
        (patch,) = installation_status.plan(kubevirt, "v1", (), verdict, NOW)
        assert isinstance(patch, Patch)
        told.append({condition["type"]: condition for condition in patch.patch["status"]["conditions"]})
    assert "NodeRestriction" not in told[0]
    assert told[1]["NodeRestriction"]["status"] == "False"
    assert told[1]["NodeRestriction"]["reason"] == "PoliciesNotServed"
