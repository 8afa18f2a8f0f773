"""Admission by the gateway: refusals, defaults, permissions, outages and certificate rotation."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.manifests import halting, idle, instance
from tests.e2e.support import SYSTEM, E2eNamespace, Json, Kubectl, KubectlError
from tests.waiting import wait_for

DEPLOYMENT = "deployment/hyperlet-gateway"
PREFIX = "spec.template.spec"


def manifest_with_errors(name: str) -> Json:
    """A manifest with errors of every kind: types, values, contradictions, unknown and unsupported fields."""
    bad = idle(name)
    bad["spec"]["runStrategy"] = "Sometimes"
    domain = bad["spec"]["template"]["spec"]["domain"]
    domain["diskz"] = []
    domain["memory"] = {"guest": "lots"}
    domain["cpu"] = {"cores": "two"}
    domain["devices"]["gpus"] = [{"name": "g", "deviceName": "example.com/gpu"}]
    domain["devices"]["disks"].append({"name": "orphan"})
    return bad


def apply_output(space: E2eNamespace, manifest: Json, *flags: str) -> str:
    """Output of `kubectl apply`, also on refusal. Without client-side validation, which other clients do not have."""
    return space.kubectl(*flags, "apply", "--validate=false", "-f", "-", stdin=json.dumps(manifest), check=False)


def test_vm_with_several_errors_is_refused_with_all_of_them(space: E2eNamespace) -> None:
    words = apply_output(space, manifest_with_errors("manifold"))
    for path in (
        "spec.runStrategy",
        f"{PREFIX}.domain.memory.guest",
        f"{PREFIX}.domain.cpu.cores",
        f"{PREFIX}.domain.devices.gpus",
        f"{PREFIX}.domain.devices.disks[",
        f"{PREFIX}.domain.diskz",
    ):
        assert f"* {path}" in words, words
    assert space.kubectl.get("vm", "manifold") is None


def test_stored_vm_contains_defaults(space: E2eNamespace) -> None:
    bare = idle("bare")
    del bare["spec"]["runStrategy"]
    spec = bare["spec"]["template"]["spec"]
    spec.pop("networks", None)
    spec["domain"]["devices"].pop("interfaces", None)
    spec["domain"]["devices"].pop("autoattachPodInterface", None)
    space.apply(bare)
    stored = space.kubectl.get("vm", "bare")
    assert stored
    seen = stored["spec"]["template"]["spec"]
    assert stored["spec"]["runStrategy"] == "Halted" and seen["architecture"] == "amd64"
    assert seen["domain"]["machine"]["type"] == "q35" and seen["networks"] == [{"name": "default", "pod": {}}]
    assert space.kubectl("diff", "-f", "-", stdin=json.dumps(bare)) == "", "a tool that compares would see a difference"
    space.existing_vm("bare").discard()


def test_recreated_vmi_gets_same_mac_address(space: E2eNamespace) -> None:
    # A kubelet takes all of the grace period over a pod that is deleted before its container is there.
    space.apply_vm(instance("alone", halting(), memory="64Mi", grace=1)).until_phase("Running")
    first = mac_of(space, "alone")
    space.kubectl("delete", "vmi", "alone")
    space.apply(instance("alone", halting(), memory="64Mi", grace=1))
    assert mac_of(space, "alone") == first and first.startswith("02:")
    space.kubectl("delete", "vmi", "alone", "--wait=false")


def mac_of(space: E2eNamespace, name: str) -> str:
    vmi = space.kubectl.get("vmi", name)
    assert vmi
    interfaces = vmi["spec"]["domain"]["devices"]["interfaces"]
    return str(interfaces[0]["macAddress"])


# ---- permissions


@pytest.fixture(scope="module")
def users_with_roles(space: E2eNamespace) -> None:
    """vera may view, ed may edit, ada administers the namespace: bound to Kubernetes' own roles."""
    for name, role in (("vera", "view"), ("ed", "edit"), ("ada", "admin")):
        space.kubectl("create", "rolebinding", name, f"--clusterrole={role}", f"--user={name}")
    wait_for(lambda: is_allowed(space, "ada", "create", "virtualmachines"), "the roles are aggregated")


def is_allowed(space: E2eNamespace, user: str, verb: str, what: str) -> bool:
    """What the API server answers to a SubjectAccessReview on the full subresource."""
    group = "kubevirt.io" if "/" not in what else "subresources.kubevirt.io"
    resource, _, subresource = what.partition("/")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": resource,
        "subresource": subresource,
        "namespace": space.name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": ["system:authenticated"], "resourceAttributes": attributes},
    }
    answer = json.loads(space.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review)))
    return bool(answer["status"]["allowed"])


@pytest.mark.usefixtures("users_with_roles")
@pytest.mark.parametrize(
    "verb, what, allowed",
    [
        ("get", "virtualmachineinstances/console", {"ed", "ada"}),
        ("get", "virtualmachineinstances/vnc", {"ed", "ada"}),
        ("get", "virtualmachineinstances/vnc/screenshot", {"ada"}),
        ("get", "virtualmachineinstances/portforward", {"ed", "ada"}),
        ("get", "virtualmachineinstances/guestosinfo", {"vera", "ed", "ada"}),
        ("update", "virtualmachines/start", {"ed", "ada"}),
        ("update", "virtualmachines/migrate", set()),
        ("list", "virtualmachines", {"vera", "ed", "ada"}),
        ("create", "virtualmachines", {"ed", "ada"}),
        ("patch", "virtualmachineinstances", {"ed", "ada"}),
        ("deletecollection", "virtualmachines", {"ada"}),
        ("create", "virtualmachineinstancemigrations", set()),
        ("list", "virtualmachineinstancemigrations", {"vera", "ed", "ada"}),
    ],
)
def test_namespace_roles_grant_expected_vm_permissions(
    space: E2eNamespace, verb: str, what: str, allowed: set[str]
) -> None:
    assert {user for user in ("vera", "ed", "ada", "mallory") if is_allowed(space, user, verb, what)} == allowed


@pytest.mark.usefixtures("users_with_roles")
def test_editor_cannot_write_vmi_status_or_component_labels(space: E2eNamespace) -> None:
    """A VMI has no status subresource: a user with edit reaches status and labels, and is refused by admission."""
    space.kubectl("--as=ed", "create", "-f", "-", stdin=json.dumps(idle("guarded")))
    machine = space.existing_vm("guarded").until_phase("Scheduled", "Running")
    for path, change in {
        "status": {"status": {"nodeName": "elsewhere"}},
        "status: ": {"status": {"phase": "Succeeded"}},
        "metadata.labels.kubevirt.io/nodeName": {"metadata": {"labels": {"kubevirt.io/nodeName": "elsewhere"}}},
        "spec.domain.memory.guest": {"spec": {"domain": {"memory": {"guest": "1Gi"}}}},
        "spec.nodeSelector": {"spec": {"nodeSelector": {"a": "b"}}},
    }.items():
        words = space.kubectl(
            "--as=ed", "patch", "vmi", "guarded", "--type=merge", "-p", json.dumps(change), check=False
        )
        assert path.rstrip(": ") in words and "is invalid" in words, words
    space.kubectl("--as=ed", "label", "vmi", "guarded", "team=blue")
    words = space.kubectl("--as=vera", "delete", "vmi", "guarded", check=False)
    assert "forbidden" in words
    posing = idle("posing")
    posing["spec"]["template"]["metadata"].setdefault("labels", {})["kubevirt.io/nodeName"] = "node1"
    assert "spec.template.metadata.labels.kubevirt.io/nodeName" in apply_output(space, posing, "--as=ed")
    space.kubectl("--as=ed", "delete", "vm", "guarded", "--wait=false")
    machine.discard()


# ---- gateway outage, restart and certificate rotation


@contextlib.contextmanager
def without_gateway(kubectl: Kubectl) -> Iterator[None]:
    """Scale the gateway to 0 replicas."""
    system = kubectl.in_namespace(SYSTEM)
    system("scale", DEPLOYMENT, "--replicas=0")
    wait_for(lambda: not system.items("pods", "-l", "kubevirt.io=virt-api"), "the gateway is away")
    try:
        yield
    finally:
        system("scale", DEPLOYMENT, "--replicas=2")
        system("rollout", "status", DEPLOYMENT, "--timeout=120s")


@pytest.mark.alone
def test_existing_vm_starts_and_stops_without_gateway(space: E2eNamespace) -> None:
    """New VMs are refused; existing ones start, run, report their status, and stop."""
    machine = space.apply_vm(idle("steady", run="Halted"))
    machine.until_status("Stopped")
    with without_gateway(space.kubectl):
        refusal = apply_output(space, idle("fresh"))
        assert "create.hyperlet.kubevirt.io" in refusal and "failed calling webhook" in refusal, refusal
        machine.run("Always")
        machine.until_status("Running")
        vmi = machine.vmi()
        assert vmi and vmi["spec"]["domain"]["machine"]["type"], "the controller fills in the defaults"
        machine.run("Halted")
        machine.until_stopped()
    wait_for(lambda: "created" in apply_output(space, idle("fresh", run="Halted")), "VMs are taken again")
    space.existing_vm("fresh").discard()
    machine.discard()


class AdmissionRequests:
    """Sends dry-run requests continuously in a thread, and records failures."""

    def __init__(self, space: E2eNamespace) -> None:
        self._space = space
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.calls = 0
        self.failures: list[str] = []

    def __enter__(self) -> AdmissionRequests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        manifest = json.dumps(idle("judged"))
        while not self._end.is_set():
            try:
                self._space.kubectl("create", "--dry-run=server", "-f", "-", stdin=manifest)
            except (KubectlError, subprocess.TimeoutExpired) as error:
                self.failures.append(str(error))
            self.calls += 1


@pytest.mark.alone
def test_gateway_rolling_restart_fails_no_request(space: E2eNamespace) -> None:
    system = space.kubectl.in_namespace(SYSTEM)
    with AdmissionRequests(space) as caller:
        system("rollout", "restart", DEPLOYMENT)
        system("rollout", "status", DEPLOYMENT, "--timeout=180s")
        wait_for(lambda: len(system.items("pods", "-l", "kubevirt.io=virt-api")) == 2, "the old ones are gone")
    assert caller.failures == [] and caller.calls > 20


@pytest.mark.alone
def test_certificate_and_authority_rotation_fails_no_request(space: E2eNamespace) -> None:
    """Leaf certificates live for ten seconds, and the authority is made 300 days old, so that it is replaced."""
    system = space.kubectl.in_namespace(SYSTEM)
    try:
        system("set", "env", DEPLOYMENT, "HYPERLET_LEAF_SECONDS=10")
        system("rollout", "status", DEPLOYMENT, "--timeout=180s")
        with AdmissionRequests(space) as caller:
            old = age_authority(system)
            wait_for(lambda: old not in authorities(system), "the old authority is gone", seconds=120)
            judged = caller.calls
            wait_for(lambda: caller.calls > judged + 20, "calls after that")
        assert caller.failures == [] and authorities(system)
    finally:
        system("set", "env", DEPLOYMENT, "HYPERLET_LEAF_SECONDS-")
        system("rollout", "status", DEPLOYMENT, "--timeout=180s")


def authorities(system: Kubectl) -> set[str]:
    """The names of the authorities that sign the gateway's HTTPS certificates."""
    secret = system.get("secret", "hyperlet-ca")
    assert secret
    return {key for key in secret["data"] if key.startswith("serving.") and key.endswith(".crt")}


def age_authority(system: Kubectl) -> str:
    """Make the authority 300 days old; returns its name."""
    secret = system.get("secret", "hyperlet-ca")
    assert secret
    (name,) = authorities(system)
    created = int(name.split(".")[1])
    older = f"serving.{created - 300 * 86400}"
    data: dict[str, str | None] = {}
    for end in ("crt", "key"):
        data[f"{older}.{end}"] = secret["data"][f"serving.{created}.{end}"]
        data[f"serving.{created}.{end}"] = None
    system("patch", "secret", "hyperlet-ca", "--type=merge", "-p", json.dumps({"data": data}))
    return f"{older}.crt"
