"""Names: a guest resolves Services, and other VMs by their subdomain."""

from __future__ import annotations

import json

import pytest

from tests.e2e.manifests import booting, cloud_init
from tests.e2e.support import EXISTING, Json, Machine, Space, project
from tests.waiting import wait_for

PEER_SERVICE: Json = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "peers"},
    "spec": {"clusterIP": "None", "selector": {"app": "server"}, "ports": [{"name": "http", "port": 80}]},
}
WEB_SERVICE: Json = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "server"}, "ports": [{"name": "http", "port": 80}]},
}


def asks(*names: str) -> str:
    """Cloud-init of a guest that fetches a page from each name until it has it, and says so on its console."""
    lines = [
        # Without -T: busybox's wget crashes with a timeout.
        f"(until wget -q -O - http://{name}/ | grep -q hostname...server; do sleep 1; done; "
        f"echo reached {name} >/dev/ttyS0) &"
        for name in names
    ]
    return "#cloud-config\nruncmd:\n" + "".join(f"  - {json.dumps(line)}\n" for line in lines)


@pytest.fixture(scope="module", autouse=True)
def resolver() -> None:
    if not EXISTING:
        project("cluster", "dns")


@pytest.fixture(scope="module")
def server(space: Space) -> Machine:
    space.apply(PEER_SERVICE, WEB_SERVICE)
    return space.machine(booting("server", hostname="server", subdomain="peers"))


def test_a_guest_reaches_services_and_other_vms_by_name(space: Space, server: Machine) -> None:
    names = [
        "web",
        f"web.{space.name}",
        f"web.{space.name}.svc.cluster.local",
        f"server.peers.{space.name}.svc",
        f"server.peers.{space.name}.svc.cluster.local",
    ]
    client = space.machine(booting("client", cloud_init(asks(*names)), subdomain="peers"))
    server.answer()
    for name in names:
        wait_for(lambda name=name: f"reached {name}" in client.log(), f"the guest reaches {name}", seconds=120,
                 explain=client.story)  # type: ignore[misc]  # fmt: skip


def test_a_name_outside_is_refused_by_the_cluster_s_own_server(space: Space, server: Machine) -> None:
    """Nothing leaves the machine: the answer is the cluster's, at once, and names inside go on being resolved."""
    script = (
        "(nslookup example.invalid >/run/outside 2>&1; echo outside $? >/dev/ttyS0; "
        f"until nslookup web.{space.name}.svc.cluster.local >/run/inside 2>&1; do sleep 1; done; "
        "echo inside resolved >/dev/ttyS0) &"
    )
    asker = space.machine(booting("asker", cloud_init(f"#cloud-config\nruncmd:\n  - {json.dumps(script)}\n")))
    wait_for(lambda: "inside resolved" in asker.log(), "names inside are resolved", seconds=120, explain=asker.story)
    assert "outside 1" in asker.log()
