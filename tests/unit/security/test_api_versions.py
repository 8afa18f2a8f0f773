"""Only stable APIs are asked for, and only those that the oldest supported server serves (tests/discovery.py)."""

import ast
import importlib
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.k8s.meta import ObjectMeta
from api.k8s.resource import Resource, resource_of
from cluster import binaries
from tests.discovery import OLDEST, Served, recorded

ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = ROOT / "manifests"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CODE = ("api", "bench", "cli", "cluster", "cni", "controller", "gateway", "handler", "images", "kit", "launcher")
OURS = {"kubevirt.io", "subresources.kubevirt.io", "k8s.cni.cncf.io", "cdi.kubevirt.io"}
"""Groups that the manifests bring, and one whose only published version is v1beta1: hyperctl asks for it first."""
BROUGHT = {"snapshot.storage.k8s.io/v1": "by the external-snapshotter"}
"""Stable versions of groups that others' CRDs bring."""
FORMATS = {
    "admission.k8s.io/v1": "what the API server sends to webhooks",
    "audit.k8s.io/v1": "a file of the test cluster's API server",
    "client.authentication.k8s.io/v1": "what a credential plugin prints",
    "client.authentication.k8s.io/v1beta1": "the same, of older plugins",
    "kubelet.config.k8s.io/v1beta1": "the kubelet's configuration file: there is no later one",
    "kubeproxy.config.k8s.io/v1alpha1": "kube-proxy's configuration file: there is no later one",
    "kustomize.config.k8s.io/v1beta1": "kustomize's file: there is no later one",
    "kustomize.config.k8s.io/v1alpha1": "the same, of components",
}
"""Versions of files and messages, which no API server serves."""
_GROUP_VERSION = re.compile(
    r"\b((?:[a-z0-9-]+\.)*k8s\.io|apps|autoscaling|batch|policy)/(v[0-9]+(?:(?:alpha|beta)[0-9]+)?)\b"
)


@cache
def oldest() -> Served:
    return recorded()


@cache
def manifests() -> list[tuple[str, dict[str, Any]]]:
    return [
        (str(path.relative_to(ROOT)), document)
        for path in sorted([*MANIFESTS.rglob("*.yaml"), *(ROOT / "examples").glob("*.yaml")])
        for document in yaml.load_all(path.read_text(), Loader=LOADER)
        if document and "apiVersion" in document
    ]


def sources() -> Iterator[tuple[str, str]]:
    """Path and text of everything that may name a group and a version."""
    for folder in (*CODE, "manifests", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".yaml", ".sh", ".c"} and "crds" not in path.parts:
                yield str(path.relative_to(ROOT)), path.read_text()


def versions_of(group: str) -> dict[str, dict[str, list[str]]]:
    """Stable versions of a group that the oldest server serves, with their resources."""
    wanted = {place: found for place, found in oldest().items() if place.rpartition("/")[0] == group}
    return wanted


def test_the_recorded_server_is_the_oldest_that_is_supported() -> None:
    assert f"v{min(binaries.VERSIONS, key=lambda series: [int(part) for part in series.split('.')])}" == OLDEST
    assert {"v1", "apps/v1"} <= set(oldest()) and not any("beta" in place for place in oldest())


def test_every_object_in_the_manifests_is_of_a_version_that_is_served() -> None:
    for path, document in manifests():
        group, _, version = document["apiVersion"].rpartition("/")
        if group in OURS:
            continue
        assert document["apiVersion"] in oldest() or document["apiVersion"] in FORMATS, f"{path}: {group}/{version}"


def test_every_group_and_version_in_the_code_is_served() -> None:
    seen = set()
    for path, text in sources():
        for match in _GROUP_VERSION.finditer(text):
            group, version = match.groups()
            if group not in OURS:
                seen.add(f"{group}/{version}")
                assert match[0] in {*oldest(), *BROUGHT, *FORMATS}, f"{path}: {match[0]}"
    assert {"apps/v1", "rbac.authorization.k8s.io/v1", "admissionregistration.k8s.io/v1"} <= seen
    assert set(FORMATS) <= seen | {"kubeproxy.config.k8s.io/v1alpha1", "kustomize.config.k8s.io/v1alpha1"}


def test_every_path_in_the_code_is_served() -> None:
    pattern = re.compile(r"/(?:apis/([a-z0-9.-]+)|api)/(v[0-9][a-z0-9]*)/(?:namespaces/[^/\"']+/)?([a-z]+)")
    for path, text in sources():
        for group, version, plural in pattern.findall(text):
            # A kind that is only known at run time comes from a RESOURCE, or is no part of the product.
            if group not in OURS and plural != "namespaces":
                place = f"{group}/{version}" if group else version
                assert plural in oldest().get(place, {}), f"{path}: {place} {plural}"


@cache
def declared() -> dict[type, Resource]:
    """Every Struct of the product with its resource."""
    found: dict[type, Resource] = {}
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            names = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and _declares(node)]
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)) if names else None
            for struct in (getattr(module, name) for name in names):
                found[struct] = resource_of(struct)
    return found


def _declares(node: ast.ClassDef) -> bool:
    targets = [target for each in node.body if isinstance(each, ast.Assign) for target in each.targets]
    return any(isinstance(target, ast.Name) and target.id == "RESOURCE" for target in targets)


def test_every_kind_that_is_read_or_written_is_served() -> None:
    assert len(declared()) > 20
    for struct, place in declared().items():
        if place.group not in OURS:
            assert place.plural in oldest()[place.api_version], f"{struct.__name__}: {place}"


def test_the_structs_of_one_kind_agree_and_have_names_of_their_own() -> None:
    """A component may declare a smaller Struct of a kind, under another name."""
    names = [struct.__name__ for struct in declared()]
    assert len(set(names)) == len(names)
    resources = set(declared().values())
    assert len({(place.group, place.kind) for place in resources}) == len(resources)


def test_a_struct_without_a_resource_is_no_kind() -> None:
    with pytest.raises(TypeError, match="declares no RESOURCE"):
        resource_of(ObjectMeta)


@pytest.mark.parametrize("kind", ["Role", "ClusterRole"])
def test_every_right_is_to_something_that_is_served(kind: str) -> None:
    rules = [(path, rule) for path, d in manifests() if d.get("kind") == kind for rule in d["rules"]]
    assert rules
    for path, rule in rules:
        for group, resource in itertools.product(rule["apiGroups"], rule["resources"]):
            if group in OURS:
                continue
            found = [served[resource] for served in versions_of(group).values() if resource in served]
            assert found, f"{path}: {group} {resource}"
            assert any(set(rule["verbs"]) <= set(verbs) for verbs in found), f"{path}: {rule['verbs']} {resource}"


def test_every_resource_that_admission_looks_at_is_served() -> None:
    looked = 0
    for path, document in manifests():
        spec = document.get("spec") or {}
        matched = (spec.get("matchConstraints") or {}).get("resourceRules") or []
        for rule in [*matched, *(rule for hook in document.get("webhooks") or [] for rule in hook["rules"])]:
            for group, resource in itertools.product(rule["apiGroups"], rule["resources"]):
                looked += 1
                if group not in OURS:
                    assert any(resource in served for served in versions_of(group).values()), (
                        f"{path}: {group} {resource}"
                    )
    assert looked > 10


def test_what_the_server_fills_into_atomic_fields_is_written_out() -> None:
    """Server-side apply compares such a field as a whole: with a default in it, it would be in conflict with itself."""
    seen = {"fieldRef": 0, "rules": 0, "matchConstraints": 0}

    def look(path: str, value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key == "fieldRef":
                seen[key] += 1
                assert set(inner) == {"apiVersion", "fieldPath"}, path
            elif key == "matchConstraints":
                seen[key] += 1
                assert {"matchPolicy", "namespaceSelector", "objectSelector", "resourceRules"} <= set(inner), path
            elif key in ("rules", "resourceRules") and "operations" in inner[0]:
                seen["rules"] += 1
                assert all("scope" in rule for rule in inner), path
            if isinstance(inner, dict | list):
                look(path, inner)

    for path, document in manifests():
        if document["kind"] != "CustomResourceDefinition":
            look(path, document)
    assert all(seen.values()), seen
