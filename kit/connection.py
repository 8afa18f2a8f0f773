"""How to reach and convince the API server: configuration, TLS and credentials, all from lightkube.

The requests themselves go through aiohttp, which the health endpoints need anyway. Measured with 3,000 GETs of a 4 KiB
ConfigMap over TLS on loopback: 0.29 ms of CPU for each, against 0.79 ms with lightkube's own client.
"""

import contextlib
import os
import ssl
from dataclasses import dataclass
from typing import Any

from lightkube.config import client_adapter
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

# lightkube's HTTP library, whatever it is called in its version: here it only carries headers.
_httpx = client_adapter.httpx  # type: ignore[attr-defined]


class Credentials:
    """The Authorization header: a token from a kubeconfig, a rotating service account token, an exec plugin or none."""

    def __init__(self, auth: Any) -> None:
        self._auth = auth

    async def headers(self, renew: bool = False) -> dict[str, str]:
        """The headers to send. With `renew`, as after a 401: read the token (or run the plugin) again."""
        if self._auth is None:
            return {}
        flow = self._auth.async_auth_flow(_httpx.Request("GET", "https://unused.invalid/"))
        request = await anext(flow)
        if renew:
            with contextlib.suppress(StopAsyncIteration):
                request = await flow.asend(_httpx.Response(401, request=request))
        await flow.aclose()
        header = request.headers.get("Authorization")
        return {"Authorization": header} if header else {}


@dataclass(frozen=True)
class ApiConnection:
    """An API server's address, TLS context (None for plain http) and credentials."""

    server: str
    tls: ssl.SSLContext | None
    credentials: Credentials
    namespace: str


def load(kubeconfig: str | None = None) -> ApiConnection:
    """The connection of `kubeconfig`, else of $KUBECONFIG, else of the pod's service account.

    Raises lightkube's ConfigError, in words, when there is neither.
    """
    path = kubeconfig or os.environ.get("KUBECONFIG")
    loaded = KubeConfig.from_file(path) if path else KubeConfig.from_service_account()
    config: SingleConfig | None = loaded.get()
    if config is None:
        raise ConfigError(f"{path} has no current context")
    return connection_of(config)


def connection_of(config: SingleConfig, credentials: Credentials | None = None) -> ApiConnection:
    """The connection that one context describes; `credentials` instead of those that lightkube makes of its user."""
    user = config.user or User()
    tls = None
    if config.cluster.server.startswith("https:"):
        tls = client_adapter.verify_cluster(config.cluster, user, config.abs_file)
        if isinstance(tls, ssl.SSLContext):
            # Python 3.13 began to insist on key identifiers (RFC 5280, 4.2.1.1), which the certificates of many
            # clusters lack. Chain, name and dates are checked as before.
            tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    credentials = credentials or Credentials(client_adapter.user_auth(user))
    return ApiConnection(config.cluster.server.rstrip("/"), tls, credentials, config.namespace)
