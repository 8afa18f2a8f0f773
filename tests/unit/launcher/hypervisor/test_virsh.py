"""The launcher's virsh: output, and that it is read-only."""

from typing import Any

import pytest

from launcher.hypervisor import virsh

XML = """<domain type='kvm'><devices>
<disk type='file' device='disk'><source file='/volumes/root/disk.img'/><target dev='sda' bus='sata'/></disk>
<disk type='block' device='disk'><source dev='/dev/volumes/data'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>
<interface type='ethernet'><mac address='02:00:00:00:00:05'/><target dev='tap0'/><model type='virtio'/></interface>
<interface type='ethernet'><target dev='tap1'/><link state='down'/></interface>
</devices></domain>"""


class Domain:
    def ID(self) -> int:
        return 1

    def name(self) -> str:
        return "ns_web"

    def UUIDString(self) -> str:
        return "5d307ca9-b3ef-428c-8861-06e72d69f223"

    def state(self) -> tuple[int, int]:
        return 1, 1

    def info(self) -> tuple[int, int, int, int, int]:
        return 1, 131072, 65536, 2, 1_500_000_000

    def XMLDesc(self) -> str:
        return XML


class Connection:
    def __init__(self, *domains: Any) -> None:
        self.domains = list(domains)

    def listAllDomains(self) -> list[Any]:
        return self.domains


HERE = Connection(Domain())


@pytest.mark.parametrize("domain", [(), ("ns_web",), ("1",), ("5d307ca9-b3ef-428c-8861-06e72d69f223",)])
def test_domain_argument_is_optional(domain: tuple[str, ...]) -> None:
    assert virsh.run(HERE, ["dumpxml", *domain]) == XML
    assert virsh.run(HERE, ["domstate", *domain]) == "running"


def test_tables() -> None:
    assert virsh.run(HERE, ["list"]).splitlines() == ["Id  Name    State", "1   ns_web  running"]
    assert virsh.run(HERE, ["domblklist"]).splitlines()[1:] == [
        "sda     sata    /volumes/root/disk.img",
        "vda     virtio  /dev/volumes/data",
        "sdb     sata    -",
    ]
    assert virsh.run(HERE, ["domiflist"]).splitlines()[1:] == [
        "tap0       virtio  02:00:00:00:00:05  up",
        "tap1       -       -                  down",
    ]
    assert "CPU time:     1.5 s" in virsh.run(HERE, ["dominfo"])


@pytest.mark.parametrize("verb", ["destroy", "shutdown", "edit", "detach-device", "undefine", "save"])
def test_modifying_commands_are_refused(verb: str) -> None:
    with pytest.raises(virsh.UsageError, match="this virsh is read-only: list, dumpxml"):
        virsh.run(HERE, [verb, "ns_web"])


@pytest.mark.parametrize(
    "words",
    [
        ["qemu-monitor-command", "--hmp", "quit"],
        ["qemu-monitor-command", "--hmp", "information"],
        ["qemu-monitor-command", "ns_web", '{"execute": "quit"}'],
        ["qemu-monitor-command", "query-block"],
        ["qemu-agent-command", '{"execute": "guest-exec"}'],
        ["qemu-agent-command", "[]"],
    ],
)
def test_modifying_monitor_and_agent_commands_are_refused(words: list[str]) -> None:
    with pytest.raises(virsh.UsageError):
        virsh.run(HERE, words)


def test_missing_domain_raises_usage_error() -> None:
    assert virsh.run(Connection(), ["list"]) == "Id  Name  State"
    with pytest.raises(virsh.UsageError, match="there is no domain: the VM has not been started"):
        virsh.run(Connection(), ["dumpxml"])
