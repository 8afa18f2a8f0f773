"""The verbs of `python -m cluster` for a running cluster, besides `up` and `down`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cluster import binaries, controlplane, images, lifecycle, machine, network, node, paths, processes, state, volumes
from cluster import dns as cluster_dns
from cluster.api import ClusterApi
from cluster.components import NodeAddresses
from cluster.console import ClusterError, ProgressConsole
from cluster.state import ClusterState

MEBIBYTE = 1 << 20


def _node(known: ClusterState, name: str) -> NodeAddresses:
    found = known.node(name)
    if found is None:
        raise ClusterError(
            f"there is no node '{name}'", remedy=f"the nodes are {', '.join(n.name for n in known.nodes)}"
        )
    return found


def _route_services(known: ClusterState) -> None:
    """Route Service addresses to a node that is on."""
    running = [each.number for each in known.nodes if node.init_record(each.name) is not None]
    if running:
        network.route_services(known.plan, controlplane.fabric().pid, state.link(), running[0])


def off(console: ProgressConsole, name: str) -> None:
    """Power a node off."""
    lifecycle.require_root()
    with state.locked():
        known = lifecycle.required()
        _node(known, name)
        with console.step(f"{name} off") as step:
            step.note = "" if node.power_off(name) else "it was off"
            _route_services(known)


def shutdown(console: ProgressConsole, name: str) -> None:
    """Shut a node down gracefully: its kubelet terminates the pods first, then the power is cut."""
    lifecycle.require_root()
    with state.locked():
        known = lifecycle.required()
        _node(known, name)
        with console.step(f"{name} shuts down"):
            node.shut_down(name)
        with console.step(f"{name} off"):
            node.power_off(name)
            _route_services(known)


def on(console: ProgressConsole, name: str) -> None:
    """Power a node on and wait until it is Ready (if the API server is on)."""
    lifecycle.require_root()
    with state.locked():
        known = lifecycle.required()
        each = _node(known, name)
        with console.step(f"{name} on") as step:
            if node.init_record(name) is None:
                node.prepare(known.plan, each, len(known.nodes))
                node.power_on(known.plan, each)
                _route_services(known)
            else:
                step.note = "it was on"
        if state.records().alive(controlplane.APISERVER) is None:
            console.say("  · the API server is off: not waiting for Ready")
            return
        with console.step(f"{name} Ready"):
            node.wait_runtime(name)
            lifecycle.wait_nodes(ClusterApi(paths.KUBECONFIG), [name])


def cable(console: ProgressConsole, name: str, *, plugged: bool) -> None:
    """Disconnect or reconnect a node's network."""
    lifecycle.require_root()
    with state.locked():
        _node(lifecycle.required(), name)
        node.init_pid(name)
        with console.step(f"{name}: network {'connected' if plugged else 'disconnected'}"):
            network.set_port(controlplane.fabric().pid, name, plugged)


def apiserver(console: ProgressConsole, *, running: bool) -> None:
    """Kill the API server, or start it again on the same data."""
    lifecycle.require_root()
    with state.locked():
        known = lifecycle.required()
        if not running:
            with console.step("API server off") as step:
                step.note = "" if controlplane.stop(controlplane.APISERVER) else "it was off"
            return
        with console.step("API server on"):
            controlplane.start(controlplane.APISERVER, known.plan)
            controlplane.wait_ready(ClusterApi(paths.KUBECONFIG))


def load(console: ProgressConsole, archives: Sequence[Path]) -> None:
    """Import image archives into every node that is on."""
    lifecycle.require_root()
    known = lifecycle.required()
    running = _running(known)
    images.load(console, archives, running)
    console.summary(f"{len(archives)} archives on {', '.join(running)}")


def dns(console: ProgressConsole) -> None:
    """Deploy the cluster's DNS server on the nodes that are on."""
    lifecycle.require_root()
    known = lifecycle.required()
    cluster_dns.deploy(console, known, _running(known))
    console.summary(f"DNS server at {known.plan.dns}")


def _running(known: ClusterState) -> list[str]:
    """The nodes that are on. Errors: ClusterError when none is."""
    running = [each.name for each in known.nodes if node.init_record(each.name) is not None]
    if not running:
        raise ClusterError("no node is on", remedy="run 'python -m cluster up'")
    return running


def volume(console: ProgressConsole, name: str, node_name: str, size: str, storage_class: str) -> None:
    """Create a PersistentVolume on a node's disk."""
    _node(lifecycle.required(), node_name)
    with console.step(f"PersistentVolume {name}") as step:
        new = volumes.create(ClusterApi(paths.KUBECONFIG), name, node_name, size, storage_class)
        step.note = f"{size} on {node_name}, class {storage_class}" + ("" if new else ", exists already")


def inside(name: str, command: Sequence[str]) -> NoReturn:
    """Replace this process by a command inside a node, or "control-plane"."""
    lifecycle.require_root()
    known = lifecycle.required()
    if name != "control-plane":
        _node(known, name)
    node.become(name, command)


def logs(component: str | None, *, follow: bool, lines: int) -> None:
    """Show the log of a component, or list the logs."""
    there = sorted(path.stem for path in paths.LOGS.glob("*.log"))
    if component is None:
        print("\n".join(there) or "no logs yet")
        return
    path = paths.AUDIT_LOG if component == "audit" else paths.LOGS / f"{component}.log"
    if not path.exists():
        raise ClusterError(f"there is no log '{component}'", remedy=f"the logs are: {', '.join(there) or 'none yet'}")
    os.execvp("tail", ["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), str(path)])


def status(console: ProgressConsole) -> None:
    """Print a table of everything that runs."""
    known = lifecycle.current()
    if known is None:
        left = len(machine.members(state.group()))
        leftovers = f", but {left} of its processes are left: run 'python -m cluster down'" if left else ""
        console.say(f"no cluster is running{leftovers}")
        return
    api = ClusterApi(paths.KUBECONFIG, timeout=2.0)
    ready = api.ready_nodes()
    console.say(f"{'NAME':<26}{'STATE':<16}{'ADDRESS':<15}{'PID':>8}{'PSS MiB':>10}{'UP':>12}")
    plane = services = everything = 0
    for name in (controlplane.FABRIC, *controlplane.NAMES):
        address = known.plan.api if name == controlplane.APISERVER else ""
        rec = state.records().alive(name)
        plane += _row(console, name, "running" if rec else "stopped", address, rec, [rec.pid] if rec else [])
    everything = plane
    for each in known.nodes:
        rec = node.init_record(each.name)
        condition = {True: "Ready", False: "NotReady", None: "unknown"}[ready.get(each.name)]
        pids = sorted(machine.members(node.group(each.name)))
        everything += _row(console, each.name, condition if rec else "off", each.address, rec, pids)
        plane += processes.pss([rec.pid] if rec else [])
        for pid in pids:
            kind = part(_arguments(pid))
            if kind:
                size = _row(console, f"  {kind}", "running", "", processes.record(kind, pid), [pid])
                plane += size if kind in DAEMONS else 0
                services += size if kind not in DAEMONS else 0
    sums = {
        "control plane and nodes": plane,
        "with DNS and storage": plane + services,
        "with every pod": everything,
    }
    for label, size in sums.items():
        console.say(f"{label:<65}{size / MEBIBYTE:>10.1f}")
    console.say(f"pods {known.plan.pods}, services {known.plan.services}, KUBECONFIG={paths.KUBECONFIG}")


DAEMONS = ("containerd", "kubelet", "kube-proxy")


def part(words: Sequence[str]) -> str:
    """The part of the cluster that a process on a node belongs to, by its command line; empty for other pods."""
    if not words:
        return ""
    name = Path(words[0]).name
    if name in DAEMONS or name in (*binaries.DNS.files, *binaries.EXTRAS.files):
        return name
    return "csi-driver" if "cluster.csi" in words else ""


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def _row(
    console: ProgressConsole,
    name: str,
    word: str,
    address: str,
    rec: processes.ProcessRecord | None,
    pids: Sequence[int],
) -> int:
    size = processes.pss(pids)
    pid = str(rec.pid) if rec else "-"
    uptime = duration(processes.age(rec)) if rec else "-"
    console.say(f"{name:<26}{word:<16}{address:<15}{pid:>8}{size / MEBIBYTE:>10.1f}{uptime:>12}")
    return size


def duration(seconds: float) -> str:
    """3725 → "1h02m05s"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m{rest:02}s"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
