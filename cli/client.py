"""Requests and WebSockets to the API server, with the user's kubeconfig."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Self, TypeVar

import aiohttp
import msgspec

from api.version import VERSION
from cli.problem import CliError
from cli.settings import CliSettings
from kit import faults, kubeconfig
from kit.kubeconfig import ConfigError

T = TypeVar("T")
Json = dict[str, Any]

PROTOCOL = "plain.kubevirt.io"
"""The WebSocket subprotocol: raw bytes."""
REQUEST_SECONDS = 30.0
HEARTBEAT_SECONDS = 30.0
"""Ping interval of an open WebSocket; detects dead connections."""
ANSWER_SECONDS = 10.0
"""Timeout for the body of an error response."""

_SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}


class RequestRefused(CliError):
    """The server refused the request. `status` has its code, reason and message."""

    def __init__(self, status: faults.Status) -> None:
        super().__init__(_message(status))
        self.status = status


def _message(status: faults.Status) -> str:
    message = " ".join(status.message.split())
    if status.code == 401:
        return f"the API server rejected the credentials: {message}"
    if status.code == 503 and message == "service unavailable":
        return "the API server cannot reach hyperlet's gateway: check that its pods are running"
    if status.code == 404 and ("could not find the requested resource" in message or "page not found" in message):
        return "the cluster does not serve this API: check that hyperlet and its gateway are installed"
    return message


def seconds_of(text: str | None) -> float | None:
    """The time limit of a request: `30`, `30s`, `2m`; 0 means none. Raises CliError."""
    if text is None:
        return REQUEST_SECONDS
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if match is None:
        raise CliError(f"--request-timeout must be a duration such as 30s or 2m, not {text!r}")
    return float(match[1]) * _SECONDS[match[2] or ""] or None


class ApiClient:
    """A client of one API server: `async with ApiClient(settings) as client:`. All methods raise CliError."""

    def __init__(self, settings: CliSettings) -> None:
        try:
            self._where = kubeconfig.load(settings.choice())
        except ConfigError as error:
            raise CliError(str(error)) from error
        self.namespace = self._where.namespace
        self._settings = settings
        self._seconds = seconds_of(settings.request_timeout)
        self._session: aiohttp.ClientSession | None = None
        self._auth: dict[str, str] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._where.tls or True),
            headers=self._fixed_headers(),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Reads the body of an error response here: it is lost once ws_connect raises.
            raise_for_status=_refuse,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Json:
        """Gets a JSON document."""
        return _document(await self.call("GET", path, params=params))

    async def put(self, path: str, body: Json | None = None) -> bytes:
        """Sends options to a subresource and returns the response body."""
        return await self.call("PUT", path, body)

    async def document(self, method: str, path: str, body: Json | None) -> Json:
        """Sends a document and returns the document of the response."""
        return _document(await self.call(method, path, body))

    async def delete(self, path: str, body: Json) -> None:
        """Deletes an object."""
        await self.call("DELETE", path, body)

    async def call(
        self, method: str, path: str, body: Json | None = None, params: Mapping[str, str] | None = None
    ) -> bytes:
        """Sends a request and returns the raw response body."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if data is not None else {}
        timeout = aiohttp.ClientTimeout(total=self._seconds, sock_connect=10)

        async def send(auth: Mapping[str, str]) -> bytes:
            url = self._where.server + path
            async with self._open().request(
                method, url, params=params, data=data, headers={**headers, **auth}, timeout=timeout
            ) as answer:
                self._log_request(method, path, answer.status)
                return await answer.read()

        return await self._authenticated(send)

    async def connect(self, path: str, params: Mapping[str, str] | None = None) -> aiohttp.ClientWebSocketResponse:
        """Opens a WebSocket with subprotocol PROTOCOL; the caller closes it."""

        async def send(auth: Mapping[str, str]) -> aiohttp.ClientWebSocketResponse:
            socket = await self._open().ws_connect(
                self._where.server + path,
                params=params,
                protocols=(PROTOCOL,),
                headers=auth,
                heartbeat=HEARTBEAT_SECONDS,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )
            self._log_request("GET", path, 101)
            return socket

        return await self._authenticated(send)

    @contextlib.asynccontextmanager
    async def socket(
        self, path: str, params: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Like `connect`, closed on exit."""
        opened = await self.connect(path, params)
        try:
            yield opened
        finally:
            await opened.close()

    async def _authenticated(self, send: Callable[[Mapping[str, str]], Awaitable[T]]) -> T:
        """Calls `send` with the credentials' headers; on 401 once more with renewed credentials."""
        for renew in (False, True):
            try:
                if self._auth is None or renew:
                    self._auth = await self._where.credentials.headers(renew)
                return await send(self._auth)
            except RequestRefused as refusal:
                if refusal.status.code != 401 or renew:
                    raise
            except ConfigError as error:
                raise CliError(str(error)) from error
            except TimeoutError as error:
                raise CliError(f"the API server {self._where.server} did not answer in time") from error
            except aiohttp.WSServerHandshakeError as error:
                raise CliError(f"the server refused the WebSocket upgrade: HTTP {error.status}") from error
            except (aiohttp.ClientError, OSError) as error:
                raise CliError(f"cannot reach the API server {self._where.server}: {error}") from error
        raise AssertionError("the second attempt returns or raises")

    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None, "used outside of `async with`"
        return self._session

    def _fixed_headers(self) -> Sequence[tuple[str, str]]:
        given = self._settings
        headers = [("User-Agent", f"hyperctl/{VERSION}")]
        if given.impersonate:
            headers.append(("Impersonate-User", given.impersonate))
            headers += [("Impersonate-Group", group) for group in given.impersonate_groups]
            headers += [("Impersonate-Uid", uid) for uid in [given.impersonate_uid] if uid]
        elif given.impersonate_groups or given.impersonate_uid:
            raise CliError("--as-group and --as-uid require --as")
        return headers

    def _log_request(self, method: str, path: str, status: int) -> None:
        if self._settings.verbosity >= 6:
            print(f"{method} {self._where.server}{path} {status}", file=sys.stderr)


async def _refuse(answer: aiohttp.ClientResponse) -> None:
    if answer.status < 400:
        return
    body = b""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            body = await answer.read()
    raise RequestRefused(faults.parse(answer.status, body))


def _document(body: bytes) -> Json:
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise CliError(f"the server's response is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CliError("the server's response is not a JSON object")
    return document


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine to completion."""
    return asyncio.run(work)
