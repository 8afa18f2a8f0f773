"""`python -m gateway`: admission webhooks, the aggregated API and certificates. All replicas are active.

Environment: HYPERLET_PORT (8443), HYPERLET_HEALTH_PORT (8080), HYPERLET_LOG (info), POD_NAMESPACE,
HYPERLET_LEAF_SECONDS (86400) and HYPERLET_AUTHORITY_SECONDS (a year): lifetimes of certificates.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable

from prometheus_client import Gauge

from api import ports
from api.kubevirt.kubevirt import KubeVirt, configuration_of
from gateway.admission import webhooks
from gateway.context import Gateway
from gateway.http.server import HttpsServer, Routes, application
from gateway.pki import signing
from gateway.pki.authorities import Lifetimes
from gateway.pki.certificate_rotator import CertificateRotator
from gateway.pki.certificates import Certificates
from gateway.subresources import dispatch, routes
from kit import health, log, memory
from kit.cache import Store
from kit.kube import Kube
from kit.tasks import BackgroundTasks

PATIENCE_SECONDS = 15.0
"""After start, how long readiness waits for the aggregated API."""
SETTLED_SECONDS = 30.0
"""After start, when caches, certificates and OpenAPI documents are loaded: free memory is then released."""
PARTS: tuple[Routes, ...] = (webhooks.routes, signing.routes, routes.routes)
READY = Gauge("kubevirt_virt_api_ready_status", "1 while this replica can be called")

_log = log.logger(component="main")


def lifetimes() -> Lifetimes:
    """Lifetimes of certificates. Raises ValueError when a CA would expire during its rotation."""
    standard = Lifetimes()
    leaf = _seconds("HYPERLET_LEAF_SECONDS", standard.leaf)
    authority = _seconds("HYPERLET_AUTHORITY_SECONDS", standard.authority)
    if leaf <= 0 or authority < 8 * leaf:
        raise ValueError(
            f"HYPERLET_AUTHORITY_SECONDS is {authority:g}: must be at least 8 * HYPERLET_LEAF_SECONDS ({leaf:g})"
        )
    return Lifetimes(authority, leaf)


def _seconds(name: str, usual: float) -> float:
    text = os.environ.get(name) or str(usual)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}: must be a number of seconds") from None


async def serve(stop: asyncio.Event, kube: Kube, lives: Lifetimes) -> None:
    """Serves until `stop`, then drains connections."""
    namespace = os.environ.get("POD_NAMESPACE") or kube.namespace
    certificates = Certificates(namespace, lives)
    rotator = CertificateRotator(kube, namespace, certificates)
    kubevirts: Store[KubeVirt] = Store(kube, KubeVirt)
    gateway = Gateway(kube, namespace, certificates, lambda: configuration_of(kubevirts.all()))
    app = application(gateway, PARTS)
    server = HttpsServer(app, certificates.server)
    endpoints = _endpoints(kube, server, rotator, kubevirts, lambda: dispatch.trouble(app))
    async with contextlib.AsyncExitStack() as stack:
        await endpoints.serve(int(os.environ.get("HYPERLET_HEALTH_PORT") or ports.HEALTH))
        stack.push_async_callback(endpoints.close)
        kubevirts.start()
        stack.push_async_callback(kubevirts.stop)
        tasks = BackgroundTasks(log.task_failed)
        stack.push_async_callback(tasks.close)
        rotating = tasks.start("certificate-rotator", rotator.run(), namespace=namespace)
        await server.start(int(os.environ.get("HYPERLET_PORT") or ports.GATEWAY))
        stack.push_async_callback(server.stop)
        asyncio.get_running_loop().call_later(SETTLED_SECONDS, memory.settle)
        stopping = tasks.start("stop", stop.wait())
        await asyncio.wait({stopping, rotating}, return_when=asyncio.FIRST_COMPLETED)
        if rotating.done():
            rotating.result()  # the rotator only ends with an error: exit, and let the kubelet restart the container
        _log.info("shutting down: draining connections")


def _endpoints(
    kube: Kube,
    server: HttpsServer,
    rotator: CertificateRotator,
    kubevirts: Store[KubeVirt],
    aggregated: Callable[[], str | None],
) -> health.HealthServer:
    endpoints = health.HealthServer()
    health.count_calls(kube)
    patience = asyncio.get_running_loop().time() + PATIENCE_SECONDS

    def ready() -> str | None:
        if server.stopping:
            return "stopping"
        if not kubevirts.is_synced:
            return "the KubeVirt configuration is not synced yet"
        if not rotator.is_healthy:
            return rotator.trouble
        # Admission must become ready on clusters without an aggregation layer, too.
        return aggregated() if asyncio.get_running_loop().time() < patience else None

    endpoints.ready("gateway", ready)
    READY.set_function(lambda: float(ready() is None))
    return endpoints


async def main() -> int:
    """Runs until SIGTERM. Returns the exit code."""
    log.setup("gateway")
    try:
        chosen = lifetimes()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Kube.connect("gateway") as kube:
        await serve(stop, kube, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
