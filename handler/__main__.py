"""The handler daemon: `python -m handler` on every node, as root, in the host's PID namespace.

Environment: NODE_NAME (required); POD_IP (address of the node service; unset: no node service); HYPERLET_CONTAINERD
(containerd's socket, if not in a default place; needed only without image volumes in the API server);
HYPERLET_HEALTH_PORT (default 8080); HYPERLET_LOG; HYPERLET_CNI_BIN and HYPERLET_CNI_CONF (directories of CNI plugins
and configurations, separated by colons).
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from typing import Any

from api import ports
from api.bridges import bridge_policy_of
from api.errors import ImagePullFailed
from handler.devices import device_plugin
from handler.devices.bridges import BridgePlugins, KubeVirtAnnotations, PodNetworkBridges
from handler.node.certificate import NodeCertificate
from handler.node.heartbeat import Heartbeat, NodeState
from handler.secondary_networks.attachment_records import AttachmentRecords
from handler.secondary_networks.attachments import Attachments
from handler.secondary_networks.cni_exec import CniHost
from handler.secondary_networks.reconciler import PodNetworkReconciler
from handler.service import node_service
from handler.storage.containerd import Containerd, find_socket
from handler.storage.images import ImageMounts
from handler.vmi.node_setup import NodeSetup
from handler.vmi.reconciler import VmiReconciler
from kit import health, log, memory
from kit.cache import Store
from kit.kube import Kube
from kit.tasks import BackgroundTasks

SETTLED_SECONDS = 5.0
"""Seconds after which memory that only the start needed is released."""


async def serve(node: str) -> None:
    """Run until SIGTERM or SIGINT. The VMs keep running."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    kube = Kube.connect("handler", host=node)
    socket = find_socket()
    client = Containerd(socket) if socket else None
    images = ImageMounts(client)
    plugins = device_plugin.standard()
    kvm, tun, _ = plugins
    attachments = Attachments(kube, AttachmentRecords())
    node_setup = NodeSetup(images, attacher=attachments)
    reconciler = VmiReconciler(kube, node, node_setup, lambda: kvm.verdict.sentence)
    networks = PodNetworkReconciler(kube, reconciler.pods, attachments)

    def state() -> NodeState | None:
        return NodeState(tun.verdict.works, kvm.verdict) if tun.checked and kvm.checked else None

    kubevirts: Store[KubeVirtAnnotations] = Store(kube, KubeVirtAnnotations)
    heartbeat = Heartbeat(kube, node, state)
    endpoints = _health(kube, reconciler)
    await endpoints.serve(int(os.environ.get("HYPERLET_HEALTH_PORT") or ports.HEALTH))
    reconciler.vmis.start()
    reconciler.pods.start()
    kubevirts.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(kube.close)
        if client is not None:
            stack.push_async_callback(client.close)
        stack.push_async_callback(endpoints.close)
        stack.push_async_callback(attachments.close)
        stack.push_async_callback(reconciler.close)
        stack.push_async_callback(reconciler.pods.stop)
        stack.push_async_callback(reconciler.vmis.stop)
        stack.push_async_callback(kubevirts.stop)
        bridges = BridgePlugins(
            pod_network=PodNetworkBridges(CniHost.configured()).bridges,
            choice=lambda: bridge_policy_of(kubevirts.all()) if kubevirts.is_synced else None,
        )
        asyncio.get_running_loop().call_later(SETTLED_SECONDS, memory.settle)
        works = {
            "vmi-reconciler": reconciler.run(),
            "pod-network-reconciler": networks.run(),
            "heartbeat": heartbeat.run(),
            "bridge-plugins": bridges.run(),
            "sweep": _sweep(reconciler, images, node_setup),
            **{f"device-plugin-{plugin.resource}": plugin.run() for plugin in plugins},
            **_gateway_works(kube, node, reconciler),
        }
        await run_until(stop, works)


async def run_until(stop: asyncio.Event, works: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Run the coroutines, by name, until `stop` is set; then cancel and await them.

    Raises the exception of one that ends on its own: it ends the process, and kubelet restarts it.
    """
    tasks = BackgroundTasks(log.task_failed)
    try:
        stopping = tasks.start("stop", _ends(stop))
        running = [tasks.start(name, work) for name, work in works.items()]
        done, _ = await asyncio.wait({*running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await tasks.close()


def _gateway_works(kube: Kube, node: str, reconciler: VmiReconciler) -> dict[str, Coroutine[Any, Any, None]]:
    """The coroutines that serve the gateway: certificate and gRPC server."""
    host = os.environ.get("POD_IP", "")
    if not host:
        log.logger(component="node-service").warning("POD_IP is not set: the node service is not started")
        return {}
    certificate = NodeCertificate(kube, node)
    address = f"[{host}]:{ports.HANDLER}" if ":" in host else f"{host}:{ports.HANDLER}"
    return {"node-certificate": certificate.run(), "node-service": _serve_gateway(certificate, reconciler, address)}


async def _serve_gateway(certificate: NodeCertificate, reconciler: VmiReconciler, address: str) -> None:
    """Serve until cancelled, as soon as there is a certificate."""
    await certificate.there()
    service = node_service.NodeService(reconciler.launcher_of)
    async with node_service.serving(service, certificate.credentials(), address):
        await asyncio.Event().wait()


async def _ends(stop: asyncio.Event) -> None:
    await stop.wait()


def _health(kube: Kube, reconciler: VmiReconciler) -> health.HealthServer:
    endpoints = health.HealthServer()
    health.count_calls(kube)
    endpoints.ready("vmis", lambda: None if reconciler.vmis.is_synced else "the VMI cache has not synced yet")
    endpoints.ready("pods", lambda: None if reconciler.pods.is_synced else "the pod cache has not synced yet")
    return endpoints


async def _sweep(reconciler: VmiReconciler, images: ImageMounts, node_setup: NodeSetup) -> None:
    """Release images and records that a crash left behind: after the first pod sync, then every hour."""
    logger = log.logger(component="images")
    await reconciler.pods.synced()
    while True:
        try:
            if dropped := await images.sweep(reconciler.living()):
                logger.info("Released images of deleted pods", views=dropped)
        except ImagePullFailed as error:
            logger.warning("Could not release images of deleted pods", why=error.message)
        try:
            node_setup.sweep(reconciler.living())
        except OSError as error:
            logger.warning("Could not remove interface records of deleted pods", why=str(error))
        await asyncio.sleep(3600)


def main() -> int:
    """Entry point of the process."""
    log.setup("handler")
    node = os.environ.get("NODE_NAME")
    if not node:
        print("NODE_NAME is not set: set it to the name of this node", file=sys.stderr)
        return 2
    asyncio.run(serve(node))
    return 0


if __name__ == "__main__":
    sys.exit(main())
