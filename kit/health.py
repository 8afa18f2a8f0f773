"""HTTP server for /healthz, /readyz and /metrics."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from kit.guarded_site import ConnectionLimits, GuardedSite
from kit.kube import Kube

LIMITS = ConnectionLimits(total=256, each=32, idle=8, fresh=16)
"""The only clients are a kubelet and a few Prometheus servers."""
Check = Callable[[], str | None]
"""Returns None if healthy, else an error message."""


class _Calls(Collector):
    """Exports the request counts of `kube` as kubevirt_rest_client_requests_total."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    def collect(self) -> list[Metric]:
        """The current counts."""
        family = CounterMetricFamily(
            "kubevirt_rest_client_requests",
            "Requests to the API server; code 0: no response",
            labels=["verb", "resource", "code"],
        )
        for (verb, resource, code), count in self._kube.calls.items():
            family.add_metric([verb, resource, str(code)], count)
        return [family]


def count_calls(kube: Kube, registry: CollectorRegistry = REGISTRY) -> None:
    """Adds the request counts of a client to the metrics."""
    registry.register(_Calls(kube))


class HealthServer:
    """The endpoints. Register checks by name; `serve` listens until `close`."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._alive: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}
        self._registry = registry
        self._runner: web.AppRunner | None = None

    def alive(self, name: str, check: Check) -> None:
        """Adds a check to /healthz: if it fails, the kubelet restarts the container."""
        self._alive[name] = check

    def ready(self, name: str, check: Check) -> None:
        """Adds a check to /readyz."""
        self._ready[name] = check

    def app(self) -> web.Application:
        """The aiohttp application, to which a component may add routes."""
        app = web.Application()
        app.router.add_get("/healthz", lambda _: self._answer(self._alive))
        app.router.add_get("/readyz", lambda _: self._answer({**self._alive, **self._ready}))
        app.router.add_get("/metrics", self._metrics)
        return app

    async def serve(self, port: int, host: str | None = None, app: web.Application | None = None) -> None:
        """Starts listening on `host`; by default on all addresses of the pod."""
        self._runner = web.AppRunner(app or self.app(), access_log=None, handle_signals=False)
        await self._runner.setup()
        await GuardedSite(self._runner, port, host, limits=LIMITS).start()

    async def close(self) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, checks: dict[str, Check]) -> web.Response:
        lines, fine = [], True
        for name, check in checks.items():
            trouble = check()
            fine = fine and trouble is None
            lines.append(f"[{'-' if trouble else '+'}] {name}{': ' + trouble if trouble else ''}")
        return web.Response(text="\n".join([*lines, "ok" if fine else "not ok"]) + "\n", status=200 if fine else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})
