"""Untrusted clients of a port: silent, slow and many of them."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from kit import guarded_site
from kit.guarded_site import ConnectionLimits, GuardedSite

LARGE = 32 << 20
"""More than the socket's buffers hold."""
REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


class Lab:
    """A site with an application that responds, and delays /slow."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.go_on = asyncio.Event()
        self._open: list[asyncio.StreamWriter] = []

    async def connect(self, send: bytes = b"") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._open.append(writer)
        writer.write(send)
        return reader

    async def send(self, data: bytes) -> None:
        self._open[-1].write(data)

    def close(self) -> None:
        for writer in self._open:
            writer.close()


@contextlib.asynccontextmanager
async def lab(limits: ConnectionLimits | None = None, head_seconds: float = 60) -> AsyncIterator[Lab]:
    app = web.Application()

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="here")

    async def slow(_request: web.Request) -> web.Response:
        await made.go_on.wait()
        return web.Response(text="at last")

    async def large(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(LARGE))

    app.router.add_get("/large", large)
    app.router.add_post("/unread", answer)
    app.router.add_get("/", answer)
    app.router.add_get("/slow", slow)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = GuardedSite(runner, 0, "127.0.0.1", limits=limits, head_seconds=head_seconds)
    await site.start()
    made = Lab(site.port)
    try:
        yield made
    finally:
        made.go_on.set()
        made.close()
        await runner.cleanup()


async def answered(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            return (await reader.read(12)).startswith(b"HTTP/1.1 200")
    return False


async def ended(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                pass
    return True


@pytest.mark.parametrize("sent", [b"", b"GET / HT", REQUEST[:-2]])
async def test_incomplete_request_head_times_out(sent: bytes) -> None:
    async with lab(head_seconds=0.2) as port:
        assert await ended(await port.connect(sent))


async def test_slow_request_and_idle_connection_stay_open() -> None:
    async with lab(head_seconds=0.2) as port:
        slow = await port.connect(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
        idle = await port.connect(REQUEST)
        assert await answered(idle)
        assert await ended(await port.connect(b"GET")), "the timeout has passed"
        port.go_on.set()
        assert await answered(slow)
        assert not idle.at_eof()


async def test_silent_connections_block_only_their_own_address() -> None:
    async with lab(ConnectionLimits(fresh=4)) as port:
        silent = [await port.connect() for _ in range(4)]
        assert await ended(await port.connect(REQUEST)), "the fifth is closed immediately"
        assert not any(each.at_eof() for each in silent)


async def test_connections_per_address_are_limited() -> None:
    async with lab(ConnectionLimits(each=3)) as port:
        for _ in range(3):
            await port.connect(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
        assert await ended(await port.connect(REQUEST))
        port.go_on.set()


async def test_longest_idle_connection_is_closed_for_a_new_one() -> None:
    async with lab(ConnectionLimits(idle=3, each=4)) as port:
        first, *others = [await port.connect(REQUEST) for _ in range(3)]
        for each in (first, *others):
            assert await answered(each)
        for _ in range(20):
            assert await answered(await port.connect(REQUEST))
        assert await ended(first)


async def test_closed_connections_are_not_counted() -> None:
    async with lab(ConnectionLimits(total=2, each=2, fresh=2)) as port:
        for _ in range(20):
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port.port}/") as response:
                assert response.status == 200
            await asyncio.sleep(0.05)


async def test_incomplete_head_of_a_later_request_times_out() -> None:
    async with lab(head_seconds=0.2) as port:
        reader = await port.connect(REQUEST)
        assert await answered(reader)
        await port.send(REQUEST[:-2])
        assert await ended(reader)


async def test_connections_that_still_send_a_response_are_not_idle() -> None:
    async with lab(ConnectionLimits(idle=2, each=4)) as port:
        busy = [await port.connect(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n") for _ in range(2)]
        for each in busy:
            assert await answered(each)
        for _ in range(20):
            assert await answered(await port.connect(REQUEST))
        async with asyncio.timeout(30):
            for each in busy:
                assert len(await each.readexactly(LARGE)) == LARGE


async def test_body_that_is_not_read_does_not_start_the_timeout_of_a_head() -> None:
    async with lab(head_seconds=0.3) as port:
        reader = await port.connect(b"POST /unread HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n12345")
        assert await answered(reader)
        await port.send(b"67890")
        await asyncio.sleep(0.6)
        await port.send(REQUEST)
        async with asyncio.timeout(30):
            await reader.readuntil(b"HTTP/1.1 200")


async def test_tls_buffers_hold_one_record() -> None:
    """asyncio's own are 16 times as large, for each connection."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls = guarded_site._SmallTls(asyncio.get_running_loop(), asyncio.Protocol(), context, None, server_side=True)
    assert len(tls.get_buffer(-1)) == guarded_site.TLS_RECORD
