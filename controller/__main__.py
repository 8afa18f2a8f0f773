"""`python -m controller`: reconciles VM → VMI → launcher pod. Runs in a Deployment, or anywhere with a KUBECONFIG.

Environment: HYPERLET_LAUNCHER_IMAGE, HYPERLET_LAUNCHER_PULL_POLICY, HYPERLET_PORT (8080), HYPERLET_LOG (info),
HYPERLET_IMAGE_VOLUMES (auto, always, never), HYPERLET_USER_NAMESPACES (auto, never), POD_NAMESPACE, POD_NAME.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from prometheus_client import Gauge

from api import names, ports
from controller.cache.cluster import ClusterCache
from controller.installation import image_volumes
from controller.installation.admission_policies import PolicyWatcher
from controller.kind_reconciler import KindReconciler
from controller.reconcilers import RECONCILERS
from kit import health, log, memory
from kit.kube import Kube
from kit.leader import Leader, LeadershipLost
from kit.tasks import until_one_ends

WORKERS = 16
SETTLED_SECONDS = 5.0
"""Delay before startup memory is released: by then every object has been reconciled once."""
Loops = Sequence[KindReconciler[Any, Any]]
LEADING = Gauge("kubevirt_virt_controller_leading_status", "1 while this replica leads")
READY = Gauge("kubevirt_virt_controller_ready_status", "1 while this replica's caches are synced")

_log = log.logger(component="main")


async def serve(kube: Kube) -> None:
    """Starts caches and HTTP endpoints, and reconciles while this replica is the leader. Never returns."""
    namespace = os.environ.get("POD_NAMESPACE") or kube.namespace
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{uuid4().hex[:8]}"
    cluster = ClusterCache(kube)
    loops = [reconciler(kube, cluster) for reconciler in RECONCILERS]
    leader = Leader(kube, namespace, names.CONTROLLER_LEASE, identity)
    endpoints = _endpoints(kube, cluster, leader)
    async with contextlib.AsyncExitStack() as stack:
        await endpoints.serve(int(os.environ.get("HYPERLET_PORT") or ports.HEALTH))
        stack.push_async_callback(endpoints.close)
        for store in cluster.stores.values():
            store.start()
            stack.push_async_callback(store.stop)
        await asyncio.gather(*(store.synced() for store in cluster.stores.values()))
        cluster.image_volumes = await image_volumes.supported(kube, namespace)
        await cluster.policies.refresh()
        _log.info(
            "Caches are synced",
            vms=len(cluster.vms),
            vmis=len(cluster.vmis),
            pods=len(cluster.pods),
            image_volumes=cluster.image_volumes,
            kvm=cluster.settings.kvm_offered,
        )
        asyncio.get_running_loop().call_later(SETTLED_SECONDS, memory.settle)
        async with asyncio.TaskGroup() as group:
            if not cluster.image_volumes:
                group.create_task(_await_image_volumes(kube, namespace, cluster))
            group.create_task(_lead(leader, loops, cluster.policies))


async def _lead(leader: Leader, loops: Loops, policies: PolicyWatcher) -> None:
    while True:
        try:
            await leader.lead(_work(loops, policies))
        except LeadershipLost as error:
            _log.error("Lost the leader lease: reconciling stops until it is acquired again", why=str(error))


async def _await_image_volumes(kube: Kube, namespace: str, cluster: ClusterCache) -> None:
    await image_volumes.appear(kube, namespace)
    _log.info("The API server now supports image volumes: new launcher pods use them")
    cluster.use_image_volumes()


def _endpoints(kube: Kube, cluster: ClusterCache, leader: Leader) -> health.HealthServer:
    endpoints = health.HealthServer()
    endpoints.ready("caches", cluster.trouble)
    LEADING.set_function(lambda: float(leader.leading))
    READY.set_function(lambda: float(cluster.trouble() is None))
    health.count_calls(kube)
    return endpoints


async def _work(loops: Loops, policies: PolicyWatcher) -> None:
    """Runs the reconcilers, starting with every existing object."""
    for loop in loops:
        loop.add_all()
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop.run(WORKERS))
        group.create_task(policies.run())


async def main() -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit code."""
    log.setup("controller")
    async with Kube.connect("controller") as kube:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await until_one_ends(serve(kube), _stopped(stop))
    return 0


async def _stopped(stop: asyncio.Event) -> None:
    await stop.wait()
    _log.info("Received a termination signal: stopping")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
