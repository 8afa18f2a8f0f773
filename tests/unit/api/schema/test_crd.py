"""The CRDs: up to date, structural, small enough for `kubectl apply`, and consistent with the decoder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.kinds.catalog import CATALOG
from api.kinds.kind import Kind
from api.kinds.kubevirt import VIRTUAL_MACHINE_INSTANCE
from api.schema import crd
from tests.unit.api.documents import full

ROOT = Path(__file__).parents[4]
KINDS = pytest.mark.parametrize("kind", list(CATALOG), ids=lambda kind: kind.plural)
KUBEVIRTS = [kind for kind in CATALOG if kind.group == "kubevirt.io"]
OF_KUBEVIRT = pytest.mark.parametrize("kind", KUBEVIRTS, ids=lambda kind: kind.plural)
# Keywords of a structural schema in apiextensions v1 that are used.
ALLOWED = {
    "type",
    "description",
    "properties",
    "required",
    "items",
    "additionalProperties",
    "enum",
    "format",
    "pattern",
    "minimum",
    "maximum",
    "nullable",
    "anyOf",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
}
# kubectl stores the whole object in an annotation; the limit for all annotations is 262144 bytes.
LAST_APPLIED = 230_000


def schemas(kind: Kind) -> list[dict[str, Any]]:
    return [version["schema"]["openAPIV3Schema"] for version in crd.definition(kind)["spec"]["versions"]]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}.{key}")


@KINDS
def test_crd_manifests_are_up_to_date(kind: Kind) -> None:
    path = ROOT / "manifests" / "crds" / f"{kind.plural}.yaml"
    assert path.read_text() == crd.manifest(kind), "run: make manifests"


@KINDS
def test_yaml_decodes_to_the_definition(kind: Kind) -> None:
    assert yaml.safe_load(crd.manifest(kind)) == crd.definition(kind)


@KINDS
def test_the_schema_is_structural(kind: Kind) -> None:
    for schema in schemas(kind):
        for path, node in nodes(schema):
            assert set(node) <= ALLOWED, path
            assert ("type" in node) != ("x-kubernetes-int-or-string" in node), path
            assert not ("properties" in node and "additionalProperties" in node), path
            if node.get("type") == "array":
                assert "items" in node, path
            if "anyOf" in node:
                assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
            for name in node.get("required", ()):
                assert name in node["properties"], f"{path}.{name}"
            for key in node.get("x-kubernetes-list-map-keys", ()):
                assert key in node["items"]["required"], path


@KINDS
def test_crd_fits_into_last_applied_annotation(kind: Kind) -> None:
    assert len(json.dumps(crd.definition(kind), separators=(",", ":"))) < LAST_APPLIED


@OF_KUBEVIRT
def test_both_versions_have_the_same_schema(kind: Kind) -> None:
    def bare(schema: Any) -> Any:
        if isinstance(schema, dict):
            return {
                key: bare(value) for key, value in schema.items() if key != "description" or not isinstance(value, str)
            }
        return schema

    new, old = schemas(kind)
    assert bare(new) == bare(old)
    versions = crd.definition(kind)["spec"]["versions"]
    assert [(version["name"], version["served"], version["storage"]) for version in versions] == [
        ("v1", True, True),
        ("v1alpha3", True, False),
    ]


@KINDS
def test_every_field_has_a_description(kind: Kind) -> None:
    new = schemas(kind)[0]
    for part in {"spec", "status"} & set(new["properties"]):
        for path, node in nodes(new["properties"][part], part):
            if not path.endswith((".items", ".additionalProperties")) and ".metadata." not in path:
                assert node.get("description"), path


@OF_KUBEVIRT
def test_schema_accepts_document_with_every_field(kind: Kind) -> None:
    document = full(kind.name)
    for schema in schemas(kind):
        for part in ("spec", "status"):
            assert list(misfits(schema["properties"][part], document[part], part)) == []


def misfits(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    """Paths in a document that are not in the schema, which the API server would prune."""
    if isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        for key, child in value.items():
            below = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if below is None:
                yield f"{path}.{key}"
            else:
                yield from misfits(below, child, f"{path}.{key}")
    elif isinstance(value, list):
        for child in value:
            yield from misfits(schema["items"], child, path)


def test_short_names_and_columns() -> None:
    names = {kind.plural: crd.definition(kind)["spec"]["names"] for kind in CATALOG}
    assert {plural: entry["shortNames"] for plural, entry in names.items()} == {
        "virtualmachines": ["vm", "vms"],
        "virtualmachineinstances": ["vmi", "vmis"],
        "virtualmachineinstancemigrations": ["vmim", "vmims"],
        "kubevirts": ["kv", "kvs"],
        "network-attachment-definitions": ["net-attach-def", "net-attach-defs"],
    }
    assert all(names[kind.plural]["categories"] == ["all"] for kind in KUBEVIRTS)
    columns = {kind.plural: [column.name for column in kind.columns if not column.priority] for kind in CATALOG}
    assert columns["virtualmachines"] == ["Age", "Status", "Ready"]
    assert columns["virtualmachineinstances"] == ["Age", "Phase", "IP", "NodeName", "Ready"]
    assert columns["virtualmachineinstancemigrations"] == ["Phase", "VMI"]


def test_only_the_vmi_has_no_status_subresource() -> None:
    without = [
        kind.plural
        for kind in KUBEVIRTS
        for version in crd.definition(kind)["spec"]["versions"]
        if "subresources" not in version
    ]
    assert without == ["virtualmachineinstances"] * 2


def test_named_lists_are_list_maps() -> None:
    spec = crd.root_schema(VIRTUAL_MACHINE_INSTANCE)["properties"]["spec"]["properties"]
    devices = spec["domain"]["properties"]["devices"]["properties"]
    for field in (spec["volumes"], spec["networks"], devices["disks"], devices["interfaces"]):
        assert field["x-kubernetes-list-map-keys"] == ["name"]


def test_network_definition_crd_equals_multus_crd() -> None:
    """Names, versions and schema, so that one CRD can be applied over the other without affecting objects."""
    (kind,) = [kind for kind in CATALOG if kind.group != "kubevirt.io"]
    made = crd.definition(kind)
    assert made["metadata"]["name"] == "network-attachment-definitions.k8s.cni.cncf.io"
    assert made["spec"]["group"] == "k8s.cni.cncf.io" and made["spec"]["scope"] == "Namespaced"
    assert made["spec"]["names"] == {
        "kind": "NetworkAttachmentDefinition",
        "listKind": "NetworkAttachmentDefinitionList",
        "plural": "network-attachment-definitions",
        "singular": "network-attachment-definition",
        "shortNames": ["net-attach-def", "net-attach-defs"],
    }
    (version,) = made["spec"]["versions"]
    assert (version["name"], version["served"], version["storage"]) == ("v1", True, True)
    assert "subresources" not in version
    schema = version["schema"]["openAPIV3Schema"]
    assert "required" not in schema and schema["properties"]["spec"]["properties"]["config"]["type"] == "string"


@pytest.mark.parametrize(
    ("kind", "path", "refused"),
    [
        ("virtualmachines", "spec.template.spec.domain.devices.tpm", True),
        ("virtualmachines", "spec.template.spec.domain.devices.disks.items.lun", True),
        ("virtualmachines", "spec.instancetype", True),
        ("virtualmachines", "spec.template.spec.domain.devices.disks.items.disk", False),
        ("virtualmachines", "spec.template.spec.domain.devices.logSerialConsole", False),
        ("virtualmachineinstances", "spec.accessCredentials", True),
        ("virtualmachineinstances", "spec.livenessProbe.exec", True),
        ("virtualmachineinstances", "spec.livenessProbe.tcpSocket", False),
        ("kubevirts", "spec.configuration.migrations", True),
        ("kubevirts", "spec.configuration.cpuModel", False),
    ],
)
def test_descriptions_mark_unsupported_fields(kind: str, path: str, refused: bool) -> None:
    (found,) = [each for each in CATALOG if each.plural == kind]
    node = schemas(found)[0]
    for step in path.split("."):
        node = node["items"] if step == "items" else node["properties"][step]
    assert node["description"].startswith(crd.NOT_SUPPORTED) == refused
