"""Command lines and configuration files of every component, as pure functions of the address plan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.network import AddressPlan

PAUSE_IMAGE = "hyperlet.local/pause:1"
"""Not in any registry: the image is built here and imported into each node."""

DOMAIN = "cluster.local"
API_PORT = 6443
ETCD = "http://127.0.0.1:2379"
EVICTION_SIGNALS = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available")
SHUTDOWN_SECONDS, SHUTDOWN_CRITICAL_SECONDS = 120, 20
"""Time for pods when their node is shut down; the last seconds are for critical ones. More than the grace period of the
tests' VMs with its margin."""
MACHINE_RESERVE = 2 << 30
"""Bytes of memory that no node advertises: for the control plane, the machine itself, tests and builds."""


@dataclass(frozen=True)
class NodeAddresses:
    """One node's names and addresses. `number` counts from 1."""

    name: str
    number: int
    address: str
    pods: str
    peers: tuple[tuple[str, str], ...]
    """(pod range, address) of every other node."""


def nodes(plan: AddressPlan, names: tuple[str, ...]) -> list[NodeAddresses]:
    """All nodes of a plan."""
    numbered = [(name, number) for number, name in enumerate(names, 1)]
    return [
        NodeAddresses(
            name,
            number,
            plan.node(number),
            str(plan.node_pods(number)),
            tuple((str(plan.node_pods(other)), plan.node(other)) for _, other in numbered if other != number),
        )
        for name, number in numbered
    ]


def api_url(plan: AddressPlan) -> str:
    """The API server's URL. It is the same for the machine, the nodes and the control plane."""
    return f"https://{plan.api}:{API_PORT}"


def api_names(plan: AddressPlan) -> list[str]:
    """The names and addresses in the API server's certificate."""
    service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"]
    return [*service, "localhost", "127.0.0.1", plan.api, plan.kubernetes_service]


def etcd(binary: Path, data: Path) -> list[str]:
    """etcd, with plain HTTP on the loopback of the fabric, which only root of this machine can reach."""
    return [
        str(binary), "--name=local", f"--data-dir={data}",
        f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=local=http://127.0.0.1:2380", "--logger=zap", "--log-level=warn",
        "--quota-backend-bytes=1073741824",
    ]  # fmt: skip


def apiserver(binary: Path, plan: AddressPlan, pki: Path, policy: Path, audit_log: Path) -> list[str]:
    """kube-apiserver, bound to its address on br0 only. Admission plugins are the default ones and NodeRestriction."""
    options: dict[str, object] = {
        "advertise-address": plan.api,
        "bind-address": plan.api,
        "secure-port": API_PORT,
        "etcd-servers": ETCD,
        "service-cluster-ip-range": plan.services,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "anonymous-auth": "true",
        "client-ca-file": pki / "ca.crt",
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "kubelet-certificate-authority": pki / "ca.crt",
        "kubelet-client-certificate": pki / "kubelet-client.crt",
        "kubelet-client-key": pki / "kubelet-client.key",
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-issuer": f"https://kubernetes.default.svc.{DOMAIN}",
        "service-account-key-file": pki / "service-account.pub",
        "service-account-signing-key-file": pki / "service-account.key",
        "requestheader-client-ca-file": pki / "front-proxy-ca.crt",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": pki / "front-proxy-client.crt",
        "proxy-client-key-file": pki / "front-proxy-client.key",
        # There is no kube-proxy here: aggregated APIs are called at their pods' addresses.
        "enable-aggregator-routing": "true",
        "audit-policy-file": policy,
        "audit-log-path": audit_log,
        "audit-log-format": "json",
        "audit-log-maxsize": 100,
        "audit-log-maxbackup": 2,
        "profiling": "false",
        "v": 1,
    }
    return [str(binary), *flags(options)]


def controller_manager(binary: Path, pki: Path) -> list[str]:
    """kube-controller-manager. An unreachable node is NotReady after 16 s."""
    config = pki / "controller-manager.kubeconfig"
    options: dict[str, object] = {
        "kubeconfig": config,
        "leader-elect": "false",
        "bind-address": "127.0.0.1",
        "use-service-account-credentials": "true",
        "service-account-private-key-file": pki / "service-account.key",
        "root-ca-file": pki / "ca.crt",
        "cluster-signing-cert-file": pki / "ca.crt",
        "cluster-signing-key-file": pki / "ca.key",
        "allocate-node-cidrs": "false",
        "node-monitor-grace-period": "16s",
        "v": 1,
    }
    return [str(binary), *flags(options)]


def scheduler(binary: Path, pki: Path) -> list[str]:
    """kube-scheduler."""
    options = {"kubeconfig": pki / "scheduler.kubeconfig", "leader-elect": "false"}
    return [str(binary), *flags({**options, "bind-address": "127.0.0.1", "v": 1})]


def flags(options: dict[str, object]) -> list[str]:
    """{"v": 1} → ["--v=1"]."""
    return [f"--{name}={value}" for name, value in options.items()]


def audit_policy() -> str:
    """One event per API call: user, user agent, verb, object and status code, so that calls can be counted.

    A watch is recorded when it starts; the API server's own calls and health checks are not recorded.
    """
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "users": ["system:apiserver"]},
            {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/metrics"]},
            {"level": "Metadata", "verbs": ["watch"], "omitStages": ["RequestReceived", "ResponseComplete"]},
            {"level": "Metadata", "omitStages": ["RequestReceived", "ResponseStarted"]},
        ],
    }
    return json.dumps(policy, indent=1)


def containerd_config() -> str:
    """containerd's configuration file, version 3 (containerd 2)."""
    return f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"

  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE_IMAGE}"

  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"

[plugins."io.containerd.cri.v1.runtime"]
  # A root without CAP_SYS_RESOURCE cannot lower oom_score_adj; without this every sandbox would fail there.
  restrict_oom_score_adj = true

  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"

    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "/etc/cni/net.d"
"""


def cni_config(node: NodeAddresses) -> str:
    """The pod network of one node: a bridge with its pod range, and host ports."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": node.pods}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, portmap]}, indent=1)


def kubelet_config(plan: AddressPlan, memory: int, cpus: int, node_count: int) -> str:
    """KubeletConfiguration of a node that is one of `node_count` on a machine of `memory` bytes and `cpus` cores.

    Every kubelet sees the whole machine; it reserves the share of the other nodes as system resources.
    """
    share = max(memory - MACHINE_RESERVE, memory // 2) // node_count
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/kubelet.key",
        "clusterDomain": DOMAIN,
        "clusterDNS": [plan.dns],
        "resolvConf": "/etc/resolv.conf",
        "cgroupDriver": "cgroupfs",
        # This machine may still have version 1, where the kubelet otherwise refuses to start.
        "failCgroupV1": False,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failSwapOn": False,
        "maxPods": 110,
        "serializeImagePulls": False,
        "evictionHard": dict.fromkeys(EVICTION_SIGNALS, "0%"),
        # Images come from no registry: a collected image could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # Device plugin changes appear soon, and unchanged status is still reported rarely. Not less than 2 s: it is
        # also kubelet's timeout for the API server, for its lease too.
        "nodeStatusUpdateFrequency": "2s",
        "nodeStatusReportFrequency": "1m",
        "nodeLeaseDurationSeconds": 12,
        "shutdownGracePeriod": f"{SHUTDOWN_SECONDS}s",
        "shutdownGracePeriodCriticalPods": f"{SHUTDOWN_CRITICAL_SECONDS}s",
        "systemReserved": {
            "memory": f"{(memory - share) >> 10}Ki",
            "cpu": f"{cpus * 1000 - cpus * 1000 // node_count}m",
        },
    }
    return json.dumps(config, indent=1)
