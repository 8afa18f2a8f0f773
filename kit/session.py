"""The HTTP conversation with an API server, of components (`kit.kube`) and of hyperctl: one connection pool, TLS,
credentials that are renewed once after a 401, Retry-After, and error responses as exceptions."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

import aiohttp

from kit import faults, retry_after
from kit.connection import ApiConnection

T = TypeVar("T")
CONNECT_SECONDS = 10.0
ERROR_BODY_SECONDS = 10.0
"""Timeout for the body of an error response."""
TRANSPORT_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)
"""What a request raises if there is no response."""


class Refused(Exception):
    """An error response. `code` is the HTTP status, `status` the body, `path` the URL's path, `retry_seconds` how long
    it asks to wait (`kit.retry_after`)."""

    def __init__(self, code: int, status: faults.Status, path: str, retry_seconds: float | None) -> None:
        super().__init__(status.message)
        self.code = code
        self.status = status
        self.path = path
        self.retry_seconds = retry_seconds


class ApiSession:
    """Requests and WebSockets to one API server. Nothing is opened before the first one.

    All methods raise Refused, TRANSPORT_ERRORS, and what the credentials raise. Where the server asks to retry later,
    they do so within `patience` seconds.
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
        *,
        patience: float,
    ) -> aiohttp.ClientResponse:
        """Sends a request. The caller closes the response, whose body is not read yet.

        `seconds` limits request and body, waiting included; None: no limit. `answered` is called with the code of each
        response.
        """
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds

        async def send(auth: Mapping[str, str]) -> aiohttp.ClientResponse:
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            timeout = aiohttp.ClientTimeout(total=left, sock_connect=CONNECT_SECONDS)
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

        return await self._answer(send, patience)

    async def websocket(
        self,
        path: str,
        protocol: str,
        params: Mapping[str, str] | None = None,
        heartbeat: float | None = None,
        *,
        patience: float,
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

        return await self._answer(send, patience)

    async def _answer(self, send: Callable[[Mapping[str, str]], Awaitable[T]], patience: float) -> T:
        """Calls `send` with the credentials' headers until there is an answer.

        After a 401 it is called once more with renewed credentials. Where the server asks to retry later it is waited
        for, up to `patience` seconds from the beginning.
        """
        loop = asyncio.get_running_loop()
        until, renewed = loop.time() + patience, False
        if self._auth is None:
            self._auth = await self._where.credentials.headers(False)
        while True:
            try:
                return await send(self._auth)
            except Refused as refusal:
                wait = refusal.retry_seconds
                if refusal.code == 401 and not renewed:
                    renewed = True
                    self._auth = await self._where.credentials.headers(True)
                elif wait is not None and loop.time() + wait < until:
                    await asyncio.sleep(min(retry_after.spread(wait), until - loop.time()))
                else:
                    raise

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
    wait = retry_after.wait_seconds(response.status, response.headers)
    raise Refused(response.status, faults.parse(response.status, body), response.url.path, wait)
