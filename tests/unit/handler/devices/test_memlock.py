"""RLIMIT_MEMLOCK of launchers: amount, conditions, errors."""

import os
import resource
from types import SimpleNamespace
from typing import Any

import pytest

from api.errors import NetworkError
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from handler.devices import memlock
from handler.devices.memlock import GIB, MIB, raised, wanted
from handler.vmi.node_setup import NodeSetup
from kit import proc

INFINITY = resource.RLIM_INFINITY
SRIOV = {"name": "fast", "sriov": {}}


def vmi(memory: Any, *interfaces: dict[str, Any], **more: Any) -> VirtualMachineInstance:
    networks = [{"name": nic["name"], "multus": {"networkName": nic["name"]}} for nic in interfaces]
    domain = {"devices": {"interfaces": list(interfaces)}, **more}
    if memory is not None:
        domain["memory"] = {"guest": memory}
    document = {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm", "namespace": "ns"},
        "spec": {"domain": domain, "networks": networks},
    }  # fmt: skip
    return codec.decode(VirtualMachineInstance, document)


@pytest.mark.parametrize(
    ("memory", "mebibytes"), [("64Mi", 64), ("2Gi", 2048), ("1G", 954), (1, 1), ("1048577", 2), ("0.5Gi", 512)]
)
def test_limit_is_guest_memory_in_mib_plus_one_gib(memory: Any, mebibytes: int) -> None:
    assert wanted(vmi(memory)) == mebibytes * MIB + GIB


def test_missing_guest_memory_raises_network_error() -> None:
    with pytest.raises(NetworkError, match=r"spec\.domain\.memory\.guest: required"):
        wanted(vmi(None))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((8 * MIB, 8 * MIB), (GIB, GIB)),
        ((8 * MIB, INFINITY), (GIB, INFINITY)),
        ((8 * MIB, 2 * GIB), (GIB, 2 * GIB)),
        ((0, 0), (GIB, GIB)),
        ((GIB, GIB), None),
        ((2 * GIB, 2 * GIB), None),
        ((INFINITY, INFINITY), None),
        ((GIB - 1, GIB), (GIB, GIB)),
    ],
)
def test_limits_are_raised_and_never_lowered(limits: memlock.Limits, expected: memlock.Limits | None) -> None:
    assert raised(limits, GIB) == expected


def test_limits_are_read_from_proc() -> None:
    with proc.Process(os.getpid()) as process:
        assert memlock.limits_of(process) == resource.getrlimit(resource.RLIMIT_MEMLOCK)


class Asked:
    """Fake `memlock.allow`: records its arguments, and fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int]] = []

    def __call__(self, pod_uid: str, interface: str, amount: int) -> None:
        self.calls.append((pod_uid, interface, amount))
        raise NetworkError(f"interface {interface}: no")


class NoImages:
    async def provide(self, *_: Any) -> list[str]:
        return []


async def resources(machine: VirtualMachineInstance, asked: Asked) -> None:
    node_setup = NodeSetup(NoImages(), allow=asked)  # type: ignore[arg-type]
    with proc.Process(os.getpid()) as process:
        launcher = SimpleNamespace(process=process, pod_uid="uid-1", state=SimpleNamespace(runs=True, nics=()))
        await node_setup.set_up(machine, Pod(), launcher, None)  # type: ignore[arg-type]


async def test_sriov_interface_needs_locked_memory() -> None:
    asked = Asked()
    with pytest.raises(NetworkError, match="interface fast, faster: no"):
        await resources(vmi("64Mi", SRIOV, {**SRIOV, "name": "faster"}), asked)
    assert asked.calls == [("uid-1", "fast, faster", 64 * MIB + GIB)]


@pytest.mark.parametrize("interfaces", [[], [{**SRIOV, "state": "absent"}]])
async def test_other_interfaces_need_no_locked_memory(interfaces: list[dict[str, Any]]) -> None:
    asked = Asked()
    await resources(vmi("64Mi", *interfaces), asked)
    assert not asked.calls
