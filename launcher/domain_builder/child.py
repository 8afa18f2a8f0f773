"""The child process of `launcher.domain_builder.process`: one JSON request on stdin, one JSON response on stdout.

Finds and creates the disks, and builds the domain. For a running domain: a request with `plug` builds the listed NICs;
one with `grow` returns the sizes that disks can be grown to. Exits with its parent, which closes stdin.
"""

import json
import os
import sys
from typing import Any

from api.errors import InvalidObject
from api.kubevirt.networks import DHCPOptions
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from launcher.domain import sriov
from launcher.domain.build import build
from launcher.domain.facts import DiskFacts, InvalidVmi, NicFacts, PodFacts
from launcher.domain.nics import pluggable
from launcher.domain.types import Disk
from launcher.domain_builder.answers import (
    Answer,
    BuiltDisk,
    BuiltDomain,
    BuiltNics,
    ClaimedDisk,
    DhcpOptions,
    FailedBuild,
    GrownDisks,
)
from launcher.log import log
from launcher.network import dhcp_options
from launcher.paths import Paths, from_environment
from launcher.storage.disks import find_disks, grown, kernel_boot
from launcher.storage.untrusted_files import Missing

KVM = "/dev/kvm"
VHOST = "/dev/vhost-net"


def prepare(request: dict[str, Any], paths: Paths, kvm: bool) -> BuiltDomain:
    """Build the domain: its XML, and what the server must remember. Raises InvalidVmi, Missing, ..."""
    vmi = codec.decode(VirtualMachineInstance, request["vmi"])
    kernel, initrd = kernel_boot(vmi, paths)
    facts = PodFacts(
        paths=paths,
        kvm=kvm,
        vhost=_can_use(VHOST),
        nics=[NicFacts(**nic) for nic in request["nics"]],
        functions=sriov.functions(vmi, os.environ),
        disks=find_disks(vmi, paths),
        kernel=kernel,
        initrd=initrd,
    )
    domain = build(vmi, facts)
    disks = {node.alias: node for node in domain.devices.nodes if isinstance(node, Disk)}
    return {
        "domain": domain.name,
        "xml": domain.text(),
        "paused": vmi.spec.startStrategy == "Paused",
        "disks": [_shown(disk, disks[f"ua-{disk.volume}"]) for disk in facts.disks.values()],
        "claims": _claims(vmi, facts.disks, disks),
        "dhcp_options": _all_dhcp_options(vmi),
    }


def plug(request: dict[str, Any], paths: Paths, kvm: bool) -> BuiltNics:
    """The XML of each interface in `plug`, or its error: a failing one does not block the others."""
    vmi = codec.decode(VirtualMachineInstance, request["vmi"])
    nics = [NicFacts(**nic) for nic in request["nics"]]
    facts = PodFacts(paths=paths, kvm=kvm, vhost=_can_use(VHOST), nics=nics)
    devices, errors = {}, {}
    for name in request["plug"]:
        try:
            devices[name] = pluggable(vmi, name, facts).text()
        except (InvalidVmi, ValueError) as error:
            errors[name] = str(error)
    return {"devices": devices, "errors": errors, "dhcp_options": _all_dhcp_options(vmi)}


def grow(request: dict[str, Any], paths: Paths) -> GrownDisks:
    """The sizes that disks can be grown to. Raises Missing, OSError."""
    vmi = codec.decode(VirtualMachineInstance, request["vmi"])
    return {"sizes": grown(vmi, request["grow"], paths)}


def _can_use(device: str) -> bool:
    return os.access(device, os.R_OK | os.W_OK)


def _all_dhcp_options(vmi: VirtualMachineInstance) -> DhcpOptions:
    return {
        interface.name: _dhcp_options(interface.dhcpOptions)
        for interface in vmi.spec.domain.devices.interfaces or []
        if interface.dhcpOptions
    }


def _shown(disk: DiskFacts, device: Disk) -> BuiltDisk:
    return {"volume": disk.volume, "target": device.target, "size": disk.size}


def _claims(vmi: VirtualMachineInstance, disks: dict[str, DiskFacts], devices: dict[str, Disk]) -> list[ClaimedDisk]:
    """The disks on claims."""
    sources = {volume.name: volume.persistentVolumeClaim for volume in vmi.spec.volumes or []}
    return [
        {
            "volume": name,
            "claim": claim.claimName,
            "path": disk.path,
            "writes": not devices[f"ua-{name}"].readonly,
            "shares": bool(devices[f"ua-{name}"].shareable),
        }
        for name, disk in disks.items()
        if (claim := sources[name]) is not None
    ]


def _dhcp_options(options: DHCPOptions) -> list[list[int | str]]:
    pairs = dhcp_options.custom(
        options.tftpServerName or "",
        options.bootFileName or "",
        options.ntpServers or [],
        {option.option: option.value for option in options.privateOptions or []},
    )
    return [[code, value.hex()] for code, value in pairs]


def answer(request: dict[str, Any], paths: Paths, kvm: bool) -> Answer:
    """The response of `prepare`, `plug` or `grow`; exceptions become error responses."""
    try:
        if "grow" in request:
            return grow(request, paths)
        if "plug" in request:
            return plug(request, paths, kvm)
        return prepare(request, paths, kvm)
    except (InvalidVmi, InvalidObject, ValueError) as error:
        return _error("INVALID_ARGUMENT", str(error))
    except Missing as error:
        return _error("NOT_FOUND", str(error))
    except OSError as error:
        return _error("INTERNAL", f"preparing the disks failed: {error}")


def _error(code: str, message: str) -> FailedBuild:
    return {"error": {"code": code, "message": message}}


def main() -> int:
    """Process one request."""
    text = sys.stdin.buffer.read()
    if not text:
        return 0
    kvm = _can_use(KVM)
    try:
        reply = answer(json.loads(text), from_environment(), kvm)
    except Exception as error:
        log("error", "unhandled exception while building the domain", error=repr(error))
        reply = _error("INTERNAL", f"preparing the domain failed: {error!r}")
    sys.stdout.write(json.dumps(reply))
    return 0


if __name__ == "__main__":
    sys.exit(main())
