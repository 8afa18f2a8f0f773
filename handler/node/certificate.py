"""The node's serving certificate: the key stays in this process; the gateway signs for this node's name only."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import msgspec

from api import names
from api.errors import ApiUnavailable, HyperletError
from api.k8s.meta import Struct
from api.k8s.objects import ConfigMap, K8sObject
from api.k8s.resource import Resource
from kit import backoff, log, tls
from kit.kube import Kube
from kit.tls import TlsIdentity

TOKEN = Path("/run/secrets/hyperlet/token")
"""Projected service account token with audience `hyperlet`, renewed by kubelet."""
SECONDS = 10.0
MAX_MESSAGE = 500
"""Bytes kept of a rejected response's body."""
RETRY_SECONDS = (1.0, 30.0)

_log = log.logger(component="certificate")


class ServiceSpec(Struct):
    """ServiceSpec, as far as it is read."""

    clusterIP: str | None = None


class Service(K8sObject):
    """A Service, as far as it is read."""

    RESOURCE = Resource("", "v1", "Service", "services")

    spec: ServiceSpec = ServiceSpec()


class _Signed(msgspec.Struct):
    certificate: str
    roots: str


class NodeCertificate:
    """The certificate of the node's gRPC server, renewed by `run()` at two thirds of its lifetime."""

    def __init__(
        self, kube: Kube, node: str, token: Path = TOKEN, clock: Callable[[], float] = time.time, port: int = 443
    ) -> None:
        self._kube = kube
        self._node = node
        self._token = token
        self._clock = clock
        self._port = port
        self._there = asyncio.Event()
        self.identity: TlsIdentity | None = None
        """The newest; None before the first."""

    async def there(self) -> None:
        """Wait for the first certificate."""
        await self._there.wait()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`, after `there()`: every new connection gets the newest certificate.

        Clients need a certificate of the internal CA; the service must check its subject.
        """
        given: list[TlsIdentity] = []

        def fetch() -> Any:  # the stub lacks None, which gRPC's documentation allows
            newest = self.identity
            if newest is None or (given and given[0] is newest):
                return None  # unchanged
            given[:] = [newest]
            return _configuration(newest)

        if self.identity is None:
            raise RuntimeError("no certificate yet: await there() first")
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self.identity), fetch, require_client_authentication=True
        )

    async def run(self) -> None:
        """Obtain and renew the certificate until cancelled. The old one stays in use while the gateway is down."""
        failures = 0
        while True:
            try:
                self.identity = await self.obtain()
            except HyperletError as error:
                failures += 1
                pause = backoff.delay(failures, *RETRY_SECONDS)
                _log.warning("Cannot obtain the node's certificate, retrying", why=error.message, seconds=pause)
                await asyncio.sleep(pause)
                continue
            failures = 0
            self._there.set()
            left = tls.expiry(self.identity.certificate) - self._clock()
            _log.info("The gateway signed this node's certificate", node=self._node, seconds=round(left))
            await asyncio.sleep(max(left * 2 / 3, RETRY_SECONDS[0]))

    async def obtain(self) -> TlsIdentity:
        """A new key and its signed certificate. Raises HyperletError."""
        bundle = (await self._kube.get(ConfigMap, self._kube.namespace, names.AUTHORITIES)).data or {}
        service = await self._kube.get(Service, self._kube.namespace, names.GATEWAY_SERVICE)
        if not bundle.get(names.SERVING_BUNDLE) or not service.spec.clusterIP:
            raise ApiUnavailable("the gateway has not published its CA bundle or has no clusterIP yet")
        key = await asyncio.to_thread(tls.new_key)
        signed = await self._asked(
            service.spec.clusterIP, bundle[names.SERVING_BUNDLE].encode(), tls.request(key, self._node)
        )
        identity = TlsIdentity(signed.certificate.encode(), key, signed.roots.encode())
        try:
            tls.check_pair(tls.KeyPair(identity.certificate, key))
            mine = tls.uris(identity.certificate)
        except tls.TlsError as error:
            raise ApiUnavailable(f"the gateway returned an invalid certificate: {error}") from error
        if mine != [names.node_uri(self._node)]:
            raise ApiUnavailable(f"the gateway signed for {mine}, not for {names.node_uri(self._node)}")
        return identity

    async def _asked(self, address: str, roots: bytes, request: bytes) -> _Signed:
        host = f"[{address}]" if ":" in address else address
        url = f"https://{host}:{self._port}/sign"
        name = f"{names.GATEWAY_SERVICE}.{self._kube.namespace}.svc"
        try:
            token = self._token.read_text().strip()
            context = tls.client_context(roots)
            timeout = aiohttp.ClientTimeout(total=SECONDS)
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
                session.post(
                    url,
                    data=request,
                    ssl=context,
                    server_hostname=name,
                    headers={"Authorization": f"Bearer {token}"},
                    allow_redirects=False,
                ) as response,
            ):
                body = await response.read()
                if response.status != 200:
                    said = body[:MAX_MESSAGE].decode(errors="replace")
                    raise ApiUnavailable(f"the gateway responded {response.status}: {said}")
                return msgspec.json.decode(body, type=_Signed)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, msgspec.DecodeError) as error:
            raise ApiUnavailable(f"the gateway at {url}: {str(error) or type(error).__name__}") from error


def _configuration(identity: TlsIdentity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], root_certificates=identity.roots
    )
