"""Kubernetes objects that the benchmarks create. Pure."""

from __future__ import annotations

import copy
from typing import Any

Object = dict[str, Any]
HALT = "hyperlet.local/guests/halt:1"
"""A guest whose boot sector halts, so that it uses no CPU."""
TINY = "hyperlet.local/guests/tiny:1"
"""A small Linux that obeys ACPI."""

SCREEN = "hyperlet.local/guests/screen:1"
"""A guest that only sets a 1600 × 1200 pixel video mode."""

GUEST_READY = "hyperlet guest ready"
"""Printed by the tiny guest on its serial console when it has booted."""


def vmi(
    name: str,
    *,
    image: str | None = HALT,
    memory: str = "64Mi",
    cores: int = 1,
    nic: bool = True,
    empty_disks: int = 0,
    cloud_init: bool = False,
    graphics: bool = True,
    node: str | None = None,
    grace: int = 0,
) -> Object:
    """A VirtualMachineInstance.

    image: of its containerDisk; None: no disk.  memory: a quantity.  grace: seconds for the ACPI shutdown.
    The CPU request is small, so that all guests fit on a node with half of the machine's cores.
    """
    volumes: list[Object] = [{"name": "root", "containerDisk": {"image": image}}] if image else []
    volumes += [{"name": f"empty{i}", "emptyDisk": {"capacity": "64Mi"}} for i in range(empty_disks)]
    if cloud_init:
        volumes.append({"name": "cloudinit", "cloudInitNoCloud": {"userData": f"#cloud-config\nhostname: {name}\n"}})
    devices: Object = {"disks": [{"name": v["name"], "disk": {"bus": "virtio"}} for v in volumes]}
    spec: Object = {
        "terminationGracePeriodSeconds": grace,
        "domain": {
            "cpu": {"cores": cores},
            "memory": {"guest": memory},
            "resources": {"requests": {"cpu": "10m"}},
            "devices": devices,
        },
    }
    if volumes:
        spec["volumes"] = volumes
    if nic:
        devices["interfaces"] = [{"name": "default", "masquerade": {}}]
        spec["networks"] = [{"name": "default", "pod": {}}]
    else:
        devices["autoattachPodInterface"] = False
    if not graphics:
        devices["autoattachGraphicsDevice"] = False
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name},
        "spec": spec,
    }


def vm(name: str, instance: Object, strategy: str = "Halted") -> Object:
    """A VirtualMachine whose template is the given VMI."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {"runStrategy": strategy, "template": {"spec": copy.deepcopy(instance["spec"])}},
    }


def bare_pod(name: str, launcher: Object) -> Object:
    """A pod that sleeps, with image, resources and user of a launcher pod, to measure Kubernetes' share."""
    compute = next(c for c in launcher["spec"]["containers"] if c["name"] == "compute")
    kept = {key: copy.deepcopy(compute[key]) for key in ("image", "resources", "securityContext") if key in compute}
    sleeper = {"name": "compute", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"], **kept}
    spec: Object = {
        "containers": [sleeper],
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        # sleep as process 1 ignores SIGTERM.
        "terminationGracePeriodSeconds": 1,
    }
    for key in ("securityContext", "nodeSelector", "tolerations"):
        if key in launcher["spec"]:
            spec[key] = copy.deepcopy(launcher["spec"][key])
    # Remove the node of that launcher: bare pods are spread like the guests they are compared with.
    spec.get("nodeSelector", {}).pop("kubernetes.io/hostname", None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
