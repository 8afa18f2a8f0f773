"""The manifest of a VM from flags: what `create vm` prints. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api import syntax
from api.validate import validate_document
from cli.problem import Problem

Json = dict[str, Any]

STRATEGIES = ("Always", "Manual", "Halted", "Once", "RerunOnFailure")
CLOUD_INITS = ("nocloud", "configdrive", "none")
CLOUD_INIT_DISK = "cloudinitdisk"
_CLOUD_INIT_SOURCES = {"nocloud": "cloudInitNoCloud", "configdrive": "cloudInitConfigDrive"}
_GUEST_AGENT_KEYS = "setsebool -P virt_qemu_ga_manage_ssh on"
"""Lets the guest agent write authorized keys where SELinux would not."""


@dataclass(frozen=True)
class CloudInit:
    """What the guest's first boot is told. Data is base64; the rest becomes a #cloud-config."""

    source: str = "nocloud"
    user: str | None = None
    password: str | None = None
    ssh_keys: Sequence[str] = ()
    agent_keys: bool = False
    user_data: str | None = None
    network_data: str | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to tell."""
        return any((self.user, self.password, self.ssh_keys, self.agent_keys, self.user_data, self.network_data))


@dataclass(frozen=True)
class Wish:
    """The flags. `containerdisks` and `claims` are written `src:…[,name:…][,bootorder:…]`."""

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
    """`key:value,key:value` of a flag; the first colon of each pair divides. Raises Problem."""
    pairs = [pair.partition(":") for pair in text.split(",")]
    wrong = [key for key, colon, _ in pairs if not colon or key not in known]
    if wrong:
        raise Problem(f"--{flag}: {wrong[0]!r} is none of {', '.join(f'{key}:…' for key in known)}")
    return {key: value for key, _, value in pairs}


class _Machine:
    """A VM while it is put together."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.volumes: list[Json] = []
        self.disks: list[Json] = []

    def add(self, flag: str, text: str, default_name: str | None, source: str, field_name: str) -> None:
        """A volume from a flag, and its disk where it has a place in the boot order."""
        given = parameters(flag, text, ("src", "name", "bootorder"))
        if not given.get("src"):
            raise Problem(f"--{flag}: src must be given, as in --{flag}=src:…")
        name = given.get("name") or default_name or given["src"]
        if any(volume["name"] == name for volume in self.volumes):
            raise Problem(f"--{flag}: there is already a volume {name!r}")
        self.volumes.append({"name": name, source: {field_name: given["src"]}})
        if "bootorder" in given:
            self.disks.append({"name": name, "bootOrder": self._order(flag, given["bootorder"])})

    def _order(self, flag: str, text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise Problem(f"--{flag}: bootorder is a number from 1, not {text!r}")
        if any(disk["bootOrder"] == int(text) for disk in self.disks):
            raise Problem(f"--{flag}: bootorder {text} is given twice")
        return int(text)

    def manifest(self) -> Json:
        """The VM as the API has it."""
        wish = self.wish
        domain: Json = {"memory": {"guest": wish.memory}, "devices": {"disks": self.disks} if self.disks else {}}
        if wish.cpus is not None:
            domain["cpu"] = {"cores": wish.cpus}
        spec: Json = {"domain": domain, "terminationGracePeriodSeconds": wish.grace_seconds}
        if self.volumes:
            spec["volumes"] = self.volumes
        metadata = {"name": wish.name, **({"namespace": wish.namespace} if wish.namespace else {})}
        return {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": metadata,
            "spec": {"runStrategy": _strategy(wish.run_strategy), "template": {"spec": spec}},
        }


def _strategy(text: str) -> str:
    for strategy in STRATEGIES:
        if strategy.lower() == text.lower():
            return strategy
    raise Problem(f"--run-strategy is one of {', '.join(STRATEGIES)}, not {text!r}")


def cloud_init_volume(wish: CloudInit) -> Json | None:
    """The volume, or None where there is nothing to tell."""
    if not wish.wanted or wish.source == "none":
        return None
    source: Json = {"networkDataBase64": wish.network_data} if wish.network_data else {}
    if wish.user_data:
        source["userDataBase64"] = wish.user_data
    else:
        source["userData"] = user_data(wish)
    return {"name": CLOUD_INIT_DISK, _CLOUD_INIT_SOURCES[wish.source]: source}


def user_data(wish: CloudInit) -> str:
    """A #cloud-config (https://cloudinit.readthedocs.io/en/latest/reference/examples.html)."""
    import yaml

    config: Json = {}
    if wish.user:
        config["user"] = wish.user
    if wish.password:
        config |= {"password": wish.password, "chpasswd": {"expire": False}}
    if wish.ssh_keys:
        config["ssh_authorized_keys"] = list(wish.ssh_keys)
    if wish.agent_keys:
        config["runcmd"] = [_GUEST_AGENT_KEYS.split()]
    return "#cloud-config\n" + (yaml.safe_dump(config, sort_keys=False) if config else "")


def machine(wish: Wish) -> Json:
    """The VM. Raises Problem with every fault for which it would be refused."""
    made = _Machine(wish)
    for number, text in enumerate(wish.containerdisks):
        name = f"{wish.name}-containerdisk-{number}"
        made.add("volume-containerdisk", text, name, "containerDisk", "image")
    for text in wish.claims:
        made.add("volume-pvc", text, None, "persistentVolumeClaim", "claimName")
    if volume := cloud_init_volume(wish.cloud_init):
        made.volumes.append(volume)
    manifest = made.manifest()
    _check(manifest)
    return manifest


def _check(manifest: Mapping[str, Any]) -> None:
    """The API server's rule for names, and all of hyperlet's."""
    if words := syntax.object_name(manifest["metadata"]["name"]):
        raise Problem(f"such a VM would be refused: metadata.name: {words}")
    if faults := validate_document(dict(manifest)):
        raise Problem(f"such a VM would be refused: {'; '.join(map(str, faults))}")
