"""One node: its folder, power on and off, its network, running commands inside it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cluster import binaries, components, controlplane, loops, machine, network, paths, processes, state
from cluster.components import NodeAddresses
from cluster.console import ClusterError
from cluster.network import AddressPlan

INIT = Path(__file__).with_name("node-init.sh")
LOGIND = Path(__file__).with_name("logind.py")
OFF = "run/poweroff"
"""The file with which the logind substitute reports that no client delays a shutdown any more."""
SHUTDOWN_SECONDS = components.SHUTDOWN_SECONDS + 30
SOCKET = "run/containerd/containerd.sock"
SHELL_PATH = "/opt/kubernetes:/opt/containerd:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def folder(name: str) -> Path:
    """The node's folder on the machine: `etc` (configuration), `disk` (persistent), `root` (mount point)."""
    return paths.RUN / "nodes" / name


def group(name: str) -> str:
    """The node's control group."""
    return f"{state.group()}/{name}"


def log(name: str) -> Path:
    """The log of the node's init."""
    return paths.LOGS / f"{name}.log"


def init_record(name: str) -> processes.ProcessRecord | None:
    """The node's PID 1 if the node is on."""
    return state.records().alive(name)


def init_pid(name: str) -> int:
    """The pid (as the machine sees it) of the node's PID 1. Errors: ClusterError when the node is off."""
    rec = init_record(name)
    if rec is None:
        raise ClusterError(f"{name} is off", remedy=f"run 'python -m cluster on {name}'")
    return rec.pid


def prepare(plan: AddressPlan, node: NodeAddresses, node_count: int) -> None:
    """Write the node's configuration. An existing disk is not changed."""
    base = folder(node.name)
    etc = base / "etc"
    shutil.rmtree(etc, ignore_errors=True)
    (base / "root").mkdir(parents=True, exist_ok=True)
    (base / "disk").mkdir(exist_ok=True)
    loops.STORAGE.mkdir(exist_ok=True)
    shutil.copytree(paths.PKI / node.name, etc / "kubernetes")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kubelet = components.kubelet_config(plan, memory, os.cpu_count() or 1, node_count)
    (etc / "kubernetes" / "kubelet.json").write_text(kubelet)
    (etc / "containerd.toml").write_text(components.containerd_config())
    (etc / "cni.conflist").write_text(components.cni_config(node))
    for program in (LOGIND, LOGIND.with_name("dbus.conf")):
        shutil.copyfile(program, etc / program.name)
    (etc / "hostname").write_text(f"{node.name}\n")
    (etc / "machine-id").write_text(hashlib.sha256(f"{base}".encode()).hexdigest()[:32] + "\n")
    (etc / "resolv.conf").write_text(f"nameserver {plan.dns}\n")
    others = "".join(f"{plan.node(n)} {name}\n" for n, name in enumerate(state.NODE_NAMES, 1))
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{others}")


def environment(plan: AddressPlan, node: NodeAddresses, cgroups: Sequence[Path]) -> dict[str, str]:
    """The environment of node-init.sh."""
    # A named hierarchy (systemd's) is mounted by node-init.sh itself.
    mounted = [path.name for path in machine.hierarchies() if path.name != "systemd"]
    return {
        **controlplane.environment(),
        "NODE": node.name,
        "ADDRESS": node.address,
        "PREFIX_LENGTH": str(plan.nodes.prefixlen),
        "GATEWAY": plan.api,
        "PEERS": " ".join(f"{pods}={address}" for pods, address in node.peers),
        "NODE_DIR": str(folder(node.name)),
        "KUBERNETES_DIR": str(binaries.folder(binaries.KUBERNETES)),
        "CORE_DIR": str(binaries.folder(binaries.CORE)),
        "RUNC_DIR": str(binaries.find(binaries.RUNC) or ""),
        "STORAGE_DIR": str(loops.STORAGE),
        "HIDE": str(paths.RUN),
        "CGROUPS": " ".join(map(str, cgroups)),
        "UNIFIED": "1" if machine.is_unified() else "",
        "HIERARCHIES": " ".join(f"{name}={name}" for name in mounted),
        "CLUSTER_CIDR": str(plan.pods),
    }


def power_on(plan: AddressPlan, node: NodeAddresses) -> bool:
    """Start the node unless it is on; whether it was started. Errors: ClusterError when it does not start."""
    if init_record(node.name) is not None:
        return False
    fabric = controlplane.fabric().pid
    _clear(node.name)
    cgroups = machine.make(group(node.name))
    pid = processes.spawn(["bash", str(INIT), "outside"], log(node.name), env=environment(plan, node, cgroups))
    own = network.namespace(os.getpid())
    starter = processes.record(node.name, pid)

    def separate() -> bool:
        return not processes.is_alive(starter) or (
            network.namespace(pid) != own and processes.first_child(pid) is not None
        )

    processes.wait_until(separate, 10, pause=0.005)
    child = processes.first_child(pid) if processes.is_alive(starter) else None
    if child is None:
        raise ClusterError(
            f"{node.name} did not start", log=log(node.name), remedy="run 'python -m cluster down', then up"
        )
    state.records().put(processes.record(node.name, child))
    if machine.is_unified():
        # A version 2 group with children that have controllers must not contain processes; the node waits for this.
        machine.move(pid, f"{state.group()}/starters")
    network.wire_node(fabric, child, node.name, node.address)
    return True


def _clear(name: str) -> None:
    """Kill and remove what a failed node left in its control group."""
    machine.kill_members(group(name))
    machine.remove([group(name)])


def power_off(name: str) -> bool:
    """Cut the power: SIGKILL to PID 1, with which the kernel ends every process of the node. Whether it was on."""
    rec = init_record(name)
    devices = None
    if rec is not None:
        with contextlib.suppress(OSError):
            devices = Path(f"/proc/{rec.pid}/root/dev").stat().st_dev
        processes.kill([rec])
    _clear(name)
    # The kernel is the machine's and keeps loop devices: those that the kubelet held (on device nodes of the node's
    # own /dev), and those on the node's own volumes.
    loops.detach(lambda loop: loop.device == devices)
    loops.detach_files(loops.STORAGE / "local" / "pools" / name)
    state.records().drop(name)
    return rec is not None


def shut_down(name: str) -> None:
    """Have the node's logind announce a shutdown and wait until its kubelet has terminated the pods; the node stays on.

    Errors: ClusterError when the node is off, has no logind, or when it exceeds logind's maximum delay.
    """
    mark = Path(f"/proc/{init_pid(name)}/root") / OFF
    asked = run(name, ["/usr/bin/python3", "-I", "-S", "-E", "/etc/logind.py", "power-off"])
    own = paths.LOGS / f"{name}-logind.log"
    if asked.returncode != 0:
        words = (asked.stderr.strip().splitlines() or ["no answer"])[-1]
        raise ClusterError(
            f"{name} cannot be shut down: {words}", log=own, remedy=f"run 'python -m cluster off {name}'"
        )
    if not processes.wait_until(lambda: mark.exists() or init_record(name) is None, SHUTDOWN_SECONDS, pause=0.1):
        raise ClusterError(f"{name} does not shut down", log=own, remedy=f"run 'python -m cluster off {name}'")


def wait_runtime(name: str, *, seconds: float = 60.0) -> None:
    """Wait until the node's containerd answers. Errors: ClusterError when the node ends or takes too long."""
    socket = Path(f"/proc/{init_pid(name)}/root") / SOCKET

    def settled() -> bool:
        return socket.exists() or init_record(name) is None

    processes.wait_until(settled, seconds, pause=0.02)
    if init_record(name) is None or not socket.exists():
        own = log(name)
        raise ClusterError(
            f"containerd on {name} does not start", log=own, remedy=f"see 'cluster logs {name}-containerd'"
        )


def enter(name: str) -> list[str]:
    """The command prefix for running a command inside the node."""
    return ["nsenter", f"--target={init_pid(name)}", "--all", "--", "env", f"PATH={SHELL_PATH}"]


def run(name: str, command: Sequence[str], *, stdin: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command inside a node and return its output."""
    with (stdin or Path("/dev/null")).open("rb") as stream:
        return subprocess.run([*enter(name), *command], stdin=stream, capture_output=True, text=True, check=False)


def become(name: str, command: Sequence[str]) -> NoReturn:
    """Replace this process by a command inside a node (or, for "control-plane", in the fabric's network)."""
    prefix = network.enter(controlplane.fabric().pid) if name == "control-plane" else enter(name)
    words = [*prefix, *(command or ["bash"])]
    os.execvp(words[0], words)


def boot_id(name: str) -> str | None:
    """The id of the node's present boot, as its kubelet reports it; None while it is off or starting."""
    rec = init_record(name)
    if rec is None:
        return None
    try:
        return Path(f"/proc/{rec.pid}/root/run/boot_id").read_text().strip() or None
    except OSError:
        return None
