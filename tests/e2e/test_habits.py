"""KubeVirt behaviour that users expect: defaults, names, quotas, revisions, pending NIC hotplug."""

from __future__ import annotations

import json
import re

import pytest

from api.catalogs import cpu_names, machine_types, timezones
from tests.e2e.manifests import Drive, booting, idle, service, virtual_machine
from tests.e2e.support import E2eNamespace, Json, KubectlError, VmUnderTest, conditions, image
from tests.waiting import wait_for

SLOW = 180.0
"""Timeout in seconds: a generic kernel loads four times the modules, in software emulation."""


def not_none(found: Json | None) -> Json:
    assert found is not None
    return found


def bare(name: str, source: Json) -> Drive:
    """A disk without a bus."""
    return Drive({"name": name, "disk": {}}, {"name": name, **source})


def quota(name: str, **hard: str) -> Json:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}}


def limit_range(name: str, **limits: Json) -> Json:
    spec = {"limits": [{"type": "Container", **limits}]}
    return {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def idle_vm(space: E2eNamespace) -> VmUnderTest:
    """A running VM without CPU load."""
    return space.apply_vm(idle("quiet")).until_status("Running")


def test_admission_catalogs_match_launcher_image(idle_vm: VmUnderTest) -> None:
    def shown(*command: str) -> str:
        return idle_vm.space.kubectl("exec", idle_vm.pod()["metadata"]["name"], "--", *command)

    types = {line.split()[0] for line in shown("qemu-system-x86_64", "-machine", "help").splitlines()}
    assert set(machine_types.AVAILABLE) <= types
    assert {each for each in types if re.fullmatch(r"pc-q35-[\d.]+", each)} <= set(machine_types.AVAILABLE)
    index = shown("cat", "/usr/share/libvirt/cpu_map/index.xml")
    x86 = index[index.index("<arch name='x86'>") :].partition("</arch>")[0]
    files = [f"/usr/share/libvirt/cpu_map/{name}" for name in re.findall(r"filename='(x86_[^']+)'", x86)]
    text = shown("cat", *files)
    assert set(re.findall(r"<model name='([^']+)'>", text)) == cpu_names.MODELS
    assert set(re.findall(r"<feature name='([^']+)'", shown("cat", files[1]))) == cpu_names.FEATURES
    script = (
        "import pathlib, sys; root = pathlib.Path('/usr/share/zoneinfo'); print(*[z for z in sys.stdin.read().split()"
    )
    script += " if not (root / z).is_file()])"
    name = idle_vm.pod()["metadata"]["name"]
    lost = idle_vm.space.kubectl("exec", "-i", name, "--", "python3", "-c", script, stdin=" ".join(timezones.ZONES))
    assert not lost.split()


def test_disk_without_bus_is_on_sata_and_boots(space: E2eNamespace) -> None:
    """Also the cloud-init seed, which has no disk entry. A cloud kernel has no SATA driver."""
    root = bare("root", {"containerDisk": {"image": image("guest-generic")}})
    seed = {"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config\nhostname: sata-seed\n"}}
    made = virtual_machine("sata", root, memory="192Mi")
    spec = made["spec"]["template"]["spec"]
    spec["volumes"].append(seed)
    devices = spec["domain"]["devices"]
    devices["watchdog"] = {"name": "dog"}
    devices["inputs"] = [{"name": "pointer", "type": "tablet"}]
    machine = space.apply_vm(made).until_status("Running")
    disks = not_none(machine.vmi())["spec"]["domain"]["devices"]["disks"]
    assert [(each["name"], each["disk"]["bus"]) for each in disks] == [("root", "sata"), ("seed", "sata")]
    assert not_none(machine.vmi())["spec"]["domain"]["devices"]["watchdog"]["i6300esb"] == {"action": "reset"}
    told = machine.answer(seconds=SLOW)
    assert told["hostname"] == "sata-seed", "the seed was read from the second SATA disk"


def test_restart_with_unchanged_template_creates_no_controller_revision(space: E2eNamespace) -> None:
    machine = space.apply_vm(idle("kept", run="Manual"))
    machine.ask("Start")
    machine.until_status("Running")
    first = not_none(machine.vmi())["status"]["virtualMachineRevisionName"]
    revision = space.kubectl.get("controllerrevision", first)
    assert revision is not None and revision["data"]["spec"]["template"] == not_none(machine.vm())["spec"]["template"]
    machine.ask("Stop")
    machine.until_stopped()
    machine.ask("Start")
    machine.until_status("Running")
    assert not_none(machine.vmi())["status"]["virtualMachineRevisionName"] == first
    mine = [
        each
        for each in space.kubectl.items("controllerrevisions")
        if not_none(machine.vm())["metadata"]["uid"] in each["metadata"]["name"]
    ]
    assert len(mine) == 1
    machine.ask("Stop")
    machine.until_stopped()
    assert {"created", "ready"} & not_none(machine.vm())["status"].keys() == set(), "absent when false, as published"


def test_vm_runs_with_limits_quota_and_limit_range(space: E2eNamespace) -> None:
    space.apply(quota("bounded", **{"limits.cpu": "64", "limits.memory": "64Gi"}))
    try:
        machine = space.apply_vm(idle("bounded")).until_status("Running")
        limits = machine.pod()["spec"]["containers"][0]["resources"]["limits"]
        assert limits["cpu"] == "1" and limits["memory"]
    finally:
        space.kubectl("delete", "resourcequota", "bounded")
    space.apply(limit_range("small", default={"memory": "32Mi"}))
    try:
        space.apply_vm(idle("ranged")).until_status("Running")
        space.apply(limit_range("small", max={"memory": "32Mi"}))
        machine = space.apply_vm(idle("huge"))
        failure = wait_for(lambda: conditions(machine.vm()).get("Failure"), "the refusal is reported")
        assert "maximum memory usage per Container is 32Mi" in failure["message"]
        assert "Fields to change in the VM's spec.template.spec.domain: resources." in failure["message"]
    finally:
        space.kubectl("delete", "limitrange", "small")


def test_named_ports_resolve_and_guest_searches_subdomain(space: E2eNamespace) -> None:
    made = booting("named", subdomain="grp")
    spec = made["spec"]["template"]["spec"]
    spec["domain"]["devices"]["interfaces"][0]["ports"] = [{"name": "web", "port": 80}]
    spec["readinessProbe"] = {"tcpSocket": {"port": "web"}, "periodSeconds": 1}
    front = service("named", "named")
    front["spec"]["ports"][0]["targetPort"] = "web"
    space.apply(front)
    machine = space.apply_vm(made).until_status("Running")
    told = machine.answer()
    wait_for(lambda: (space.kubectl.get("endpoints", "named") or {}).get("subsets"), "endpoints by the port's name")
    assert told["search"][0].startswith(f"grp.{space.name}.svc."), told["search"]


def test_failed_nic_hotplug_does_not_block_other_changes(space: E2eNamespace) -> None:
    config = {"cniVersion": "1.0.0", "name": "absent", "type": "no-such-plugin"}
    nad = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "absent"}}
    space.apply({**nad, "spec": {"config": json.dumps(config)}})
    machine = space.apply_vm(booting("waiting")).until_status("Running")
    machine.answer()

    def change(**first: str) -> None:
        cards = [{"name": "default", "masquerade": {}, **first}, {"name": "blue", "bridge": {}}]
        networks = [{"name": "default", "pod": {}}, {"name": "blue", "multus": {"networkName": "absent"}}]
        spec = {"networks": networks, "domain": {"devices": {"interfaces": cards}}}
        machine.patch({"spec": {"template": {"spec": spec}}})

    change()

    def told() -> bool:
        message = conditions(machine.vmi()).get("Synchronized", {}).get("message", "")
        return bool(message.startswith("interface blue is not plugged in:") and "no-such-plugin" in message)

    wait_for(told, "the pending NIC is reported")
    change(state="down")

    def link() -> str | None:
        entries = {each["name"]: each for each in not_none(machine.vmi())["status"].get("interfaces", [])}
        return entries["default"].get("linkState")

    wait_for(lambda: link() == "down", "the other NIC's link is down while the hotplug is pending")
    assert machine.status() == "Running"


def test_vmi_name_with_nul_is_bad_request(space: E2eNamespace) -> None:
    path = f"/apis/subresources.kubevirt.io/v1/namespaces/{space.name}/virtualmachineinstances/hello%00/guestosinfo"
    with pytest.raises(KubectlError) as refused:
        space.kubectl("get", "--raw", path)
    assert "ServiceUnavailable" not in str(refused.value) and "NotFound" not in str(refused.value)


def test_guestfs_is_refused_as_not_implemented(space: E2eNamespace) -> None:
    with pytest.raises(KubectlError, match="guestfs tools are not implemented yet"):
        space.kubectl("get", "--raw", "/apis/subresources.kubevirt.io/v1/guestfs")
