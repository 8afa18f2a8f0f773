"""Requests of the verbs, and error messages of refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.conftest import Hyperctl
from tests.unit.cli.published import OBJ, SUB, Published, status

VM = f"{SUB}/virtualmachines/testvm"
VMI = f"{SUB}/virtualmachineinstances/testvm"
RUNNING = {"metadata": {"name": "testvm", "uid": "1"}, "status": {"printableStatus": "Running"}}


@pytest.mark.parametrize(
    ("words", "path", "body", "said"),
    [
        ("start testvm", f"{VM}/start", {}, "VM testvm was scheduled to start"),
        ("start testvm --paused", f"{VM}/start", {"paused": True}, "VM testvm was scheduled to start"),
        ("start testvm --paused=false", f"{VM}/start", {}, "VM testvm was scheduled to start"),
        ("start --dry-run testvm", f"{VM}/start", {"dryRun": ["All"]}, "Dry Run execution"),
        ("stop testvm", f"{VM}/stop", {}, "VM testvm was scheduled to stop"),
        ("stop testvm --force=true --grace-period=0", f"{VM}/stop", {"gracePeriod": 0}, "scheduled to stop"),
        ("stop testvm --grace-period 7", f"{VM}/stop", {"gracePeriod": 7}, "scheduled to stop"),
        ("restart testvm", f"{VM}/restart", {}, "VM testvm was scheduled to restart"),
        ("restart testvm --force --grace-period=0", f"{VM}/restart", {"gracePeriodSeconds": 0}, "to restart"),
        ("migrate testvm", f"{VM}/migrate", {}, "VM testvm was scheduled to migrate"),
        (
            "migrate testvm --addedNodeSelector a=1,b=2",
            f"{VM}/migrate", {"addedNodeSelector": {"a": "1", "b": "2"}}, "to migrate",
        ),
        ("pause vmi testvm", f"{VMI}/pause", {}, "VMI testvm was scheduled to pause"),
        ("unpause VirtualMachineInstances testvm", f"{VMI}/unpause", {}, "VMI testvm was scheduled to unpause"),
        ("soft-reboot testvm", f"{VMI}/softreboot", None, "VMI testvm was scheduled to soft-reboot"),
        ("reset testvm", f"{VMI}/reset", None, "VMI testvm was scheduled to reset"),
    ],
)  # fmt: skip
def test_verb_sends_one_put(
    server: Published, hyperctl: Hyperctl, words: str, path: str, body: object, said: str
) -> None:
    server.answers["PUT", path] = b""
    result = hyperctl(*words.split())
    assert (result.code, result.err) == (0, "")
    assert said in result.out
    (sent,) = server.calls("PUT")
    assert (sent.path, sent.body) == (path, body)


INSTANCE = {"status": {"activePods": {"pod-1": "node1", "old": ""}}}


def test_fence_sends_the_listed_pods(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["GET", f"{OBJ}/virtualmachineinstances/testvm"] = INSTANCE
    server.answers["PUT", f"{VMI}/fence"] = b""
    result = hyperctl("fence", "testvm", "--yes")
    assert result == (0, "pod pod-1 on node node1\nVMI testvm was fenced\n", "")
    (sent,) = server.calls("PUT")
    assert sent.body == {"pods": ["pod-1"]}


def test_fence_without_yes_only_lists_pods(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["GET", f"{OBJ}/virtualmachineinstances/testvm"] = INSTANCE
    result = hyperctl("fence", "testvm")
    assert result.code == 1 and "pod-1 on node node1" in result.out and "add --yes" in result.err
    assert not server.calls("PUT")


def test_pause_vm_gets_the_vm_first(server: Published, hyperctl: Hyperctl) -> None:
    missing = status(404, "NotFound", 'virtualmachines.kubevirt.io "testvm" not found', "testvm")
    server.answers["GET", f"{OBJ}/virtualmachines/testvm"] = missing
    result = hyperctl("pause", "vm", "testvm")
    assert result.code == 1
    assert result.err == 'error: virtualmachines.kubevirt.io "testvm" not found\n'
    assert not server.calls("PUT")


def test_refusal_prints_server_message(server: Published, hyperctl: Hyperctl) -> None:
    words = 'Operation cannot be fulfilled on virtualmachine.kubevirt.io "testvm": VM is already running'
    server.answers["PUT", f"{VM}/start"] = status(409, "Conflict", words)
    result = hyperctl("start", "testvm")
    assert result == (1, "", f"error: cannot start VirtualMachine testvm: {words}\n")


def test_what_is_not_there_yet_is_told(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["PUT", f"{VM}/migrate"] = status(501, "NotImplemented", "live migration is not implemented")
    result = hyperctl("migrate", "testvm")
    assert result.code == 1
    assert "live migration is not implemented" in result.err


@pytest.mark.parametrize(
    "words", ["stop testvm --force", "stop testvm --grace-period=0", "stop testvm --grace-period=-5"]
)
def test_inconsistent_flags_send_no_request(server: Published, hyperctl: Hyperctl, words: str) -> None:
    result = hyperctl(*words.split())
    assert result.code == 1 and "--" in result.err
    assert not server.requests


def test_missing_api_and_unreachable_gateway_are_distinguished(server: Published, hyperctl: Hyperctl) -> None:
    result = hyperctl("start", "testvm")
    assert "check that hyperlet and its gateway are installed" in result.err
    # The API server's response while the backend of an APIService is unavailable.
    server.answers["PUT", f"{VM}/start"] = b"service unavailable\n"
    server.codes["PUT", f"{VM}/start"] = 503
    assert "gateway: check that its pods are running" in hyperctl("start", "testvm").err


def test_refusals_are_told_apart_by_their_structure(server: Published, hyperctl: Hyperctl) -> None:
    """Whatever the text says: a missing object is named in the details, and a gateway answers with a Status."""
    server.answers["PUT", f"{VM}/start"] = status(404, "NotFound", "404 page not found", "testvm")
    assert hyperctl("start", "testvm").err.endswith(": 404 page not found\n")
    server.answers["PUT", f"{VM}/start"] = status(503, "ServiceUnavailable", "service unavailable")
    assert hyperctl("start", "testvm").err.endswith(": service unavailable\n")


@pytest.mark.parametrize("code", [429, 503])
def test_a_command_waits_as_long_as_the_server_asks(server: Published, hyperctl: Hyperctl, code: int) -> None:
    server.answers["PUT", f"{VM}/start"] = [status(code, "ServiceUnavailable", "no handler"), {}]
    server.retry_after["PUT", f"{VM}/start"] = "1"
    began = time.monotonic()
    assert hyperctl("start", "testvm").code == 0
    assert time.monotonic() - began >= 1 and len(server.calls("PUT")) == 2


def test_a_command_does_not_wait_for_long(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["PUT", f"{VM}/start"] = status(503, "ServiceUnavailable", "no handler")
    server.retry_after["PUT", f"{VM}/start"] = "11"
    began = time.monotonic()
    assert hyperctl("start", "testvm").err.endswith(": no handler\n")
    server.retry_after["PUT", f"{VM}/start"] = "4"
    assert hyperctl("start", "testvm").err.endswith(": no handler\n")
    assert 8 <= time.monotonic() - began < 30 and len(server.calls("PUT")) == 1 + 3


def test_migrate_cancel_deletes_the_migration_under_way(server: Published, hyperctl: Hyperctl) -> None:
    place = f"{OBJ}/virtualmachineinstancemigrations"
    server.answers["GET", place] = {
        "items": [
            {"metadata": {"name": "old"}, "spec": {"vmiName": "testvm"}, "status": {"phase": "Succeeded"}},
            {"metadata": {"name": "other"}, "spec": {"vmiName": "another"}, "status": {"phase": "Running"}},
            {"metadata": {"name": "now"}, "spec": {"vmiName": "testvm"}, "status": {"phase": "Running"}},
        ]
    }
    server.answers["DELETE", f"{place}/now"] = {}
    assert hyperctl("migrate-cancel", "testvm").code == 0
    assert [request.path for request in server.calls("DELETE")] == [f"{place}/now"]
    server.answers["GET", place] = {"items": []}
    assert hyperctl("migrate-cancel", "testvm").err == "error: VirtualMachine testvm has no migration to cancel\n"


def test_start_wait_returns_when_running(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["PUT", f"{VM}/start"] = b""
    starting = {"metadata": {"name": "testvm"}, "status": {"printableStatus": "Starting"}}
    server.answers["GET", f"{OBJ}/virtualmachines/testvm"] = [starting, RUNNING]
    assert hyperctl("start", "testvm", "--wait").code == 0
    assert len(server.calls("GET")) == 2


def test_restart_wait_returns_when_new_vmi_runs(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["PUT", f"{VM}/restart"] = b""
    server.answers["GET", f"{OBJ}/virtualmachines/testvm"] = RUNNING
    old, new = {"metadata": {"uid": "old"}}, {"metadata": {"uid": "new"}}
    server.answers["GET", f"{OBJ}/virtualmachineinstances/testvm"] = [old, old, new]
    assert hyperctl("restart", "testvm", "--wait").code == 0
    assert len([call for call in server.calls("GET") if "instances" in call.path]) == 3


@pytest.mark.parametrize(
    ("verb", "sub"), [("guestosinfo", "guestosinfo"), ("userlist", "userlist"), ("fslist", "filesystemlist")]
)
def test_guest_agent_output(server: Published, hyperctl: Hyperctl, verb: str, sub: str) -> None:
    told = {"items": [{"userName": "müller"}], "metadata": {}}
    server.answers["GET", f"{VMI}/{sub}"] = told
    assert json.loads(hyperctl(verb, "testvm").out) == told
    assert yaml.safe_load(hyperctl(verb, "testvm", "-o", "yaml").out) == told
    assert yaml.safe_load(hyperctl(verb, "testvm", "-oyaml").out) == told


def test_a_screenshot_is_written(server: Published, hyperctl: Hyperctl, tmp_path: Path) -> None:
    server.answers["GET", f"{VMI}/vnc/screenshot"] = b"\x89PNG..."
    target = tmp_path / "screen.png"
    assert hyperctl("vnc", "screenshot", "testvm", "-f", str(target), "-m").code == 0
    assert target.read_bytes() == b"\x89PNG..."
    assert server.requests[-1].query == {"moveCursor": "true"}
    assert "cannot write" in hyperctl("vnc", "screenshot", "testvm", "-f", str(tmp_path)).err


def test_expose_sends_a_service(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["GET", f"{OBJ}/virtualmachines/testvm"] = {"spec": {"template": {"spec": {"domain": {}}}}}
    server.answers["POST", "/api/v1/namespaces/default/services"] = {"kind": "Service"}
    words = "expose vm testvm --name=web --port=80 --target-port=8080 --type=NodePort --node-port=30080"
    result = hyperctl(*words.split())
    assert result.out == "Service web successfully exposed for vm testvm\n"
    assert server.calls("POST")[0].body["spec"] == {
        "type": "NodePort",
        "selector": {"vm.kubevirt.io/name": "testvm"},
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080}],
    }


def test_expose_takes_the_ports_of_the_interfaces(server: Published, hyperctl: Hyperctl) -> None:
    interfaces = [{"name": "default", "ports": [{"port": 22}, {"port": 53, "protocol": "UDP"}]}]
    server.answers["GET", f"{OBJ}/virtualmachineinstances/testvm"] = {
        "spec": {"domain": {"devices": {"interfaces": interfaces}}}
    }
    server.answers["POST", "/api/v1/namespaces/default/services"] = {"kind": "Service", "metadata": {"name": "web"}}
    result = hyperctl("expose", "vmi", "testvm", "--name=web", "--ip-family=ipv4", "-o", "json")
    assert json.loads(result.out)["metadata"]["name"] == "web"
    spec = server.calls("POST")[0].body["spec"]
    assert [(port["port"], port["protocol"]) for port in spec["ports"]] == [(22, "TCP"), (53, "UDP")]
    assert spec["ipFamilies"] == ["IPv4"]


def test_expose_without_ports_says_so(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["GET", f"{OBJ}/virtualmachines/testvm"] = {"spec": {"template": {"spec": {}}}}
    assert "--port" in hyperctl("expose", "vm", "testvm", "--name=web").err
    assert "replicaset" in hyperctl("expose", "replicaset", "x", "--name=web").err


def test_addvolume_detects_volume_source(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["GET", "/api/v1/namespaces/default/persistentvolumeclaims/data"] = {"kind": "PersistentVolumeClaim"}
    server.answers["PUT", f"{VM}/addvolume"] = status(501, "NotImplemented", "volume hot-plug is not implemented")
    result = hyperctl("addvolume", "testvm", "--volume-name=data", "--cache=none")
    assert "volume hot-plug is not implemented" in result.err
    assert server.calls("PUT")[0].body == {
        "name": "data",
        "disk": {"name": "data", "disk": {"bus": "scsi"}, "serial": "data", "cache": "none"},
        "volumeSource": {"persistentVolumeClaim": {"claimName": "data", "hotpluggable": True}},
    }
    assert "neither" in hyperctl("addvolume", "testvm", "--volume-name=nothing").err
    assert "--bus" in hyperctl("addvolume", "testvm", "--volume-name=data", "--bus=ide").err


def test_removevolume_falls_back_to_vmi(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["PUT", f"{VMI}/removevolume"] = b""
    assert hyperctl("removevolume", "testvm", "--volume-name=data").code == 0
    assert [call.path for call in server.calls("PUT")] == [f"{VM}/removevolume", f"{VMI}/removevolume"]


def test_expand(server: Published, hyperctl: Hyperctl, tmp_path: Path) -> None:
    server.answers["GET", f"{VM}/expand-spec"] = {"kind": "VirtualMachine", "spec": {"a": 1}}
    assert yaml.safe_load(hyperctl("expand", "--vm", "testvm").out)["spec"] == {"a": 1}
    server.answers["PUT", f"{SUB}/expand-vm-spec"] = {"kind": "VirtualMachine", "spec": {"b": 2}}
    manifest = tmp_path / "vm.yaml"
    manifest.write_text("kind: VirtualMachine\n")
    assert json.loads(hyperctl("expand", "--file", str(manifest), "-o", "json").out)["spec"] == {"b": 2}
    assert server.calls("PUT")[0].body == {"kind": "VirtualMachine"}
    assert hyperctl("expand").code == 1


def test_version(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["GET", "/apis/subresources.kubevirt.io/v1/version"] = {"gitVersion": "v9.9.9"}
    out = hyperctl("version").out
    assert out.startswith("Client Version: version.Info{GitVersion:")
    assert 'Server Version: version.Info{GitVersion:"v9.9.9"}' in out
    assert json.loads(hyperctl("version", "-o", "json").out)["serverVersion"] == {"gitVersion": "v9.9.9"}
    before = len(server.requests)
    assert "Server" not in hyperctl("version", "--client").out
    assert len(server.requests) == before


def test_start_imports_only_required_modules() -> None:
    script = (
        "import sys; from cli.app import run; run(['version', '--client']);"
        "print(sorted({'aiohttp', 'lightkube', 'rich', 'yaml', 'msgspec'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    out = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
