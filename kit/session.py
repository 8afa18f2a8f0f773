"""The HTTP conversation with an API server, of components (`kit.kube`) and of hyperctl: one connection pool, TLS,
credentials that are renewed once after a 401, and error responses as exceptions."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

import aiohttp

from kit import faults
from kit.connection import ApiConnection

T = TypeVar("T")
CONNECT_SECONDS = 10.0
ERROR_BODY_SECONDS = 10.0
"""Timeout for the body of an error response."""
TRANSPORT_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)
"""What a request raises if there is no response."""


class Refused(Exception):
    """An error response. `code` is the HTTP status, `status` the body."""

    def __init__(self, code: int, status: faults.Status) -> None:
        super().__init__(status.message)
        self.code = code
        self.status = status


class ApiSession:
    """Requests and WebSockets to one API server. Nothing is opened before the first one.

    All methods raise Refused, TRANSPORT_ERRORS, and what the credentials raise.
    """

    def __init__(self, where: ApiConnection, headers: Iterable[tuple[str, str]]) -> None:
        """`headers` are sent with every request."""
        self._where = where
        self._headers = list(headers)
        self._http: aiohttp.ClientSession | None = None
        self._auth: dict[str, str] | None = None

    async def close(self) -> None:
        """Closes all connections."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
        answered: Callable[[int], object] = lambda code: None,
    ) -> aiohttp.ClientResponse:
        """Sends a request. The caller closes the response, whose body is not read yet.

        `seconds` limits request and body; None: no limit. `answered` is called with the code of each response.
        """
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)

        async def send(auth: Mapping[str, str]) -> aiohttp.ClientResponse:
            try:
                response = await self._opened().request(
                    method,
                    self._where.server + path,
                    params=params,
                    data=data,
                    headers={**(headers or {}), **auth},
                    timeout=timeout,
                )
            except Refused as refusal:
                answered(refusal.code)
                raise
            answered(response.status)
            return response

        return await self._authenticated(send)

    async def websocket(
        self, path: str, protocol: str, params: Mapping[str, str] | None = None, heartbeat: float | None = None
    ) -> aiohttp.ClientWebSocketResponse:
        """Opens a WebSocket with this subprotocol and messages of any size; the caller closes it."""

        async def send(auth: Mapping[str, str]) -> aiohttp.ClientWebSocketResponse:
            return await self._opened().ws_connect(
                self._where.server + path,
                params=params,
                protocols=(protocol,),
                headers=auth,
                heartbeat=heartbeat,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )

        return await self._authenticated(send)

    async def _authenticated(self, send: Callable[[Mapping[str, str]], Awaitable[T]]) -> T:
        """Calls `send` with the credentials' headers; after a 401 once more with renewed credentials."""
        for renew in (False, True):
            if self._auth is None or renew:
                self._auth = await self._where.credentials.headers(renew)
            try:
                return await send(self._auth)
            except Refused as refusal:
                if refusal.code != 401 or renew:
                    raise
        raise AssertionError("the second attempt returns or raises")

    def _opened(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._where.tls or True, keepalive_timeout=60),
                headers=self._headers,
                auto_decompress=True,
                trust_env=False,
                skip_auto_headers=("Accept-Encoding",),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=1 << 18,
                # Reads the body of an error response: that of a WebSocket is lost once ws_connect raises.
                raise_for_status=_refuse,
            )
        return self._http


async def _refuse(response: aiohttp.ClientResponse) -> None:
    if response.status < 300:
        return
    body = b""
    try:
        with contextlib.suppress(*TRANSPORT_ERRORS):
            async with asyncio.timeout(ERROR_BODY_SECONDS):
                body = await response.read()
    finally:
        response.release()
    raise Refused(response.status, faults.parse(response.status, body))
