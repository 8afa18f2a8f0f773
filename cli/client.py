"""Requests and WebSockets to the API server, with the user's kubeconfig."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import aiohttp
import msgspec

from api.k8s.meta import Json
from api.version import VERSION
from cli.paths import SUBRESOURCES
from cli.problem import CliError
from cli.settings import CliSettings
from kit import faults, kubeconfig
from kit.kubeconfig import ConfigError
from kit.session import ApiSession, Refused

T = TypeVar("T")

PROTOCOL = "plain.kubevirt.io"
"""The WebSocket subprotocol: raw bytes."""
REQUEST_SECONDS = 30.0
HEARTBEAT_SECONDS = 30.0
"""Ping interval of an open WebSocket; detects dead connections."""
PATIENCE_SECONDS = 10.0
"""How long a command waits altogether, if the server asks to retry later."""

_SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}


class RequestRefused(CliError):
    """The server refused the request. `status` has its code, reason and message."""

    def __init__(self, status: faults.Status, path: str) -> None:
        super().__init__(_message(status, path))
        self.status = status


def _message(status: faults.Status, path: str) -> str:
    message = " ".join(status.message.split())
    if status.code == 401:
        return f"the API server rejected the credentials: {message}"
    if status.code == 503 and not status.reason and SUBRESOURCES in path:
        # The gateway answers with a Status, the API server without its backend with a plain text.
        return "the API server cannot reach hyperlet's gateway: check that its pods are running"
    if status.code == 404 and not (status.details and status.details.name):
        # An object that does not exist is named in the details.
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
            where = kubeconfig.load(settings.choice())
        except ConfigError as error:
            raise CliError(str(error)) from error
        self.namespace, self._server = where.namespace, where.server
        self._settings = settings
        self._seconds = seconds_of(settings.request_timeout)
        self._api = ApiSession(where, self._fixed_headers())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()

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
        with self._errors():
            response = await self._api.request(
                method, path, params, data, headers, self._seconds,
                lambda code: self._log_request(method, path, code), patience=PATIENCE_SECONDS,
            )  # fmt: skip
            async with response:
                return await response.read()

    async def connect(self, path: str, params: Mapping[str, str] | None = None) -> aiohttp.ClientWebSocketResponse:
        """Opens a WebSocket with subprotocol PROTOCOL; the caller closes it."""
        with self._errors():
            socket = await self._api.websocket(path, PROTOCOL, params, HEARTBEAT_SECONDS, patience=PATIENCE_SECONDS)
        self._log_request("GET", path, 101)
        return socket

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

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Maps the exceptions of a request to CliError."""
        try:
            yield
        except Refused as refusal:
            raise RequestRefused(refusal.status, refusal.path) from refusal
        except ConfigError as error:
            raise CliError(str(error)) from error
        except TimeoutError as error:
            raise CliError(f"the API server {self._server} did not answer in time") from error
        except aiohttp.WSServerHandshakeError as error:
            raise CliError(f"the server refused the WebSocket upgrade: HTTP {error.status}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise CliError(f"cannot reach the API server {self._server}: {error}") from error

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
            print(f"{method} {self._server}{path} {status}", file=sys.stderr)


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
