"""Virtual machines in a namespace that enforces the Pod Security Standard `restricted`, and refusals there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from api.validation import pod_security
from tests import podstandard
from tests.e2e.manifests import booting, claim, cloud_init, drive, idle, instance, secret, tiny, virtual_machine
from tests.e2e.support import (
    EXISTING,
    ROOT,
    E2eNamespace,
    Json,
    KubectlError,
    VmUnderTest,
    assert_stays_true,
    image,
    project,
)
from tests.e2e.test_networks import assert_nic_hotplug_and_unplug, network, nics
from tests.e2e.test_storage import volume_for
from tests.waiting import wait_for

GOLDEN = sorted((ROOT / "tests" / "golden" / "pod").glob("*/pod.yaml"))
PROBE = {"readinessProbe": {"tcpSocket": {"port": 80, "host": "192.0.2.1"}}}
WORDS = (
    r"readinessProbe\.tcpSocket\.host: .*namespace e2e-pod-security-\w+ enforces the Pod Security Standard 'restricted'"
)
EXTRA_MAC = "02:00:00:00:95:0e"


@pytest.fixture(scope="module", autouse=True)
def restricted_namespace(space: E2eNamespace) -> Iterator[None]:
    """The namespace enforces the standard; the bridge is on both nodes; volumes are deleted at the end."""
    space.kubectl("label", "namespace", space.name, f"{pod_security.LABEL_ENFORCE}=restricted")
    if not EXISTING:
        project("cluster", "bridge", "br1", "--port", "eth1")
    yield
    space.kubectl("delete", "vm,vmi,pvc", "--all", "--timeout=90s")
    for volume in space.kubectl.items("persistentvolumes"):
        if volume["metadata"]["name"].startswith(f"{space.name}-"):
            space.kubectl("delete", "pv", volume["metadata"]["name"], "--wait=false")


# ---- pods alone


def admission_error(space: E2eNamespace, pod: Json) -> str:
    """The API server's error for this pod (dry run); empty if it is accepted."""
    pod = {**pod, "apiVersion": "v1", "kind": "Pod", "metadata": {**pod["metadata"], "namespace": space.name}}
    pod["spec"].pop("priorityClassName", None)  # there is none of that name
    try:
        space.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    except KubectlError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parent.name)
def test_golden_launcher_pod_passes_restricted_standard(space: E2eNamespace, path: Any) -> None:
    assert admission_error(space, yaml.safe_load(path.read_text())) == ""


def test_api_server_refuses_pods_that_unit_test_checker_refuses(space: E2eNamespace) -> None:
    pod = yaml.safe_load((ROOT / "tests/golden/pod/minimal/pod.yaml").read_text())
    for rule, broken in podstandard.broken(pod):
        assert "violates PodSecurity" in admission_error(space, broken), rule


# ---- machines


@pytest.fixture(scope="module")
def vm_with_all_volumes(space: E2eNamespace, restricted_namespace: None) -> VmUnderTest:
    """A VM with every kind of volume that a pod can have, on the pod network (NAT) and a bridge."""
    space.apply(
        network("lan"),
        volume_for(space, "data"),
        secret("keys", key="value"),
        secret("seed", userdata="#cloud-config\nhostname: restricted\n"),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "b"}},
    )
    return space.apply_vm(
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


def test_vm_with_all_volume_kinds_runs_in_restricted_namespace(vm_with_all_volumes: VmUnderTest) -> None:
    told = vm_with_all_volumes.answer()
    serials = {disk["serial"] for disk in told["disks"]}
    assert {"data", "scratch", "keys", "settings"} <= serials
    assert told["hostname"] == "restricted"
    vm_with_all_volumes.guest().write("data", "kept")
    assert vm_with_all_volumes.guest().read("data") == "kept"


def test_nic_is_hotplugged_and_unplugged_in_restricted_namespace(vm_with_all_volumes: VmUnderTest) -> None:
    assert_nic_hotplug_and_unplug(vm_with_all_volumes, EXTRA_MAC)


def test_vm_with_bridge_binding_and_kernel_boot_runs_in_restricted_namespace(space: E2eNamespace) -> None:
    boot = {
        "kernelArgs": "console=ttyS0 no_timer_check quiet",
        "container": {"image": image("guest-tiny-kernel"), "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"},
    }
    wiring = nics(pod={"bridge": {}})
    wiring["domain"] = {**wiring["domain"], "firmware": {"kernelBoot": boot}}  # type: ignore[dict-item]
    machine = space.apply_vm(virtual_machine("bridged", **wiring)).until_status("Running")
    assert machine.answer()["bootId"]
    machine.discard()


# ---- refusals


def test_probe_of_other_host_is_refused_at_vm_admission(space: E2eNamespace) -> None:
    for manifest in (booting("curious", **PROBE), instance("curious", tiny(), **PROBE)):
        with pytest.raises(KubectlError, match=WORDS):
            space.apply(manifest)
    calm = space.apply_vm(idle("calm", run="Halted"))
    with pytest.raises(KubectlError, match=WORDS):
        calm.patch({"spec": {"template": {"spec": PROBE}}})
    assert_stays_true(
        lambda: not (calm.vm() or {})["spec"]["template"]["spec"].get("readinessProbe"), "unchanged", seconds=1
    )


def test_stored_vm_reports_pod_security_violation_after_namespace_becomes_restricted(space: E2eNamespace) -> None:
    """A stored VM is not refused, but its pod is: the VM reports why."""
    space.kubectl("label", "namespace", space.name, f"{pod_security.LABEL_ENFORCE}-")
    try:
        # The namespace's policy is cached for some seconds.
        wait_for(lambda: space.apply(idle("early", run="Halted", **PROBE)), "the machine is taken", seconds=30)
    finally:
        space.kubectl("label", "namespace", space.name, f"{pod_security.LABEL_ENFORCE}=restricted")
    early = space.existing_vm("early")
    early.run("Always")
    early.until_message("violates PodSecurity")
    early.run("Halted")
    early.until_stopped()
    space.kubectl("label", "vm", "early", "still=usable")
    early.discard()
