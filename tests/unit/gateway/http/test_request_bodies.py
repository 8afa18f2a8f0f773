"""Slow, large and concurrent request bodies."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from gateway.http.request_bodies import FREE, RequestBodies


@contextlib.asynccontextmanager
async def serving(bodies: RequestBodies, limit: int = 8 << 20) -> AsyncIterator[str]:
    app = web.Application()

    async def take(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await bodies.read(request, limit))))

    app.router.add_post("/", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, lingering_time=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def slowly(size: int, pause: asyncio.Event) -> AsyncIterator[bytes]:
    yield b"x" * size
    await pause.wait()


@pytest.mark.parametrize("size", [0, 1, FREE, 5 << 20])
async def test_body_is_read_as_it_is(size: int) -> None:
    async with (
        serving(RequestBodies()) as url,
        aiohttp.ClientSession() as session,
        session.post(url, data=b"x" * size) as response,
    ):
        assert await response.text() == str(size)


@pytest.mark.parametrize("size", [1, 1 << 20])
async def test_incomplete_body_times_out(size: int) -> None:
    bodies, never = RequestBodies(seconds=0.2), asyncio.Event()
    async with (
        serving(bodies) as url,
        aiohttp.ClientSession() as session,
        session.post(url, data=slowly(size, never)) as response,
    ):
        assert response.status == 408 and "0.2 s" in await response.text()
    assert not bodies._held


async def test_oversized_body_is_not_read() -> None:
    async with (
        serving(RequestBodies(), limit=1000) as url,
        aiohttp.ClientSession() as session,
        session.post(url, data=slowly(2000, asyncio.Event())) as response,
    ):
        assert response.status == 413


async def test_large_bodies_are_limited_per_address() -> None:
    bodies, go_on = RequestBodies(each=2 << 20), asyncio.Event()
    async with serving(bodies) as url, aiohttp.ClientSession() as session:
        first = asyncio.ensure_future(session.post(url, data=slowly(3 << 19, go_on)))
        async with asyncio.timeout(30):
            while not bodies._held.total():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with session.post(url, data=b"x" * (1 << 20)) as response:
            assert response.status == 429 and "too many large request bodies" in await response.text()
        async with session.post(url, data=b"x" * 1000) as response:
            assert response.status == 200
        go_on.set()
        async with await first as response:
            assert await response.text() == str(3 << 19)
    assert not bodies._held
