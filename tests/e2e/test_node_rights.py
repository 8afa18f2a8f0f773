"""Write permissions of a handler's token on the real API server: fields of its own node's objects only.

Also what admission policies protect without a gateway: finalizers and a VMI's status.
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
from tests.e2e.support import SYSTEM, E2eNamespace, Json, Kubectl, VmUnderTest, conditions
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
    """Requests with a handler's token, as an attacker on its node has it. kubectl would read before it patches."""

    node: str
    server: str
    authority: str
    token: str
    namespace: str

    def call(self, method: str, path: str, body: Json | None = None, *, dry: bool = False) -> str:
        """`written: NAME`, or the API server's error message."""
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
        """Result of a dry-run patch."""
        return self.call("PATCH", self.path(kind, name, subresource), patch, dry=True)

    def writes(self, kind: str, name: str, patch: Json, subresource: str = "") -> None:
        said = self.patch(kind, name, patch, subresource)
        assert said == f"written: {name}", said

    def is_refused(self, kind: str, name: str, patch: Json, subresource: str = "") -> None:
        said = self.patch(kind, name, patch, subresource)
        assert "ValidatingAdmissionPolicy 'hyperlet-" in said and "denied" in said, said


def handler(kubectl: Kubectl, node: str, *binding: str) -> Handler:
    """A handler's token; `binding`: to a pod."""
    system = kubectl.in_namespace(SYSTEM)
    (cluster,) = json.loads(system("config", "view", "--raw", "--minify", "-o", "json"))["clusters"]
    authority = base64.b64decode(cluster["cluster"]["certificate-authority-data"]).decode()
    token = system("create", "token", HANDLER, *binding).strip()
    return Handler(node, cluster["cluster"]["server"], authority, token, kubectl.namespace)


@pytest.fixture(scope="module")
def handlers(space: E2eNamespace) -> dict[str, Handler]:
    """Node → handler with a token bound to that node's handler pod."""
    found = {}
    for pod in space.kubectl.in_namespace(SYSTEM).items("pods", "--selector=kubevirt.io=virt-handler"):
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
def machine(space: E2eNamespace) -> VmUnderTest:
    return space.apply_vm(booting("restricted")).until_status("Running")


@pytest.fixture(scope="module")
def own_handler(machine: VmUnderTest, handlers: dict[str, Handler]) -> Handler:
    """The handler of the VM's node."""
    return handlers[machine.node()]


@pytest.fixture(scope="module")
def other_handler(machine: VmUnderTest, handlers: dict[str, Handler]) -> Handler:
    """The handler of another node."""
    return next(each for node, each in handlers.items() if node != machine.node())


def test_kubevirt_condition_reports_policies_in_force(space: E2eNamespace) -> None:
    (kubevirt,) = space.kubectl.items("kubevirts", "--all-namespaces")
    found = conditions(kubevirt)["NodeRestriction"]
    assert (found["status"], found["reason"]) == ("True", "PoliciesInForce"), found


def test_admission_policies_have_no_type_warnings(kubectl: Kubectl) -> None:
    """By the API server's type check of the expressions."""
    for policy in kubectl.items("validatingadmissionpolicies", "--selector=app.kubernetes.io/part-of=hyperlet"):
        status = policy.get("status", {})
        assert status.get("observedGeneration") == policy["metadata"]["generation"], policy["metadata"]["name"]
        assert not status.get("typeChecking", {}).get("expressionWarnings"), status


# ---- VMIs


def test_handler_may_write_status_of_own_vmi(machine: VmUnderTest, own_handler: Handler) -> None:
    vmi = machine.vmi()
    assert vmi
    fields = {key: vmi["status"][key] for key in ("conditions", "interfaces", "phase", "machine")}
    own_handler.writes("vmi", machine.name, {"status": {**fields, "guestOSInfo": {"name": "probe"}}})


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
def test_handler_may_not_write_other_fields_of_own_vmi(machine: VmUnderTest, own_handler: Handler, patch: Json) -> None:
    own_handler.is_refused("vmi", machine.name, patch)


def test_handler_may_not_write_vmi_of_other_node(machine: VmUnderTest, other_handler: Handler) -> None:
    other_handler.is_refused("vmi", machine.name, {"status": {"phase": "Failed"}})
    other_handler.is_refused("vmi", machine.name, {"status": {"nodeName": other_handler.node}})
    assert machine.phase() == "Running"


# ---- nodes


def test_handler_may_write_heartbeat_of_own_node(own_handler: Handler) -> None:
    keys = {"labels": {"hyperlet/kvm": "true", "kubevirt.io/schedulable": "false"}}
    notes = {"annotations": {"hyperlet/kvm": "why", "kubevirt.io/heartbeat": "2026-12-01T00:00:00Z"}}
    own_handler.writes("node", own_handler.node, {"metadata": keys | notes})


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
def test_handler_may_not_write_other_fields_of_own_node(own_handler: Handler, patch: Json) -> None:
    own_handler.is_refused("node", own_handler.node, patch)


def test_handler_may_not_write_other_node_or_node_status(own_handler: Handler, other_handler: Handler) -> None:
    own_handler.is_refused("node", other_handler.node, {"metadata": {"labels": {"kubevirt.io/schedulable": "false"}}})
    assert "forbidden" in own_handler.patch("node", own_handler.node, {"status": {"phase": "x"}}, "status")


# ---- pods


def test_handler_may_write_network_status_of_own_pod(machine: VmUnderTest, own_handler: Handler) -> None:
    own_handler.writes(
        "pod", machine.pod()["metadata"]["name"], {"metadata": {"annotations": {STATUS: "[]"}}}, "status"
    )


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
def test_handler_may_not_write_other_fields_of_own_pod(machine: VmUnderTest, own_handler: Handler, patch: Json) -> None:
    own_handler.is_refused("pod", machine.pod()["metadata"]["name"], patch, "status")


def test_handler_may_not_write_status_of_pod_on_other_node(machine: VmUnderTest, other_handler: Handler) -> None:
    name = machine.pod()["metadata"]["name"]
    for patch in ({"metadata": {"annotations": {STATUS: "[]"}}}, {"status": {"phase": "Failed"}}):
        other_handler.is_refused("pod", name, patch, "status")
    assert machine.pod()["status"]["phase"] == "Running"


def test_handler_may_not_patch_pod_or_create_and_delete_objects(machine: VmUnderTest, own_handler: Handler) -> None:
    name = machine.pod()["metadata"]["name"]
    assert "forbidden" in own_handler.patch("pod", name, {"metadata": {"annotations": {STATUS: "[]"}}})
    for path in (
        own_handler.path("pod", name),
        own_handler.path("vmi", machine.name),
        own_handler.path("node", own_handler.node),
    ):
        assert "forbidden" in own_handler.call("DELETE", path, dry=True)
    assert "forbidden" in own_handler.call("POST", own_handler.path("vmi"), {"metadata": {"name": "mine"}}, dry=True)


# ---- Events


def test_handler_may_create_events_only_with_own_source(own_handler: Handler, other_handler: Handler) -> None:
    mine = {"component": HANDLER, "host": own_handler.node}

    def made(kind: str, source: Json) -> str:
        involved = {"kind": kind, "name": "small", "namespace": own_handler.namespace}
        event: Json = {"metadata": {"name": "probe"}, "involvedObject": involved, "source": source, "reason": "Probe"}
        return own_handler.call("POST", own_handler.path("event"), event, dry=True)

    assert made("VirtualMachineInstance", mine) == made("Pod", mine) == "written: probe"
    for kind, source in (
        ("Node", mine),
        ("Pod", {"component": "kubelet", "host": own_handler.node}),
        ("Pod", {"component": HANDLER, "host": other_handler.node}),
    ):
        assert "hyperlet-handler-events" in made(kind, source), (kind, source)


def test_handler_may_not_patch_event_of_other_component(
    space: E2eNamespace, machine: VmUnderTest, own_handler: Handler
) -> None:
    about = [
        each
        for each in space.kubectl.items("events")
        if each["involvedObject"]["name"].startswith(f"virt-launcher-{machine.name}-")
        and each["source"].get("component") != HANDLER
    ]
    assert about
    own_handler.is_refused("event", about[0]["metadata"]["name"], {"message": "forged"})


def test_token_not_bound_to_pod_may_write_nothing(
    space: E2eNamespace, machine: VmUnderTest, own_handler: Handler
) -> None:
    unbound = handler(space.kubectl, "")
    unbound.is_refused("vmi", machine.name, {"status": {"phase": "Failed"}})
    unbound.is_refused("node", own_handler.node, {"metadata": {"labels": {"kubevirt.io/schedulable": "false"}}})
    name = machine.pod()["metadata"]["name"]
    unbound.is_refused("pod", name, {"metadata": {"annotations": {STATUS: "[]"}}}, "status")


# ---- writes that users may not do, without a gateway

EDITOR = ("--as=e2e-editor", "--as-group=system:authenticated")


@pytest.fixture
def without_gateway(space: E2eNamespace) -> Iterator[None]:
    """Scale the gateway to 0 replicas."""
    system = space.kubectl.in_namespace(SYSTEM)
    replicas = system("get", "deployment", "hyperlet-gateway", "-o", "jsonpath={.spec.replicas}")
    system("scale", "deployment", "hyperlet-gateway", "--replicas=0")
    try:
        wait_for(lambda: not system.items("pods", "--selector=kubevirt.io=virt-api"), "the gateway is gone")
        yield
    finally:
        system("scale", "deployment", "hyperlet-gateway", f"--replicas={replicas}")
        system("rollout", "status", "deployment", "hyperlet-gateway", "--timeout=120s")


@pytest.fixture(scope="module")
def editor(space: E2eNamespace) -> Kubectl:
    space.kubectl("create", "rolebinding", "e2e-editor", "--clusterrole=edit", "--user=e2e-editor")
    return space.kubectl


def test_replaced_vm_without_finalizer_gets_it_back(machine: VmUnderTest, editor: Kubectl) -> None:
    """With a gateway, which restores it."""
    vm = editor.get("vm", machine.name)
    assert vm and vm["metadata"].pop("finalizers")
    editor("replace", "-f", "-", *EDITOR, stdin=json.dumps(vm))
    assert (editor.get("vm", machine.name) or {})["metadata"]["finalizers"]


@pytest.mark.alone
def test_editor_cannot_change_finalizers_or_status_without_gateway(
    machine: VmUnderTest, editor: Kubectl, without_gateway: None
) -> None:
    for kind in ("vm", "vmi"):
        whole = editor.get(kind, machine.name)
        assert whole and whole["metadata"].pop("finalizers")
        said = editor("replace", "-f", "-", *EDITOR, stdin=json.dumps(whole), check=False)
        assert "hyperlet-finalizers" in said and "goes when hyperlet has cleaned up" in said, said
        for patch in ('{"metadata": {"finalizers": null}}', '{"metadata": {"finalizers": ["example.com/mine"]}}'):
            said = editor("patch", kind, machine.name, "--type=merge", f"--patch={patch}", *EDITOR, check=False)
            assert "hyperlet-finalizers" in said, said
        # All other writes are still allowed.
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
    # An administrator may, for repairs.
    editor(
        "patch", "vmi", machine.name, "--type=merge", '--patch={"metadata": {"finalizers": null}}', "--dry-run=server"
    )
