"""The API server's own policies: that they name what the code writes and no more. That they refuse: tests/e2e."""

import ast
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from api import names, network_attachments
from api.kinds.catalog import CATALOG
from api.kubevirt.vmi import VirtualMachineInstance
from gateway.admission import ownership
from handler.devices import kvm_probe
from handler.node import heartbeat
from handler.vmi import status as vmi_status
from tests.unit.security.test_rights import RIGHTS, documents

MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
FILES = ("policies-handler.yaml", "policies-ownership.yaml")
ACCOUNT = "system:serviceaccount:hyperlet:"
READS = {"get", "list", "watch"}


def policies(*files: str) -> dict[str, dict[str, Any]]:
    """Specs by name."""
    found = [document for file in files or FILES for document in documents(MANIFESTS / file)]
    return {d["metadata"]["name"]: d["spec"] for d in found if d["kind"] == "ValidatingAdmissionPolicy"}


def listed(policy: str, variable: str) -> list[str]:
    """A variable that is a list of strings; CEL's are Python's."""
    (text,) = [each["expression"] for each in policies()[policy]["variables"] if each["name"] == variable]
    value: list[str] = ast.literal_eval(text)
    return value


def matched(policy: str) -> set[tuple[str, str, str]]:
    """Group, resource and operation that a policy looks at."""
    return {
        (group, resource, operation)
        for rule in policies()[policy]["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for operation in rule["operations"]
    }


def test_node_keys_are_those_of_the_heartbeat() -> None:
    patch: Any = heartbeat.patch(heartbeat.NodeState(True, kvm_probe.KvmProbe(True, "works")), datetime.now(UTC))
    assert set(patch) == {"metadata"} and set(patch["metadata"]) == {"labels", "annotations"}
    assert listed("hyperlet-handler-nodes", "ownLabels") == sorted(patch["metadata"]["labels"])
    assert listed("hyperlet-handler-nodes", "ownAnnotations") == sorted(patch["metadata"]["annotations"])


def test_status_fields_are_those_of_the_handlers_patches() -> None:
    assert listed("hyperlet-handler-instances", "fields") == sorted(vmi_status.FIELDS)


def test_pod_annotation_is_the_network_status() -> None:
    assert listed("hyperlet-handler-pods", "ownAnnotations") == [network_attachments.ANNOTATION_STATUS]


def test_events_are_those_of_the_handler() -> None:
    assert listed("hyperlet-handler-events", "kinds") == ["Pod", names.KIND_VMI]
    (check,) = policies()["hyperlet-handler-events"]["validations"]
    assert "'hyperlet-handler'" in check["expression"]


def test_owned_keys_are_those_of_admission() -> None:
    assert listed("hyperlet-finalizers", "finalizers") == sorted(ownership.FINALIZERS)
    assert listed("hyperlet-instances", "ownLabels") == sorted(names.OWNED_LABELS)
    assert listed("hyperlet-instances", "ownAnnotations") == sorted(names.OWNED_ANNOTATIONS)
    (condition, _) = policies()["hyperlet-instances"]["matchConditions"]
    exempt = ast.literal_eval(condition["expression"].partition(" in ")[2].removesuffix(")"))
    assert sorted(exempt) == sorted(ACCOUNT + name for name in ownership.COMPONENTS)


def test_handler_policies_cover_every_kind_that_a_handler_writes() -> None:
    covered: set[tuple[str, str, str]] = set()
    for name, spec in policies("policies-handler.yaml").items():
        assert spec["matchConditions"] == [
            {"name": "handlers", "expression": f"request.userInfo.username == '{ACCOUNT}{ownership.HANDLER}'"}
        ]
        covered |= matched(name)
    for (group, resource), verbs in RIGHTS["handler"].items():
        if verbs - READS:
            assert {(group, resource, "CREATE"), (group, resource, "UPDATE")} <= covered, resource
    # What admission of an update does not see: a handler has no right to delete.
    assert not any({"delete", "deletecollection"} & verbs for verbs in RIGHTS["handler"].values())


def test_finalizer_policy_covers_every_kind_with_a_finalizer_of_ours() -> None:
    wanted = {kind.plural for kind in CATALOG if kind.finalizer}
    assert wanted >= {names.PLURAL_VM, names.PLURAL_VMI}
    seen = {resource.partition("/")[0] for _, resource, _ in matched("hyperlet-finalizers")}
    assert seen == wanted
    # The status subresource takes metadata too: it must not be the way around.
    with_status = {
        place.partition("/")[0] for _, place, _ in matched("hyperlet-finalizers") if place.endswith("/status")
    }
    crds = {d["spec"]["names"]["plural"]: d for path in (MANIFESTS / "crds").glob("*.yaml") for d in documents(path)}
    assert with_status == {
        plural
        for plural in wanted
        if any("status" in version.get("subresources", {}) for version in crds[plural]["spec"]["versions"])
    }


@pytest.mark.parametrize("file", FILES)
def test_every_policy_is_bound_denies_and_fails_closed(file: str) -> None:
    found = documents(MANIFESTS / file)
    assert {d["apiVersion"] for d in found} == {"admissionregistration.k8s.io/v1"}
    bound = {d["spec"]["policyName"]: d["spec"] for d in found if d["kind"] == "ValidatingAdmissionPolicyBinding"}
    assert bound.keys() == policies(file).keys()
    for name, spec in policies(file).items():
        assert bound[name] == {"policyName": name, "validationActions": ["Deny"]}
        assert spec["failurePolicy"] == "Fail"
        for rule in spec["matchConstraints"]["resourceRules"]:
            assert rule["apiVersions"] == ["*"]
        for check in spec["validations"]:
            assert check["expression"].count("(") == check["expression"].count(")") and check["message"]


def test_policies_are_part_of_the_standard_manifests() -> None:
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    assert set(FILES) <= set(kustomization["resources"])


def test_a_status_field_that_no_policy_knows_is_never_sent() -> None:
    document = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND_VMI,
        "metadata": {"name": "small"},
        "spec": {"domain": {"devices": {}}},
    }
    machine = msgspec.convert(document, VirtualMachineInstance)
    with pytest.raises(ValueError, match="nodeName"):
        vmi_status._patch(machine, {}, {"nodeName": "elsewhere"}, datetime.now(UTC))
