"""The benches' pure halves: samples in, figures out."""

import pytest

from bench import admission, cpu, delete, gateway, memory, start
from bench.figures import BenchResult, Figure


def figure(result: BenchResult, label: str) -> Figure:
    return next(f for f in result.figures if f.label == label)


def guest(running: float) -> dict[str, float]:
    return {"asked": 0.0, "containers ready": running - 0.5, "Scheduled": running - 0.4, "Running": running}


def test_start_targets_are_p50_of_one_and_p95_of_twenty() -> None:
    bare = [{"asked": 0.0, "pod ready": 1.0}]
    bursts = [start.Burst(1, [guest(1.5), guest(2.5)], bare), start.Burst(20, [guest(10.0)] * 19 + [guest(40.0)], bare)]
    result = start.analyse(bursts, disk=True)
    assert figure(result, "1 at once: create → Running p50").verdict == "ok"
    assert figure(result, "1 at once: create → Running p95").verdict == ""
    assert figure(result, "20 at once: create → Running p95").verdict == "ok"
    assert figure(result, "20 at once: pod ready → Running p50").value == pytest.approx(0.5)
    assert result.tables[0].rows[0] == [1, "p50", 2.0, 1.0, 2.0]


def test_start_without_disk_has_no_targets() -> None:
    result = start.analyse([start.Burst(1, [guest(9.0)], [{"asked": 0.0, "pod ready": 1.0}])], disk=False)
    assert {f.verdict for f in result.figures} == {""}
    assert figure(result, "1 at once: create → Running p50").baseline == 2.6


def test_delete_reports_legs() -> None:
    marks = {"delete asked": 10.0, "pod deleting": 10.1, "guest off": 11.0, "containers ended": 12.0, "pod gone": 13.0}
    slow = {"delete asked": 10.0, "pod gone": 17.0}
    result = delete.analyse([marks, marks, slow], [{"delete asked": 0.0, "pod gone": 11.0}])
    assert figure(result, "delete → pod gone p50").value == 3.0
    assert figure(result, "delete → pod gone, slowest").value == 7.0
    assert ["containers ended → pod gone", 1.0, 1.0, 1.0, 2] in list(result.tables[0].rows)
    assert result.tables[0].rows[-1] == ["bare pod (1 s of grace): delete → pod gone", 11.0, 11.0, 11.0, 1]


def test_memory_excludes_qemu_and_includes_pause() -> None:
    mib = memory.MIB
    pod = memory.PodMemory({"qemu-system-x86_64": 90 * mib, "libvirtd": 30 * mib, "server": 20 * mib, "pause": mib})
    sample = memory.MemorySample(alone=[pod], crowd=[pod, pod], guests=20)
    sample.services = {"idle": {"hyperlet-handler-a": 80 * mib, "hyperlet-handler-b": 95 * mib}}
    sample.services["idle"]["CNI daemon of hyperlet-handler-a"] = 30 * mib
    result = memory.analyse(sample)
    assert figure(result, "launcher pod beyond QEMU, alone on the node").value == 51
    assert figure(result, "launcher pod beyond QEMU, 20 on the node").verdict == "MISSED"
    assert figure(result, "handler, idle, the largest").verdict == "MISSED"
    assert figure(result, "CNI daemon, idle").value == 30


def test_small_crowd_has_no_target() -> None:
    sample = memory.MemorySample(crowd=[memory.PodMemory({"server": 99 * memory.MIB})], guests=5)
    assert memory.analyse(sample).figures[0].target is None


def test_overhead_is_maximum_of_cgroup_and_pss() -> None:
    seen_first_by_another = memory.Overhead("x", 64, resident=10, working=50, pss=70, kernel=5, requested=0)
    charged_whole = memory.Overhead("x", 64, resident=10, working=90, pss=70, kernel=5, requested=0)
    assert (seen_first_by_another.measured, charged_whole.measured) == (65, 80)


@pytest.mark.parametrize(("text", "size"), [("64Mi", 64 << 20), ("1Gi", 1 << 30), ("1500M", 1_500_000_000), ("7", 7)])
def test_quantities(text: str, size: int) -> None:
    assert memory.quantity(text) == size


def test_invalid_memory_quantity_is_refused() -> None:
    with pytest.raises(ValueError, match="amount of memory"):
        memory.quantity("100m")


def test_cpu_subtracts_idle_load_and_detects_pid_reuse() -> None:
    before = cpu.CpuSnapshot(0.0, 100.0, {"handler": 5.0}, {1: ("kubelet", 3.0), 2: ("runc", 9.0), 3: ("sh", 1.0)})
    after = cpu.CpuSnapshot(
        10.0, 120.0, {"handler": 7.0}, {1: ("kubelet", 4.0), 2: ("launcher: server", 1.5), 3: ("java", 2.5)}
    )
    work = cpu.spent(before, after)
    assert dict(work.programs) == {"kubelet": 1.0, "launcher: server": 1.5, "java": 1.5}
    idle = cpu.Spent(20.0, 8.0, {"handler": 1.0}, {"kubelet": 0.4})
    result = cpu.analyse(idle, work, guests=10)
    assert figure(result, "handler, for each VMI created").value == pytest.approx(0.15)
    assert figure(result, "whole machine, for each VMI created").value == pytest.approx(1.6)
    assert result.tables[0].rows[0] == ["launcher: server", pytest.approx(0.15)]
    assert result.tables[0].rows[-1][1] == pytest.approx(1.6 - 0.15 - 0.15 - 0.08)


def test_admission_target_is_median_of_full_vm() -> None:
    slow = {"mutate": [0.5, 0.6, 9.0], "validate": [1.5, 1.6, 1.4]}
    result = admission.analyse({"create a full VM": slow, "label it": {"mutate": [0.1], "validate": [0.1]}})
    assert [(f.label, f.value, f.verdict) for f in result.figures] == [
        ("full VM, mutate", 0.6, "ok"),
        ("full VM, validate", 1.5, "MISSED"),
    ]


def test_admission_reviews_are_all_allowed() -> None:
    for title, body in admission.reviews().items():
        for webhook in (admission.mutate, admission.validate):
            assert b'"allowed":true' in webhook(body), title


def test_gateway_reports_median_round_and_target_for_large_screen_only() -> None:
    sample = gateway.GatewaySample(
        echoes=[1.0, 3.0], poured=[0.9, 0.7, 2.0], together=[0.5], text=[1.6], idle={"a": 60 << 20, "b": 70 << 20},
        crowded={"a": 80 << 20, "b": 75 << 20}, consoles=200,
    )  # fmt: skip
    result = gateway.analyse(sample)
    one = figure(result, "screen, 20 MB to one viewer")
    assert (one.value, one.verdict) == (0.9, "ok")
    text = figure(result, "text screen, 20 MB to one viewer, as fast as QEMU draws it")
    assert (text.value, text.target) == (1.6, None)
    # The larger replica, and all that both have grown by.
    assert figure(result, "gateway with 200 consoles open, all on one replica").value == 70 + 20 + 5
