import pytest

from bench import processes

UID = "0d9c7a52-8f0e-4c55-9d3b-6a0f6f1d2e3c"
VERSION_1 = f"""9:name=systemd:/hyperlet/node1/kubepods/burstable/pod{UID}/abc
4:memory:/top/hyperlet/node1/kubepods/burstable/pod{UID}/abc
0::/
"""
VERSION_2 = f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-abc.scope\n"

SMAPS = """7f0000000000-7f0004000000 rw-p 00000000 00:00 0
Size:              65536 kB
Rss:                1024 kB
VmFlags: rd wr mr
7f0010000000-7f0050000000 rwxp 00000000 00:00 0
Size:            1048576 kB
Rss:               20480 kB
7f0060000000-7f0064000000 r--p 00000000 00:00 0    /usr/lib/x.so
Size:              65536 kB
Rss:                 512 kB
7f0070000000-7f0090000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:                 256 kB
"""


@pytest.mark.parametrize("text", [VERSION_1, VERSION_2])
def test_pod_uid_of_process(text: str) -> None:
    assert processes.pod_uid(text) == UID


def test_process_outside_of_pods_has_no_uid() -> None:
    assert processes.pod_uid("4:memory:/user/podium\n0::/\n") == ""
    with pytest.raises(LookupError):
        processes.memory_cgroup("4:memory:/user\n0::/\n")


def test_memory_cgroup_is_that_of_the_pod() -> None:
    assert processes.memory_cgroup(VERSION_1) == f"/top/hyperlet/node1/kubepods/burstable/pod{UID}"
    assert processes.memory_cgroup(VERSION_2).endswith(".slice")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/bin/qemu-system-x86_64", "-name", "guest"], "qemu-system-x86_64"),
        (["/usr/bin/python3.13", "-I", "-m", "launcher.server", "-v"], "launcher.server"),
        (["python3", "-X", "frozen_modules=on", "/opt/launcher/supervisor/supervisor.py"], "supervisor.py"),
        (["python3", "-c", "import x"], "comm"),
        (["/pause"], "pause"),
        (["containerd-shim -namespace k8s.io"], "containerd-shim"),
        ([""], "comm"),
    ],
)
def test_labels(argv: list[str], expected: str) -> None:
    assert processes.label(argv, "comm") == expected


def test_kernel_threads_share_one_label() -> None:
    assert processes.label([""], "kworker/u8:3-iou_exit") == processes.label([""], "ksoftirqd/1") == processes.KERNEL


def test_guest_memory_is_smallest_matching_rw_mapping() -> None:
    assert processes.guest_ram_resident(SMAPS, 64 << 20) == 1024 << 10
    assert processes.guest_ram_resident(SMAPS, 512 << 20) == 256 << 10
    assert processes.guest_ram_resident(SMAPS, 4 << 30) == 0


def test_cpu_ticks_with_parenthesis_in_program_name() -> None:
    stat = "7 (a) b) S 1 7 7 0 -1 4194560 10 20 0 0 30 4 5 6 20 0 1 0 99 0 0"
    assert processes.parse_ticks(stat) == (34, 11)


def test_iowait_is_not_busy_time() -> None:
    stat = "cpu  100 20 30 9999 8888 4 5 7 0 0\ncpu0 1 2 3\n"
    assert processes.parse_machine(stat) * processes.TICKS == pytest.approx(159)


def test_kilobyte_fields_are_converted_to_bytes() -> None:
    assert processes.parse_kilobytes("Name:\tx\nVmRSS:\t   12 kB\nThreads:\t3\n") == {"VmRSS": 12288}
