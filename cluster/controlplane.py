"""The fabric's namespace and the four processes in it: etcd, API server, controller manager, scheduler."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cluster import binaries, components, machine, network, paths, processes, state
from cluster.api import ClusterApi
from cluster.console import ClusterError
from cluster.processes import ProcessRecord

FABRIC = "fabric"
ETCD = "etcd"
APISERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
NAMES = (ETCD, APISERVER, CONTROLLER_MANAGER, SCHEDULER)
READY_SECONDS = 180.0
GO_SETTINGS = {"GOGC": "50"}
"""Memory for processor time: after its start most of the API server's memory is garbage."""


def group() -> str:
    """The control group of the control plane."""
    return f"{state.group()}/control-plane"


def log(name: str) -> Path:
    """The log of a process."""
    return paths.LOGS / f"{name}.log"


def _start(name: str, command: list[str]) -> ProcessRecord:
    """Start a process in the control plane's control group, and record it."""
    joins = "; ".join(f"echo $$ > {path}/cgroup.procs" for path in machine.make(group()))
    pid = processes.spawn(
        ["sh", "-c", f'{joins}; exec "$@"', name, *command], log(name), env=environment() | GO_SETTINGS
    )
    rec = processes.record(name, pid)
    state.records().put(rec)
    return rec


def environment() -> dict[str, str]:
    """The daemons' environment: nothing from the shell that started them, no proxies."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
    }


def fabric() -> ProcessRecord:
    """The process that holds the fabric's namespace. Errors: ClusterError when it has ended."""
    rec = state.records().alive(FABRIC)
    if rec is None:
        raise ClusterError("no cluster is running", remedy="run 'python -m cluster up'")
    return rec


def start_fabric(plan: network.AddressPlan, node_count: int) -> ProcessRecord:
    """Create the fabric's namespace, with its bridges and the machine's link into it."""
    rec = _start(FABRIC, ["unshare", "--net", "--", "sleep", "infinity"])
    own = network.namespace(os.getpid())
    if not processes.wait_until(lambda: processes.is_alive(rec) and network.namespace(rec.pid) != own, 5, pause=0.005):
        raise ClusterError("could not create a network namespace", log=log(FABRIC))
    network.build_fabric(plan, rec.pid, state.link(), node_count)
    return rec


def command(name: str, plan: network.AddressPlan) -> list[str]:
    """The whole command line of one of NAMES."""
    binary = binaries.program(name)
    if name == ETCD:
        return components.etcd(binary, state.etcd_data())
    if name == APISERVER:
        policy = paths.RUN / "audit-policy.json"
        policy.write_text(components.audit_policy())
        return components.apiserver(binary, plan, paths.PKI, policy, paths.AUDIT_LOG)
    if name == CONTROLLER_MANAGER:
        return components.controller_manager(binary, paths.PKI)
    return components.scheduler(binary, paths.PKI)


def start(name: str, plan: network.AddressPlan) -> ProcessRecord:
    """Start one of NAMES unless it is running."""
    running = state.records().alive(name)
    if running is not None:
        return running
    return _start(name, [*network.enter(fabric().pid), *command(name, plan)])


def wait_ready(api: ClusterApi, *, seconds: float = READY_SECONDS) -> None:
    """Wait until the API server is ready. Errors: ClusterError when it ends or takes too long."""
    rec = state.records().get(APISERVER)
    for name in (ETCD, APISERVER):
        if state.records().alive(name) is None:
            raise ClusterError(f"{name} is not running", log=log(name), remedy="run 'python -m cluster up'")

    def settled() -> bool:
        return api.is_ready() or rec is None or not processes.is_alive(rec)

    processes.wait_until(settled, seconds)
    if not api.is_ready():
        ended = rec is None or not processes.is_alive(rec)
        what = "ended" if ended else f"is not ready after {seconds:.0f} s"
        raise ClusterError(f"{APISERVER} {what}", log=log(APISERVER), remedy="run 'python -m cluster down', then up")


def stop(name: str) -> bool:
    """Kill one process, as a crash would; whether it was running."""
    rec = state.records().alive(name)
    if rec is not None:
        processes.kill([rec])
    state.records().drop(name)
    return rec is not None


def bootstrap(api: ClusterApi) -> None:
    """The rights that an installer grants once: kube-proxy's read access."""
    api.ensure(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "kube-proxy"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-proxy"}],
        },
    )


def remove_data() -> None:
    """Delete etcd's data."""
    shutil.rmtree(state.etcd_data(), ignore_errors=True)
