"""The cluster of `python -m cluster up`: pods, Services, volumes and nodes work."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import images, node
from tests.e2e.support import E2eNamespace, Json, Kubectl, KubectlError, conditions, http, project
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        os.environ.get("HYPERLET_CLUSTER") == "existing",
        reason="nodes of an existing cluster cannot be powered off or disconnected",
    ),
]

BUSYBOX = "hyperlet.local/busybox:1"
PORT = 8080
SERVE = f"/busybox mkdir -p /srv && echo $NAME > /srv/index.html && exec /busybox httpd -f -p {PORT} -h /srv"
FETCH = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /busybox nc -w 5 {} {} | /busybox tail -n 1"


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with only busybox, loaded on both nodes."""
    path = tmp_path_factory.mktemp("images") / "busybox.tar"
    content = Path("/bin/busybox").read_bytes()
    path.write_bytes(images.single_file_archive(BUSYBOX, "busybox", content, user="0"))
    project("cluster", "load", str(path))
    return BUSYBOX


def web(name: str, image: str, where: str, **container: object) -> Json:
    """A pod with a web server that returns the pod's name."""
    main = {
        "name": "main",
        "image": image,
        "env": [{"name": "NAME", "value": name}],
        "command": ["/busybox", "sh", "-c", SERVE],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": where, "terminationGracePeriodSeconds": 0, "containers": [{**main, **container}]},
    }


@pytest.fixture(scope="module")
def pods(space: E2eNamespace, busybox: str) -> Iterator[dict[str, str]]:
    """One pod with a web server on each node; name → address."""
    space.apply(web("one", busybox, "node1"), web("two", busybox, "node2"))
    space.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/one", "pod/two")
    yield {name: address(space, name) for name in ("one", "two")}
    space.kubectl("delete", "pod", "one", "two", "--ignore-not-found", "--wait=false")


def address(space: E2eNamespace, name: str) -> str:
    return str((space.kubectl.get("pod", name) or {})["status"]["podIP"])


def fetch(space: E2eNamespace, pod: str, host: str, port: int) -> str:
    """The last line that a web server returns to a request from a pod."""
    return space.kubectl("exec", pod, "--", "/busybox", "sh", "-c", FETCH.format(host, port)).strip()


def is_ready(kubectl: Kubectl, name: str) -> bool:
    return bool(conditions(kubectl.get("node", name))["Ready"]["status"] == "True")


@pytest.fixture
def typed_resource(kubectl: Kubectl) -> Iterator[str]:
    """A custom resource with a field of every type."""
    group = f"t{secrets.token_hex(3)}.test.example"
    text = {"type": "string"}
    spec = {
        "type": "object",
        "properties": {
            "word": text,
            "size": {"type": "integer"},
            "on": {"type": "boolean"},
            "words": {"type": "array", "items": text},
            "inner": {"type": "object", "properties": {"word": text}},
        },
    }
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"things.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
    apply(kubectl, crd)
    kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/things.{group}")
    yield group
    kubectl("delete", "crd", f"things.{group}", "--wait=false")


def apply(kubectl: Kubectl, *manifests: Json) -> str:
    listing = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    return kubectl("apply", "-f", "-", stdin=json.dumps(listing))


def test_empty_values_are_stored_in_typed_fields(space: E2eNamespace, typed_resource: str) -> None:
    spec = {"word": "", "size": 0, "on": False, "words": [""], "inner": {"word": ""}}
    thing = {"apiVersion": f"{typed_resource}/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec}
    wait_for(lambda: apply(space.kubectl, thing), "the new kind is served", seconds=20)
    assert (space.kubectl.get(f"things.{typed_resource}", "a") or {})["spec"] == spec


def test_value_of_wrong_type_is_refused(space: E2eNamespace, typed_resource: str) -> None:
    thing = {"apiVersion": f"{typed_resource}/v1", "kind": "Thing", "metadata": {"name": "b"}, "spec": {"word": 1}}

    def refused() -> bool:
        with pytest.raises(KubectlError, match=r"spec\.word"):
            apply(space.kubectl, thing)
        return True

    wait_for(refused, "the new kind is served", seconds=20)


def test_pods_on_different_nodes_reach_each_other(space: E2eNamespace, pods: dict[str, str]) -> None:
    assert fetch(space, "one", pods["two"], PORT) == "two"
    assert fetch(space, "two", pods["one"], PORT) == "one"


def test_host_reaches_pods_on_both_nodes(pods: dict[str, str]) -> None:
    for name, where in pods.items():
        assert http(f"http://{where}:{PORT}/").strip() == name


def test_service_is_reachable_from_pods_and_host(space: E2eNamespace, pods: dict[str, str]) -> None:
    ports = [{"port": 80, "targetPort": PORT, "protocol": "TCP"}]
    spec = {"type": "NodePort", "selector": {"app": "two"}, "ports": ports}
    space.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "two"}, "spec": spec})
    made = (space.kubectl.get("service", "two") or {})["spec"]
    cluster_ip, node_port = made["clusterIP"], made["ports"][0]["nodePort"]
    wait_for(lambda: http(f"http://{cluster_ip}/").strip() == "two", "the machine reaches the ClusterIP", seconds=20)
    for client in pods:
        wait_for(
            lambda c=client: fetch(space, c, cluster_ip, 80) == "two", f"{client} reaches the ClusterIP", seconds=20
        )
    for each in space.kubectl.items("nodes"):
        where = next(a["address"] for a in each["status"]["addresses"] if a["type"] == "InternalIP")
        wait_for(lambda w=where: http(f"http://{w}:{node_port}/").strip() == "two", "the NodePort answers", seconds=20)


@pytest.mark.parametrize("where", ["node1", "node2", "control-plane"])
def test_default_route_of_node_ends_in_cluster(where: str) -> None:
    """Only the routing table is read; nothing is sent."""
    routes = project("cluster", "exec", where, "--", "ip", "-4", "route", "show", "default").strip()
    api = project("cluster", "exec", "control-plane", "--", "sh", "-c", "ip -4 -o address show br0 | awk '{print $4}'")
    if where == "control-plane":
        assert routes.startswith("unreachable default")
    else:
        assert routes == f"default via {api.split('/')[0]} dev eth0"


def test_nodes_have_second_link_up() -> None:
    for name in ("node1", "node2"):
        assert "LOWER_UP" in project("cluster", "exec", name, "--", "ip", "-o", "link", "show", "eth1")


def test_privileged_pod_has_no_block_devices_of_host(space: E2eNamespace, busybox: str) -> None:
    pod = web("privileged", busybox, "node1", securityContext={"privileged": True})
    space.apply(pod)
    space.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/privileged")
    devices = space.kubectl("exec", "privileged", "--", "/busybox", "find", "/dev", "-type", "b").split()
    # Volumes are on loop devices; none of the host's disks is visible.
    assert not [device for device in devices if not device.startswith("/dev/loop")]
    assert "tun" in space.kubectl("exec", "privileged", "--", "/busybox", "ls", "/dev/net")
    space.kubectl("delete", "pod", "privileged", "--wait=false")


def test_killed_kubelet_is_restarted(kubectl: Kubectl) -> None:
    def kubelet() -> int | None:
        found = node.run("node2", ["pidof", "kubelet"]).stdout.split()
        return int(found[0]) if found else None

    before = wait_for(kubelet, "kubelet runs on node2")
    killed = node.run("node2", ["kill", f"-{signal.SIGKILL}", str(before)])
    assert killed.returncode == 0, killed.stderr
    wait_for(lambda: kubelet() not in (None, before), "kubelet runs again")
    wait_for(lambda: is_ready(kubectl, "node2"), "node2 is Ready")


def test_pod_continues_running_during_api_server_outage(
    kubectl: Kubectl, space: E2eNamespace, pods: dict[str, str]
) -> None:
    before = (space.kubectl.get("pod", "one") or {})["status"]["containerStatuses"][0]["containerID"]
    project("cluster", "apiserver", "off")
    try:
        with pytest.raises(KubectlError):
            kubectl("get", "nodes", "--request-timeout=3s")
        assert http(f"http://{pods['one']}:{PORT}/").strip() == "one"
    finally:
        project("cluster", "apiserver", "on")
    after = wait_for(lambda: space.kubectl.get("pod", "one"), "the API server answers")
    assert after["status"]["containerStatuses"][0]["containerID"] == before


def test_node_keeps_volume_data_after_power_cycle(kubectl: Kubectl, space: E2eNamespace, busybox: str) -> None:
    volume = f"keep-{secrets.token_hex(3)}"
    project("cluster", "pv", volume, "node2", "1Gi", "--storage-class", volume)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "keep"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": volume,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    pod = web("keeper", busybox, "node2", volumeMounts=[{"name": "keep", "mountPath": "/keep"}])
    pod["spec"]["volumes"] = [{"name": "keep", "persistentVolumeClaim": {"claimName": "keep"}}]
    space.apply(claim, pod)
    space.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/keeper")
    space.kubectl("exec", "keeper", "--", "/busybox", "sh", "-c", "echo precious > /keep/file; /busybox sync")
    boot = node.boot_id("node2")
    project("cluster", "off", "node2")
    try:
        wait_for(lambda: not is_ready(kubectl, "node2"), "node2 is NotReady", seconds=90)
        with pytest.raises((OSError, subprocess.SubprocessError)):
            http(f"http://{address(space, 'keeper')}:{PORT}/")
    finally:
        project("cluster", "on", "node2")
    assert is_ready(kubectl, "node2")
    assert node.boot_id("node2") != boot

    def restarted() -> bool:
        status = (space.kubectl.get("pod", "keeper") or {})["status"]["containerStatuses"][0]
        return bool(status["ready"] and status["restartCount"] > 0)

    wait_for(restarted, "the pod runs again", seconds=90)
    assert space.kubectl("exec", "keeper", "--", "/busybox", "cat", "/keep/file").strip() == "precious"
    assert http(f"http://{address(space, 'keeper')}:{PORT}/").strip() == "keeper"
    space.kubectl("delete", "pod", "keeper", "--wait=true")
    space.kubectl("delete", "pvc", "keep")
    kubectl("delete", "pv", volume)
