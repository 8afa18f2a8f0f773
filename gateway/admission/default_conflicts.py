"""A default that admission stored gives way to what a person says later, where the two exclude each other. Pure.

Without this the second `kubectl apply` of a manifest that first left a field out would be refused for a value that the
person never wrote. A value that the person did write (it stands in the manifest that is applied now, by the annotation
of `kubectl apply` or by the server's own record of who applied what) does not give way: both are refused as ever.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from api import names
from api.validation.network_rules import BINDINGS
from gateway.admission.json_patch import Operation
from gateway.admission.validation import applied

Json = dict[str, Any]
_DEFAULT_NETWORK = "default"
"""The name of the network that a VM joins by default (api.defaults)."""


def operations(new: Json, old: Json | None) -> list[Operation]:
    """The JSON patch that takes stored defaults out of a VirtualMachine where what was added to it excludes them."""
    if old is None or not isinstance(new.get("spec"), dict) or not isinstance(old.get("spec"), dict):
        return []
    return [{"op": "remove", "path": f"/spec/{path}"} for path in _paths(new, new["spec"], old["spec"])]


def without(new: Json, removed: list[Operation]) -> Json:
    """The document after those operations; the one that is given stays as it is."""
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
    """Paths below spec, those of a list from its end, so that each is right when its turn comes."""
    if (
        new.get("running") is not None
        and old.get("running") is None
        and new.get("runStrategy") == old.get("runStrategy") == names.RUN_HALTED
        and not _is_set_by_user(document, "runStrategy")
    ):
        yield "runStrategy"
    mine, theirs = _machine(new), _machine(old)
    yield from _bindings(document, mine, theirs)
    yield from _networks(document, mine, theirs)


def _bindings(document: Json, new: Json, old: Json) -> Iterator[str]:
    """Server-side apply merges interfaces by name: beside the binding that was stored stands the one that is meant."""
    before = {nic.get("name"): nic for nic in _list(old, "interfaces")}
    for index, nic in enumerate(_list(new, "interfaces")):
        stored = [binding for binding in BINDINGS if before.get(nic.get("name"), {}).get(binding) is not None]
        said = [binding for binding in BINDINGS if nic.get(binding) is not None and binding not in stored]
        is_default = nic.get("name") == _DEFAULT_NETWORK and len(stored) == len(said) == 1
        if not is_default or nic.get(stored[0]) != {}:
            continue
        path = "template.spec.domain.devices.interfaces"
        if not _is_set_by_user(document, f"{path}.{_DEFAULT_NETWORK}.{stored[0]}"):
            yield f"{path.replace('.', '/')}/{index}/{stored[0]}"


def _networks(document: Json, new: Json, old: Json) -> Iterator[str]:
    """It merges networks as well: the pod network can be joined once only, so the one that was stored goes."""
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
    """A list of things with names; empty where it is anything else, which is left to validation."""
    value = document.get(key)
    named = isinstance(value, list) and all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in value
    )
    return value if named and value else []


# ---- who says what --------------------------------------------------------------------------------------------------


def _is_set_by_user(document: Json, path: str) -> bool:
    """Whether the manifest that is (or was last) applied has a field below spec; entries of lists go by their names."""
    try:
        manifest = msgspec.json.decode(applied(document) or "null")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        manifest = None  # an annotation of that name which kubectl has not written
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
    """Source of the format: the API's FieldsV1; entries of a list that is a map are `k:{"name":"x"}`."""
    for name in path:
        if not isinstance(fields, dict):
            return False
        key = msgspec.json.encode({"name": name}).decode()
        fields = fields.get(f"f:{name}", fields.get(f"k:{key}"))
    return fields is not None
