"""Runs inside the guest of test_cni_vlan.py: what needs VLAN filtering. Prints a line `RESULT name ok|failed` each."""

import concurrent.futures.thread
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cni import plugins, wire
from cni.host import HostResources, host_name
from kit.netlink import route
from tests.node.cnispace import Space, frame, received_payloads

assert concurrent.futures.thread  # imported when first used: the guest has only what is imported at once
PORT = route.VLAN_PVID | route.VLAN_UNTAGGED
NAD = """
    {
      "name": "vlan-93",
      "type": "cnv-bridge",
      "cniVersion":"0.3.1",
      "bridge":"br1",
      "vlan":93,
      "macspoofchk":true,
      "ipam":{},
      "preserveDefaultVlan":false
    }
"""


class Node:
    """The guest itself, with a new bridge."""

    def __init__(self, resources: HostResources) -> None:
        self.resources = resources
        self.spaces: list[tuple[Space, dict[str, Any], str]] = []

    def call(self, command: str, conf: dict[str, Any], space: Space | None, container: str) -> tuple[int, Any]:
        environment = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_PATH": "/cni"}
        if space:
            environment["CNI_NETNS"] = space.path
        request = wire.WireRequest("cnv-bridge", environment, json.dumps(conf).encode(), space.fd if space else -1)
        answer = plugins.serve(request, os.getpid(), self.resources, lambda: True)
        return answer.code, json.loads(answer.stdout) if answer.stdout else None

    def add(self, **fields: Any) -> tuple[Space, Any, str]:
        """Attaches a new container; its namespace, the result, the port's name."""
        conf = {"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", **fields}
        container = f"c{len(self.spaces)}"
        space = Space()
        self.spaces.append((space, conf, container))
        code, result = self.call("ADD", conf, space, container)
        assert code == 0, result
        return space, result, host_name(conf["name"], container, "eth0")

    def vlans(self, port: str) -> dict[int, int]:
        with contextlib.closing(route.RtnetlinkSocket()) as one:
            link = one.link(port)
            assert link is not None
            return one.vlans(link.index).ids

    def close(self) -> None:
        for space, conf, container in self.spaces:
            code, result = self.call("DEL", conf, space, container)
            assert code == 0, result
            space.close()
        with contextlib.closing(route.RtnetlinkSocket()) as one:
            left = [link.name for link in one.links() if link.name.startswith("cnv")]
            assert not left, left
            for link in one.links():
                if link.kind == "bridge":
                    one.do(route.del_link(index=link.index))


def frame_passes(sender: Space, receiver: Space, tag: int = 0) -> bool:
    """Whether a frame arrives. A frame from the receiver's own VLAN is sent last, so no wait is needed."""
    mac = sender.inside(lambda: _mac("eth0"))
    with (
        contextlib.closing(sender.packets("eth0", 3)) as out,
        contextlib.closing(receiver.packets("eth0", 3)) as into,
    ):
        out.send(frame(mac, b"question", tag))
        # Delivery within one host is synchronous: what came is there when send() returns.
        into.setblocking(False)
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(into.recv(2048))
        return any(b"question" in each for each in found)


def _mac(device: str) -> str:
    with contextlib.closing(route.RtnetlinkSocket()) as one:
        link = one.link(device)
        assert link is not None
        return link.mac


def test_access_port_receives_frames_of_own_vlan_only(node: Node) -> None:
    first, _, port = node.add(vlan=93, preserveDefaultVlan=False)
    second, _, _ = node.add(vlan=93, preserveDefaultVlan=False)
    other, _, _ = node.add(vlan=94, preserveDefaultVlan=False)
    plain, _, _ = node.add()
    assert node.vlans(port) == {93: PORT}
    assert frame_passes(first, second) and frame_passes(second, first)
    assert not frame_passes(first, other) and not frame_passes(other, first)
    assert not frame_passes(first, plain) and not frame_passes(plain, first)


def test_default_vlan_is_kept_unless_configured(node: Node) -> None:
    _, _, port = node.add(vlan=93)
    assert set(node.vlans(port)) == {1, 93} and node.vlans(port)[93] == PORT
    _, _, port = node.add(vlan=93, preserveDefaultVlan=True)
    assert set(node.vlans(port)) == {1, 93}
    _, _, port = node.add()
    assert node.vlans(port) == {1: PORT}


def test_custom_default_vlan_of_bridge_is_removed(node: Node) -> None:
    node.add(vlan=5)
    settings = Path("/sys/class/net/br1/bridge")
    for name, value in (("vlan_filtering", "0"), ("default_pvid", "77"), ("vlan_filtering", "1")):
        (settings / name).write_text(value)
    _, _, port = node.add(vlan=93, preserveDefaultVlan=False)
    assert node.vlans(port) == {93: PORT}


def test_trunk_carries_configured_ids_and_ranges(node: Node) -> None:
    ids = [{"minID": 10, "maxID": 12}, {"id": 20}, {"id": 30, "minID": 40, "maxID": 40}]
    trunk, _, port = node.add(vlanTrunk=ids, preserveDefaultVlan=False)
    assert node.vlans(port) == dict.fromkeys((10, 11, 12, 20, 30, 40), 0)
    access, _, _ = node.add(vlan=11, preserveDefaultVlan=False)
    foreign, _, _ = node.add(vlan=13, preserveDefaultVlan=False)
    assert frame_passes(trunk, access, tag=11) and frame_passes(access, trunk)
    assert (
        not frame_passes(trunk, foreign, tag=13)
        and not frame_passes(trunk, access, tag=12)
        and not frame_passes(trunk, access)
    )


def test_trunk_with_native_vlan_is_accepted(node: Node) -> None:
    trunk, _, port = node.add(vlan=93, vlanTrunk=[{"minID": 93, "maxID": 95}], preserveDefaultVlan=False)
    assert node.vlans(port) == {93: PORT, 94: 0, 95: 0}
    access, _, _ = node.add(vlan=93, preserveDefaultVlan=False)
    tagged, _, _ = node.add(vlan=95, preserveDefaultVlan=False)
    assert frame_passes(trunk, access) and frame_passes(trunk, tagged, tag=95) and not frame_passes(trunk, tagged)


def test_full_vlan_range_is_accepted(node: Node) -> None:
    _, result, port = node.add(vlanTrunk=[{"minID": 1, "maxID": 4094}], cniVersion="1.0.0")
    assert len(node.vlans(port)) == 4094
    _, conf, container = node.spaces[-1]
    assert node.call("CHECK", conf | {"prevResult": result}, node.spaces[-1][0], container)[0] == 0


def test_bridge_without_vlan_filtering_is_refused(node: Node) -> None:
    with contextlib.closing(route.RtnetlinkSocket()) as one:
        one.do(route.new_bridge("br1", "02:00:00:00:00:01", 0, False))
    space = Space()
    conf = {"cniVersion": "1.0.0", "name": "net", "bridge": "br1", "vlan": 93}
    code, error = node.call("ADD", conf, space, "c0")
    assert code == 1 and error["code"] == 7 and "vlan_filtering" in error["msg"], error
    assert node.call("DEL", conf, space, "c0") == (0, None)


def test_macspoofchk_works_in_vlan_with_seed_manifest_config(node: Node) -> None:
    conf = json.loads(NAD)
    first, result, port = node.add(**conf)
    second, _, _ = node.add(**conf)
    assert result["interfaces"][1]["name"] == port and node.vlans(port) == {93: PORT}
    mac = result["interfaces"][2]["mac"]
    with (
        contextlib.closing(first.packets("eth0")) as out,
        contextlib.closing(second.packets("eth0")) as into,
    ):
        out.send(frame("02:66:66:66:66:66", b"forged"))
        out.send(frame(mac, b"mine"))
        assert received_payloads(into, b"mine") == [b"mine"]


def test_vlan_gateway_is_reachable_from_own_vlan_only(node: Node) -> None:
    def static(address: str) -> dict[str, Any]:
        return {"type": "static", "addresses": [{"address": address, "gateway": "10.9.0.1"}]}

    inside, _, _ = node.add(vlan=93, isGateway=True, preserveDefaultVlan=False, ipam=static("10.9.0.7/24"))
    outside, _, _ = node.add(ipam=static("10.9.0.8/24"))
    with contextlib.closing(route.RtnetlinkSocket()) as one:
        device = one.link("br1.93")
        assert device is not None and device.kind == "vlan"
        assert [str(each.interface) for each in one.addresses(device.index) if each.interface.version == 4] == [
            "10.9.0.1/24"
        ]
    assert inside.reaches("10.9.0.1") and not outside.reaches("10.9.0.1")


def test_check_reports_port_missing_from_vlan(node: Node) -> None:
    space, result, port = node.add(vlan=93, vlanTrunk=[{"id": 5}], preserveDefaultVlan=False)
    _, conf, container = node.spaces[-1]
    given = conf | {"prevResult": result}
    assert node.call("CHECK", given, space, container)[0] == 0
    with contextlib.closing(route.RtnetlinkSocket()) as one:
        link = one.link(port)
        assert link is not None
        for change, words in (
            (route.add_vlans(link.index, 0, [6]), "also in the VLANs 6"),
            (route.del_vlan(link.index, 5), "not in the VLANs 5"),
            (route.del_vlan(link.index, 93), "not in VLAN 93"),
        ):
            one.do(change)
            code, error = node.call("CHECK", given, space, container)
            assert code == 1 and error["code"] == 101 and words in error["msg"], error


def run(name: str, test: Callable[[Node], None], resources: HostResources) -> None:
    node = Node(resources)
    try:
        test(node)
        node.close()
    except Exception:
        print(traceback.format_exc(), flush=True)
        print(f"RESULT {name} failed", flush=True)
        with contextlib.suppress(Exception):
            node.close()
    else:
        print(f"RESULT {name} ok", flush=True)


TESTS = {name: found for name, found in globals().items() if name.startswith("test_")}


def main() -> int:
    with contextlib.closing(route.RtnetlinkSocket()) as one:
        one.do(route.set_link("lo", flags=route.IFF_UP, mask=route.IFF_UP))
    resources = HostResources(("/run",))
    for name, test in list(TESTS.items()):
        run(name, test, resources)
    print("RESULT all done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
