"""What a handler's own token may write, tried on the real API server: its own node's fields, and nothing else.

Also what the API server guards by itself while no gateway answers: finalizers and a VMI's status.
"""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.manifests import booting
from tests.e2e.support import SYSTEM, Json, Kubectl, Machine, Space, conditions
from tests.waiting import wait_for

HANDLER = "hyperlet-handler"
STATUS = "k8s.v1.cni.cncf.io/network-status"


RESOURCES = {
    "vmi": "/apis/kubevirt.io/v1/namespaces/{}/virtualmachineinstances",
    "node": "/api/v1/nodes",
    "pod": "/api/v1/namespaces/{}/pods",
    "event": "/api/v1/namespaces/{}/events",
}


@dataclass
class Handler:
    """A handler's token, as a thief of its node would have it. Not by kubectl, which wants to read what it patches."""

    node: str
    server: str
    authority: str
    token: str
    namespace: str

    def call(self, method: str, path: str, body: Json | None = None, *, dry: bool = False) -> str:
        """What the API server answers: the object's name, or its refusal in words."""
        request = urllib.request.Request(
            f"{self.server}{path}{'?dryRun=All' if dry else ''}",
            data=json.dumps(body).encode() if body is not None else None,
            method=method,
            headers={
                "Authorization": f"Bearer {self.token}",
                "Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json",
            },
        )
        try:
            trusted = ssl.create_default_context(cadata=self.authority)
            with urllib.request.urlopen(request, timeout=20, context=trusted) as answer:
                return f"written: {json.load(answer)['metadata']['name']}"
        except urllib.error.HTTPError as refusal:
            return str(json.load(refusal)["message"])

    def path(self, kind: str, name: str = "", subresource: str = "") -> str:
        return "/".join(filter(None, [RESOURCES[kind].format(self.namespace), name, subresource]))

    def patch(self, kind: str, name: str, patch: Json, subresource: str = "") -> str:
        """What is said of a patch. What is allowed changes nothing."""
        return self.call("PATCH", self.path(kind, name, subresource), patch, dry=True)

    def writes(self, kind: str, name: str, patch: Json, subresource: str = "") -> None:
        said = self.patch(kind, name, patch, subresource)
        assert said == f"written: {name}", said

    def is_refused(self, kind: str, name: str, patch: Json, subresource: str = "") -> None:
        said = self.patch(kind, name, patch, subresource)
        assert "ValidatingAdmissionPolicy 'hyperlet-" in said and "denied" in said, said


def handler(kubectl: Kubectl, node: str, *binding: str) -> Handler:
    """A handler's token; `binding`: to a pod."""
    system = kubectl.within(SYSTEM)
    (cluster,) = json.loads(system("config", "view", "--raw", "--minify", "-o", "json"))["clusters"]
    authority = base64.b64decode(cluster["cluster"]["certificate-authority-data"]).decode()
    token = system("create", "token", HANDLER, *binding).strip()
    return Handler(node, cluster["cluster"]["server"], authority, token, kubectl.namespace)


@pytest.fixture(scope="module")
def handlers(space: Space) -> dict[str, Handler]:
    """By node, each with a token that the API server made for that node's handler pod."""
    found = {}
    for pod in space.kubectl.within(SYSTEM).items("pods", "--selector=kubevirt.io=virt-handler"):
        node, meta = pod["spec"]["nodeName"], pod["metadata"]
        found[node] = handler(
            space.kubectl,
            node,
            "--bound-object-kind=Pod",
            f"--bound-object-name={meta['name']}",
            f"--bound-object-uid={meta['uid']}",
        )
    return found


@pytest.fixture(scope="module")
def machine(space: Space) -> Machine:
    return space.machine(booting("restricted")).until_status("Running")


@pytest.fixture(scope="module")
def own(machine: Machine, handlers: dict[str, Handler]) -> Handler:
    """The handler of the machine's node."""
    return handlers[machine.node()]


@pytest.fixture(scope="module")
def other(machine: Machine, handlers: dict[str, Handler]) -> Handler:
    """The handler of another node."""
    return next(each for node, each in handlers.items() if node != machine.node())


def test_the_kubevirt_cr_says_that_policies_are_in_force(space: Space) -> None:
    (kubevirt,) = space.kubectl.items("kubevirts", "--all-namespaces")
    found = conditions(kubevirt)["NodeRestriction"]
    assert (found["status"], found["reason"]) == ("True", "PoliciesInForce"), found


def test_policies_type_check(kubectl: Kubectl) -> None:
    """The API server's own judgement of the expressions."""
    for policy in kubectl.items("validatingadmissionpolicies", "--selector=app.kubernetes.io/part-of=hyperlet"):
        status = policy.get("status", {})
        assert status.get("observedGeneration") == policy["metadata"]["generation"], policy["metadata"]["name"]
        assert not status.get("typeChecking", {}).get("expressionWarnings"), status


# ---- VMIs


def test_a_handler_writes_what_it_reports_of_its_own_vmis(machine: Machine, own: Handler) -> None:
    vmi = machine.vmi()
    assert vmi
    fields = {key: vmi["status"][key] for key in ("conditions", "interfaces", "phase", "machine")}
    own.writes("vmi", machine.name, {"status": {**fields, "guestOSInfo": {"name": "probe"}}})


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"terminationGracePeriodSeconds": 1}},
        {"metadata": {"labels": {"kubevirt.io/nodeName": "elsewhere"}}},
        {"metadata": {"labels": {"mine": "mine"}}},
        {"metadata": {"annotations": {"mine": "mine"}}},
        {"metadata": {"finalizers": []}},
        {"metadata": {"ownerReferences": []}},
        {"status": {"activePods": {"00000000-1111-2222-3333-444444444444": "elsewhere"}}},
        {"status": {"nodeName": "elsewhere"}},
        {"status": {"nodeName": None}},
        {"status": {"launcherContainerImageVersion": "evil"}},
        {"status": {"migrationState": {"completed": True}}},
    ],
    ids=lambda patch: json.dumps(patch),
)
def test_a_handler_writes_nothing_else_of_its_own_vmis(machine: Machine, own: Handler, patch: Json) -> None:
    own.is_refused("vmi", machine.name, patch)


def test_a_handler_writes_no_vmi_of_another_node(machine: Machine, other: Handler) -> None:
    other.is_refused("vmi", machine.name, {"status": {"phase": "Failed"}})
    other.is_refused("vmi", machine.name, {"status": {"nodeName": other.node}})
    assert machine.phase() == "Running"


# ---- nodes


def test_a_handler_writes_its_heartbeat(own: Handler) -> None:
    keys = {"labels": {"hyperlet/kvm": "true", "kubevirt.io/schedulable": "false"}}
    notes = {"annotations": {"hyperlet/kvm": "why", "kubevirt.io/heartbeat": "2026-12-01T00:00:00Z"}}
    own.writes("node", own.node, {"metadata": keys | notes})


@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"unschedulable": True}},
        {"spec": {"taints": [{"key": "mine", "effect": "NoExecute"}]}},
        {"metadata": {"labels": {"mine": "mine"}}},
        {"metadata": {"labels": {"kubernetes.io/hostname": None}}},
        {"metadata": {"annotations": {"mine": "mine"}}},
        {"metadata": {"finalizers": ["example.com/mine"]}},
        {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "no", "uid": "no"}]}},
    ],
    ids=lambda patch: json.dumps(patch),
)
def test_a_handler_writes_nothing_else_of_its_node(own: Handler, patch: Json) -> None:
    own.is_refused("node", own.node, patch)


def test_a_handler_writes_no_other_node(own: Handler, other: Handler) -> None:
    own.is_refused("node", other.node, {"metadata": {"labels": {"kubevirt.io/schedulable": "false"}}})
    assert "forbidden" in own.patch("node", own.node, {"status": {"phase": "x"}}, "status")


# ---- pods


def test_a_handler_writes_the_network_status_of_its_own_pods(machine: Machine, own: Handler) -> None:
    own.writes("pod", machine.pod()["metadata"]["name"], {"metadata": {"annotations": {STATUS: "[]"}}}, "status")


@pytest.mark.parametrize(
    "patch",
    [
        {"status": {"phase": "Failed"}},
        {"status": {"conditions": [{"type": "Ready", "status": "False"}]}},
        {"status": {"podIP": "192.0.2.1"}},
        {"metadata": {"labels": {"mine": "mine"}}},
        {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "mine"}}},
        {"metadata": {"finalizers": ["example.com/mine"]}},
    ],
    ids=lambda patch: json.dumps(patch),
)
def test_a_handler_writes_nothing_else_of_its_own_pods(machine: Machine, own: Handler, patch: Json) -> None:
    own.is_refused("pod", machine.pod()["metadata"]["name"], patch, "status")


def test_a_handler_writes_no_status_of_other_nodes_pods(machine: Machine, other: Handler) -> None:
    name = machine.pod()["metadata"]["name"]
    for patch in ({"metadata": {"annotations": {STATUS: "[]"}}}, {"status": {"phase": "Failed"}}):
        other.is_refused("pod", name, patch, "status")
    assert machine.pod()["status"]["phase"] == "Running"


def test_a_handler_has_no_right_to_pods_themselves(machine: Machine, own: Handler) -> None:
    name = machine.pod()["metadata"]["name"]
    assert "forbidden" in own.patch("pod", name, {"metadata": {"annotations": {STATUS: "[]"}}})
    for path in (own.path("pod", name), own.path("vmi", machine.name), own.path("node", own.node)):
        assert "forbidden" in own.call("DELETE", path, dry=True)
    assert "forbidden" in own.call("POST", own.path("vmi"), {"metadata": {"name": "mine"}}, dry=True)


# ---- Events


def test_a_handler_writes_its_own_events_only(own: Handler, other: Handler) -> None:
    mine = {"component": HANDLER, "host": own.node}

    def made(kind: str, source: Json) -> str:
        involved = {"kind": kind, "name": "small", "namespace": own.namespace}
        event: Json = {"metadata": {"name": "probe"}, "involvedObject": involved, "source": source, "reason": "Probe"}
        return own.call("POST", own.path("event"), event, dry=True)

    assert made("VirtualMachineInstance", mine) == made("Pod", mine) == "written: probe"
    for kind, source in (
        ("Node", mine),
        ("Pod", {"component": "kubelet", "host": own.node}),
        ("Pod", {"component": HANDLER, "host": other.node}),
    ):
        assert "hyperlet-handler-events" in made(kind, source), (kind, source)


def test_a_handler_counts_up_no_event_of_others(space: Space, machine: Machine, own: Handler) -> None:
    about = [
        each
        for each in space.kubectl.items("events")
        if each["involvedObject"]["name"].startswith(f"virt-launcher-{machine.name}-")
        and each["source"].get("component") != HANDLER
    ]
    assert about
    own.is_refused("event", about[0]["metadata"]["name"], {"message": "forged"})


def test_a_token_of_no_pod_writes_nothing(space: Space, machine: Machine, own: Handler) -> None:
    homeless = handler(space.kubectl, "")
    homeless.is_refused("vmi", machine.name, {"status": {"phase": "Failed"}})
    homeless.is_refused("node", own.node, {"metadata": {"labels": {"kubevirt.io/schedulable": "false"}}})
    name = machine.pod()["metadata"]["name"]
    homeless.is_refused("pod", name, {"metadata": {"annotations": {STATUS: "[]"}}}, "status")


# ---- what people may not do, with no gateway to say so

EDITOR = ("--as=e2e-editor", "--as-group=system:authenticated")


@pytest.fixture
def nobody_answers(space: Space) -> Iterator[None]:
    """No gateway."""
    system = space.kubectl.within(SYSTEM)
    replicas = system("get", "deployment", "hyperlet-gateway", "-o", "jsonpath={.spec.replicas}")
    system("scale", "deployment", "hyperlet-gateway", "--replicas=0")
    try:
        wait_for(lambda: not system.items("pods", "--selector=kubevirt.io=virt-api"), "the gateway is gone")
        yield
    finally:
        system("scale", "deployment", "hyperlet-gateway", f"--replicas={replicas}")
        system("rollout", "status", "deployment", "hyperlet-gateway", "--timeout=120s")


@pytest.fixture(scope="module")
def editor(space: Space) -> Kubectl:
    space.kubectl("create", "rolebinding", "e2e-editor", "--clusterrole=edit", "--user=e2e-editor")
    return space.kubectl


def test_a_replaced_manifest_may_leave_the_finalizer_out(machine: Machine, editor: Kubectl) -> None:
    """With a gateway: it is put in again."""
    vm = editor.get("vm", machine.name)
    assert vm and vm["metadata"].pop("finalizers")
    editor("replace", "-f", "-", *EDITOR, stdin=json.dumps(vm))
    assert (editor.get("vm", machine.name) or {})["metadata"]["finalizers"]


@pytest.mark.alone
def test_finalizers_and_status_are_guarded_without_a_gateway(
    machine: Machine, editor: Kubectl, nobody_answers: None
) -> None:
    for kind in ("vm", "vmi"):
        whole = editor.get(kind, machine.name)
        assert whole and whole["metadata"].pop("finalizers")
        said = editor("replace", "-f", "-", *EDITOR, stdin=json.dumps(whole), check=False)
        assert "hyperlet-finalizers" in said and "goes when hyperlet has cleaned up" in said, said
        for patch in ('{"metadata": {"finalizers": null}}', '{"metadata": {"finalizers": ["example.com/mine"]}}'):
            said = editor("patch", kind, machine.name, "--type=merge", f"--patch={patch}", *EDITOR, check=False)
            assert "hyperlet-finalizers" in said, said
        # Everything else is as it was.
        editor("annotate", kind, machine.name, "e2e.test/edited=yes", "--overwrite", *EDITOR)
    for forged in (
        {"status": {"phase": "Failed"}},
        {"status": {"activePods": {"00000000-1111-2222-3333-444444444444": "elsewhere"}}},
        {"metadata": {"labels": {"kubevirt.io/nodeName": "elsewhere"}}},
        {"metadata": {"annotations": {"kubevirt.io/vm-generation": "7"}}},
    ):
        said = editor(
            "patch", "vmi", machine.name, "--type=merge", f"--patch={json.dumps(forged)}", *EDITOR, check=False
        )
        assert "hyperlet-instances" in said, said
    made: Json = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "forged"},
        "spec": {"domain": {"devices": {}}},
        "status": {"phase": "Running", "nodeName": machine.node()},
    }
    said = editor("create", "-f", "-", *EDITOR, stdin=json.dumps(made), check=False)
    assert "hyperlet-instances" in said, said
    # For repairs: an administrator may.
    editor(
        "patch", "vmi", machine.name, "--type=merge", '--patch={"metadata": {"finalizers": null}}', "--dry-run=server"
    )
