"""The unauthenticated endpoints version and healthz."""

import asyncio
import platform
import sys
from typing import Any

from aiohttp import web

from api.errors import HyperletError
from api.version import API_LEVEL, VERSION
from kit.kube import Kube

FRESH_SECONDS = 2.0
"""How long the API server's response is cached, because the endpoint is unauthenticated."""


def version_info() -> dict[str, Any]:
    """The API level and, as build metadata, the version of hyperlet, in KubeVirt's fields.

    `virtctl` warns about a version mismatch after every failed call, unless major and minor are equal.
    """
    return {
        "gitVersion": f"v{API_LEVEL}+hyperlet.{VERSION}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": f"python{sys.version_info.major}.{sys.version_info.minor}",
        "compiler": platform.python_implementation().lower(),
        "platform": f"linux/{ {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(platform.machine(), platform.machine()) }",
    }


class ApiServerHealth:
    """Whether the API server is reachable."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._lock = asyncio.Lock()
        self._until = 0.0
        self._last: tuple[int, dict[str, Any]] = (500, {})

    async def answer(self, _request: web.Request) -> web.Response:
        """200, or 500 with the error."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now >= self._until:
                self._last = await self._asked()
                self._until = now + FRESH_SECONDS
        code, body = self._last
        return web.json_response(body, status=code)

    async def _asked(self) -> tuple[int, dict[str, Any]]:
        try:
            found = await self._kube.server_version()
        except HyperletError as error:
            return 500, {"apiserver": {"connectivity": "failed", "error": error.message}}
        return 200, {"apiserver": {"connectivity": "ok", "version": found}}
