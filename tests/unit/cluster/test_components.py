"""Command lines and configuration files of the cluster's components."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from cluster import components, network

PLAN = network.choose([])
NODES = components.nodes(PLAN, ("node1", "node2"))
GIB = 1 << 30


def options(command: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in command[1:])


def apiserver() -> dict[str, str]:
    return options(components.apiserver(Path("/bin/x"), PLAN, Path("/pki"), Path("/policy"), Path("/audit.log")))


def test_nodes_have_their_peers_addresses() -> None:
    assert [(n.name, n.address, n.pods) for n in NODES] == [
        ("node1", "10.77.0.11", "10.77.17.0/24"),
        ("node2", "10.77.0.12", "10.77.18.0/24"),
    ]
    assert NODES[0].peers == (("10.77.18.0/24", "10.77.0.12"),)


def test_api_server_listens_on_the_bridge_only() -> None:
    found = apiserver()
    assert found["bind-address"] == found["advertise-address"] == "10.77.0.1"
    assert components.api_url(PLAN) == "https://10.77.0.1:6443"


def test_api_server_aggregates_and_audits() -> None:
    found = apiserver()
    assert found["enable-aggregator-routing"] == "true"
    assert found["requestheader-allowed-names"] == "front-proxy-client"
    assert (found["audit-log-path"], found["audit-log-format"]) == ("/audit.log", "json")
    assert int(found["audit-log-maxsize"]) * (int(found["audit-log-maxbackup"]) + 1) <= 300
    # The public key: the server does not accept a PKCS 8 file.
    assert found["service-account-key-file"].endswith(".pub")


def test_certificate_covers_address_and_service() -> None:
    names = components.api_names(PLAN)
    assert {"10.77.0.1", "10.77.128.1", "kubernetes.default.svc"} <= set(names)


def test_calls_are_audited_once_and_watches_at_start() -> None:
    rules = json.loads(components.audit_policy())["rules"]
    watch = next(rule for rule in rules if rule.get("verbs") == ["watch"])
    assert "ResponseComplete" in watch["omitStages"]
    assert "ResponseStarted" not in watch["omitStages"]
    assert rules[-1]["level"] == "Metadata"
    assert "ResponseComplete" not in rules[-1]["omitStages"]


def test_nodes_share_the_machines_resources() -> None:
    config = json.loads(components.kubelet_config(PLAN, 24 * GIB, 2, 2))
    assert config["systemReserved"] == {"memory": f"{13 * GIB >> 10}Ki", "cpu": "1000m"}
    assert config["clusterDNS"] == ["10.77.128.10"]
    assert config["cgroupDriver"] == "cgroupfs"
    assert config["maxPods"] == 110
    assert set(config["evictionHard"].values()) == {"0%"}
    assert (config["shutdownGracePeriod"], config["shutdownGracePeriodCriticalPods"]) == ("120s", "20s")


def test_small_machine_offers_half_of_its_memory() -> None:
    config = json.loads(components.kubelet_config(PLAN, 2 * GIB, 1, 2))
    assert config["systemReserved"]["memory"] == f"{(2 * GIB - GIB // 2) >> 10}Ki"


def test_containerd_config_has_pause_image_and_plugins() -> None:
    config = tomllib.loads(components.containerd_config())
    assert config["version"] == 3
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    assert config["plugins"]["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"] == components.PAUSE_IMAGE
    assert runtime["restrict_oom_score_adj"] is True
    assert runtime["cni"]["bin_dirs"] == ["/usr/lib/cni"]
    # The folder for the certificate authority, or plain HTTP address, of a registry.
    assert config["plugins"]["io.containerd.cri.v1.images"]["registry"]["config_path"] == "/etc/containerd/certs.d"
    assert config["grpc"]["address"] == "/run/containerd/containerd.sock"


def test_each_node_allocates_from_its_own_range() -> None:
    bridge, portmap = json.loads(components.cni_config(NODES[1]))["plugins"]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.77.18.0/24"}]]
    assert portmap["capabilities"] == {"portMappings": True}


def test_no_registry_host_is_configured() -> None:
    assert components.PAUSE_IMAGE.split("/")[0].endswith(".local")
