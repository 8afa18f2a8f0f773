"""What each account may do, all of it. A right that is added has to be added here, with a reason in the manifest; a
right to a kind of hyperlet's CRDs in the kind's declaration (`api.kinds`)."""

import itertools
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.kinds.catalog import CATALOG

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"


def of_declared_kinds(role: str) -> dict[tuple[str, str], set[str]]:
    """The rights that a role has to kinds of hyperlet's CRDs."""
    return {(kind.group, place): set(verbs) for kind in CATALOG for place, verbs in kind.verbs(role).items()}


RIGHTS = {
    "controller": {
        **of_declared_kinds("hyperlet-controller"),
        ("", "pods"): {"list", "watch", "get", "create", "delete"},
        ("policy", "poddisruptionbudgets"): {"create"},
        ("", "pods/status"): {"patch"},
        ("", "pods/resize"): {"patch"},
        ("apps", "controllerrevisions"): {"list", "watch", "create", "delete"},
        ("", "persistentvolumeclaims"): {"list", "watch"},
        ("", "nodes"): {"list", "watch"},
        ("admissionregistration.k8s.io", "validatingadmissionpolicies"): {"list"},
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"): {"list"},
        ("", "events"): {"list", "watch", "create", "patch"},
    },
    "handler": {
        **of_declared_kinds("hyperlet-handler"),
        ("", "pods"): {"list", "watch"},
        ("", "pods/status"): {"patch"},
        ("", "nodes"): {"patch"},
        ("", "events"): {"create", "patch"},
    },
    "gateway": {
        **of_declared_kinds("hyperlet-gateway"),
        ("authentication.k8s.io", "tokenreviews"): {"create"},
        ("authorization.k8s.io", "subjectaccessreviews"): {"create"},
        ("", "namespaces"): {"get"},
        ("", "pods"): {"get", "list"},
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations=hyperlet-gateway"): {"list", "watch", "patch"},
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations=hyperlet-gateway"): {
            "list",
            "watch",
            "patch",
        },
        ("apiregistration.k8s.io", "apiservices=v1.subresources.kubevirt.io"): {"list", "watch", "patch"},
        ("apiregistration.k8s.io", "apiservices=v1alpha3.subresources.kubevirt.io"): {"list", "watch", "patch"},
    },
}
OWN_NAMESPACE = {
    "controller": {("coordination.k8s.io", "leases"): {"get", "create", "patch"}},
    "handler": {
        ("", "configmaps=hyperlet-ca"): {"get"},
        ("", "services=hyperlet-gateway"): {"get"},
    },
    "gateway": {
        ("", "secrets=hyperlet-ca"): {"list", "watch", "patch"},
        ("", "configmaps=hyperlet-ca"): {"list", "watch", "patch"},
        ("", "pods"): {"get", "list", "watch"},
    },
}
# People's roles: what each may have done to VMs (group subresources.kubevirt.io).
SCREENS = {"virtualmachineinstances/console", "virtualmachineinstances/vnc"}
SCREENSHOT = "virtualmachineinstances/vnc/screenshot"
TOLD = {
    "virtualmachineinstances/guestosinfo",
    "virtualmachineinstances/filesystemlist",
    "virtualmachineinstances/userlist",
    "virtualmachines/expand-spec",
}
REACHED = {"virtualmachineinstances/portforward", "virtualmachines/portforward", "virtualmachineinstances/usbredir"}
VERBS = {
    *(
        f"virtualmachineinstances/{verb}"
        for verb in ["pause", "unpause", "freeze", "unfreeze", "softreboot", "reset", "addvolume", "removevolume"]
    ),
    *(
        f"virtualmachines/{verb}"
        for verb in ["start", "stop", "restart", "addvolume", "removevolume", "memorydump", "removememorydump"]
    ),
    "expand-vm-spec",
}
PEOPLE = {
    "admin": {"get": SCREENS | {SCREENSHOT} | TOLD | REACHED, "update": VERBS},
    "edit": {"get": SCREENS | TOLD | REACHED, "update": VERBS},
    "view": {"get": TOLD, "update": {"expand-vm-spec"}},
    "migrate": {"update": {"virtualmachines/migrate"}},
    "default": {"get": {"version", "healthz", "guestfs"}, "list": {"version", "healthz", "guestfs"}},
}
WRITES = {"create", "update", "patch", "delete"}
READS = {"get", "list", "watch"}
MACHINES = {"virtualmachines", "virtualmachineinstances"}
MIGRATIONS = "virtualmachineinstancemigrations"


@cache
def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.load_all(path.read_text(), Loader=LOADER) if document]


def every_document() -> list[dict[str, Any]]:
    return [document for path in sorted(MANIFESTS.rglob("*.yaml")) for document in documents(path)]


def granted(role: str, kind: str) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for document in every_document():
        if document.get("kind") == kind and document["metadata"]["name"] == f"hyperlet-{role}":
            for rule in document["rules"]:
                assert set(rule) - {"resourceNames"} == {"apiGroups", "resources", "verbs"}, rule
                names = [f"={name}" for name in rule["resourceNames"]] if "resourceNames" in rule else [""]
                for group, resource, name in itertools.product(rule["apiGroups"], rule["resources"], names):
                    found.setdefault((group, resource + name), set()).update(rule["verbs"])
    return found


def peoples(role: str, group: str) -> dict[str, set[str]]:
    """Verb → resources of a role that people get."""
    (found,) = [d for d in every_document() if "rules" in d and d["metadata"]["name"] == f"kubevirt.io:{role}"]
    verbs: dict[str, set[str]] = {}
    for rule in found["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"} and len(rule["apiGroups"]) == 1
        for verb in rule["verbs"] if rule["apiGroups"] == [group] else ():
            verbs.setdefault(verb, set()).update(rule["resources"])
    return verbs


@pytest.mark.parametrize("role", RIGHTS)
def test_a_role_may_do_this_and_nothing_else(role: str) -> None:
    assert granted(role, "ClusterRole") == RIGHTS[role]
    assert granted(role, "Role") == OWN_NAMESPACE[role]


def test_no_other_roles_and_bindings_exist() -> None:
    kinds = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    found = sorted(
        (d["kind"], d["metadata"].get("namespace", ""), d["metadata"]["name"])
        for d in every_document()
        if d.get("kind") in kinds
    )
    everywhere = [
        *(f"hyperlet-{role}" for role in RIGHTS),
        *(f"kubevirt.io:{role}" for role in PEOPLE),
    ]
    bindings = [*(f"hyperlet-{role}" for role in RIGHTS), "kubevirt.io:default"]
    assert found == sorted(
        [
            *(("ClusterRole", "", name) for name in everywhere),
            *(("ClusterRoleBinding", "", name) for name in bindings),
            *((kind, "hyperlet", f"hyperlet-{role}") for role in RIGHTS for kind in ("Role", "RoleBinding")),
            ("RoleBinding", "kube-system", "hyperlet-gateway"),
        ]
    )
    for document in every_document():
        if document.get("kind", "").endswith("RoleBinding") and document["metadata"]["name"] != "kubevirt.io:default":
            name = document["metadata"]["name"]
            assert document["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "hyperlet"}]
            reads = document["metadata"].get("namespace") == "kube-system"
            wanted = {"kind": "Role", "name": "extension-apiserver-authentication-reader"} if reads else {"name": name}
            assert wanted.items() <= document["roleRef"].items()


@pytest.mark.parametrize("role", PEOPLE)
def test_nobody_in_a_namespace_may_vouch_for_the_end_of_a_vm(role: str) -> None:
    """Given wrongly, that word makes two copies: it belongs to those who may do everything in the cluster."""
    named = {each for verbs in peoples(role, "subresources.kubevirt.io").values() for each in verbs}
    assert not {"virtualmachineinstances/fence", "virtualmachineinstances/*", "*"} & named


@pytest.mark.parametrize("role", PEOPLE)
def test_people_may_have_this_done_and_nothing_else(role: str) -> None:
    assert peoples(role, "subresources.kubevirt.io") == PEOPLE[role]


def test_people_write_machines_but_nobodys_status_and_no_migration() -> None:
    """A migration decides about nodes and can hold up a drain: an administrator binds the role for it (line 17)."""
    for role, verbs in (("admin", READS | WRITES | {"deletecollection"}), ("edit", READS | WRITES), ("view", READS)):
        granted_verbs = peoples(role, "kubevirt.io")
        assert {verb for verb, resources in granted_verbs.items() if resources & MACHINES} == verbs
        assert {
            verb for verb, resources in granted_verbs.items() if "virtualmachineinstancemigrations" in resources
        } == READS
        every = set().union(*granted_verbs.values())
        assert every <= MACHINES | {"virtualmachineinstancemigrations", "kubevirts"}
    assert set(peoples("migrate", "kubevirt.io")) >= WRITES
    labels = {d["metadata"]["name"]: d["metadata"].get("labels", {}) for d in every_document() if "rules" in d}
    aggregated = {name: [key for key in found if "aggregate-to" in key] for name, found in labels.items()}
    assert {name: keys for name, keys in aggregated.items() if keys} == {
        f"kubevirt.io:{role}": [f"rbac.authorization.k8s.io/aggregate-to-{role}"] for role in ("admin", "edit", "view")
    }


def test_who_looks_only_sees_no_screen_and_who_edits_takes_no_picture() -> None:
    """A screenshot is as good as a console, and nobody on the console notices it (lines 8 and 17)."""
    assert not (SCREENS | {SCREENSHOT} | REACHED) & peoples("view", "subresources.kubevirt.io")["get"]
    assert SCREENSHOT not in peoples("edit", "subresources.kubevirt.io")["get"]


def test_the_gateway_reads_no_secret_but_its_own_and_makes_none() -> None:
    """A right to create Secrets is one to be given any account's token."""
    for place, verbs in [*RIGHTS["gateway"].items(), *OWN_NAMESPACE["gateway"].items()]:
        assert "secrets" not in place[1] or (place[1] == "secrets=hyperlet-ca" and "create" not in verbs)
        assert "delete" not in verbs and (verbs != {"create"} or place[1].endswith("reviews"))


def test_the_gateways_pod_has_no_privilege() -> None:
    deployment = documents(MANIFESTS / "gateway.yaml")[0]
    spec = deployment["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & set(spec) and spec["securityContext"]["runAsNonRoot"]
    context = spec["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]} and context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False


def test_nothing_that_hyperlet_itself_writes_waits_for_the_gateway() -> None:
    """Controller and handlers make and change instances and VMs; only what people alone create is refused unheard."""
    configurations = {d["kind"]: d for d in documents(MANIFESTS / "webhooks.yaml")}
    (mutating,) = configurations["MutatingWebhookConfiguration"]["webhooks"]
    assert mutating["failurePolicy"] == "Ignore"
    hooks = {hook["name"].split(".")[0]: hook for hook in configurations["ValidatingWebhookConfiguration"]["webhooks"]}
    strict = [(rule["operations"], rule["resources"]) for rule in hooks["create"]["rules"]]
    assert strict == [(["CREATE"], [kind.plural for kind in CATALOG.admitted() if not kind.created_unchecked])]
    assert {kind.plural for kind in CATALOG if kind.created_unchecked} >= {"virtualmachineinstances", "kubevirts"}
    assert hooks["create"]["failurePolicy"] == "Fail" and hooks["write"]["failurePolicy"] == "Ignore"
    evict = hooks.pop("evict")
    # Asked of no pod but launchers, and not missed where it is away: a PodDisruptionBudget stands behind it.
    assert evict["failurePolicy"] == "Ignore" and evict["timeoutSeconds"] <= 5
    assert [condition["expression"] for condition in evict["matchConditions"]] == [
        "request.name.startsWith('virt-launcher-')"
    ]
    (rule,) = evict["rules"]
    assert (rule["operations"], rule["resources"]) == (["CREATE"], ["pods/eviction"])
    for hook in (mutating, *hooks.values()):
        assert hook["sideEffects"] == "None" and hook["timeoutSeconds"] <= 5
        assert all(
            "/" not in resource and "*" not in resource for rule in hook["rules"] for resource in rule["resources"]
        )


def test_the_handlers_pod_shares_with_the_node_what_it_needs_and_no_more() -> None:
    (daemons,) = documents(MANIFESTS / "handler.yaml")
    spec = daemons["spec"]["template"]["spec"]
    assert spec["hostPID"] is True and not {"hostNetwork", "hostIPC"} & set(spec)
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert paths == {
        "/var/lib/kubelet/pods",
        "/var/lib/kubelet/device-plugins",
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
    # The plugins' daemon outlives the handler, which may still run plugins when it is told to stop.
    sidecars = [each["name"] for each in spec["initContainers"] if each.get("restartPolicy") == "Always"]
    assert sidecars == ["cni"] and [each["name"] for each in spec["containers"]] == ["handler"]
    assert "privileged" not in spec["initContainers"][0]["securityContext"]
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "pods"]
    # Nothing that the handler mounts may come out on the node.
    assert mount["mountPropagation"] == "HostToContainer"


def test_only_the_component_for_old_servers_brings_a_container_runtimes_socket() -> None:
    socket = re.compile(r"path: .*(containerd|crio|docker)", re.I)
    assert [path for path in MANIFESTS.glob("*.yaml") if socket.search(path.read_text())] == []
    (component,) = documents(MANIFESTS / "components/containerd-socket/kustomization.yaml")
    (patch,) = [yaml.safe_load(each["patch"]) for each in component["patches"]]
    assert (patch["kind"], patch["metadata"]["name"]) == ("DaemonSet", "hyperlet-handler")
    spec = patch["spec"]["template"]["spec"]
    assert spec["volumes"] == [{"name": "containerd", "hostPath": {"path": "/run/containerd"}}]
    mount = {"name": "containerd", "mountPath": "/run/containerd"}
    assert spec["containers"] == [{"name": "handler", "volumeMounts": [mount]}]
    (resources,) = documents(MANIFESTS / "kustomization.yaml")
    assert not resources.get("components"), "the socket is in the standard manifests again"


def test_the_controller_has_no_privilege_on_its_node() -> None:
    (deployment,) = documents(MANIFESTS / "controller.yaml")
    spec = deployment["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & set(spec) and spec["securityContext"]["runAsNonRoot"]
    context = spec["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]} and context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
