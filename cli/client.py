"""Requests and WebSockets through the API server, as the person of the kubeconfig."""

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
"""The WebSockets' subprotocol: bytes as they are."""
REQUEST_SECONDS = 30.0
HEARTBEAT_SECONDS = 30.0
"""How often an open WebSocket is pinged, so that a dead connection is noticed."""
ANSWER_SECONDS = 10.0
"""Patience with the body of a refusal."""

_SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}


class RequestRefused(CliError):
    """The server's answer is no. `status` has its code, reason and message."""

    def __init__(self, status: faults.Status) -> None:
        super().__init__(_message(status))
        self.status = status


def _message(status: faults.Status) -> str:
    message = " ".join(status.message.split())
    if status.code == 401:
        return f"the API server does not accept these credentials: {message}"
    if status.code == 503 and message == "service unavailable":
        return "the API server does not reach hyperlet's gateway: is it running?"
    if status.code == 404 and ("could not find the requested resource" in message or "page not found" in message):
        return "this cluster does not serve that: is hyperlet installed, with its gateway?"
    return message


def seconds_of(text: str | None) -> float | None:
    """The time limit of a request: `30`, `30s`, `2m`; 0 means none. Raises CliError."""
    if text is None:
        return REQUEST_SECONDS
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if match is None:
        raise CliError(f"--request-timeout is a time such as 30s or 2m, not {text!r}")
    return float(match[1]) * _SECONDS[match[2] or ""] or None


class ApiClient:
    """One API server. `async with Client(settings) as client:`; all methods raise Problem."""

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
            # The body of a refusal is read here: by the time ws_connect raises, it is gone.
            raise_for_status=_refuse,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Json:
        """A JSON document."""
        return _document(await self.call("GET", path, params=params))

    async def put(self, path: str, body: Json | None = None) -> bytes:
        """Sends options to a subresource; what it answers."""
        return await self.call("PUT", path, body)

    async def document(self, method: str, path: str, body: Json | None) -> Json:
        """Sends a document and gets one back."""
        return _document(await self.call(method, path, body))

    async def delete(self, path: str, body: Json) -> None:
        """Deletes an object."""
        await self.call("DELETE", path, body)

    async def call(
        self, method: str, path: str, body: Json | None = None, params: Mapping[str, str] | None = None
    ) -> bytes:
        """The answer's bytes, whatever they are."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if data is not None else {}
        timeout = aiohttp.ClientTimeout(total=self._seconds, sock_connect=10)

        async def send(auth: Mapping[str, str]) -> bytes:
            url = self._where.server + path
            async with self._open().request(
                method, url, params=params, data=data, headers={**headers, **auth}, timeout=timeout
            ) as answer:
                self._tell(method, path, answer.status)
                return await answer.read()

        return await self._authenticated(send)

    async def connect(self, path: str, params: Mapping[str, str] | None = None) -> aiohttp.ClientWebSocketResponse:
        """An open WebSocket with the published subprotocol, to be closed by the caller."""

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
            self._tell("GET", path, 101)
            return socket

        return await self._authenticated(send)

    @contextlib.asynccontextmanager
    async def socket(
        self, path: str, params: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """The same, closed at the end of the body."""
        opened = await self.connect(path, params)
        try:
            yield opened
        finally:
            await opened.close()

    async def _authenticated(self, send: Callable[[Mapping[str, str]], Awaitable[T]]) -> T:
        """What `send` returns, given the credentials; a second time with new ones when the first are refused."""
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
                raise CliError(f"the server does not open a stream here: HTTP {error.status}") from error
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
            raise CliError("--as-group and --as-uid need --as")
        return headers

    def _tell(self, method: str, path: str, status: int) -> None:
        if self._settings.verbosity >= 6:
            print(f"{method} {self._where.server}{path} {status}", file=sys.stderr)


async def _refuse(answer: aiohttp.ClientResponse) -> None:
    if answer.status < 400:
        return
    body = b""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        body = await asyncio.wait_for(answer.read(), ANSWER_SECONDS)
    raise RequestRefused(faults.parse(answer.status, body))


def _document(body: bytes) -> Json:
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise CliError(f"the server's answer is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CliError("the server's answer is not a JSON object")
    return document


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine to its end."""
    return asyncio.run(work)
