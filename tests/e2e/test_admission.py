"""The gateway's part in what is stored: refusals, defaults, rights, and that nobody notices when it is renewed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.manifests import halting, idle, instance
from tests.e2e.support import SYSTEM, Json, Kubectl, KubectlError, Space
from tests.waiting import wait_for

DEPLOYMENT = "deployment/hyperlet-gateway"
PREFIX = "spec.template.spec"


def spoiled(name: str) -> Json:
    """A manifest with faults of every kind: types, values, contradictions, unknown fields, what is not there yet."""
    bad = idle(name)
    bad["spec"]["runStrategy"] = "Sometimes"
    domain = bad["spec"]["template"]["spec"]["domain"]
    domain["diskz"] = []
    domain["memory"] = {"guest": "lots"}
    domain["cpu"] = {"cores": "two"}
    domain["devices"]["gpus"] = [{"name": "g", "deviceName": "example.com/gpu"}]
    domain["devices"]["disks"].append({"name": "orphan"})
    return bad


def applied(space: Space, manifest: Json, *flags: str) -> str:
    """What kubectl says, refusal or not. Without kubectl's own check, which other clients have not."""
    return space.kubectl(*flags, "apply", "--validate=false", "-f", "-", stdin=json.dumps(manifest), check=False)


def test_every_fault_is_told_in_one_answer(space: Space) -> None:
    words = applied(space, spoiled("manifold"))
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


def test_defaults_stand_in_the_stored_object(space: Space) -> None:
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
    space.known("bare").discard()


def test_an_instance_is_stored_with_a_stable_address(space: Space) -> None:
    # A kubelet takes all of the grace period over a pod that is deleted before its container is there.
    space.machine(instance("alone", halting(), memory="64Mi", grace=1)).until_phase("Running")
    first = mac_of(space, "alone")
    space.kubectl("delete", "vmi", "alone")
    space.apply(instance("alone", halting(), memory="64Mi", grace=1))
    assert mac_of(space, "alone") == first and first.startswith("02:")
    space.kubectl("delete", "vmi", "alone", "--wait=false")


def mac_of(space: Space, name: str) -> str:
    vmi = space.kubectl.get("vmi", name)
    assert vmi
    interfaces = vmi["spec"]["domain"]["devices"]["interfaces"]
    return str(interfaces[0]["macAddress"])


# ---- who may do what


@pytest.fixture(scope="module")
def people(space: Space) -> None:
    """vera may view, ed may edit, ada administers the namespace: bound to Kubernetes' own roles."""
    for name, role in (("vera", "view"), ("ed", "edit"), ("ada", "admin")):
        space.kubectl("create", "rolebinding", name, f"--clusterrole={role}", f"--user={name}")
    wait_for(lambda: may(space, "ada", "create", "virtualmachines"), "the roles are aggregated")


def may(space: Space, user: str, verb: str, what: str) -> bool:
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


@pytest.mark.usefixtures("people")
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
def test_roles_of_a_namespace_reach_virtual_machines(space: Space, verb: str, what: str, allowed: set[str]) -> None:
    assert {user for user in ("vera", "ed", "ada", "mallory") if may(space, user, verb, what)} == allowed


@pytest.mark.usefixtures("people")
def test_who_may_edit_instances_still_cannot_pose_as_hyperlet(space: Space) -> None:
    """A VMI has no status subresource: a user with edit reaches status and labels, and is refused by admission."""
    space.kubectl("--as=ed", "create", "-f", "-", stdin=json.dumps(idle("guarded")))
    machine = space.known("guarded").until_phase("Scheduled", "Running")
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
    assert "spec.template.metadata.labels.kubevirt.io/nodeName" in applied(space, posing, "--as=ed")
    space.kubectl("--as=ed", "delete", "vm", "guarded", "--wait=false")
    machine.discard()


# ---- while the gateway is away, and while it is renewed


@contextlib.contextmanager
def away(kubectl: Kubectl) -> Iterator[None]:
    """No gateway at all."""
    system = kubectl.within(SYSTEM)
    system("scale", DEPLOYMENT, "--replicas=0")
    wait_for(lambda: not system.items("pods", "-l", "kubevirt.io=virt-api"), "the gateway is away")
    try:
        yield
    finally:
        system("scale", DEPLOYMENT, "--replicas=2")
        system("rollout", "status", DEPLOYMENT, "--timeout=120s")


@pytest.mark.alone
def test_what_runs_does_not_need_the_gateway(space: Space) -> None:
    """New VMs wait for it; those that are there start, run, tell how they are, and stop."""
    machine = space.machine(idle("steady", run="Halted"))
    machine.until_status("Stopped")
    with away(space.kubectl):
        refusal = applied(space, idle("fresh"))
        assert "create.hyperlet.kubevirt.io" in refusal and "failed calling webhook" in refusal, refusal
        machine.run("Always")
        machine.until_status("Running")
        vmi = machine.vmi()
        assert vmi and vmi["spec"]["domain"]["machine"]["type"], "the controller fills in the defaults"
        machine.run("Halted")
        machine.until_stopped()
    wait_for(lambda: "created" in applied(space, idle("fresh", run="Halted")), "VMs are taken again")
    space.known("fresh").discard()
    machine.discard()


class Caller:
    """Has manifests judged without a pause, in a thread, and keeps what went wrong."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.calls = 0
        self.failures: list[str] = []

    def __enter__(self) -> Caller:
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
def test_a_rolling_restart_refuses_nobody(space: Space) -> None:
    system = space.kubectl.within(SYSTEM)
    with Caller(space) as caller:
        system("rollout", "restart", DEPLOYMENT)
        system("rollout", "status", DEPLOYMENT, "--timeout=180s")
        wait_for(lambda: len(system.items("pods", "-l", "kubevirt.io=virt-api")) == 2, "the old ones are gone")
    assert caller.failures == [] and caller.calls > 20


@pytest.mark.alone
def test_certificates_and_their_authority_change_and_no_call_fails(space: Space) -> None:
    """Leaves that live for ten seconds, and an authority that is made to look old: its successor takes over."""
    system = space.kubectl.within(SYSTEM)
    try:
        system("set", "env", DEPLOYMENT, "HYPERLET_LEAF_SECONDS=10")
        system("rollout", "status", DEPLOYMENT, "--timeout=180s")
        with Caller(space) as caller:
            old = grown_old(system)
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


def grown_old(system: Kubectl) -> str:
    """Has the authority be 300 days old; its name."""
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
