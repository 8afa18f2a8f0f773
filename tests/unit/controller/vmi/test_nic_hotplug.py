"""NIC hot-plug: template changes that are applied live, and those that wait for a restart."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api import names
from api.defaults import mac_address
from api.kubevirt.configuration import KubeVirtConfiguration, NetworkConfiguration
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from controller.actions import Create, Patch
from controller.vm import template
from controller.vm.plan import ObservedVm, plan
from tests.unit.controller.objects import LONG_AGO, NOW, SPEC, vm, vmi

Json = dict[str, Any]
POD: Json = {"name": "default", "masquerade": {}}
RED: Json = {"name": "red", "bridge": {}}
BLUE: Json = {"name": "blue", "bridge": {}, "macAddress": "02:00:00:00:00:0b"}
DEVICE: Json = {"name": "device", "sriov": {}}


def spec(*cards: Json, **more: Any) -> Json:
    """A spec with these interfaces, each on a matching network."""
    networks = [
        {"name": card["name"], "pod": {}}
        if card["name"] == "default"
        else {"name": card["name"], "multus": {"networkName": f"net-{card['name']}"}}
        for card in cards
    ]
    devices = {"interfaces": list(cards)} if cards else {"autoattachPodInterface": False}
    return {**SPEC, **more, "networks": networks, "domain": {**SPEC["domain"], "devices": devices}}


def started(*cards: Json, phase: str = "Running", shows: tuple[str, ...] | None = None, **more: Any) -> Any:
    """The VMI of a VM with these interfaces. `shows`: interfaces that the handler reports, by default all."""
    found = plan(ObservedVm(vm=vm(spec=spec(*cards, **more)), now=NOW))
    *_, create = [each for each in found if isinstance(each, Create)]
    seen = [card["name"] for card in cards] if shows is None else shows
    return alive(create.obj, phase, seen)


def alive(document: Json, phase: str = "Running", shows: Any = ()) -> VirtualMachineInstance:
    interfaces = [{"name": name, "infoSource": "domain"} for name in shows] if phase == "Running" else None
    base = vmi(phase, stamps={phase: LONG_AGO}, owner="vm-uid", interfaces=interfaces)
    meta = {**msgspec.to_builtins(base.metadata), "annotations": document["metadata"]["annotations"]}
    whole = {**msgspec.to_builtins(base), "metadata": meta, "spec": document["spec"]}
    return msgspec.convert(whole, VirtualMachineInstance)


def patches(machine: VirtualMachine, instance: VirtualMachineInstance) -> list[Patch]:
    """The patches of the VMI's and the VM's spec."""
    found = plan(ObservedVm(vm=machine, vmi=instance, now=NOW))
    return [each for each in found if isinstance(each, Patch) and each.subresource is None]


def waiting(machine: VirtualMachine, instance: VirtualMachineInstance, **more: Any) -> list[str]:
    """The fields named in condition RestartRequired."""
    found = template.difference(machine, instance, None)
    fields = list(found.waiting) if found else []
    told = [each for each in plan(ObservedVm(vm=machine, vmi=instance, now=NOW)) if isinstance(each, Patch)]
    conditions = [c for each in told for c in each.patch.get("status", {}).get("conditions", [])]
    required = [c for c in conditions if c["type"] == names.CONDITION_RESTART_REQUIRED]
    assert bool(required) == bool(fields)
    assert all(field in required[0]["message"] for field in fields)
    return fields


def after(machine: VirtualMachine, instance: VirtualMachineInstance, shows: Any = ()) -> VirtualMachineInstance:
    """The VMI with its patch applied, running, with these interfaces in its status."""
    (patch,) = patches(machine, instance)
    assert patch.kind is VirtualMachineInstance and patch.patch["metadata"] == {
        "uid": "vmi-uid",
        "resourceVersion": "7",
    }
    document = msgspec.to_builtins(instance)
    cards = patch.patch["spec"]
    document["spec"]["networks"] = cards["networks"] or []
    document["spec"]["domain"]["devices"] |= {
        key: value for key, value in cards["domain"]["devices"].items() if value is not None
    }
    if cards["domain"]["devices"]["interfaces"] is None:
        del document["spec"]["domain"]["devices"]["interfaces"]
    return alive(document, "Running", shows)


def cards_of(instance: VirtualMachineInstance) -> dict[str, str | None]:
    assert [each.name for each in instance.spec.domain.devices.interfaces or ()] == [
        each.name for each in instance.spec.networks or ()
    ]
    return {each.name: each.state for each in instance.spec.domain.devices.interfaces or ()}


# ---- plugging


def test_added_bridge_interface_is_plugged_with_stable_mac() -> None:
    machine, instance = vm(spec=spec(POD, RED), generation=2), started(POD)
    plugged = after(machine, instance, ["default"])
    assert cards_of(plugged) == {"default": None, "red": None}
    red = (plugged.spec.domain.devices.interfaces or [])[1]
    assert red.macAddress == mac_address(instance.metadata, "red") and red.model == "virtio"
    assert waiting(machine, instance) == []
    assert patches(machine, plugged) == [] and waiting(machine, plugged) == []
    # The next start creates the same interface.
    fresh = started(POD, RED)
    assert (fresh.spec.domain.devices.interfaces or [])[1] == red


@pytest.mark.parametrize(
    "card",
    [
        DEVICE,
        {**RED, "model": "e1000"},
        {**RED, "model": "rtl8139"},
        {**RED, "pciAddress": "0000:09:00.0"},
    ],
)
def test_unpluggable_interface_waits_for_restart(card: Json) -> None:
    machine, instance = vm(spec=spec(POD, card)), started(POD)
    assert patches(machine, instance) == []
    assert waiting(machine, instance) == [f"domain.devices.interfaces[{card['name']}]"]


def test_pod_network_is_not_hot_plugged() -> None:
    machine, instance = vm(spec=spec(RED, POD)), started(RED)
    assert patches(machine, instance) == []
    assert waiting(machine, instance) == ["domain.devices.interfaces[default]"]


def test_disable_hotplug_prevents_hot_plug() -> None:
    closed = spec(POD)
    closed["domain"]["devices"]["disableHotplug"] = True
    wanted = spec(POD, RED)
    wanted["domain"]["devices"]["disableHotplug"] = True
    *_, create = [each for each in plan(ObservedVm(vm=vm(spec=closed), now=NOW)) if isinstance(each, Create)]
    instance = alive(create.obj, shows=["default"])
    assert patches(vm(spec=wanted), instance) == []
    assert waiting(vm(spec=wanted), instance) == ["domain.devices.interfaces[red]"]


def test_live_changes_are_applied_beside_waiting_ones() -> None:
    machine = vm(spec=spec({**POD, "model": "e1000"}, RED, hostname="other"))
    instance = started(POD)
    assert cards_of(after(machine, instance)) == {"default": None, "red": None}
    assert waiting(machine, instance) == ["domain.devices.interfaces[default].model", "hostname"]


def test_invalid_template_changes_nothing_in_running_vmi() -> None:
    fault: Any = [names.FAULT_INVALID]
    found = plan(ObservedVm(vm=vm(spec=spec(POD, RED)), vmi=started(POD), now=NOW, faults=fault))
    assert not [each for each in found if isinstance(each, Patch) and each.subresource is None]


# ---- links


@pytest.mark.parametrize("card", [POD, RED, {**RED, "model": "e1000"}])
def test_link_state_changes_live(card: Json) -> None:
    down = vm(spec=spec({**card, "state": "down"}))
    instance = started(card)
    lowered = after(down, instance, [card["name"]])
    assert cards_of(lowered) == {card["name"]: "down"} and waiting(down, instance) == []
    assert cards_of(after(vm(spec=spec({**card, "state": "up"})), lowered)) == {card["name"]: "up"}
    assert cards_of(after(vm(spec=spec(card)), lowered)) == {card["name"]: None}


def test_explicit_link_state_up_is_no_change() -> None:
    machine = vm(spec=spec({**RED, "state": "up"}))
    assert patches(machine, started(RED)) == [] and waiting(machine, started(RED)) == []


# ---- unplugging


def test_absent_interface_is_removed_when_handler_reports_it_unplugged() -> None:
    machine, instance = vm(spec=spec(POD, {**RED, "state": "absent"}, BLUE)), started(POD, RED, BLUE)
    leaving = after(machine, instance, ["default", "red", "blue"])
    assert cards_of(leaving) == {"default": None, "red": "absent", "blue": None}
    assert patches(machine, leaving) == [], "the guest still has it"
    gone = alive(msgspec.to_builtins(leaving), shows=["default", "blue"])
    of_vmi, of_vm = patches(machine, gone)
    assert of_vmi.kind is VirtualMachineInstance and of_vm.kind is VirtualMachine
    assert [each["name"] for each in of_vmi.patch["spec"]["networks"]] == ["default", "blue"]
    assert of_vm.patch == {
        "metadata": {"uid": "vm-uid", "resourceVersion": "5"},
        "spec": {
            "template": {
                "spec": {
                    "networks": spec(POD, BLUE)["networks"],
                    "domain": {"devices": {"interfaces": [POD, BLUE]}},
                }
            }
        },
    }


def test_absent_interface_is_removed_from_template_after_crash() -> None:
    machine, instance = vm(spec=spec(POD, {**RED, "state": "absent"})), started(POD)
    (of_vm,) = patches(machine, instance)
    assert of_vm.kind is VirtualMachine
    assert [each["name"] for each in of_vm.patch["spec"]["template"]["spec"]["networks"]] == ["default"]


def test_interface_removed_from_template_is_unplugged() -> None:
    machine, instance = vm(spec=spec(POD)), started(POD, RED)
    leaving = after(machine, instance, ["default", "red"])
    assert cards_of(leaving) == {"default": None, "red": "absent"} and waiting(machine, instance) == []
    gone = alive(msgspec.to_builtins(leaving), shows=["default"])
    assert cards_of(after(machine, gone)) == {"default": None}


@pytest.mark.parametrize("phase", ["Scheduling", "Scheduled"])
def test_interface_is_kept_until_guest_state_is_reported(phase: str) -> None:
    document = msgspec.to_builtins(started(POD, {**RED, "state": "down"}))
    document["spec"]["domain"]["devices"]["interfaces"][1]["state"] = "absent"
    assert patches(vm(spec=spec(POD)), alive(document, phase)) == []


def test_interface_restored_in_template_is_kept() -> None:
    leaving = after(vm(spec=spec(POD, {**RED, "state": "absent"})), started(POD, RED), ["default", "red"])
    assert cards_of(after(vm(spec=spec(POD, RED)), leaving)) == {"default": None, "red": None}


@pytest.mark.parametrize("card", [POD, DEVICE, {**RED, "model": "pcnet"}])
def test_interface_that_cannot_be_unplugged_waits_for_restart(card: Json) -> None:
    machine, instance = vm(spec=spec(BLUE)), started(BLUE, card)
    assert patches(machine, instance) == []
    assert waiting(machine, instance) == [f"domain.devices.interfaces[{card['name']}]"]


def test_unplugging_last_interface_does_not_attach_pod_network() -> None:
    machine, instance = vm(spec=spec({**RED, "state": "absent"})), started(RED)
    gone = alive(msgspec.to_builtins(after(machine, instance, ["red"])), shows=[])
    of_vmi, of_vm = patches(machine, gone)
    for cards in (of_vmi.patch["spec"], of_vm.patch["spec"]["template"]["spec"]):
        assert cards == {
            "networks": None,
            "domain": {"devices": {"interfaces": None, "autoattachPodInterface": False}},
        }
    bare = after(vm(spec=spec()), gone)
    assert patches(vm(spec=spec()), bare) == [] and waiting(vm(spec=spec()), bare) == []


def test_vm_starts_without_absent_interfaces() -> None:
    assert cards_of(started(POD, {**RED, "state": "absent"})) == {"default": None}
    alone = started({**RED, "state": "absent"})
    assert cards_of(alone) == {} and alone.spec.domain.devices.autoattachPodInterface is False


# ---- restarts


def test_changed_interface_field_waits_and_is_named() -> None:
    instance = started(POD, RED)
    other = {**spec(POD, RED), "networks": [{"name": "default", "pod": {"vmNetworkCIDR": "10.9.0.0/24"}},
                                            {"name": "red", "multus": {"networkName": "other"}}]}  # fmt: skip
    assert waiting(vm(spec=other), instance) == [
        "networks[default].pod.vmNetworkCIDR",
        "networks[red].multus.networkName",
    ]
    moved = spec(POD, {**RED, "macAddress": "02:00:00:00:00:99"})
    assert waiting(vm(spec=moved), instance) == ["domain.devices.interfaces[red].macAddress"]
    assert patches(vm(spec=moved), instance) == []
    rebound = spec({"name": "default", "bridge": {}}, RED)
    assert "domain.devices.interfaces[default].bridge" in waiting(vm(spec=rebound), instance)


def test_interface_defaults_order_and_spelling_need_no_restart() -> None:
    instance = started(POD, BLUE)
    default = (instance.spec.domain.devices.interfaces or [])[0]
    written = [{**BLUE, "macAddress": "02-00-00-00-00-0B", "model": "virtio", "ports": []},
               {**POD, "macAddress": default.macAddress, "state": "up"}]  # fmt: skip
    machine = vm(spec=spec(*written))
    assert waiting(machine, instance) == [] and patches(machine, instance) == []


def test_order_of_networks_is_kept() -> None:
    crossed = spec(POD, RED)
    crossed["networks"].reverse()
    *_, create = [each for each in plan(ObservedVm(vm=vm(spec=crossed), now=NOW)) if isinstance(each, Create)]
    instance = alive(create.obj, shows=["default", "red"])
    assert patches(vm(spec=crossed), instance) == [] and waiting(vm(spec=crossed), instance) == []
    more = {**spec(POD, RED, BLUE), "networks": [*crossed["networks"], spec(BLUE)["networks"][0]]}
    (patch,) = patches(vm(spec=more), instance)
    assert [each["name"] for each in patch.patch["spec"]["networks"]] == ["red", "default", "blue"]
    assert [each["name"] for each in patch.patch["spec"]["domain"]["devices"]["interfaces"]] == [
        "default",
        "red",
        "blue",
    ]


def test_default_binding_is_fixed_at_start() -> None:
    instance = started({"name": "default"})
    unsaid = {key: value for key, value in SPEC.items() if key != "networks"}
    machine = vm(spec={**spec({"name": "default"}), "hostname": "x"})
    config = KubeVirtConfiguration(network=NetworkConfiguration(defaultNetworkInterface="bridge"))
    found = template.difference(machine, instance, config)
    assert found is not None and found.waiting == ("hostname",) and found.nics.spec == found.vmi.spec
    found = template.difference(vm(spec=unsaid), instance, config)
    assert found is not None and found.waiting == () and found.nics.spec == found.vmi.spec


def test_reverted_template_unplugs_interface() -> None:
    plugged = after(vm(spec=spec(POD, RED)), started(POD), ["default", "red"])
    assert cards_of(after(vm(spec=spec(POD)), plugged)) == {"default": None, "red": "absent"}


def test_finished_or_deleted_vmi_is_not_changed() -> None:
    machine = vm(run="Manual", spec=spec(POD, RED))
    assert patches(machine, alive(msgspec.to_builtins(started(POD)), "Succeeded")) == []
    going = msgspec.structs.replace(
        started(POD), metadata=msgspec.structs.replace(started(POD).metadata, deletionTimestamp="2026-01-02T03:04:05Z")
    )
    assert patches(machine, going) == []


# ---- convergence

PLUGGABLE = [{"name": name, "bridge": {}} for name in "abcd"]
FIXED = [POD, DEVICE, {"name": "old", "bridge": {}, "model": "pcnet"}]
STATES = st.sampled_from([None, "up", "down", "absent"])


@st.composite
def templates(draw: st.DrawFn) -> list[Json]:
    """Random interfaces in random order; pluggable ones with a random state."""
    plugged = draw(st.lists(st.sampled_from(PLUGGABLE), unique_by=lambda card: card["name"]))
    states = [draw(STATES) for _ in plugged]
    moving = [{**card, "state": state} if state else card for card, state in zip(plugged, states, strict=True)]
    fixed = draw(st.lists(st.sampled_from(FIXED), unique_by=lambda card: card["name"]))
    return draw(st.permutations(moving + fixed))


def settled(cards: list[Json], instance: VirtualMachineInstance) -> tuple[list[Json], VirtualMachineInstance]:
    """Template and VMI after convergence, with a handler that applies every change."""
    for _ in range(4):
        shows = [nic.name for nic in instance.spec.domain.devices.interfaces or () if nic.state != "absent"]
        instance = alive(msgspec.to_builtins(instance), shows=shows)
        found = patches(vm(spec=spec(*cards)), instance)
        if not found:
            return cards, instance
        for patch in found:
            if patch.kind is VirtualMachineInstance:
                document = msgspec.to_builtins(instance)
                devices = patch.patch["spec"]["domain"]["devices"]
                document["spec"] |= {"networks": patch.patch["spec"]["networks"]}
                document["spec"]["domain"]["devices"] |= devices
                instance = alive(document)
            else:
                left = patch.patch["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"] or []
                cards = [card for card in cards if card["name"] in {each["name"] for each in left}]
    raise AssertionError("it is never done")


@settings(max_examples=150, deadline=None)
@given(templates(), templates())
def test_every_change_converges_to_the_template(before: list[Json], after: list[Json]) -> None:
    cards, instance = settled(after, started(*before))
    assert not [card for card in cards if card.get("state") == "absent"]
    wanted = {card["name"]: card.get("state") for card in after if card.get("state") != "absent"}
    have = {nic.name: nic.state for nic in instance.spec.domain.devices.interfaces or ()}
    movable = {card["name"] for card in PLUGGABLE}
    assert {name: (state or "up") for name, state in have.items() if name in movable} == {
        name: (state or "up") for name, state in wanted.items() if name in movable
    }
    changed = {card["name"] for card in FIXED if (card["name"] in have) != (card["name"] in wanted)}
    assert set(waiting(vm(spec=spec(*cards)), instance)) == {f"domain.devices.interfaces[{name}]" for name in changed}
