"""Removal of stored defaults that conflict with fields set by a later update. Pure.

Otherwise a second `kubectl apply`, of a manifest that first omitted a field, would be refused because of a value that
the user never set. A value that the user did set (in the last-applied annotation of `kubectl apply`, or according to
managedFields) is kept, and the conflict is refused by validation.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from api import names
from api.k8s.meta import Json
from api.validation.network_rules import BINDINGS
from gateway.admission.json_patch import Operation
from gateway.admission.validation import applied

_DEFAULT_NETWORK = "default"
"""Name of the default network (api.defaults)."""


def operations(new: Json, old: Json | None) -> list[Operation]:
    """The JSON patch that removes conflicting stored defaults from a VirtualMachine."""
    if old is None or not isinstance(new.get("spec"), dict) or not isinstance(old.get("spec"), dict):
        return []
    return [{"op": "remove", "path": f"/spec/{path}"} for path in _paths(new, new["spec"], old["spec"])]


def without(new: Json, removed: list[Operation]) -> Json:
    """A copy of the document with the operations applied."""
    if not removed:
        return new
    document: Json = msgspec.json.decode(msgspec.json.encode(new))
    for operation in removed:
        *parents, last = operation["path"].removeprefix("/").split("/")
        node: Any = document
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        del node[int(last) if isinstance(node, list) else last]
    return document


def _paths(document: Json, new: Json, old: Json) -> Iterator[str]:
    """Paths below spec to remove, in an order in which list indexes stay valid."""
    if (
        new.get("running") is not None
        and old.get("running") is None
        and new.get("runStrategy") == old.get("runStrategy") == names.RUN_HALTED
        and not _is_set_by_user(document, "runStrategy")
    ):
        yield "runStrategy"
    new_networks, old_networks = _machine(new), _machine(old)
    yield from _bindings(document, new_networks, old_networks)
    yield from _networks(document, new_networks, old_networks)


def _bindings(document: Json, new: Json, old: Json) -> Iterator[str]:
    """Bindings: server-side apply merges interfaces by name, and so adds the new binding to the stored default."""
    before = {nic.get("name"): nic for nic in _list(old, "interfaces")}
    for index, nic in enumerate(_list(new, "interfaces")):
        stored = [binding for binding in BINDINGS if before.get(nic.get("name"), {}).get(binding) is not None]
        added = [binding for binding in BINDINGS if nic.get(binding) is not None and binding not in stored]
        is_default = nic.get("name") == _DEFAULT_NETWORK and len(stored) == len(added) == 1
        if not is_default or nic.get(stored[0]) != {}:
            continue
        path = "template.spec.domain.devices.interfaces"
        if not _is_set_by_user(document, f"{path}.{_DEFAULT_NETWORK}.{stored[0]}"):
            yield f"{path.replace('.', '/')}/{index}/{stored[0]}"


def _networks(document: Json, new: Json, old: Json) -> Iterator[str]:
    """Networks: server-side apply merges them by name; of two pod networks the stored default is removed."""
    networks, interfaces = _list(new, "networks"), _list(new, "interfaces")
    stored = [network.get("name") for network in _list(old, "networks")]
    on_pod = [network.get("name") for network in networks if network.get("pod") is not None]
    if stored != [_DEFAULT_NETWORK] or len(on_pod) != 2 or _DEFAULT_NETWORK not in on_pod:
        return
    if _is_set_by_user(document, f"template.spec.networks.{_DEFAULT_NETWORK}"):
        return
    for field, entries in (("domain/devices/interfaces", interfaces), ("networks", networks)):
        for index, entry in enumerate(entries):
            if entry.get("name") == _DEFAULT_NETWORK:
                yield f"template/spec/{field}/{index}"


def _machine(spec: Json) -> Json:
    """Networks and interfaces of a VM's template."""
    template = _map(_map(spec, "template"), "spec")
    devices = _map(_map(template, "domain"), "devices")
    return {"networks": template.get("networks"), "interfaces": devices.get("interfaces")}


def _map(document: Json, key: str) -> Json:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _list(document: Json, key: str) -> list[Json]:
    """A list of named objects; empty if malformed, which validation reports."""
    value = document.get(key)
    named = isinstance(value, list) and all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in value
    )
    return value if named and value else []


# ---- field ownership ------------------------------------------------------------------------------------------------


def _is_set_by_user(document: Json, path: str) -> bool:
    """Whether the last applied manifest sets a field below spec; list entries are addressed by name."""
    try:
        manifest = msgspec.json.decode(applied(document) or "null")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        manifest = None  # the annotation was not written by kubectl
    if _has(manifest, ["spec", *path.split(".")]):
        return True
    entries = _map(document, "metadata").get("managedFields")
    entries = entries if isinstance(entries, list) else []
    return any(
        _is_managed(_map(entry, "fieldsV1").get("f:spec"), path.split("."))
        for entry in entries
        if isinstance(entry, dict) and entry.get("operation") == "Apply"
    )


def _has(value: Any, path: list[str]) -> bool:
    for name in path:
        if isinstance(value, list):
            value = next((entry for entry in value if isinstance(entry, dict) and entry.get("name") == name), None)
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value is not None


def _is_managed(fields: Any, path: list[str]) -> bool:
    """Whether FieldsV1 contains the path; entries of a map list have the key `k:{"name":"x"}`."""
    for name in path:
        if not isinstance(fields, dict):
            return False
        key = msgspec.json.encode({"name": name}).decode()
        fields = fields.get(f"f:{name}", fields.get(f"k:{key}"))
    return fields is not None
