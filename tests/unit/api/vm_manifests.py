"""A minimal valid VM, and changes to it."""

import copy
from typing import Any

from api.kubevirt.vm import VirtualMachine
from api.schema.codec import decode_strict

MACHINE: dict[str, Any] = {
    "apiVersion": "kubevirt.io/v1",
    "kind": "VirtualMachine",
    "metadata": {"name": "small", "namespace": "default"},
    "spec": {
        "runStrategy": "Always",
        "template": {
            "metadata": {"labels": {"app": "small"}},
            "spec": {
                "domain": {
                    "memory": {"guest": "128Mi"},
                    "devices": {
                        "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                        "interfaces": [{"name": "default", "masquerade": {}}],
                    },
                },
                "networks": [{"name": "default", "pod": {}}],
                "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/disk:1"}}],
            },
        },
    },
}
SPEC = "spec.template.spec"
DELETE = object()


def machine(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The machine with the values at some paths replaced; paths are below spec.template.spec unless they begin with
    a slash. `a.0.b` goes into lists, and appends at their end."""
    document = copy.deepcopy(MACHINE)
    for path, value in (changes or {}).items():
        parts = path[1:].split(".") if path.startswith("/") else [*SPEC.split("."), *path.split(".")]
        node: Any = document
        for part in parts[:-1]:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is DELETE:
            del node[parts[-1]]
        elif isinstance(node, list):
            node[int(parts[-1]) : int(parts[-1]) + 1] = [copy.deepcopy(value)]
        else:
            node[parts[-1]] = copy.deepcopy(value)
    return document


def decoded(changes: dict[str, Any] | None = None) -> VirtualMachine:
    """The same as a Struct."""
    return decode_strict(VirtualMachine, machine(changes))
