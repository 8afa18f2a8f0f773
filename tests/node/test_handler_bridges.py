"""The node's bridges as resources: offered to a stand-in for kubelet as they come, withdrawn as they go."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from handler.bridges import MOST, Bridges, bridges
from protos import deviceplugin_pb2 as pb
from tests.node.test_handler_devices import Kubelet, kubelet, running, until

pytestmark = pytest.mark.node
__all__ = ["kubelet"]
BR1 = "bridge.network.kubevirt.io/br1"
ROOT = Path(__file__).resolve().parents[2]


def offering(kubelet: Kubelet, there: set[str]) -> Bridges:
    return Bridges(lambda: set(there), kubelet.directory, poll_seconds=0.05)


async def test_a_bridge_comes_and_goes_and_comes_again(kubelet: Kubelet) -> None:
    there: set[str] = set()
    made = offering(kubelet, there)
    async with running(made):
        there.add("br1")
        await until(lambda: kubelet.healthy.get(BR1) == 1000, "offered a thousand times")
        there.clear()
        await until(lambda: not made.offered, "withdrawn")
        await until(lambda: not list(kubelet.directory.glob("hyperlet-*")), "its socket is gone")
        assert [each.resource_name for each in kubelet.registered] == [BR1]
        there.add("br1")
        await until(lambda: len(kubelet.registered) == 2, "offered again")
    assert not list(kubelet.directory.glob("hyperlet-*"))


async def test_who_asks_gets_nothing(kubelet: Kubelet) -> None:
    async with running(offering(kubelet, {"br1"})):
        await until(lambda: kubelet.registered, "registered")
        async with kubelet.plugin(kubelet.registered[0].endpoint) as stub:
            request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devicesIDs=["br17"])] * 2)
            answer = await stub.Allocate(request)
    assert [list(each.devices) for each in answer.container_responses] == [[], []]


async def test_a_bridge_called_like_a_device_takes_nobodys_place(kubelet: Kubelet) -> None:
    async with running(offering(kubelet, {"kvm"})):
        await until(lambda: kubelet.registered, "registered")
        assert kubelet.registered[0].endpoint == "hyperlet-bridge-kvm.sock"


async def test_names_that_are_no_resources_are_skipped_and_told_once(
    kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"br-ok.7", "_br", "br_", "brücke", "br:1", "br\n1"}
    made = offering(kubelet, there)
    async with running(made):
        await until(lambda: kubelet.registered, "registered")
        there.add("br2")  # two more rounds at least
        await until(lambda: len(kubelet.registered) == 2, "offered")
        assert made.offered == {"br-ok.7", "br2"}
    assert capsys.readouterr().out.count("A bridge is not offered") == 5


async def test_there_is_a_limit_and_who_was_first_keeps_its_place(kubelet: Kubelet) -> None:
    there = {"z"}
    made = offering(kubelet, there)
    async with running(made):
        await until(lambda: made.offered == {"z"}, "offered")
        there |= {f"br{number:03}" for number in range(MOST + 5)}
        await until(lambda: len(made.offered) == MOST, "offered up to the limit")
        assert "z" in made.offered


async def test_kubelet_that_starts_again_is_told_again(kubelet: Kubelet) -> None:
    async with running(offering(kubelet, {"br1"})):
        await until(lambda: kubelet.registered, "registered")
        await kubelet.stop()
        again = Kubelet(kubelet.directory)
        await again.start()
        kubelet.server = again.server
        await until(lambda: again.healthy.get(BR1) == 1000, "offered to the new kubelet")
        await again.stop()


def test_what_is_a_bridge() -> None:
    """As the kernel shows it: in a namespace with two bridges and a device that is none."""
    script = (
        "mount -t sysfs sysfs /sys; ip link add br1 type bridge; ip link add br-2 type bridge; "
        "ip link add v0 type veth peer name v1; ip link set v0 master br1; "
        f"exec {sys.executable} -c 'import pathlib; from handler.bridges import bridges; "
        'print(sorted(bridges(pathlib.Path("/sys/class/net"))))\''
    )
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-ec", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['br-2', 'br1']", done.stderr


def test_devices_that_cannot_be_looked_at_are_no_bridges(tmp_path: Path) -> None:
    assert bridges(tmp_path / "none") == set()


async def test_it_ends_at_once(kubelet: Kubelet) -> None:
    async with asyncio.timeout(5), running(offering(kubelet, {"br1", "br2"})):
        await until(lambda: len(kubelet.registered) == 2, "registered")
