"""Everything that follows from the declaration of a kind (`api.kinds`), for every kind and for one that is made up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from api import names
from api.errors import Fault
from api.k8s.meta import Object, Struct
from api.k8s.resource import Resource, resource_of
from api.kinds.catalog import CATALOG, Catalog
from api.kinds.kind import Column, Kind, Scale
from api.kubevirt.configuration import KubeVirtConfiguration
from api.schema import crd
from api.validation.document import validate_document
from controller.actions import Patch
from controller.cache.cluster import ClusterCache
from controller.kind_reconciler import KindReconciler
from controller.reconcilers import RECONCILERS
from gateway.admission import kinds, ownership, review
from gateway.admission.review import AdmissionRequest, UserInfo
from gateway.admission.webhooks import MUTATE, VALIDATE
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi
from tests.fakes.patches import json_patched
from tests.waiting import until

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Json = dict[str, Any]
Reconcilers = Collection[type[KindReconciler[Any, Any]]]


@dataclass(frozen=True)
class Manifests:
    """What is installed: the names of the CRD files in kustomization.yaml, their texts, and all other documents."""

    listed: tuple[str, ...]
    crds: dict[str, str]
    others: tuple[Json, ...]

    @classmethod
    @cache
    def installed(cls) -> Manifests:
        crds = {path.name: path.read_text() for path in (MANIFESTS / "crds").glob("*.yaml")}
        others = [
            document
            for path in sorted(MANIFESTS.glob("*.yaml"))
            for document in yaml.load_all(path.read_text(), Loader=LOADER)
            if document and "kind" in document
        ]
        (kustomization,) = [each for each in others if each["kind"] == "Kustomization"]
        listed = tuple(each.removeprefix("crds/") for each in kustomization["resources"] if each.startswith("crds/"))
        return cls(listed, crds, tuple(others))


# ---- the checks: each yields what is wrong


def check_crd(kind: Kind, manifests: Manifests) -> Iterable[str]:
    name = f"{kind.plural}.yaml"
    if manifests.crds.get(name) != crd.manifest(kind):
        yield f"crds/{name} is not what is generated: run make manifests"
    if name not in manifests.listed:
        yield f"kustomization.yaml does not list crds/{name}"


def check_struct(kind: Kind) -> Iterable[str]:
    """The types of apiVersion and kind accept what the CRD serves, and nothing else."""
    hints = get_type_hints(kind.struct)
    accepted = {"apiVersion": {f"{kind.group}/{version}" for version in kind.versions}, "kind": {kind.name}}
    for field, values in accepted.items():
        hint = hints[field]
        if get_origin(hint) is Literal and set(get_args(hint)) != values:
            yield f"{kind.struct.__name__}.{field} is one of {get_args(hint)}, not of {sorted(values)}"
        elif get_origin(hint) is not Literal and kind.validate is not None:
            yield f"{kind.struct.__name__}.{field} accepts any text"


def webhook_rules(manifests: Manifests, path: str) -> dict[tuple[str, str, str], str]:
    """(group, resource, operation) to the failurePolicy of the webhook with that path."""
    return {
        (group, resource, operation): hook["failurePolicy"]
        for document in manifests.others
        for hook in document.get("webhooks", ())
        if hook["clientConfig"]["service"]["path"] == path
        for rule in hook["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for operation in rule["operations"]
    }


def check_webhooks(kind: Kind, manifests: Manifests) -> Iterable[str]:
    """The webhooks ask about the kind; only the creation by users fails while no gateway answers."""
    wanted: dict[str, dict[str, str]] = {VALIDATE: {}, MUTATE: {}}
    if kind.validate is not None:
        wanted[VALIDATE] = {"CREATE": "Ignore" if kind.created_unchecked else "Fail", "UPDATE": "Ignore"}
    if kind.defaults is not None:
        wanted[MUTATE] = {"CREATE": "Ignore", "UPDATE": "Ignore"}
    for path, operations in wanted.items():
        rules = webhook_rules(manifests, path)
        found = {place[2]: policy for place, policy in rules.items() if place[:2] == (kind.group, kind.plural)}
        if found != operations:
            yield f"webhooks.yaml asks {path} about {kind.plural}: {found}, not {operations}"


def granted(manifests: Manifests, kind: Kind) -> dict[str, dict[str, frozenset[str]]]:
    """Role to resource to verbs, of every role that names the kind; of all its resources where a rule has wildcards."""
    found: dict[str, dict[str, set[str]]] = {}
    for document in manifests.others:
        for rule in document.get("rules", ()) if document["kind"] in ("Role", "ClusterRole") else ():
            if not {kind.group, "*"} & set(rule["apiGroups"]):
                continue
            for resource in rule["resources"]:
                if resource.partition("/")[0] in (kind.plural, "*"):
                    found.setdefault(document["metadata"]["name"], {}).setdefault(resource, set()).update(rule["verbs"])
    return {role: {place: frozenset(verbs) for place, verbs in resources.items()} for role, resources in found.items()}


def check_rights(kind: Kind, manifests: Manifests) -> Iterable[str]:
    found = granted(manifests, kind)
    for role in sorted(found.keys() | kind.rights.keys()):
        if found.get(role, {}) != kind.verbs(role):
            yield f"{role} has the rights {found.get(role, {})} to {kind.plural}, not {kind.verbs(role)}"
    for role, verbs in {"hyperlet-controller": {"list", "watch"}}.items():
        if kind.controller != "ignores" and not verbs <= kind.verbs(role).get(kind.plural, frozenset()):
            yield f"{role} has a store of {kind.plural}, and no right to list and watch them"


def check_finalizer(kind: Kind, manifests: Manifests) -> Iterable[str]:
    """The policy that protects finalizers covers the kind, and its status subresource, which takes metadata too."""
    if not kind.finalizer:
        return
    (policy,) = [
        each["spec"]
        for each in manifests.others
        if each["kind"] == "ValidatingAdmissionPolicy" and each["metadata"]["name"] == "hyperlet-finalizers"
    ]
    covered = {
        (group, resource)
        for rule in policy["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    for resource in (kind.plural, f"{kind.plural}/status") if kind.has_status else (kind.plural,):
        if (kind.group, resource) not in covered:
            yield f"the policy hyperlet-finalizers does not cover {resource}"
    (known,) = [each["expression"] for each in policy["variables"] if each["name"] == "finalizers"]
    if f"'{kind.finalizer}'" not in known:
        yield f"the policy hyperlet-finalizers does not name {kind.finalizer}"


def check_reconciler(kind: Kind, reconcilers: Reconcilers) -> Iterable[str]:
    found = [each.__name__ for each in reconcilers if each.kind is kind]
    if len(found) != (kind.controller == "reconciles"):
        yield f"{kind.name}, which the controller {kind.controller}, has the reconcilers {found}"


def complaints(kind: Kind, manifests: Manifests, reconcilers: Reconcilers = RECONCILERS) -> list[str]:
    """Everything about a kind that does not follow from its declaration."""
    return [
        *check_crd(kind, manifests),
        *check_struct(kind),
        *check_webhooks(kind, manifests),
        *check_rights(kind, manifests),
        *check_finalizer(kind, manifests),
        *check_reconciler(kind, reconcilers),
    ]


# ---- every kind


@pytest.mark.parametrize("kind", list(CATALOG), ids=lambda kind: kind.plural)
def test_manifests_and_controller_follow_from_the_declaration(kind: Kind) -> None:
    assert complaints(kind, Manifests.installed()) == []


def test_nothing_is_installed_without_a_declaration() -> None:
    installed = Manifests.installed()
    assert set(installed.crds) == set(installed.listed) == {f"{kind.plural}.yaml" for kind in CATALOG}
    places = {(kind.group, kind.plural) for kind in CATALOG}
    asked = {place[:2] for path in (VALIDATE, MUTATE) for place in webhook_rules(installed, path)}
    assert asked <= places
    assert {reconciler.kind for reconciler in RECONCILERS} <= set(CATALOG)


def test_kinds_do_not_collide() -> None:
    declared = list(CATALOG)
    assert len({(kind.group, kind.plural) for kind in declared}) == len(declared)
    short = [(kind.group, name) for kind in declared for name in kind.short_names]
    assert len(set(short)) == len(short)
    assert all(kind.plural == kind.plural.lower() for kind in declared)


def test_catalog_finds_kinds_by_group() -> None:
    vm = CATALOG.get("kubevirt.io", "VirtualMachine")
    assert vm is not None and vm.versions == ("v1", "v1alpha3")
    assert CATALOG.get("example.com", "VirtualMachine") is None


def test_finalizers_of_all_kinds_are_protected() -> None:
    assert {names.FINALIZER_VM, names.FINALIZER_VMI, names.FINALIZER_MIGRATION} == ownership.FINALIZERS


async def test_controller_has_a_store_of_each_watched_kind(tmp_path: Path) -> None:
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        stores = ClusterCache(kube).stores
        assert {kind.struct for kind in CATALOG.watched()} <= stores.keys()
        assert not {kind.struct for kind in CATALOG if kind.controller == "ignores"} & stores.keys()
        assert all(store.plural == resource_of(struct).plural for struct, store in stores.items())


# ---- a kind that is made up: another group, two versions, cluster-scoped, with replicas


class GizmoSpec(Struct):
    """Desired state."""

    replicas: int | None = None
    """Number of them."""
    colour: str | None = None
    """Colour of all."""


class GizmoStatus(Struct):
    """Observed state."""

    phase: str | None = None
    """Where it is."""


class Gizmo(Object):
    """A kind that is made up."""

    RESOURCE = Resource("gizmos.example", "v1beta1", "Gizmo", "gizmos", namespaced=False)

    apiVersion: Literal["gizmos.example/v1beta1", "gizmos.example/v1alpha1"]
    """API group and version."""
    kind: Literal["Gizmo"]
    """Kind of the object."""
    spec: GizmoSpec
    """Desired state."""
    status: GizmoStatus | None = None
    """Observed state."""


def gizmo_faults(gizmo: Gizmo, _config: KubeVirtConfiguration | None) -> list[Fault]:
    return [Fault("spec.colour", names.FAULT_INVALID, "no such colour")] if gizmo.spec.colour == "none" else []


GIZMO = Kind(
    struct=Gizmo,
    older_versions=("v1alpha1",),
    short_names=("gz",),
    columns=(Column("Phase", ".status.phase"), Column("Colour", ".spec.colour", priority=1)),
    scale=Scale(".spec.replicas", ".status.replicas", ".status.labelSelector"),
    validate=gizmo_faults,
    warn=lambda gizmo, _config: ["red is loud"] if gizmo.spec.colour == "red" else [],
    defaults=lambda gizmo, _config: {"replicas": gizmo.spec.replicas or 1, "colour": gizmo.spec.colour or "red"},
    finalizer="gizmos.example/finalizer",
    controller="reconciles",
    rights={"hyperlet-controller": {"": "list watch", "status": "patch"}, "kubevirt.io:view": {"": "get list watch"}},
)
WITH_GIZMO = Catalog((*CATALOG, GIZMO))
ALICE = UserInfo(username="alice", groups=["devs"])


class GizmoReconciler(KindReconciler[Gizmo, Gizmo]):
    """Reports that a gizmo is ready."""

    name = "gizmo"
    kind = GIZMO

    async def observe(self, key: tuple[str, str]) -> Gizmo | None:
        return self._store.get(*key)

    def plan(self, observed: Gizmo) -> Sequence[Any]:
        ready = {"status": {"phase": "Ready"}}
        return () if observed.status else [Patch(Gizmo, "", observed.metadata.name or "", ready, "status")]


def document(**spec: Any) -> Json:
    return {"apiVersion": "gizmos.example/v1beta1", "kind": "Gizmo", "metadata": {"name": "g"}, "spec": spec}


def asked(new: Json, old: Json | None = None) -> AdmissionRequest:
    kind = review.GroupVersionKind(group="gizmos.example", version="v1beta1", kind="Gizmo")
    return AdmissionRequest(
        uid="u", operation="UPDATE" if old else "CREATE", kind=kind, name="g", userInfo=ALICE, object=new, oldObject=old
    )


def installed_with_gizmo() -> Manifests:
    """What a developer adds to the manifests by hand, and `make manifests`."""
    now = Manifests.installed()
    rule = {"apiGroups": ["gizmos.example"], "resources": ["gizmos"]}

    def hook(path: str, policy: str, *operations: str) -> Json:
        client = {"service": {"path": path}}
        return {"clientConfig": client, "failurePolicy": policy, "rules": [{**rule, "operations": list(operations)}]}

    webhooks = [
        hook(MUTATE, "Ignore", "CREATE", "UPDATE"),
        hook(VALIDATE, "Fail", "CREATE"),
        hook(VALIDATE, "Ignore", "UPDATE"),
    ]
    roles = [role(verbs, place, name) for name in GIZMO.rights for place, verbs in sorted(GIZMO.verbs(name).items())]
    policies = [covered(each) for each in now.others]
    return Manifests(
        (*now.listed, "gizmos.yaml"),
        {**now.crds, "gizmos.yaml": crd.manifest(GIZMO)},
        (*policies, {"kind": "ValidatingWebhookConfiguration", "webhooks": webhooks}, *roles),
    )


def role(verbs: Iterable[str], place: str, name: str) -> Json:
    rule = {"apiGroups": ["gizmos.example"], "resources": [place], "verbs": sorted(verbs)}
    return {"kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]}


def covered(policy: Json) -> Json:
    """The finalizers' policy with gizmos added; other documents as they are."""
    if policy["kind"] != "ValidatingAdmissionPolicy" or policy["metadata"]["name"] != "hyperlet-finalizers":
        return policy
    spec = policy["spec"]
    rules = spec["matchConstraints"]["resourceRules"]
    more = {"apiGroups": ["gizmos.example"], "resources": ["gizmos", "gizmos/status"]}
    variables = [
        {**each, "expression": f"{each['expression']} + ['gizmos.example/finalizer']"}
        if each["name"] == "finalizers"
        else each
        for each in spec["variables"]
    ]
    constraints = {**spec["matchConstraints"], "resourceRules": [*rules, more]}
    return {**policy, "spec": {**spec, "matchConstraints": constraints, "variables": variables}}


def test_a_new_declaration_names_everything_that_is_missing() -> None:
    text = "\n".join(complaints(GIZMO, Manifests.installed()))
    for missing in (
        "crds/gizmos.yaml is not what is generated",
        "kustomization.yaml does not list crds/gizmos.yaml",
        f"webhooks.yaml asks {VALIDATE} about gizmos",
        f"webhooks.yaml asks {MUTATE} about gizmos",
        "hyperlet-controller has the rights {} to gizmos",
        "kubevirt.io:view has the rights {} to gizmos",
        "hyperlet-finalizers does not cover gizmos\n",
        "hyperlet-finalizers does not cover gizmos/status",
        "hyperlet-finalizers does not name gizmos.example/finalizer",
        "Gizmo, which the controller reconciles, has the reconcilers []",
    ):
        assert missing in text, missing
    assert complaints(GIZMO, installed_with_gizmo(), (*RECONCILERS, GizmoReconciler)) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: replace(m, others=(*m.others, role(["patch"], "gizmos", "hyperlet-handler"))), "hyperlet-handler"),
        (lambda m: replace(m, others=(*m.others, role(["delete"], "*", "hyperlet-gateway"))), "hyperlet-gateway"),
        (lambda m: replace(m, crds={**m.crds, "gizmos.yaml": "kind: Other"}), "not what is generated"),
    ],
)
def test_more_than_the_declaration_is_reported(change: Callable[[Manifests], Manifests], complaint: str) -> None:
    found = complaints(GIZMO, change(installed_with_gizmo()), (*RECONCILERS, GizmoReconciler))
    assert len(found) == 1 and complaint in found[0]


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (replace(GIZMO, older_versions=()), "Gizmo.apiVersion is one of"),
        (replace(GIZMO, rights={}), "no right to list and watch"),
        (replace(GIZMO, controller="watches"), "which the controller watches"),
    ],
)
def test_contradictions_in_a_declaration_are_reported(kind: Kind, complaint: str) -> None:
    class Other(GizmoReconciler):
        pass

    Other.kind = kind
    assert any(complaint in each for each in complaints(kind, installed_with_gizmo(), (*RECONCILERS, Other)))


def test_crd_of_new_kind_follows() -> None:
    made = crd.definition(GIZMO)
    assert made["metadata"]["name"] == "gizmos.gizmos.example" and made["spec"]["scope"] == "Cluster"
    assert made["spec"]["names"]["shortNames"] == ["gz"] and made["spec"]["names"]["singular"] == "gizmo"
    new, old = made["spec"]["versions"]
    assert [(each["name"], each["served"], each["storage"]) for each in (new, old)] == [
        ("v1beta1", True, True),
        ("v1alpha1", True, False),
    ]
    assert new["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.labelSelector",
        },
    }
    assert new["additionalPrinterColumns"][1] == {
        "name": "Colour",
        "type": "string",
        "jsonPath": ".spec.colour",
        "priority": 1,
    }
    assert new["schema"]["openAPIV3Schema"]["required"] == ["spec"]


def test_admission_of_new_kind_follows() -> None:
    settings = KubeVirtConfiguration()

    def mutated(request: AdmissionRequest) -> Json:
        return json_patched(
            request.object or {}, list(kinds.mutate(request, settings, "hyperlet", (), WITH_GIZMO).patch)
        )

    def validated(request: AdmissionRequest) -> tuple[list[str], list[str]]:
        decision = kinds.validate(request, settings, "hyperlet", (), WITH_GIZMO)
        return [fault.path for fault in decision.faults], list(decision.warnings)

    made = mutated(asked(document(colour="blue")))
    assert made["spec"] == {"colour": "blue", "replicas": 1}
    assert made["metadata"]["finalizers"] == ["gizmos.example/finalizer"]
    # An update that leaves the finalizer out gets it back.
    assert mutated(asked(document(colour="red", replicas=2), made))["metadata"]["finalizers"] == [
        "gizmos.example/finalizer"
    ]
    assert validated(asked(document(colour="red"))) == ([], ["red is loud"])
    assert validated(asked(document(colour="none"))) == (["spec.colour"], [])
    assert validated(asked(document(size=3))) == (["spec.size"], [])
    # An unchanged spec is not validated again.
    assert validated(asked(document(colour="none"), document(colour="none"))) == ([], [])
    # Without the declaration the kind is none of hyperlet's.
    assert kinds.validate(asked(document(colour="none")), settings, "hyperlet").faults == ()


def test_fixed_spec_of_new_kind_is_immutable() -> None:
    fixed = Catalog([replace(GIZMO, fixed_spec="make another Gizmo")])
    request = asked(document(colour="blue"), document(colour="red"))
    (fault,) = kinds.validate(request, KubeVirtConfiguration(), "hyperlet", (), fixed).faults
    assert (fault.path, fault.message) == ("spec.colour", "field is immutable: make another Gizmo")


def test_documents_of_new_kind_are_validated() -> None:
    assert [fault.path for fault in validate_document(document(colour="none"), None, WITH_GIZMO)] == ["spec.colour"]
    (fault,) = validate_document(document(colour="none"))
    assert fault.path == "kind" and "'Gizmo' is not one of VirtualMachine" in fault.message


async def test_controller_reconciles_new_kind(tmp_path: Path) -> None:
    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        cluster = ClusterCache(kube, WITH_GIZMO)
        store = cluster.stores[Gizmo]
        reconciler = GizmoReconciler(kube, cluster)
        running = asyncio.create_task(reconciler.run(1))
        store.start()
        await store.synced()
        await kube.create(Gizmo, document(colour="blue"))
        await until(lambda: (api.find("gizmos", "g", "") or {}).get("status") == {"phase": "Ready"})
        running.cancel()
        await store.stop()
