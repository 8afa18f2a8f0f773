"""Builds the manifest that `create vm` prints. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.k8s.meta import Json
from api.validation import syntax
from api.validation.document import validate_document
from cli.problem import CliError

STRATEGIES = ("Always", "Manual", "Halted", "Once", "RerunOnFailure")
CLOUD_INIT_DISK = "cloudinitdisk"
_CLOUD_INIT_SOURCES = {"nocloud": "cloudInitNoCloud", "configdrive": "cloudInitConfigDrive"}
_GUEST_AGENT_KEYS = "setsebool -P virt_qemu_ga_manage_ssh on"
"""Allows the guest agent to write authorized_keys under SELinux."""


@dataclass(frozen=True)
class CloudInit:
    """Cloud-init settings. Data is base64; the rest becomes a #cloud-config."""

    source: str = "nocloud"
    user: str | None = None
    password: str | None = None
    ssh_keys: Sequence[str] = ()
    agent_keys: bool = False
    user_data: str | None = None
    network_data: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether any setting is present."""
        return any((self.user, self.password, self.ssh_keys, self.agent_keys, self.user_data, self.network_data))


@dataclass(frozen=True)
class VmOptions:
    """The flags. Format of `containerdisks` and `claims`: `src:…[,name:…][,bootorder:…]`."""

    name: str
    namespace: str | None = None
    run_strategy: str = "Always"
    grace_seconds: int = 180
    memory: str = "512Mi"
    cpus: int | None = None
    containerdisks: Sequence[str] = ()
    claims: Sequence[str] = ()
    cloud_init: CloudInit = field(default_factory=CloudInit)


def parameters(flag: str, text: str, known: Sequence[str]) -> dict[str, str]:
    """Parses `key:value,key:value` of a flag, split at the first colon of each pair. Raises CliError."""
    pairs = [pair.partition(":") for pair in text.split(",")]
    wrong = [key for key, colon, _ in pairs if not colon or key not in known]
    if wrong:
        raise CliError(f"--{flag}: {wrong[0]!r} is not one of {', '.join(f'{key}:…' for key in known)}")
    return {key: value for key, _, value in pairs}


class _VmManifest:
    """Builder of the VM."""

    def __init__(self, vm_options: VmOptions) -> None:
        self.vm_options = vm_options
        self.volumes: list[Json] = []
        self.disks: list[Json] = []

    def add(self, flag: str, text: str, default_name: str | None, source: str, field_name: str) -> None:
        """Adds the volume of a flag, and a disk if it has a boot order."""
        given = parameters(flag, text, ("src", "name", "bootorder"))
        if not given.get("src"):
            raise CliError(f"--{flag}: src is required, as in --{flag}=src:…")
        name = given.get("name") or default_name or given["src"]
        if any(volume["name"] == name for volume in self.volumes):
            raise CliError(f"--{flag}: duplicate volume {name!r}")
        self.volumes.append({"name": name, source: {field_name: given["src"]}})
        if "bootorder" in given:
            self.disks.append({"name": name, "bootOrder": self._order(flag, given["bootorder"])})

    def _order(self, flag: str, text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise CliError(f"--{flag}: bootorder must be a positive integer, not {text!r}")
        if any(disk["bootOrder"] == int(text) for disk in self.disks):
            raise CliError(f"--{flag}: duplicate bootorder {text}")
        return int(text)

    def manifest(self) -> Json:
        """The VirtualMachine as JSON data."""
        vm_options = self.vm_options
        domain: Json = {"memory": {"guest": vm_options.memory}, "devices": {"disks": self.disks} if self.disks else {}}
        if vm_options.cpus is not None:
            domain["cpu"] = {"cores": vm_options.cpus}
        spec: Json = {"domain": domain, "terminationGracePeriodSeconds": vm_options.grace_seconds}
        if self.volumes:
            spec["volumes"] = self.volumes
        metadata = {"name": vm_options.name, **({"namespace": vm_options.namespace} if vm_options.namespace else {})}
        return {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": metadata,
            "spec": {"runStrategy": _strategy(vm_options.run_strategy), "template": {"spec": spec}},
        }


def _strategy(text: str) -> str:
    for strategy in STRATEGIES:
        if strategy.lower() == text.lower():
            return strategy
    raise CliError(f"--run-strategy must be one of {', '.join(STRATEGIES)}, not {text!r}")


def cloud_init_volume(vm_options: CloudInit) -> Json | None:
    """The cloud-init volume, or None without settings."""
    if not vm_options.wanted or vm_options.source == "none":
        return None
    source: Json = {"networkDataBase64": vm_options.network_data} if vm_options.network_data else {}
    if vm_options.user_data:
        source["userDataBase64"] = vm_options.user_data
    else:
        source["userData"] = user_data(vm_options)
    return {"name": CLOUD_INIT_DISK, _CLOUD_INIT_SOURCES[vm_options.source]: source}


def user_data(vm_options: CloudInit) -> str:
    """A #cloud-config (https://cloudinit.readthedocs.io/en/latest/reference/examples.html)."""
    import yaml

    config: Json = {}
    if vm_options.user:
        config["user"] = vm_options.user
    if vm_options.password:
        config |= {"password": vm_options.password, "chpasswd": {"expire": False}}
    if vm_options.ssh_keys:
        config["ssh_authorized_keys"] = list(vm_options.ssh_keys)
    if vm_options.agent_keys:
        config["runcmd"] = [_GUEST_AGENT_KEYS.split()]
    return "#cloud-config\n" + (yaml.safe_dump(config, sort_keys=False) if config else "")


def machine(vm_options: VmOptions) -> Json:
    """The VM. Raises CliError with all validation faults."""
    made = _VmManifest(vm_options)
    for number, text in enumerate(vm_options.containerdisks):
        name = f"{vm_options.name}-containerdisk-{number}"
        made.add("volume-containerdisk", text, name, "containerDisk", "image")
    for text in vm_options.claims:
        made.add("volume-pvc", text, None, "persistentVolumeClaim", "claimName")
    if volume := cloud_init_volume(vm_options.cloud_init):
        made.volumes.append(volume)
    manifest = made.manifest()
    _check(manifest)
    return manifest


def _check(manifest: Mapping[str, Any]) -> None:
    """Checks the name and the spec as admission would. Raises CliError."""
    if words := syntax.object_name(manifest["metadata"]["name"]):
        raise CliError(f"invalid VirtualMachine: metadata.name: {words}")
    if faults := validate_document(dict(manifest)):
        raise CliError(f"invalid VirtualMachine: {'; '.join(map(str, faults))}")
