"""The parts of a VMI's status that the controller writes before the hand-over, and their accessors. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from api import defaults, names
from api.k8s.meta import Json, format_bytes
from api.k8s.objects import PersistentVolumeClaim, Pod
from api.kubevirt.vmi import VirtualMachineInstance
from api.kubevirt.vmi_status import VirtualMachineInstanceStatus
from api.kubevirt.volumes import claim_name
from api.launcher_pods import is_running
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import overhead, resources
from controller.vmi import pod_status

FILESYSTEM_OVERHEAD = "0"
"""Share of a Filesystem volume reserved for the file system: none is needed here."""


def status_of(vmi: VirtualMachineInstance) -> VirtualMachineInstanceStatus:
    """The VMI's status, or an empty one."""
    return vmi.status or VirtualMachineInstanceStatus()


def transition(vmi: VirtualMachineInstance, phase: str, now: str) -> Json:
    """`phase` and `phaseTransitionTimestamps` for a transition to `phase`; empty if the VMI is in it already."""
    status = status_of(vmi)
    if status.phase == phase:
        return {}
    stamps = [
        {"phase": stamp.phase, "phaseTransitionTimestamp": stamp.phaseTransitionTimestamp}
        for stamp in status.phaseTransitionTimestamps or ()
        if stamp.phase != phase
    ]
    return {"phase": phase, "phaseTransitionTimestamps": [*stamps, {"phase": phase, "phaseTransitionTimestamp": now}]}


def reached_at(vmi: VirtualMachineInstance, phase: str) -> str | None:
    """The timestamp of the transition to `phase`, or None."""
    stamps = status_of(vmi).phaseTransitionTimestamps or ()
    return next((stamp.phaseTransitionTimestamp for stamp in stamps if stamp.phase == phase), None)


def facts(
    vmi: VirtualMachineInstance,
    pod: Pod,
    claims: Mapping[str, PersistentVolumeClaim],
    settings: ControllerSettings,
) -> Json:
    """Status fields that follow from spec, pod and claims. `vmi` has its defaults applied."""
    guest = format_bytes(overhead.guest_bytes(vmi.spec))
    cpu = vmi.spec.domain.cpu
    topology = (
        {"cores": cpu.cores or 1, "sockets": cpu.sockets or 1, "threads": cpu.threads or 1}
        if cpu
        else {"cores": 1, "sockets": defaults.vcpus(vmi.spec), "threads": 1}
    )
    # Removes the entries of earlier VMIs, which have been waited for, and of recreated pods.
    others = dict.fromkeys(uid for uid in status_of(vmi).activePods or () if uid != pod.metadata.uid)
    return {
        "activePods": {**others, pod.metadata.uid: pod.spec.nodeName or "" if is_running(pod) else ""},
        "qosClass": pod.status.qosClass,
        "launcherContainerImageVersion": pod_status.image(pod),
        "runtimeUser": names.LAUNCHER_UID,
        "memory": {
            "guestAtBoot": guest,
            "guestCurrent": guest,
            "guestRequested": guest,
            "memoryOverhead": format_bytes(resources.pod_overhead(vmi.spec, settings)),
        },
        "currentCPUTopology": topology,
        "volumeStatus": [volume_status(volume, claims) for volume in vmi.spec.volumes or ()] or None,
    }


def grown(vmi: VirtualMachineInstance, claims: Mapping[str, PersistentVolumeClaim]) -> list[Json] | None:
    """volumeStatus with the new capacities of claims; None if none has changed.

    In these entries the handler writes only the fields that the launcher reports.
    """
    fresh = {volume.name: volume_status(volume, claims) for volume in vmi.spec.volumes or ()}
    entries: list[Json] = msgspec.to_builtins(status_of(vmi).volumeStatus or [])
    changed = False
    for entry in entries:
        info = fresh.get(entry["name"], {}).get("persistentVolumeClaimInfo")
        if (
            info
            and info.get("capacity")
            and info["capacity"] != (entry.get("persistentVolumeClaimInfo") or {}).get("capacity")
        ):
            entry["persistentVolumeClaimInfo"] = info
            changed = True
    return entries if changed else None


def volume_status(volume: Any, claims: Mapping[str, PersistentVolumeClaim]) -> Json:
    """One entry of volumeStatus. The handler fills in `target`, the disk's name in the guest."""
    entry: Json = {"name": volume.name, "target": ""}
    name = claim_name(volume)
    claim = claims.get(name or "")
    if claim is None:
        return entry
    wanted = claim.spec.resources.requests if claim.spec.resources else None
    info = {
        "claimName": name,
        "accessModes": claim.status.accessModes or claim.spec.accessModes,
        "capacity": claim.status.capacity,
        "requests": wanted,
        "volumeMode": claim.spec.volumeMode or "Filesystem",
        "filesystemOverhead": FILESYSTEM_OVERHEAD,
    }
    return {**entry, "persistentVolumeClaimInfo": {key: value for key, value in info.items() if value is not None}}
