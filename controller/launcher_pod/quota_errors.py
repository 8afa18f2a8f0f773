"""Refusals of a launcher pod by ResourceQuota or LimitRange, translated to fields of the VM. Pure.

Quotas and LimitRanges check the pod, which users do not write. If they require limits that the VM does not set, the pod
is created again with limits; other refusals are reported with the VM's fields to change. Source of the messages:
k8s.io/kubernetes, plugin/pkg/admission/resourcequota and limitranger, pkg/apis/core/validation.
"""

import re

from api import defaults
from api.k8s.meta import Json, format_bytes, format_millicores, quantity_bytes, quantity_millicores
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import overhead, resources

_LIMITS = ("cpu", "memory")
"""Limits that can be computed. For ephemeral-storage that is impossible: overlays grow as the guest writes."""
_MUST_SPECIFY = re.compile(r"must specify (.+)")
_BELOW_DEFAULT = re.compile(r"must be less than or equal to (cpu|memory|ephemeral-storage) limit")
_RANGE = re.compile(r"(?:minimum|maximum) (cpu|memory|ephemeral-storage) usage per (?:Container|Pod)")
_RATIO = re.compile(r"(cpu|memory|ephemeral-storage) max limit to request ratio per (?:Container|Pod)")
_QUOTA = re.compile(r"exceeded quota: [^,]+, requested: ([^ ]+)")
_NAME = re.compile(r"((?:requests|limits)\.[a-z.-]+|cpu|memory)")


def wanted_limits(message: str) -> frozenset[str]:
    """The resources, out of cpu and memory, for which a refusal requires a limit in the pod."""
    found = {name for part in _MUST_SPECIFY.findall(message) for name in re.findall(r"limits\.(cpu|memory)\b", part)}
    # Without a limit of its own the pod gets the LimitRange's default, which is below its request.
    found |= set(_BELOW_DEFAULT.findall(message))
    return frozenset(found & set(_LIMITS))


def with_limits(pod: Json, spec: VirtualMachineInstanceSpec, settings: ControllerSettings, message: str) -> Json | None:
    """The pod with the limits that a refusal requires; None if it has them already, or limits do not help.

    CPU: one per vCPU. Memory: guest memory plus overhead, as for a VM that sets `limits.memory`.
    """
    compute, *others = pod["spec"]["containers"]
    present = compute["resources"].get("limits", {})
    missing = wanted_limits(message) - present.keys()
    if not missing:
        return None
    requests, added = compute["resources"]["requests"], {}
    if "cpu" in missing:
        most = max(defaults.vcpus(spec) * 1000, quantity_millicores(requests["cpu"]))
        added["cpu"] = format_millicores(most)
    if "memory" in missing:
        whole = overhead.guest_bytes(spec) + resources.pod_overhead(spec, settings)
        added["memory"] = format_bytes(max(whole, quantity_bytes(requests["memory"])))
    bounded = {**compute, "resources": {**compute["resources"], "limits": {**present, **added}}}
    return {**pod, "spec": {**pod["spec"], "containers": [bounded, *others]}}


def explain(message: str) -> str:
    """The refusal, followed by the VM's fields that it concerns."""
    fields = list(dict.fromkeys(_fields(message)))
    if not fields:
        return message
    return f"{message}. Fields to change in the VM's spec.template.spec.domain: {', '.join(fields)}"


def _fields(message: str) -> list[str]:
    wanted = [name for part in _MUST_SPECIFY.findall(message) for name in _NAME.findall(part)]
    wanted += [name for part in _QUOTA.findall(message) for name in _NAME.findall(part)]
    wanted += [f"limits.{name}" for name in _BELOW_DEFAULT.findall(message)]
    for name in _RANGE.findall(message) + _RATIO.findall(message):
        wanted += [f"requests.{name}", f"limits.{name}"]
    fields = []
    for name in wanted:
        fields.append(f"resources.{name if '.' in name else f'requests.{name}'}")
        if name.endswith("memory"):
            fields.append("memory.guest")
    return fields
