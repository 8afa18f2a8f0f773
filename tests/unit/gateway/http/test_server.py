"""Graceful shutdown of the HTTPS server, and lifetimes from the environment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from gateway.__main__ import lifetimes
from gateway.context import Gateway
from gateway.http.server import HttpsServer, application
from gateway.pki.authorities import Lifetimes
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi
from tests.unit.gateway.lab import Pki
from tests.waiting import until


async def test_requests_during_shutdown_are_served_and_connection_closed(tmp_path: Path) -> None:
    pki = Pki()
    certificates = pki.certificates()
    going, go_on = asyncio.Event(), asyncio.Event()

    async def quick(_request: web.Request) -> web.Response:
        return web.Response(text="here")

    async def slow(_request: web.Request) -> web.Response:
        going.set()
        await go_on.wait()
        return web.Response(text="at last")

    def routes(app: web.Application, _gateway: Gateway) -> None:
        app.router.add_get("/quick", quick)
        app.router.add_get("/slow", slow)

    async with FakeApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        server = HttpsServer(application(Gateway(kube, "hyperlet", certificates), (routes,)), certificates.server)
        port = await server.start(0, "127.0.0.1")
        connector = aiohttp.TCPConnector(ssl=pki.context(None))
        async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", connector=connector) as session:
            async with session.get("/quick") as response:
                assert response.headers.get("Connection") != "close"
            waiting = asyncio.create_task(session.get("/slow"))
            await going.wait()
            stopping = asyncio.create_task(server.stop(drain_seconds=0.5))
            await until(lambda: server.stopping)
            for _ in range(3):
                async with session.get("/quick") as response:
                    assert response.headers["Connection"] == "close" and await response.text() == "here"
            go_on.set()
            async with await waiting as response:
                assert await response.text() == "at last"
            await stopping
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get("/quick")


@pytest.mark.parametrize(
    ("leaf", "authority", "expected"),
    [("", "", Lifetimes()), ("10", "", Lifetimes(Lifetimes().authority, 10)), ("10", "80", Lifetimes(80, 10))],
)
def test_lifetimes_are_read_from_environment(
    monkeypatch: pytest.MonkeyPatch, leaf: str, authority: str, expected: Lifetimes
) -> None:
    monkeypatch.setenv("HYPERLET_LEAF_SECONDS", leaf)
    monkeypatch.setenv("HYPERLET_AUTHORITY_SECONDS", authority)
    assert lifetimes() == expected


@pytest.mark.parametrize(("leaf", "authority"), [("10", "79"), ("0", "80"), ("-1", "80"), ("ten", "80")])
def test_too_short_ca_lifetime_is_refused(monkeypatch: pytest.MonkeyPatch, leaf: str, authority: str) -> None:
    monkeypatch.setenv("HYPERLET_LEAF_SECONDS", leaf)
    monkeypatch.setenv("HYPERLET_AUTHORITY_SECONDS", authority)
    with pytest.raises(ValueError, match="HYPERLET_"):
        lifetimes()
