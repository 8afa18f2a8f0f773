"""Starting and removing the whole cluster, from any state."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster import (
    binaries,
    components,
    controlplane,
    deps,
    images,
    kubectl,
    loops,
    machine,
    network,
    node,
    paths,
    pki,
    processes,
    state,
)
from cluster.api import ApiError, ClusterApi, is_node_ready
from cluster.console import ClusterError, ProgressConsole
from cluster.state import ClusterState

NODES_READY_SECONDS = 180.0
KEPT_BY_DOWN = ("logs", "lock", "audit.log")


def require_root() -> None:
    """Errors: ClusterError for users other than root."""
    if os.geteuid() != 0:
        raise ClusterError("the cluster needs namespaces, mounts and control groups", remedy="run this as root")


def current() -> ClusterState | None:
    """The cluster that is set up, if its foundations still exist. Stopped components can be started again."""
    known = state.load()
    if known is None or known.boot_id != state.boot_id() or state.records().alive(controlplane.FABRIC) is None:
        return None
    needed = (paths.KUBECONFIG, paths.PKI / "ca.crt")
    return known if all(path.exists() for path in needed) and network.link_exists(state.link()) else None


def required() -> ClusterState:
    """The cluster that is set up. Errors: ClusterError when there is none."""
    known = current()
    if known is None:
        raise ClusterError("no cluster is running", remedy="run 'python -m cluster up'")
    return known


def is_whole(known: ClusterState) -> bool:
    """Whether every component runs and both nodes are Ready."""
    records = state.records()
    names = [*controlplane.NAMES, *(each.name for each in known.nodes)]
    if not all(records.alive(name) for name in names):
        return False
    ready = ClusterApi(paths.KUBECONFIG).ready_nodes()
    return all(ready.get(each.name) for each in known.nodes)


def up(console: ProgressConsole, archives: Sequence[Path] = ()) -> None:
    """Start everything that is not running, and import these archives into the nodes.

    Errors: ClusterError, after which another `up` or a `down` is possible.
    """
    require_root()
    machine.hierarchies()
    with state.locked():
        known = current()
        if known is not None and is_whole(known):
            images.load(console, archives, [each.name for each in known.nodes])
            console.summary(f"The cluster is running. KUBECONFIG={paths.KUBECONFIG}")
            return
        deps.ensure(console)
        binaries.build_all(console, binaries.NEEDED)
        if known is None:
            _clean(console)
            known = _lay(console)
        _start(console, known, archives)
        kubectl.link()
    console.summary(f"The cluster is running. KUBECONFIG={paths.KUBECONFIG}")


def _lay(console: ProgressConsole) -> ClusterState:
    """Create keys, addresses and bridges of a new cluster."""
    for stale in (paths.LOGS, paths.AUDIT_LOG):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    paths.LOGS.mkdir(parents=True, exist_ok=True)
    machine.save_sysctls(paths.RUN / "sysctls.json")
    machine.load_modules()
    machine.raise_sysctls()
    with console.step("Addresses") as step:
        plan = network.choose(network.used_on_machine())
        step.note = f"nodes {plan.nodes}, pods {plan.pods}, services {plan.services}"
    new = ClusterState(plan, state.boot_id())
    with console.step("Keys and certificates"):
        addresses = {each.name: each.address for each in new.nodes}
        pki.create(paths.PKI, components.api_url(plan), components.api_names(plan), addresses, paths.KUBECONFIG)
    with console.step("Bridges without an uplink"):
        controlplane.start_fabric(plan, len(new.nodes))
    state.save(new)
    return new


def _start(console: ProgressConsole, known: ClusterState, archives: Sequence[Path]) -> None:
    api = ClusterApi(paths.KUBECONFIG)
    with console.step("etcd and API server started"):
        controlplane.start(controlplane.ETCD, known.plan)
        controlplane.start(controlplane.APISERVER, known.plan)
    with console.step("Pause image"):
        pause = images.pause_archive()
    with console.step("Nodes powered on") as step:
        step.note = ", ".join(each.name for each in known.nodes if _power_on(known, each))
    names = [each.name for each in known.nodes]
    with ThreadPoolExecutor() as pool:
        # Nodes import images while the API server starts, which mostly waits.
        loading = pool.submit(_load, console, [pause, *archives], names)
        with console.step("API server ready"):
            controlplane.wait_ready(api)
        with console.step("Controller manager and scheduler started"):
            controlplane.bootstrap(api)
            controlplane.start(controlplane.CONTROLLER_MANAGER, known.plan)
            controlplane.start(controlplane.SCHEDULER, known.plan)
        with console.step("Nodes Ready") as step:
            wait_nodes(api, names)
            step.note = ", ".join(names)
        with console.step("First pod possible"):
            wait_account(api)
        loading.result()


def _load(console: ProgressConsole, archives: Sequence[Path], names: list[str]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(node.wait_runtime, names))
    images.load(console, archives, names)


def _power_on(known: ClusterState, each: components.NodeAddresses) -> bool:
    if node.init_record(each.name) is not None:
        return False
    node.prepare(known.plan, each, len(known.nodes))
    return node.power_on(known.plan, each)


def wait_nodes(api: ClusterApi, names: list[str], *, seconds: float = NODES_READY_SECONDS) -> None:
    """Wait until the nodes are Ready since their present boot. Errors: ClusterError naming those that are not."""

    def unready() -> list[str]:
        try:
            items = {item["metadata"]["name"]: item for item in api.get("/api/v1/nodes")["items"]}
        except ApiError:
            return names
        return [name for name in names if name not in items or not is_up(items[name], node.boot_id(name))]

    if not processes.wait_until(lambda: not unready(), seconds, pause=0.1):
        late = unready()
        if late:
            raise ClusterError(
                f"not Ready after {seconds:.0f} s: {', '.join(late)}",
                log=paths.LOGS / f"{late[0]}-kubelet.log",
                remedy=f"see 'kubectl describe node {late[0]}'; then 'python -m cluster up' again, or down and up",
            )


def is_up(item: dict[str, object], boot_id: str | None) -> bool:
    """Whether a Node object is Ready since the boot with that id."""
    info = item.get("status")
    reported = info.get("nodeInfo", {}).get("bootID") if isinstance(info, dict) else None
    return boot_id is not None and reported == boot_id and is_node_ready(item)


def wait_account(api: ClusterApi, *, seconds: float = 120.0) -> None:
    """Wait until the namespace `default` has its service account and token: before that no pod is accepted."""
    path = "/api/v1/namespaces/default/serviceaccounts/default"

    def there() -> bool:
        try:
            return bool(api.get(path))
        except ApiError:
            return False

    if not processes.wait_until(there, seconds, pause=0.1):
        raise ClusterError(
            "the controller manager does not create service accounts",
            log=controlplane.log(controlplane.CONTROLLER_MANAGER),
            remedy="run 'python -m cluster down', then up",
        )


def down(console: ProgressConsole) -> None:
    """Stop everything and remove everything but logs. Works from any state; idempotent."""
    require_root()
    with state.locked():
        _clean(console)
    console.summary("The cluster is removed.")


def _clean(console: ProgressConsole) -> None:
    """Remove all parts of a cluster of this checkout, with or without its records."""
    known = state.load()
    with console.step("Processes ended") as step:
        step.note = str(machine.kill_members(state.group()) + _kill_recorded())
    with console.step("Loop devices detached") as step:
        step.note = str(loops.detach_files(loops.STORAGE))
    with console.step("Links, routes, control groups removed"):
        network.remove_from_machine(known.plan if known is not None else None, state.link())
        machine.remove([state.group()])
    with console.step("System settings restored") as step:
        step.note = ", ".join(machine.restore_sysctls(paths.RUN / "sysctls.json")) or "none had changed"
    with console.step("Files removed"):
        controlplane.remove_data()
        for path in paths.RUN.iterdir():
            if path.name in KEPT_BY_DOWN or path.name.startswith("audit-2"):
                continue
            _remove(path)


def _kill_recorded() -> int:
    """End processes that are recorded but have left the control group."""
    records = state.records()
    alive = [rec for rec in map(records.alive, records.names()) if rec is not None]
    processes.kill(alive)
    return len(alive)


def _remove(path: Path) -> None:
    """Delete a file or tree. A node's last mounts may disappear a moment after its last process."""
    for _ in range(50):
        with contextlib.suppress(FileNotFoundError):
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            except OSError:
                time.sleep(0.1)
                continue
        return
    shutil.rmtree(path)
