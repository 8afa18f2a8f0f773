"""A fake API server with subresources, objects and streams."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import WSMsgType, web

Json = dict[str, Any]
Stream = Callable[[web.WebSocketResponse], Awaitable[None]]

SUB = "/apis/subresources.kubevirt.io/v1/namespaces/default"
OBJ = "/apis/kubevirt.io/v1/namespaces/default"
PNG = b"\x89PNG\r\n\x1a\nand so on"


class Request(NamedTuple):
    """A received request."""

    method: str
    path: str
    raw: str
    query: Json
    body: Any
    headers: dict[str, str]


def status(code: int, reason: str, message: str, name: str = "") -> Json:
    """A Status response. `name`: the object's, which a server that knows the resource gives."""
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code, "details": {"name": name} if name else {},
    }  # fmt: skip


async def echo(socket: web.WebSocketResponse) -> None:
    """A guest that echoes."""
    async for message in socket:
        await socket.send_bytes(message.data if message.type is WSMsgType.BINARY else message.data.encode())


class Published:
    """`with Published() as server:` runs in a thread, because a command runs its own event loop."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: dict[tuple[str, str], Any] = {}
        """By method and path: a document, bytes, or a list of consecutive responses."""
        self.codes: dict[tuple[str, str], int] = {}
        """By method and path: the HTTP status of responses in bytes, if not 200."""
        self.retry_after: dict[tuple[str, str], str] = {}
        """By method and path: that header of error responses."""
        self.streams: dict[str, Stream] = {}
        self.tokens = {"good"}
        self.open_streams = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Published:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.port = runner.addresses[0][1]
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    def kubeconfig(self, folder: Path, token: str = "good", namespace: str = "default") -> Path:
        """A kubeconfig for this server."""
        path = folder / "kubeconfig"
        context = {"cluster": "here", "user": "me", "namespace": namespace}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "contexts": [{"name": "here", "context": context}],
            "users": [{"name": "me", "user": {"token": token}}],
        }  # fmt: skip
        path.write_text(json.dumps(document))
        return path

    def calls(self, method: str) -> list[Request]:
        """The requests with a method."""
        return [request for request in self.requests if request.method == method]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.requests.append(
            Request(
                request.method, request.path, request.rel_url.raw_path, dict(request.query), body, dict(request.headers)
            )
        )
        if request.headers.get("Authorization") not in {f"Bearer {token}" for token in self.tokens}:
            return web.json_response(status(401, "Unauthorized", "Unauthorized"), status=401)
        answer = self.answers.get((request.method, request.path))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer is None and request.path in self.streams:
            return await self._stream(request, self.streams[request.path])
        if answer is None:
            answer = status(404, "NotFound", "the server could not find the requested resource")
        if isinstance(answer, bytes):
            return web.Response(body=answer, status=self.codes.get((request.method, request.path), 200))
        code = answer.get("code", 200) if answer.get("kind") == "Status" else 200
        header = self.retry_after.get((request.method, request.path), "")
        return web.json_response(answer, status=code, headers={"Retry-After": header} if header and code >= 400 else {})

    async def _stream(self, request: web.Request, stream: Stream) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("plain.kubevirt.io",), timeout=1)
        await socket.prepare(request)
        assert socket.ws_protocol == "plain.kubevirt.io"
        self.open_streams += 1
        try:
            await stream(socket)
            await socket.close()
        finally:
            self.open_streams -= 1
        return socket
