"""Resource requests and limits of a launcher pod: CPU, memory, ephemeral storage, devices. Pure."""

from api import defaults, names
from api.k8s.meta import format_bytes, format_millicores, format_quantity, quantity_bytes, quantity_millicores
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import ephemeral_storage, overhead

Amounts = dict[str, str]


def pod_overhead(spec: VirtualMachineInstanceSpec, settings: ControllerSettings) -> int:
    """Memory requested in addition to the guest's, in bytes."""
    return overhead.overhead_bytes(spec, emulated=settings.emulated, ratio=settings.overhead_ratio)


def requirements(
    spec: VirtualMachineInstanceSpec, settings: ControllerSettings, networks: Amounts | None = None
) -> dict[str, Amounts]:
    """Requests and limits of the `compute` container. Devices are limits, which Kubernetes copies to the requests.

    `networks`: device resources of the secondary networks.
    """
    resources = spec.domain.resources
    wished = dict((resources.requests if resources else None) or {})
    capped = dict((resources.limits if resources else None) or {})
    extra = pod_overhead(spec, settings)
    requests = {key: format_quantity(value) for key, value in wished.items() if key not in _COMPUTED}
    limits = {key: format_quantity(value) for key, value in capped.items() if key not in _COMPUTED}
    requests |= {"cpu": _cpu_request(spec, settings), "memory": _memory_request(spec, settings, extra)}
    storage = ephemeral_storage.NAME
    asked, most = wished.get(storage), capped.get(storage)
    requests[storage] = format_bytes(ephemeral_storage.request(spec, asked, most))
    if most is not None:
        limits[storage] = format_bytes(quantity_bytes(most) + ephemeral_storage.own_bytes(spec))
    if "cpu" in capped:
        limits["cpu"] = format_millicores(quantity_millicores(capped["cpu"]))
    if "memory" in capped:
        limits["memory"] = format_bytes(quantity_bytes(capped["memory"]) + extra)
    return {"requests": requests, "limits": {**limits, **(networks or {}), **devices(spec, settings)}}


_COMPUTED = frozenset(
    {"cpu", "memory", ephemeral_storage.NAME, names.DEVICE_KVM, names.DEVICE_TUN, names.DEVICE_VHOST_NET}
)


def devices(spec: VirtualMachineInstanceSpec, settings: ControllerSettings) -> Amounts:
    """The device plugin resources that the pod needs."""
    wanted = {names.DEVICE_TUN: "1"}
    if not settings.emulated:
        wanted[names.DEVICE_KVM] = "1"
        nics = [nic for nic in spec.domain.devices.interfaces or () if nic.sriov is None and nic.state != "absent"]
        if any(nic.model == "virtio" for nic in nics):
            wanted[names.DEVICE_VHOST_NET] = "1"
    return wanted


def asks_for_kvm(pod: Pod) -> bool:
    """Whether a pod requests the KVM device."""
    asked = [container.resources.limits or {} for container in pod.spec.containers if container.resources]
    return any(names.DEVICE_KVM in limits for limits in asked)


def _cpu_request(spec: VirtualMachineInstanceSpec, settings: ControllerSettings) -> str:
    resources = spec.domain.resources
    for amounts in (resources.requests, resources.limits) if resources else ():
        if amounts and "cpu" in amounts:
            return format_millicores(quantity_millicores(amounts["cpu"]))
    return format_millicores(max(1, defaults.vcpus(spec) * 1000 // settings.cpu_allocation_ratio))


def _memory_request(spec: VirtualMachineInstanceSpec, settings: ControllerSettings, extra: int) -> str:
    resources = spec.domain.resources
    if resources and resources.overcommitGuestOverhead:
        extra = 0
    if resources and resources.requests and "memory" in resources.requests:
        return format_bytes(quantity_bytes(resources.requests["memory"]) + extra)
    if resources and resources.limits and "memory" in resources.limits:
        return format_bytes(quantity_bytes(resources.limits["memory"]) + extra)
    return format_bytes(overhead.guest_bytes(spec) * 100 // settings.memory_overcommit + extra)
