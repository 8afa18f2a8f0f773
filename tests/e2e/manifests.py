"""Manifests of virtual machines and related objects for the e2e tests."""

from __future__ import annotations

from typing import NamedTuple

from tests.e2e.support import Json, image


class Drive(NamedTuple):
    """A disk and the volume behind it."""

    disk: Json
    volume: Json


def drive(name: str, source: Json, **disk: object) -> Drive:
    """A virtio disk of any source; more fields of the disk by keyword."""
    return Drive({"name": name, "disk": {"bus": "virtio"}, **disk}, {"name": name, **source})


def tiny(**source: object) -> Drive:
    """The guest that boots in seconds and reports its state over HTTP."""
    return drive("root", {"containerDisk": {"image": image("guest-tiny"), **source}})


def halting() -> Drive:
    """The guest whose boot sector halts: it costs no CPU, has no network and ignores the power button."""
    return drive("root", {"containerDisk": {"image": image("guest-halt")}})


def claim(name: str, claim_name: str) -> Drive:
    """A disk on a PersistentVolumeClaim; the guest finds it by its serial, which is its name."""
    return drive(name, {"persistentVolumeClaim": {"claimName": claim_name}}, serial=name)


def cloud_init(user_data: str = "", **source: object) -> Drive:
    """A NoCloud disk."""
    return drive("cloudinit", {"cloudInitNoCloud": {**({"userData": user_data} if user_data else {}), **source}})


def instance_spec(*drives: Drive, memory: str, network: bool, grace: int, **more: object) -> Json:
    """The spec of an instance; more of its fields by keyword, `domain` merged into what is there."""
    domain: Json = {
        "memory": {"guest": memory},
        "devices": {
            "disks": [each.disk for each in drives],
            "interfaces": [{"name": "default", "masquerade": {}}] if network else [],
            **({} if network else {"autoattachPodInterface": False}),
        },
    }
    added = more.pop("domain", {})
    assert isinstance(added, dict)
    for key, value in added.items():
        domain[key] = {**domain[key], **value} if isinstance(domain.get(key), dict) else value
    return {
        "terminationGracePeriodSeconds": grace,
        "domain": domain,
        "networks": [{"name": "default", "pod": {}}] if network else [],
        "volumes": [each.volume for each in drives],
        **more,
    }


def virtual_machine(
    name: str,
    *drives: Drive,
    run: str | bool | None = "Always",
    memory: str = "128Mi",
    network: bool = True,
    grace: int = 30,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    **spec: object,
) -> Json:
    """A VirtualMachine. `run` is a runStrategy, or the value of `running`; more fields of the instance by keyword."""
    how = {} if run is None else {"running": run} if isinstance(run, bool) else {"runStrategy": run}
    template: Json = {
        "metadata": {
            "labels": {"app": name, **(labels or {})},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": instance_spec(*drives, memory=memory, network=network, grace=grace, **spec),
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {**how, "template": template},
    }


def booting(name: str, *more: Drive, **spec: object) -> Json:
    """A VirtualMachine with the guest that boots, serves HTTP and reacts to the power button."""
    return virtual_machine(name, tiny(), *more, **spec)  # type: ignore[arg-type]


def idle(name: str, *more: Drive, **spec: object) -> Json:
    """A VirtualMachine without operating system, network or CPU load; its grace period is one second."""
    return virtual_machine(name, halting(), *more, **{"memory": "64Mi", "network": False, "grace": 1, **spec})  # type: ignore[arg-type]


def instance(name: str, *drives: Drive, **spec: object) -> Json:
    """A VirtualMachineInstance without a VirtualMachine."""
    machine = virtual_machine(name, *drives, **spec)  # type: ignore[arg-type]
    template = machine["spec"]["template"]
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name, **template["metadata"]},
        "spec": template["spec"],
    }


def persistent_claim(name: str, size: str, storage_class: str, mode: str = "Filesystem") -> Json:
    """A PersistentVolumeClaim."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": mode,
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
        },
    }


def service(name: str, app: str) -> Json:
    """A Service for port 80 of the VMs with the label `app`."""
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 80}]
    spec = {"selector": {"app": app}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def secret(name: str, **texts: str) -> Json:
    """A Secret of texts."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": texts}
