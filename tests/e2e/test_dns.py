"""DNS: a guest resolves Services, and other VMs by their subdomain."""

from __future__ import annotations

import json

import pytest

from tests.e2e.manifests import booting, cloud_init
from tests.e2e.support import EXISTING, E2eNamespace, Json, VmUnderTest, project
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


def user_data_fetching(*names: str) -> str:
    """Cloud-init user data that fetches a page from each name until it succeeds, and logs it on the console."""
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
def server(space: E2eNamespace) -> VmUnderTest:
    space.apply(PEER_SERVICE, WEB_SERVICE)
    return space.apply_vm(booting("server", hostname="server", subdomain="peers"))


def test_guest_reaches_services_and_vms_by_dns_name(space: E2eNamespace, server: VmUnderTest) -> None:
    names = [
        "web",
        f"web.{space.name}",
        f"web.{space.name}.svc.cluster.local",
        f"server.peers.{space.name}.svc",
        f"server.peers.{space.name}.svc.cluster.local",
    ]
    client = space.apply_vm(booting("client", cloud_init(user_data_fetching(*names)), subdomain="peers"))
    server.answer()
    for name in names:
        wait_for(lambda name=name: f"reached {name}" in client.log(), f"the guest reaches {name}", seconds=120,
                 explain=client.diagnostics)  # type: ignore[misc]  # fmt: skip


def test_external_dns_name_is_refused_by_cluster_dns(space: E2eNamespace, server: VmUnderTest) -> None:
    """No query leaves the host: the cluster's server answers at once, and internal names still resolve."""
    script = (
        "(nslookup example.invalid >/run/outside 2>&1; echo outside $? >/dev/ttyS0; "
        f"until nslookup web.{space.name}.svc.cluster.local >/run/inside 2>&1; do sleep 1; done; "
        "echo inside resolved >/dev/ttyS0) &"
    )
    asker = space.apply_vm(booting("asker", cloud_init(f"#cloud-config\nruncmd:\n  - {json.dumps(script)}\n")))
    wait_for(
        lambda: "inside resolved" in asker.log(), "names inside are resolved", seconds=120, explain=asker.diagnostics
    )
    assert "outside 1" in asker.log()
