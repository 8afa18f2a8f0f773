"""API paths, and the resource names that users type."""

from __future__ import annotations

from urllib.parse import quote

from cli.problem import CliError

SUBRESOURCES = "/apis/subresources.kubevirt.io/v1"
KUBEVIRT = "/apis/kubevirt.io/v1"
MACHINES = "virtualmachines"
INSTANCES = "virtualmachineinstances"
MIGRATIONS = "virtualmachineinstancemigrations"

_KINDS = {
    **dict.fromkeys(("vm", "vms", "virtualmachine", "virtualmachines"), MACHINES),
    **dict.fromkeys(("vmi", "vmis", "virtualmachineinstance", "virtualmachineinstances"), INSTANCES),
}
SHORT = {MACHINES: "vm", INSTANCES: "vmi"}


def resource_of(word: str) -> str:
    """MACHINES or INSTANCES for any name or short name that kubectl accepts. Raises CliError."""
    try:
        return _KINDS[word.lower()]
    except KeyError:
        raise CliError(f"unknown resource type {word!r}: use vm or vmi") from None


def machine_path(resource: str, namespace: str, name: str, verb: str) -> str:
    """The path of a subresource of a VM (MACHINES) or of a running one (INSTANCES)."""
    return f"{SUBRESOURCES}/namespaces/{_safe(namespace)}/{resource}/{_safe(name)}/{verb}"


def object_path(resource: str, namespace: str, name: str | None = None) -> str:
    """The path of VMs, VMIs or migrations, or of one."""
    path = f"{KUBEVIRT}/namespaces/{_safe(namespace)}/{resource}"
    return f"{path}/{_safe(name)}" if name else path


def core_path(resource: str, namespace: str, name: str | None = None) -> str:
    """The path of Services or claims, or of one."""
    path = f"/api/v1/namespaces/{_safe(namespace)}/{resource}"
    return f"{path}/{_safe(name)}" if name else path


def _safe(name: str) -> str:
    """A name as one path segment: rejects `..` and escapes slashes. Raises CliError."""
    if name in ("", ".", ".."):
        raise CliError(f"{name!r} is not a valid name")
    return quote(name, safe="")
