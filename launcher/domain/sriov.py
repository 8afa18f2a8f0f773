"""Assigns SR-IOV virtual functions to interfaces, from the environment variables of the device plugin.

Source: the SR-IOV network device plugin (PCIDEVICE_<resource>) and KubeVirt (KUBEVIRT_RESOURCE_NAME_<network>).
"""

import re
from collections.abc import Iterator, Mapping

from api.kubevirt.vmi import VirtualMachineInstance
from launcher.domain.facts import InvalidVmi

_ADDRESS = re.compile(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")


def functions(vmi: VirtualMachineInstance, environment: Mapping[str, str]) -> dict[str, str]:
    """PCI address by interface: a resource's addresses in the order of the interfaces. Raises InvalidVmi."""
    left: dict[str, Iterator[str]] = {}
    found: dict[str, str] = {}
    for index, interface in enumerate(vmi.spec.domain.devices.interfaces or []):
        if interface.sriov is None or interface.state == "absent":
            continue
        path = f"spec.domain.devices.interfaces[{index}].sriov"
        key = f"KUBEVIRT_RESOURCE_NAME_{interface.name}"
        resource = environment.get(key)
        if not resource:
            raise InvalidVmi(
                f"{path}: network {interface.name!r} has no device: {key} is not in the pod's environment; name a "
                "resource in the NetworkAttachmentDefinition's annotation k8s.v1.cni.cncf.io/resourceName"
            )
        if resource not in left:
            left[resource] = iter(_addresses(resource, environment, path))
        address = next(left[resource], None)
        if address is None:
            raise InvalidVmi(
                f"{path}: no device of {resource} is left for network {interface.name!r}: the node's device plugin "
                f"listed {len(_addresses(resource, environment, path))} in {variable(resource)}"
            )
        found[interface.name] = address
    return found


def variable(resource: str) -> str:
    """The environment variable in which a device plugin lists the addresses of a resource."""
    return "PCIDEVICE_" + re.sub(r"[^A-Z0-9]", "_", resource.upper())


def _addresses(resource: str, environment: Mapping[str, str], path: str) -> list[str]:
    name = variable(resource)
    # Some plugins replace only dots and slashes.
    other = "PCIDEVICE_" + re.sub(r"[./]", "_", resource.upper())
    text = environment.get(name) or environment.get(other) or ""
    addresses = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for address in addresses:
        if not _ADDRESS.fullmatch(address):
            raise InvalidVmi(f"{path}: {name} of the pod's environment has {address[:64]!r}, not a PCI address")
    return addresses
