"""The node's bridges as resources: offered to a stand-in for kubelet as they come, withdrawn as they go."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from api.bridges import BridgePolicy
from handler.devices.bridges import MOST, BridgePlugins, PodNetworkBridges, node_bridges
from handler.secondary_networks.cni_exec import CniHost
from protos import deviceplugin_pb2 as pb
from tests.node.test_handler_devices import Kubelet, kubelet, running
from tests.waiting import until

pytestmark = pytest.mark.node
__all__ = ["kubelet"]
BR1 = "bridge.network.kubevirt.io/br1"
ROOT = Path(__file__).resolve().parents[2]


def offering(
    kubelet: Kubelet,
    there: set[str],
    pods: Iterable[str] = (),
    choice: Callable[[], BridgePolicy | None] = BridgePolicy,
) -> BridgePlugins:
    async def pod_network() -> frozenset[str]:
        return frozenset(pods)

    return BridgePlugins(
        lambda: set(there), kubelet.directory, poll_seconds=0.05, pod_network=pod_network, choice=choice
    )


async def test_bridge_is_advertised_and_withdrawn_repeatedly(kubelet: Kubelet) -> None:
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


async def test_allocate_of_bridge_adds_no_devices(kubelet: Kubelet) -> None:
    async with running(offering(kubelet, {"br1"})):
        await until(lambda: kubelet.registered, "registered")
        async with kubelet.plugin(kubelet.registered[0].endpoint) as stub:
            request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devicesIDs=["br17"])] * 2)
            answer = await stub.Allocate(request)
    assert [list(each.devices) for each in answer.container_responses] == [[], []]


async def test_bridge_named_like_device_has_separate_endpoint(kubelet: Kubelet) -> None:
    async with running(offering(kubelet, {"kvm"})):
        await until(lambda: kubelet.registered, "registered")
        assert kubelet.registered[0].endpoint == "hyperlet-bridge-kvm.sock"


async def test_invalid_resource_names_are_skipped_and_logged_once(
    kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"br-ok.7", "_br", "br_", "brücke", "br:1", "br\n1"}
    made = offering(kubelet, there)
    async with running(made):
        await until(lambda: kubelet.registered, "registered")
        there.add("br2")  # two more rounds at least
        await until(lambda: len(kubelet.registered) == 2, "offered")
        assert made.offered == {"br-ok.7", "br2"}
    assert capsys.readouterr().out.count("Bridge is not advertised") == 5


async def test_advertised_bridges_are_limited_and_existing_kept(kubelet: Kubelet) -> None:
    there = {"z"}
    made = offering(kubelet, there)
    async with running(made):
        await until(lambda: made.offered == {"z"}, "offered")
        there |= {f"br{number:03}" for number in range(MOST + 5)}
        await until(lambda: len(made.offered) == MOST, "offered up to the limit")
        assert "z" in made.offered


async def test_restarted_kubelet_gets_new_registration(kubelet: Kubelet) -> None:
    async with running(offering(kubelet, {"br1"})):
        await until(lambda: kubelet.registered, "registered")
        await kubelet.stop()
        again = Kubelet(kubelet.directory)
        await again.start()
        kubelet.server = again.server
        await until(lambda: again.healthy.get(BR1) == 1000, "offered to the new kubelet")
        await again.stop()


async def test_pod_network_bridge_is_never_advertised(kubelet: Kubelet, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even where the administrator allows it by name."""
    made = offering(kubelet, {"cni0", "br1"}, pods={"cni0"}, choice=lambda: BridgePolicy(allowed=("cni0", "br1")))
    async with running(made):
        await until(lambda: made.offered == {"br1"}, "offered")
        await until(lambda: kubelet.registered, "registered")
    assert [each.resource_name for each in kubelet.registered] == [BR1]
    assert capsys.readouterr().out.count("it belongs to the pod network") == 1


async def test_bridge_that_becomes_pod_network_is_withdrawn(kubelet: Kubelet) -> None:
    pods: set[str] = set()
    made = offering(kubelet, {"br1", "br2"}, pods=pods)
    async with running(made):
        await until(lambda: made.offered == {"br1", "br2"}, "offered")
        pods.add("br1")
        await until(lambda: made.offered == {"br2"}, "withdrawn")


async def test_bridge_policy_selects_advertised_bridges(kubelet: Kubelet) -> None:
    chosen: list[BridgePolicy | None] = [None]
    there = {"br1", "br2", "mgmt", "house"}
    made = offering(kubelet, there, choice=lambda: chosen[0])
    async with running(made):
        await asyncio.sleep(0.2)  # several rounds
        assert not made.offered, "nothing is offered before the choice is known"
        for choice, expected in (
            (BridgePolicy(), there),
            (BridgePolicy(denied=("mgmt", "br?")), {"house"}),
            (BridgePolicy(allowed=("br*",)), {"br1", "br2"}),
            (BridgePolicy(allowed=("br*", "house"), denied=("br2",)), {"br1", "house"}),
            (BridgePolicy(allowed=()), set()),
        ):
            chosen[0] = choice
            await until(lambda expected=expected: made.offered == expected, f"{choice}")


async def test_unreadable_node_config_advertises_no_new_bridges(kubelet: Kubelet) -> None:
    fails = True

    async def pod_network() -> frozenset[str]:
        if fails:
            raise OSError(5, "Input/output error")
        return frozenset()

    made = BridgePlugins(lambda: {"br1"}, kubelet.directory, poll_seconds=0.05, pod_network=pod_network)
    async with running(made):
        await asyncio.sleep(0.2)
        assert not made.offered
        fails = False
        await until(lambda: made.offered == {"br1"}, "offered")


def test_pod_network_is_detected_from_pod_interfaces() -> None:
    """As the kernel shows it: a pod on one of two bridges, by a veth pair, with another card that has no bridge."""
    script = f"""
        mount -t tmpfs run /run; mount -t sysfs sysfs /sys; mkdir /run/pod
        ip link add cni0 type bridge; ip link add br1 type bridge
        ip link add v1 type veth peer name v1b; ip link set v1 master br1
        unshare --net sh -c 'echo $$ > /run/pid; exec sleep 60' &
        until [ -s /run/pid ]; do sleep 0.05; done
        POD=$(cat /run/pid)
        ip link add veth0 type veth peer name eth0 netns $POD; ip link set veth0 master cni0
        ip link add veth9 type veth peer name net1 netns $POD
        nsenter --net=/proc/$POD/ns/net mount -t sysfs sysfs /run/pod
        {sys.executable} - <<END
import pathlib
from handler.devices.bridges import pod_bridges
node, pod = pathlib.Path("/sys/class/net"), pathlib.Path("/run/pod/class/net")
print(sorted(pod_bridges(node, pod)))
END
        kill $POD
    """
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['cni0']", done.stderr


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [
        ([{"type": "bridge"}], {"cni0"}),
        ([{"type": "bridge", "bridge": "pods0"}, {"type": "portmap"}], {"pods0"}),
        ([{"type": "cnv-bridge", "bridge": "pods0"}], {"pods0"}),
        ([{"type": "flannel"}], {"cni0"}),
        ([{"type": "flannel", "delegate": {"bridge": "fl0"}}], {"fl0"}),
        ([{"type": "flannel", "delegate": {"type": "ipvlan"}}], set()),
        ([{"type": "calico"}], set()),
        ([{"type": "bridge", "bridge": 7}, "junk", None], set()),
    ],
)
async def test_pod_network_is_detected_from_cni_config(tmp_path: Path, plugins: list[Any], expected: set[str]) -> None:
    """The first file is the pod network's; others are networks that pods may join as well."""
    (tmp_path / "10-pods.conflist").write_text(json.dumps({"name": "pods", "plugins": plugins}))
    (tmp_path / "20-house.conf").write_text(json.dumps({"name": "house", "type": "bridge", "bridge": "br1"}))
    host = CniHost("/proc/self/ns/mnt", "/proc/self/ns/net", configurations=(str(tmp_path),))
    assert await PodNetworkBridges(host).bridges() == expected


def test_only_bridge_devices_are_bridges() -> None:
    """As the kernel shows it: in a namespace with two bridges and a device that is none."""
    script = (
        "mount -t sysfs sysfs /sys; ip link add br1 type bridge; ip link add br-2 type bridge; "
        "ip link add v0 type veth peer name v1; ip link set v0 master br1; "
        f"exec {sys.executable} -c 'import pathlib; from handler.devices.bridges import node_bridges; "
        'print(sorted(node_bridges(pathlib.Path("/sys/class/net"))))\''
    )
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-ec", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['br-2', 'br1']", done.stderr


def test_unreadable_devices_are_not_bridges(tmp_path: Path) -> None:
    assert node_bridges(tmp_path / "none") == set()


async def test_cancel_stops_advertiser_immediately(kubelet: Kubelet) -> None:
    async with asyncio.timeout(5), running(offering(kubelet, {"br1", "br2"})):
        await until(lambda: len(kubelet.registered) == 2, "registered")
