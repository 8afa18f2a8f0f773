"""Rules for CPU, memory, machine, firmware and clock of a VM's domain."""

import difflib
from collections.abc import Collection, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from api import names
from api.catalogs import cpu_names
from api.catalogs.machine_types import machine_problem
from api.catalogs.timezones import ZONES
from api.defaults import vcpus
from api.errors import Fault
from api.k8s.meta import Quantity, format_bytes, parse_quantity
from api.kubevirt.domain import CPU, DomainSpec, ResourceRequirements
from api.kubevirt.platform import Clock, Firmware, KernelBoot
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from api.validation import syntax

if TYPE_CHECKING:
    from api.kubevirt.configuration import KubeVirtConfiguration

# More than 255 require interrupt remapping by an IOMMU (x2APIC), which the launcher does not configure.
MAX_VCPUS = 255
# Too small to boot; also catches `128m`, which is 0.128 bytes.
MIN_GUEST_BYTES = 1 << 20
# A sanity limit; QEMU supports up to 52 address bits.
MAX_GUEST_BYTES = 64 << 40
# Sanity limits. Kubernetes stores resource amounts in a signed 64-bit integer.
MAX_CPUS = 4096
MAX_AMOUNT = 1 << 60
MAX_KERNEL_ARGS = 2048


def domain_faults(
    spec: VirtualMachineInstanceSpec, path: str, config: "KubeVirtConfiguration | None" = None
) -> Iterator[Fault]:
    """Faults of `domain`, except its devices. `path` is the path of the VMI's spec."""
    domain, here = spec.domain, f"{path}.domain"
    yield from _memory(domain, here)
    yield from _resources(domain.resources, f"{here}.resources")
    if domain.cpu:
        yield from _cpu(domain.cpu, f"{here}.cpu")
    if vcpus(spec) > MAX_VCPUS:
        yield Fault(f"{here}.cpu", names.FAULT_INVALID, f"{vcpus(spec)} vCPUs exceed the maximum of {MAX_VCPUS}")
    problem = machine_problem(domain.machine.type, config) if domain.machine and domain.machine.type else None
    if problem is not None:
        yield Fault(f"{here}.machine.type", names.FAULT_NOT_SUPPORTED, problem)
    if domain.firmware:
        yield from _firmware(domain.firmware, f"{here}.firmware")
    if domain.clock:
        yield from _clock(domain.clock, f"{here}.clock")
    yield from _chassis(domain, f"{here}.chassis")
    yield from _vendor(domain, f"{here}.features.hyperv.vendorid.vendorid")


def check(problem: str | None, path: str) -> Iterator[Fault]:
    """A Fault when `api.validation.syntax` found a problem."""
    if problem is not None:
        yield Fault(path, names.FAULT_INVALID, problem)


def quantity(value: Quantity | None, path: str, faults: list[Fault], most: int = MAX_GUEST_BYTES) -> Fraction | None:
    """The value of a quantity; adds a Fault when it is invalid, negative or greater than `most`."""
    if value is None:
        return None
    try:
        number = parse_quantity(value)
    except ValueError as error:
        faults.append(Fault(path, names.FAULT_INVALID, str(error)))
        return None
    if number < 0:
        faults.append(Fault(path, names.FAULT_INVALID, f"{value!r} must not be negative"))
        return None
    if number > most:
        faults.append(Fault(path, names.FAULT_INVALID, f"{value!r} exceeds the maximum of {format_bytes(most)}"))
        return None
    return number


def _memory(domain: DomainSpec, path: str) -> Iterator[Fault]:
    faults: list[Fault] = []
    resources = domain.resources or ResourceRequirements()
    request_path, limit_path = f"{path}.resources.requests.memory", f"{path}.resources.limits.memory"
    request = quantity((resources.requests or {}).get("memory"), request_path, faults)
    limit = quantity((resources.limits or {}).get("memory"), limit_path, faults)
    guest = quantity(domain.memory.guest if domain.memory else None, f"{path}.memory.guest", faults)
    if guest is not None:
        amount, source = guest, f"{path}.memory.guest"
    elif request is not None:
        amount, source = request, request_path
    elif limit is not None:
        amount, source = limit, limit_path
    else:
        amount, source = None, ""
    if amount is None and not faults:
        yield Fault(
            f"{path}.memory.guest", names.FAULT_REQUIRED, "required: set memory.guest or resources.requests.memory"
        )
    if amount is not None and amount < MIN_GUEST_BYTES:
        yield Fault(
            source,
            names.FAULT_INVALID,
            f"{float(amount):g} bytes is too little guest memory: "
            "use a suffix such as 128Mi (a lower-case 'm' means 1/1000)",
        )
    if guest is not None and limit is not None and guest > limit:
        yield Fault(f"{path}.memory.guest", names.FAULT_INVALID, "must not exceed resources.limits.memory")
    if request is not None and limit is not None and request > limit:
        yield Fault(request_path, names.FAULT_INVALID, "must not exceed resources.limits.memory")
    overhead = domain.memory.reservedOverhead if domain.memory else None
    quantity(overhead.addedOverhead if overhead else None, f"{path}.memory.reservedOverhead.addedOverhead", faults)
    yield from faults


def _resources(resources: ResourceRequirements | None, path: str) -> Iterator[Fault]:
    if resources is None:
        return
    faults: list[Fault] = []
    request = quantity((resources.requests or {}).get("cpu"), f"{path}.requests.cpu", faults, MAX_CPUS)
    limit = quantity((resources.limits or {}).get("cpu"), f"{path}.limits.cpu", faults, MAX_CPUS)
    for field, amounts in (("requests", resources.requests), ("limits", resources.limits)):
        for name, value in (amounts or {}).items():
            if name not in ("cpu", "memory"):
                quantity(value, f"{path}.{field}.{name[:80]}", faults, MAX_AMOUNT)
    storage, maximum = ((amounts or {}).get("ephemeral-storage") for amounts in (resources.requests, resources.limits))
    if not faults and storage is not None and maximum is not None and parse_quantity(storage) > parse_quantity(maximum):
        message = "must not exceed resources.limits.ephemeral-storage"
        faults.append(Fault(f"{path}.requests.ephemeral-storage", names.FAULT_INVALID, message))
    if request is not None and limit is not None and request > limit:
        faults.append(Fault(f"{path}.requests.cpu", names.FAULT_INVALID, "must not exceed resources.limits.cpu"))
    yield from faults


def _cpu(cpu: CPU, path: str) -> Iterator[Fault]:
    if cpu.model is not None:
        yield from _known(cpu.model, cpu_names.MODELS | cpu_names.HOST, "CPU model", f"{path}.model")
    seen: set[str] = set()
    for index, feature in enumerate(cpu.features or ()):
        here = f"{path}.features[{index}].name"
        yield from _known(feature.name, cpu_names.FEATURES, "CPU feature", here)
        if feature.name in seen:
            yield Fault(here, names.FAULT_DUPLICATE, f"feature {feature.name!r} is listed twice")
        seen.add(feature.name)


def _known(name: str, known: Collection[str], what: str, path: str) -> Iterator[Fault]:
    """A Fault for a name unknown to the launcher's libvirt."""
    if name not in known:
        near = difflib.get_close_matches(name[:64], known, n=3, cutoff=0.75)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        yield Fault(path, names.FAULT_NOT_SUPPORTED, f"{name[:64]!r} is not a {what} known to libvirt{hint}")


def _firmware(firmware: Firmware, path: str) -> Iterator[Fault]:
    if firmware.uuid is not None:
        yield from check(syntax.uuid(firmware.uuid), f"{path}.uuid")
    if firmware.serial is not None:
        yield from check(syntax.printable(firmware.serial), f"{path}.serial")
    boot = firmware.bootloader
    if boot and boot.bios is not None and boot.efi is not None:
        yield Fault(f"{path}.bootloader", names.FAULT_INVALID, "bios and efi are mutually exclusive")
    if firmware.kernelBoot:
        yield from _kernel_boot(firmware.kernelBoot, f"{path}.kernelBoot")


def _kernel_boot(boot: KernelBoot, path: str) -> Iterator[Fault]:
    container = boot.container
    if boot.kernelArgs:
        yield from check(syntax.printable(boot.kernelArgs, MAX_KERNEL_ARGS), f"{path}.kernelArgs")
    if boot.kernelArgs and (container is None or container.kernelPath is None):
        yield Fault(f"{path}.kernelArgs", names.FAULT_INVALID, "requires a kernel: set container.kernelPath")
    if container is None:
        return
    yield from check(syntax.image(container.image), f"{path}.container.image")
    if container.imagePullSecret is not None:
        yield from check(syntax.object_name(container.imagePullSecret), f"{path}.container.imagePullSecret")
    if container.kernelPath is None and container.initrdPath is None:
        yield Fault(f"{path}.container", names.FAULT_REQUIRED, "required: set kernelPath, initrdPath or both")
    if container.kernelPath is not None:
        yield from check(syntax.image_path(container.kernelPath), f"{path}.container.kernelPath")
    if container.initrdPath is not None:
        yield from check(syntax.image_path(container.initrdPath), f"{path}.container.initrdPath")


def _clock(clock: Clock, path: str) -> Iterator[Fault]:
    if clock.utc is not None and clock.timezone is not None:
        yield Fault(path, names.FAULT_INVALID, "utc and timezone are mutually exclusive")
    if clock.timezone is not None:
        problem = syntax.timezone(clock.timezone)
        if problem is None and clock.timezone not in ZONES:
            problem = f"{clock.timezone!r} is not a time zone of the tz database, for example America/New_York"
        yield from check(problem, f"{path}.timezone")


def _chassis(domain: DomainSpec, path: str) -> Iterator[Fault]:
    if domain.chassis is None:
        return
    for field in domain.chassis.__struct_fields__:
        value = getattr(domain.chassis, field)
        if value is not None:
            yield from check(syntax.printable(value), f"{path}.{field}")


def _vendor(domain: DomainSpec, path: str) -> Iterator[Fault]:
    hyperv = domain.features.hyperv if domain.features else None
    vendor = hyperv.vendorid.vendorid if hyperv and hyperv.vendorid else None
    if vendor is not None:
        # libvirt's schema: at most 12 characters, no comma (it separates QEMU's CPU properties).
        yield from check(syntax.word(vendor, 12), path)
