"""Builds the domain of a VMI: an ordered list of small builders, each returning its own part.

Defaults were applied (`api.defaults`) and the VMI was validated (`api.validation.validate`) before the hand-over to the
handler.
"""

from api.k8s.meta import quantity_bytes
from api.kubevirt.domain import Chassis
from api.kubevirt.platform import FeatureHyperv, FeatureState, Firmware, Timer
from api.kubevirt.vmi import VirtualMachineInstance
from launcher.domain import types
from launcher.domain.devices import build_devices
from launcher.domain.facts import InvalidVmi, PodFacts, required

TB_CACHE_MIB = 32
"""QEMU's translation cache under TCG. The default, at least an eighth of guest memory, would count as overhead."""
ASK_EACH_FEATURE = "cpu-unavailable-features"
"""libvirt's capability of QEMUs that can be queried for each CPU feature, which libvirt does at every start.
QEMU reads its monitor byte by byte, so these 300 queries take 0.3 s of CPU and of the start (measured; libvirt 11.3,
QEMU 10.0). Without the capability libvirt reads the features from CPUID words. Not under KVM: the CPUID words lack the
features in model specific registers, which migration needs."""


def build(vmi: VirtualMachineInstance, facts: PodFacts) -> types.Domain:
    """The domain of a VMI. Raises InvalidVmi, ValueError (for quantities, and characters not allowed in XML)."""
    cpu = _cpu(vmi, facts)
    return types.Domain(
        type="kvm" if facts.kvm else "qemu",
        name=domain_name(vmi),
        uuid=_uuid(vmi),
        metadata=types.Metadata(
            namespace=vmi.metadata.namespace or "", name=vmi.metadata.name or "", uid=vmi.metadata.uid or ""
        ),
        memory=_memory(vmi),
        vcpu=cpu.sockets * cpu.cores * cpu.threads,
        sysinfo=_sysinfo(vmi),
        os=_os(vmi, facts),
        features=_features(vmi, facts),
        cpu=cpu,
        clock=_clock(vmi, facts),
        on_reboot="destroy" if vmi.spec.domain.rebootPolicy == "Terminate" else "restart",
        devices=types.Devices(emulator=facts.emulator, nodes=build_devices(vmi, facts)),
        qemu_capabilities=None if facts.kvm else types.QemuCapabilities(without=[ASK_EACH_FEATURE]),
    )


def domain_name(vmi: VirtualMachineInstance) -> str:
    """Unique on the node, and readable in `virsh list`."""
    return f"{vmi.metadata.namespace}_{vmi.metadata.name}"


def _firmware(vmi: VirtualMachineInstance) -> Firmware:
    return vmi.spec.domain.firmware or Firmware()


def _uuid(vmi: VirtualMachineInstance) -> str:
    """Stable across restarts: guests bind licenses to it, and cloud-init its instance."""
    return required(_firmware(vmi).uuid, "spec.domain.firmware.uuid")


def _memory(vmi: VirtualMachineInstance) -> int:
    """Guest memory in bytes, rounded up to KiB as in libvirt."""
    memory = vmi.spec.domain.memory
    if memory is None or memory.guest is None:
        raise InvalidVmi("spec.domain.memory.guest: required")
    return -(-quantity_bytes(memory.guest) // 1024) * 1024


def _cpu(vmi: VirtualMachineInstance, facts: PodFacts) -> types.Cpu:
    cpu = required(vmi.spec.domain.cpu, "spec.domain.cpu")
    sockets, cores, threads = (
        required(getattr(cpu, field), f"spec.domain.cpu.{field}") for field in ("sockets", "cores", "threads")
    )
    model = required(cpu.model, "spec.domain.cpu.model")
    features = [
        types.CpuFeature(policy=feature.policy or "require", name=feature.name) for feature in cpu.features or []
    ]
    built = types.Cpu(mode=model, sockets=sockets, cores=cores, threads=threads, features=features)
    if model not in ("host-model", "host-passthrough"):
        built.mode, built.match, built.model, built.fallback = "custom", "exact", model, "forbid"
        # TCG lacks features of newer models, and omits them with a warning.
        built.check = "full" if facts.kvm and not features else "none"
    elif not facts.kvm:
        # TCG supports neither host mode. `maximum` is everything it can emulate.
        built.mode = "maximum"
    return built


def _os(vmi: VirtualMachineInstance, facts: PodFacts) -> types.Os:
    domain, firmware = vmi.spec.domain, _firmware(vmi)
    bios = firmware.bootloader.bios if firmware.bootloader else None
    boot = firmware.kernelBoot
    if bios and bios.useSerial and domain.devices.autoattachSerialConsole is False:
        raise InvalidVmi("spec.domain.firmware.bootloader.bios.useSerial: requires autoattachSerialConsole")
    return types.Os(
        machine=required(required(domain.machine, "spec.domain.machine").type, "spec.domain.machine.type"),
        kernel=facts.kernel,
        initrd=facts.initrd,
        cmdline=boot.kernelArgs if boot and facts.kernel and boot.kernelArgs else None,
        bios_serial=True if bios and bios.useSerial else None,
        smbios="sysinfo",
    )


def _sysinfo(vmi: VirtualMachineInstance) -> types.Sysinfo:
    firmware, chassis = _firmware(vmi), vmi.spec.domain.chassis
    system = {"manufacturer": "Hyperlet", "product": "Virtual machine", "family": "Hyperlet", "uuid": _uuid(vmi)}
    if firmware.serial:
        system["serial"] = firmware.serial
    return types.Sysinfo(
        system=types.SystemEntries(
            entries=[types.SysinfoEntry(name=name, value=value) for name, value in system.items()]
        ),
        chassis=_chassis(chassis) if chassis else None,
    )


def _chassis(chassis: Chassis) -> types.ChassisEntries | None:
    given = [(name, getattr(chassis, name)) for name in ("manufacturer", "version", "serial", "asset", "sku")]
    entries = [types.SysinfoEntry(name=name, value=value) for name, value in given if value]
    return types.ChassisEntries(entries=entries) if entries else None


def _on(state: FeatureState | None) -> str | None:
    """`on`, `off`, or None if not set. A feature without `enabled` is on."""
    if state is None:
        return None
    return "off" if state.enabled is False else "on"


def _features(vmi: VirtualMachineInstance, facts: PodFacts) -> types.Features:
    given = vmi.spec.domain.features
    features = types.Features(
        acpi=given is None or given.acpi is None or given.acpi.enabled is not False,
        apic=given is None or given.apic is None or given.apic.enabled is not False,
        vmport="off",
    )
    if not facts.kvm:
        features.tb_cache, features.tb_cache_unit = TB_CACHE_MIB, "MiB"
    if given is None:
        return features
    if given.apic and features.apic and given.apic.endOfInterrupt is not None and facts.kvm:
        features.apic_eoi = "on" if given.apic.endOfInterrupt else "off"
    features.smm = _on(given.smm)
    # KVM paravirtualization: libvirt rejects it without KVM.
    if facts.kvm:
        features.hyperv = _hyperv(given.hyperv)
        features.pvspinlock = _on(given.pvspinlock)
        if given.kvm and given.kvm.hidden is not None:
            features.kvm_hidden = "on" if given.kvm.hidden else "off"
    return features


def _hyperv(given: FeatureHyperv | None) -> types.Hyperv | None:
    if given is None:
        return None
    hyperv = types.Hyperv(
        relaxed=_on(given.relaxed),
        vapic=_on(given.vapic),
        vpindex=_on(given.vpindex),
        runtime=_on(given.runtime),
        synic=_on(given.synic),
        reset=_on(given.reset),
        frequencies=_on(given.frequencies),
        reenlightenment=_on(given.reenlightenment),
        ipi=_on(given.ipi),
        evmcs=_on(given.evmcs),
    )
    if given.spinlocks:
        hyperv.spinlocks = "off" if given.spinlocks.enabled is False else "on"
        if hyperv.spinlocks == "on":
            hyperv.spinlock_retries = given.spinlocks.spinlocks or 4096
    if given.synictimer:
        hyperv.stimer = "off" if given.synictimer.enabled is False else "on"
        hyperv.stimer_direct = _on(given.synictimer.direct)
    if given.vendorid:
        hyperv.vendor_id = "off" if given.vendorid.enabled is False else "on"
        hyperv.vendor_id_value = given.vendorid.vendorid if hyperv.vendor_id == "on" else None
    if given.tlbflush:
        hyperv.tlbflush = "off" if given.tlbflush.enabled is False else "on"
        hyperv.tlbflush_direct = _on(given.tlbflush.direct)
        hyperv.tlbflush_extended = _on(given.tlbflush.extended)
    return hyperv


def _clock(vmi: VirtualMachineInstance, facts: PodFacts) -> types.Clock:
    given = vmi.spec.domain.clock
    clock = types.Clock(timers=_timers(given.timer if given else None, facts))
    if given and given.timezone:
        clock.offset, clock.timezone = "timezone", given.timezone
    elif given and given.utc and given.utc.offsetSeconds:
        clock.offset, clock.adjustment = "variable", str(given.utc.offsetSeconds)
    return clock


def _timers(given: Timer | None, facts: PodFacts) -> list[types.Timer]:
    if given is None:
        # Keeps guest clocks accurate under KVM. Under TCG QEMU's defaults apply.
        standard = [
            types.Timer(name="rtc", tickpolicy="catchup"),
            types.Timer(name="pit", tickpolicy="delay"),
            types.Timer(name="hpet", present=False),
        ]
        return standard if facts.kvm else []
    timers = []
    if given.rtc:
        timers.append(
            types.Timer(name="rtc", tickpolicy=given.rtc.tickPolicy, track=given.rtc.track, present=given.rtc.present)
        )
    if given.pit:
        timers.append(types.Timer(name="pit", tickpolicy=given.pit.tickPolicy, present=given.pit.present))
    if given.hpet:
        timers.append(types.Timer(name="hpet", tickpolicy=given.hpet.tickPolicy, present=given.hpet.present))
    if given.kvm and facts.kvm:
        timers.append(types.Timer(name="kvmclock", present=given.kvm.present))
    if given.hyperv and facts.kvm:
        timers.append(types.Timer(name="hypervclock", present=given.hyperv.present))
    return timers
