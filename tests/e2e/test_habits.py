"""What users of KubeVirt are used to, on a real cluster: defaults, names, quotas, revisions, cards that wait."""

from __future__ import annotations

import json
import re

import pytest

from api.catalogs import cpu_names, machine_types, timezones
from tests.e2e.manifests import Drive, booting, idle, service, virtual_machine
from tests.e2e.support import Json, KubectlError, Machine, Space, conditions, image
from tests.waiting import wait_for

SLOW = 180.0
"""A generic kernel in software emulation has four times the modules."""


def the(found: Json | None) -> Json:
    assert found is not None
    return found


def bare(name: str, source: Json) -> Drive:
    """A disk that leaves its bus to the default."""
    return Drive({"name": name, "disk": {}}, {"name": name, **source})


def quota(name: str, **hard: str) -> Json:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}}


def ranged(name: str, **limits: Json) -> Json:
    spec = {"limits": [{"type": "Container", **limits}]}
    return {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def quiet(space: Space) -> Machine:
    """A VM that runs and costs nothing."""
    return space.machine(idle("quiet")).until_status("Running")


def test_what_admission_knows_by_name_is_what_the_launcher_has(quiet: Machine) -> None:
    def shown(*command: str) -> str:
        return quiet.space.kubectl("exec", quiet.pod()["metadata"]["name"], "--", *command)

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
    name = quiet.pod()["metadata"]["name"]
    lost = quiet.space.kubectl("exec", "-i", name, "--", "python3", "-c", script, stdin=" ".join(timezones.ZONES))
    assert not lost.split()


def test_a_disk_that_names_no_bus_is_on_sata_and_boots(space: Space) -> None:
    """And one that no disk names at all: the seed. A cloud kernel could drive neither."""
    root = bare("root", {"containerDisk": {"image": image("guest-generic")}})
    seed = {"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config\nhostname: sata-seed\n"}}
    made = virtual_machine("sata", root, memory="192Mi")
    spec = made["spec"]["template"]["spec"]
    spec["volumes"].append(seed)
    devices = spec["domain"]["devices"]
    devices["watchdog"] = {"name": "dog"}
    devices["inputs"] = [{"name": "pointer", "type": "tablet"}]
    machine = space.machine(made).until_status("Running")
    disks = the(machine.vmi())["spec"]["domain"]["devices"]["disks"]
    assert [(each["name"], each["disk"]["bus"]) for each in disks] == [("root", "sata"), ("seed", "sata")]
    assert the(machine.vmi())["spec"]["domain"]["devices"]["watchdog"]["i6300esb"] == {"action": "reset"}
    told = machine.answer(seconds=SLOW)
    assert told["hostname"] == "sata-seed", "the seed was read from the second SATA disk"


def test_a_start_of_an_unchanged_template_makes_no_revision(space: Space) -> None:
    machine = space.machine(idle("kept", run="Manual"))
    machine.ask("Start")
    machine.until_status("Running")
    first = the(machine.vmi())["status"]["virtualMachineRevisionName"]
    revision = space.kubectl.get("controllerrevision", first)
    assert revision is not None and revision["data"]["spec"]["template"] == the(machine.vm())["spec"]["template"]
    machine.ask("Stop")
    machine.until_stopped()
    machine.ask("Start")
    machine.until_status("Running")
    assert the(machine.vmi())["status"]["virtualMachineRevisionName"] == first
    mine = [
        each
        for each in space.kubectl.items("controllerrevisions")
        if the(machine.vm())["metadata"]["uid"] in each["metadata"]["name"]
    ]
    assert len(mine) == 1
    machine.ask("Stop")
    machine.until_stopped()
    assert {"created", "ready"} & the(machine.vm())["status"].keys() == set(), "absent when false, as published"


def test_a_quota_on_limits_and_a_limit_range_keep_no_vm_from_running(space: Space) -> None:
    space.apply(quota("bounded", **{"limits.cpu": "64", "limits.memory": "64Gi"}))
    try:
        machine = space.machine(idle("bounded")).until_status("Running")
        limits = machine.pod()["spec"]["containers"][0]["resources"]["limits"]
        assert limits["cpu"] == "1" and limits["memory"]
    finally:
        space.kubectl("delete", "resourcequota", "bounded")
    space.apply(ranged("small", default={"memory": "32Mi"}))
    try:
        space.machine(idle("ranged")).until_status("Running")
        space.apply(ranged("small", max={"memory": "32Mi"}))
        machine = space.machine(idle("huge"))
        failure = wait_for(lambda: conditions(machine.vm()).get("Failure"), "a refusal that is told")
        assert "maximum memory usage per Container is 32Mi" in failure["message"]
        assert "Fields to change in the VM's spec.template.spec.domain: resources." in failure["message"]
    finally:
        space.kubectl("delete", "limitrange", "small")


def test_ports_by_name_and_the_groups_domain(space: Space) -> None:
    made = booting("named", subdomain="grp")
    spec = made["spec"]["template"]["spec"]
    spec["domain"]["devices"]["interfaces"][0]["ports"] = [{"name": "web", "port": 80}]
    spec["readinessProbe"] = {"tcpSocket": {"port": "web"}, "periodSeconds": 1}
    front = service("named", "named")
    front["spec"]["ports"][0]["targetPort"] = "web"
    space.apply(front)
    machine = space.machine(made).until_status("Running")
    told = machine.answer()
    wait_for(lambda: (space.kubectl.get("endpoints", "named") or {}).get("subsets"), "endpoints by the port's name")
    assert told["search"][0].startswith(f"grp.{space.name}.svc."), told["search"]


def test_a_card_that_cannot_be_plugged_in_holds_up_no_other_change(space: Space) -> None:
    config = {"cniVersion": "1.0.0", "name": "absent", "type": "no-such-plugin"}
    nad = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "absent"}}
    space.apply({**nad, "spec": {"config": json.dumps(config)}})
    machine = space.machine(booting("waiting")).until_status("Running")
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

    wait_for(told, "the card waits, in words")
    change(state="down")

    def link() -> str | None:
        entries = {each["name"]: each for each in the(machine.vmi())["status"].get("interfaces", [])}
        return entries["default"].get("linkState")

    wait_for(lambda: link() == "down", "the other card's link is put down while that one waits")
    assert machine.status() == "Running"


def test_a_name_with_a_nul_is_a_bad_request(space: Space) -> None:
    path = f"/apis/subresources.kubevirt.io/v1/namespaces/{space.name}/virtualmachineinstances/hello%00/guestosinfo"
    with pytest.raises(KubectlError) as refused:
        space.kubectl("get", "--raw", path)
    assert "ServiceUnavailable" not in str(refused.value) and "NotFound" not in str(refused.value)


def test_guestfs_is_refused_in_words_that_kubectl_shows(space: Space) -> None:
    with pytest.raises(KubectlError, match="guestfs tools are not implemented yet"):
        space.kubectl("get", "--raw", "/apis/subresources.kubevirt.io/v1/guestfs")
