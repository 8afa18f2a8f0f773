import asyncio
from typing import Any
from xml.etree import ElementTree

import pytest

from launcher.domain_builder.process import BuildError
from launcher.hotplug.live_nics import LiveNic
from launcher.hotplug.nic_hotplug import NicChanges, NicHotplug, plan
from launcher.hypervisor.connection import HypervisorError, Unavailable
from launcher.network.dhcp_service import DhcpError
from protos import launcher_pb2 as pb


def live(name: str, up: bool = True, model: str = "virtio") -> LiveNic:
    return LiveNic(name, "02:00:00:00:00:01", up, 1, model, f"<{name}>\n      <model type='virtio'/></{name}>")


def request(*taps: str, **links: bool) -> pb.SyncRequest:
    return pb.SyncRequest(
        nics=[pb.Nic(name=name, tap=f"tap-{name}") for name in taps],
        links=[pb.Link(name=name, up=up) for name, up in links.items()],
    )


def test_no_changes_in_the_desired_state() -> None:
    assert not plan({"a": True, "b": False}, ["a", "b"], [live("a"), live("b", up=False)])


def test_new_nics_wait_for_their_tap() -> None:
    assert plan({"a": True, "b": True, "c": False}, ["a", "c"], [live("a")]) == NicChanges(plug=("c",))


def test_absent_and_removed_nics_are_unplugged() -> None:
    assert plan({}, ["a"], [live("a"), live("b")]) == NicChanges(unplug=("a", "b"))
    assert not plan({}, ["a"], [])


def test_link_state_changes_except_for_virtual_functions() -> None:
    a, b = live("a"), live("b", up=False)
    assert plan({"a": False, "b": True}, [], [a, b]) == NicChanges(links=((a, False), (b, True)))
    assert not plan({"a": False}, [], [live("a", model="sriov")])


class World:
    """Fakes for NicHotplug. `fails`: libvirt's error by NIC; the domain's NICs are in `cards.live`."""

    def __init__(self, *there: LiveNic, fails: dict[str, Exception] | None = None, **errors: str) -> None:
        self.done: list[str] = []
        self.looks = 0
        self.there = there
        self.fails, self.errors = fails or {}, errors
        self.dhcp_fails = False
        self.free_ports = 4
        self.cards = NicHotplug(self, self, self)  # type: ignore[arg-type]

    async def follow(self, wish: pb.SyncRequest, options: dict[str, Any] | None = None) -> None:
        await self.cards.follow("vm", wish, {} if options is None else options, self.poll)

    async def poll(self) -> None:
        self.looks += 1
        self.cards.live, self.cards.free_ports = self.there, self.free_ports

    async def build(self, question: dict[str, Any]) -> dict[str, Any]:
        self.done.append(f"build {' '.join(question['plug'])}")
        devices = {name: f"<{name}>" for name in question["plug"] if name not in self.errors}
        errors = {name: text for name, text in self.errors.items() if name in question["plug"]}
        return {"devices": devices, "errors": errors, "dhcp_options": {name: [[67, "00"]] for name in devices}}

    def serve(self, nics: list[pb.Nic], options: dict[str, Any]) -> None:
        self.done.append(f"serve {' '.join(nic.name for nic in nics)}")
        if self.dhcp_fails:
            raise DhcpError("interface a: cannot serve DHCP: no such device")

    async def _change(self, what: str, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]
        self.done.append(f"{what} {name}")

    async def attach_device(self, _: str, xml: str) -> None:
        await self._change("attach", xml.strip("<>"))

    async def detach_device(self, _: str, alias: str, requested: bool) -> None:
        await self._change("detach again" if requested else "detach", alias.removeprefix("ua-nic_"))

    async def update_device(self, _: str, xml: str) -> None:
        element = ElementTree.fromstring(xml)
        link = element.find("link")
        assert link is not None
        await self._change(link.get("state", ""), element.tag)


def test_no_calls_without_changes() -> None:
    world = World(live("a"))

    async def twice() -> None:
        await world.follow(request("a", a=True))
        await world.follow(request("a", a=True))

    asyncio.run(twice())
    assert world.done == ["serve a", "serve a"] and world.looks == 1


def test_plug_unplug_and_link_changes_together() -> None:
    world = World(live("old"), live("cable"))
    options: dict[str, Any] = {"new": "of an earlier card of that name"}
    wish = request("old", "cable", "new", cable=False, new=True)
    asyncio.run(world.follow(wish, options))
    assert world.done == ["build new", "serve cable new", "down cable", "detach old", "attach new"]
    assert options == {"new": [[67, "00"]]}


def test_failing_nic_does_not_block_others() -> None:
    world = World(
        live("gone"), live("cable"), fails={"cable": HypervisorError("no"), "b": HypervisorError("never")}, a="bad"
    )
    with pytest.raises(BuildError) as raised:
        asyncio.run(world.follow(request("a", "b", "c", a=True, b=True, c=True, cable=False)))
    assert world.done == ["build a b c", "serve a b c", "detach gone", "attach c"]
    assert raised.value.code == "INTERNAL"
    assert str(raised.value) == (
        "bad; interface cable: its link cannot be set down: no; interface b: it cannot be plugged into tap-b: never"
    )


def test_joined_code_is_internal_if_codes_differ() -> None:
    with pytest.raises(BuildError) as raised:
        asyncio.run(World(a="bad", b="worse").follow(request("a", "b", a=True, b=True)))
    assert (raised.value.code, str(raised.value)) == ("INVALID_ARGUMENT", "bad; worse")


def test_missing_pci_slot_message_has_a_remedy() -> None:
    world = World(fails={"b": HypervisorError("internal error: any message")})
    world.free_ports = 1
    with pytest.raises(
        BuildError, match=r"^interface b: it cannot be plugged into tap-b: no free PCI slot; restart the VM, or unplug"
    ):
        asyncio.run(world.follow(request("a", "b", a=True, b=True)))
    assert "attach a" in world.done


def test_other_failure_with_a_free_port_keeps_the_message_of_libvirt() -> None:
    world = World(fails={"a": HypervisorError("internal error: No more available PCI slots")})
    with pytest.raises(BuildError, match=r"tap-a: internal error: No more available PCI slots$"):
        asyncio.run(world.follow(request("a", a=True)))


def test_second_unplug_request_is_marked_until_the_nic_is_wanted_again() -> None:
    world = World(live("a"))

    async def follow() -> None:
        await world.follow(request())
        await world.follow(request())
        assert world.cards.unplugging == {"a"}
        await world.follow(request("a", a=True))
        await world.follow(request())

    asyncio.run(follow())
    assert [each for each in world.done if "detach" in each] == ["detach a", "detach again a", "detach a"]


def test_rejected_unplug_request_is_not_counted() -> None:
    world = World(live("a"), fails={"a": HypervisorError("no")})
    with pytest.raises(BuildError, match="interface a: it cannot be unplugged: no"):
        asyncio.run(world.follow(request()))
    assert world.cards.unplugging == set()


def test_dhcp_failure_does_not_block_plugging() -> None:
    world = World()
    world.dhcp_fails = True
    with pytest.raises(BuildError, match="interface a: cannot serve DHCP"):
        asyncio.run(world.follow(request("a", a=True)))
    assert world.done == ["build a", "serve a", "attach a"]


def test_unavailable_daemon_raises_unavailable() -> None:
    world = World(live("a"), fails={"a": Unavailable("gone")})
    with pytest.raises(Unavailable):
        asyncio.run(world.follow(request()))
