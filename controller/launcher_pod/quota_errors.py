"""What the API server's refusal of a launcher pod means for its VM: which of the VM's fields to set. Pure.

Quotas and LimitRanges of a namespace look at the pod, which people do not write. Where they want limits that the VM
does not set, the pod is made once more with those it needs; everything else is told by the VM's own fields. Source of
the words: k8s.io/kubernetes, plugin/pkg/admission/resourcequota and limitranger, pkg/apis/core/validation.
"""

import re
from typing import Any

from api import defaults
from api.k8s.meta import format_bytes, format_millicores, quantity_bytes, quantity_millicores
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import overhead, resources

Json = dict[str, Any]

_LIMITS = ("cpu", "memory")
"""What can be worked out; how much an overlay grows cannot."""
_MUST_SPECIFY = re.compile(r"must specify (.+)")
_BELOW_DEFAULT = re.compile(r"must be less than or equal to (cpu|memory|ephemeral-storage) limit")
_RANGE = re.compile(r"(?:minimum|maximum) (cpu|memory|ephemeral-storage) usage per (?:Container|Pod)")
_RATIO = re.compile(r"(cpu|memory|ephemeral-storage) max limit to request ratio per (?:Container|Pod)")
_QUOTA = re.compile(r"exceeded quota: [^,]+, requested: ([^ ]+)")
_NAME = re.compile(r"((?:requests|limits)\.[a-z.-]+|cpu|memory)")


def wanted_limits(message: str) -> frozenset[str]:
    """The resources, of cpu and memory, for which a refusal wants a limit of the pod's own."""
    found = {name for part in _MUST_SPECIFY.findall(message) for name in re.findall(r"limits\.(cpu|memory)\b", part)}
    # The LimitRange's default limit stands in for ours, and is below what the pod asks for.
    found |= set(_BELOW_DEFAULT.findall(message))
    return frozenset(found & set(_LIMITS))


def with_limits(pod: Json, spec: VirtualMachineInstanceSpec, settings: ControllerSettings, message: str) -> Json | None:
    """The pod with the limits that a refusal asks for; None where it has them already, or none can help.

    CPU: one for each virtual CPU. Memory: the guest's and the overhead, as where a VM sets `limits.memory`.
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
    """The refusal, and after it the VM's fields that it is about."""
    fields = list(dict.fromkeys(_fields(message)))
    if not fields:
        return message
    return f"{message}. The fields for this, in the VM's spec.template.spec.domain: {', '.join(fields)}"


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
