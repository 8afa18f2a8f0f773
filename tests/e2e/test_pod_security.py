"""Virtual machines in a namespace that enforces the Pod Security Standard `restricted`, and what is refused there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from api.validation import pod_security
from tests import podstandard
from tests.e2e.manifests import booting, claim, cloud_init, drive, idle, instance, secret, tiny, virtual_machine
from tests.e2e.support import EXISTING, ROOT, Json, KubectlError, Machine, Space, image, project, stays
from tests.e2e.test_networks import network, nics, plugged_in_and_out
from tests.e2e.test_storage import volume_for
from tests.waiting import wait_for

GOLDEN = sorted((ROOT / "tests" / "golden" / "pod").glob("*/pod.yaml"))
PROBE = {"readinessProbe": {"tcpSocket": {"port": 80, "host": "192.0.2.1"}}}
WORDS = (
    r"readinessProbe\.tcpSocket\.host: .*namespace e2e-pod-security-\w+ enforces the Pod Security Standard 'restricted'"
)
EXTRA_MAC = "02:00:00:00:95:0e"


@pytest.fixture(scope="module", autouse=True)
def house(space: Space) -> Iterator[None]:
    """The namespace enforces the standard; the bridge on both nodes; volumes are taken away at the end."""
    space.kubectl("label", "namespace", space.name, f"{pod_security.LABEL_ENFORCE}=restricted")
    if not EXISTING:
        project("cluster", "bridge", "br1", "--port", "eth1")
    yield
    space.kubectl("delete", "vm,vmi,pvc", "--all", "--timeout=90s")
    for volume in space.kubectl.items("persistentvolumes"):
        if volume["metadata"]["name"].startswith(f"{space.name}-"):
            space.kubectl("delete", "pv", volume["metadata"]["name"], "--wait=false")


# ---- pods alone


def judged(space: Space, pod: Json) -> str:
    """What the API server would say to this pod; empty where it would take it."""
    pod = {**pod, "apiVersion": "v1", "kind": "Pod", "metadata": {**pod["metadata"], "namespace": space.name}}
    pod["spec"].pop("priorityClassName", None)  # there is none of that name
    try:
        space.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    except KubectlError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parent.name)
def test_a_launcher_pod_is_one_that_the_restricted_standard_allows(space: Space, path: Any) -> None:
    assert judged(space, yaml.safe_load(path.read_text())) == ""


def test_the_unit_tests_checker_refuses_what_the_api_server_refuses(space: Space) -> None:
    pod = yaml.safe_load((ROOT / "tests/golden/pod/minimal/pod.yaml").read_text())
    for rule, broken in podstandard.broken(pod):
        assert "violates PodSecurity" in judged(space, broken), rule


# ---- machines


@pytest.fixture(scope="module")
def everything(space: Space, house: None) -> Machine:
    """A machine with one of every kind of volume that is a pod's, its NAT and a bridge of the node."""
    space.apply(
        network("lan"),
        volume_for(space, "data"),
        secret("keys", key="value"),
        secret("seed", userdata="#cloud-config\nhostname: restricted\n"),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "b"}},
    )
    return space.machine(
        booting(
            "everything",
            claim("data", "data"),
            drive("scratch", {"emptyDisk": {"capacity": "16Mi"}}, serial="scratch"),
            drive("keys", {"secret": {"secretName": "keys"}}, serial="keys"),
            drive("settings", {"configMap": {"name": "settings"}}, serial="settings"),
            cloud_init(secretRef={"name": "seed"}),
            **nics(("lan", "lan", {})),
        )
    ).until_status("Running")


def test_a_machine_with_every_kind_of_volume_runs(everything: Machine) -> None:
    told = everything.answer()
    serials = {disk["serial"] for disk in told["disks"]}
    assert {"data", "scratch", "keys", "settings"} <= serials
    assert told["hostname"] == "restricted"
    everything.guest().write("data", "kept")
    assert everything.guest().read("data") == "kept"


def test_a_card_is_plugged_in_and_out(everything: Machine) -> None:
    plugged_in_and_out(everything, EXTRA_MAC)


def test_a_machine_with_the_bridge_binding_and_a_kernel_out_of_an_image_runs(space: Space) -> None:
    boot = {
        "kernelArgs": "console=ttyS0 no_timer_check quiet",
        "container": {"image": image("guest-tiny-kernel"), "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"},
    }
    wiring = nics(pod={"bridge": {}})
    wiring["domain"] = {**wiring["domain"], "firmware": {"kernelBoot": boot}}  # type: ignore[dict-item]
    machine = space.machine(virtual_machine("bridged", **wiring)).until_status("Running")
    assert machine.answer()["bootId"]
    machine.discard()


# ---- what cannot be


def test_a_probe_of_another_host_is_refused_with_the_machine_and_not_with_its_pod(space: Space) -> None:
    for manifest in (booting("curious", **PROBE), instance("curious", tiny(), **PROBE)):
        with pytest.raises(KubectlError, match=WORDS):
            space.apply(manifest)
    calm = space.machine(idle("calm", run="Halted"))
    with pytest.raises(KubectlError, match=WORDS):
        calm.patch({"spec": {"template": {"spec": PROBE}}})
    stays(lambda: not (calm.vm() or {})["spec"]["template"]["spec"].get("readinessProbe"), "unchanged", seconds=1)


def test_a_namespace_that_becomes_strict_later_is_told_of_by_the_machine(space: Space) -> None:
    """A machine that was stored before is not refused any more, but its pod is: the machine says why."""
    space.kubectl("label", "namespace", space.name, f"{pod_security.LABEL_ENFORCE}-")
    try:
        # What the namespace enforced is remembered for some seconds.
        wait_for(lambda: space.apply(idle("early", run="Halted", **PROBE)), "the machine is taken", seconds=30)
    finally:
        space.kubectl("label", "namespace", space.name, f"{pod_security.LABEL_ENFORCE}=restricted")
    early = space.known("early")
    early.run("Always")
    early.until_told("violates PodSecurity")
    early.run("Halted")
    early.until_stopped()
    space.kubectl("label", "vm", "early", "still=usable")
    early.discard()
