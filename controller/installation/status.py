"""Plan for the KubeVirt CR's status: phase, versions, conditions, settings without effect. Pure."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from api import conditions, defaults, names
from api.errors import Fault
from api.k8s.meta import Json, format_time
from api.kubevirt.kubevirt import KubeVirt, KubeVirtStatus
from controller.actions import Action, Patch
from controller.installation.admission_policies import PolicyCheck

DEPLOYED = "Deployed"


def plan(
    kubevirt: KubeVirt, version: str, faults: Sequence[Fault], policies: PolicyCheck | None, now: datetime
) -> list[Action]:
    """The status patch, if anything has changed. `policies`: None before the first check."""
    return list(_plan(kubevirt, version, faults, policies, now))


def _plan(
    kubevirt: KubeVirt, version: str, faults: Sequence[Fault], policies: PolicyCheck | None, now: datetime
) -> Iterator[Action]:
    old = kubevirt.status or KubeVirtStatus()
    if kubevirt.metadata.deletionTimestamp:
        return
    wanted = [
        conditions.make("Available", True, "AllComponentsReady", "All components are ready"),
        conditions.make("Progressing", False, "AllComponentsReady"),
        _degraded(faults),
        conditions.make("Created", True, "AllResourcesCreated", "All resources were created"),
    ]
    if policies is not None:
        wanted.append(conditions.make(names.CONDITION_NODE_RESTRICTION, *policies))
    merged = conditions.merged(old.conditions, wanted, (), format_time(now))
    status: Json = {
        "phase": DEPLOYED,
        "operatorVersion": version,
        "observedKubeVirtVersion": version,
        "targetKubeVirtVersion": version,
        "defaultArchitecture": defaults.DEFAULT_ARCHITECTURE,
        "observedGeneration": kubevirt.metadata.generation,
    }
    changed = {key: value for key, value in status.items() if getattr(old, key) != value}
    if conditions.differ(old.conditions, merged):
        changed["conditions"] = merged
    if changed:
        yield Patch(
            KubeVirt,
            kubevirt.metadata.namespace or "",
            kubevirt.metadata.name or "",
            {"metadata": {"uid": kubevirt.metadata.uid}, "status": changed},
            "status",
        )


def _degraded(faults: Sequence[Fault]) -> Json:
    if not faults:
        return conditions.make("Degraded", False, "AllComponentsReady")
    return conditions.make("Degraded", True, "SettingsWithoutEffect", "; ".join(map(str, faults)))
