"""What each account may do, all of it. A right that is added has to be added here, with a reason in the manifest."""

from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
RIGHTS = {
    "controller": {
        ("kubevirt.io", "virtualmachines"): {"list", "watch", "patch"},
        ("kubevirt.io", "virtualmachines/status"): {"patch"},
        ("kubevirt.io", "virtualmachines/finalizers"): {"update"},
        ("kubevirt.io", "virtualmachineinstances"): {"list", "watch", "create", "patch", "delete"},
        ("kubevirt.io", "virtualmachineinstances/finalizers"): {"update"},
        ("kubevirt.io", "kubevirts"): {"list", "watch"},
        ("kubevirt.io", "kubevirts/status"): {"patch"},
        ("", "pods"): {"list", "watch", "get", "create", "delete"},
        ("", "pods/status"): {"patch"},
        ("", "persistentvolumeclaims"): {"list", "watch"},
        ("k8s.cni.cncf.io", "network-attachment-definitions"): {"list", "watch"},
        ("", "nodes"): {"list", "watch"},
        ("", "events"): {"list", "watch", "create", "patch"},
    },
    "handler": {
        ("kubevirt.io", "virtualmachineinstances"): {"list", "watch", "patch"},
        ("", "pods"): {"list", "watch"},
        ("", "pods/status"): {"patch"},
        ("k8s.cni.cncf.io", "network-attachment-definitions"): {"get"},
        ("", "nodes"): {"patch"},
        ("", "events"): {"create", "patch"},
    },
}
OWN_NAMESPACE = {"controller": {("coordination.k8s.io", "leases"): {"get", "create", "patch"}}, "handler": {}}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def every_document() -> list[dict[str, Any]]:
    return [document for path in sorted(MANIFESTS.rglob("*.yaml")) for document in documents(path)]


def granted(role: str, kind: str) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for document in every_document():
        if document.get("kind") == kind and document["metadata"]["name"] == f"hyperlet-{role}":
            for rule in document["rules"]:
                assert set(rule) == {"apiGroups", "resources", "verbs"}, rule
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


@pytest.mark.parametrize("role", RIGHTS)
def test_a_role_may_do_this_and_nothing_else(role: str) -> None:
    assert granted(role, "ClusterRole") == RIGHTS[role]
    assert granted(role, "Role") == OWN_NAMESPACE[role]


def test_no_other_roles_and_bindings_exist() -> None:
    kinds = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    found = sorted((d["kind"], d["metadata"]["name"]) for d in every_document() if d.get("kind") in kinds)
    assert found == [
        ("ClusterRole", "hyperlet-controller"),
        ("ClusterRole", "hyperlet-handler"),
        ("ClusterRoleBinding", "hyperlet-controller"),
        ("ClusterRoleBinding", "hyperlet-handler"),
        ("Role", "hyperlet-controller"),
        ("RoleBinding", "hyperlet-controller"),
    ]
    for document in every_document():
        if document.get("kind", "").endswith("RoleBinding"):
            name = document["metadata"]["name"]
            assert document["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "hyperlet"}]
            assert document["roleRef"]["name"] == name


def test_the_handlers_pod_shares_with_the_node_what_it_needs_and_no_more() -> None:
    (daemons,) = documents(MANIFESTS / "handler.yaml")
    spec = daemons["spec"]["template"]["spec"]
    assert spec["hostPID"] is True and not {"hostNetwork", "hostIPC"} & set(spec)
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"]}
    assert paths == {
        "/var/lib/kubelet/pods",
        "/var/lib/kubelet/device-plugins",
        "/run/containerd",
        "/dev",
        "/run/hyperlet",
        "/var/lib/hyperlet",
        "/opt/cni/bin",
    }
    mounts = {
        each["name"]: {mount["mountPath"] for mount in each["volumeMounts"]}
        for each in (*spec["initContainers"], *spec["containers"])
    }
    # The plugins' daemon sees nothing of the node but its socket's folder; only the installer sees the plugins' folder.
    assert mounts["cni"] == {"/run/hyperlet"} and mounts["install-cni"] == {"/host/cni-bin"}
    assert "/host/cni-bin" not in mounts["handler"]
    assert "privileged" not in spec["initContainers"][0]["securityContext"]
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "pods"]
    # Nothing that the handler mounts may come out on the node.
    assert mount["mountPropagation"] == "HostToContainer"


def test_the_controller_has_no_privilege_on_its_node() -> None:
    (deployment,) = documents(MANIFESTS / "controller.yaml")
    spec = deployment["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & set(spec) and spec["securityContext"]["runAsNonRoot"]
    context = spec["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]} and context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False


def test_node_restriction_covers_every_kind_that_a_handler_writes() -> None:
    """That the policies are well-formed; only a server that has them can tell whether they refuse."""
    found = documents(MANIFESTS / "components/node-restriction/policies.yaml")
    policies = {d["metadata"]["name"]: d["spec"] for d in found if d["kind"] == "ValidatingAdmissionPolicy"}
    bound = {d["spec"]["policyName"] for d in found if d["kind"] == "ValidatingAdmissionPolicyBinding"}
    assert bound == set(policies)
    covered = set()
    for spec in policies.values():
        assert spec["failurePolicy"] == "Fail"
        assert "system:serviceaccount:hyperlet:hyperlet-handler" in spec["matchConditions"][0]["expression"]
        for rule in spec["matchConstraints"]["resourceRules"]:
            assert set(rule["operations"]) == {"CREATE", "UPDATE"}
            covered |= {(group, resource) for group in rule["apiGroups"] for resource in rule["resources"]}
        for check in spec["validations"]:
            assert check["expression"].count("(") == check["expression"].count(")") and check["message"]
    writes = {place for place, verbs in RIGHTS["handler"].items() if verbs - {"get", "list", "watch"}}
    assert writes <= covered
