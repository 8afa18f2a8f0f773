"""Console and VNC end to end (API server, gateway, handler, launcher, QEMU), and memory of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import aiohttp

from bench import objects, processes
from bench.figures import BenchResult, Cell, Figure, FigureTable, percentile
from bench.options import BenchOptions
from bench.session import NAMESPACE, Session

MIB = 1 << 20
MB = 1_000_000
ECHOES, POURED = 200, 40 * MB
CONSOLES, CROWD = 200, 4
ECHO_MS = 10.0
POUR_SECONDS = 1.0
VIEWERS, ROUNDS = 4, 5
MOVE_SECONDS = 0.02
"""Shorter than QEMU's minimum display refresh interval."""
IDLE_TARGET, CROWD_TARGET = 80.0, 150.0
LINE = 32
"""Bytes typed at a login prompt before the line is erased."""
KILL = b"\x15"
ROOT = f"/apis/subresources.kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstances"


@dataclass
class GatewaySample:
    """All measurements."""

    echoes: list[float] = field(default_factory=list)
    """Milliseconds."""
    poured: list[float] = field(default_factory=list)
    """Seconds for 20 MB of a large screen to one viewer, by round."""
    together: list[float] = field(default_factory=list)
    """Seconds for 20 MB of it to VIEWERS viewers in total, by round."""
    text: list[float] = field(default_factory=list)
    """Seconds for 20 MB of a text screen to one viewer."""
    idle: dict[str, int] = field(default_factory=dict)
    """Pod → RSS of its processes, bytes."""
    crowded: dict[str, int] = field(default_factory=dict)
    consoles: int = 0


def analyse(sample: GatewaySample) -> BenchResult:
    """Medians, and the memory as if one replica had all streams. Pure."""
    result = BenchResult("gateway")
    if sample.echoes:
        middle, worst = percentile(sample.echoes, 50), percentile(sample.echoes, 99)
        result.figures.append(Figure("console, a byte there and back, median", middle, "ms", ECHO_MS))
        result.figures.append(Figure("console, a byte there and back, 99 %", worst, "ms"))
    pours: list[tuple[str, list[float], float | None]] = [
        ("screen, 20 MB to one viewer", sample.poured, POUR_SECONDS),
        (f"screen, 20 MB to {VIEWERS} viewers together", sample.together, POUR_SECONDS),
        ("text screen, 20 MB to one viewer, as fast as QEMU draws it", sample.text, None),
    ]
    for label, rounds, target in pours:
        if rounds:
            result.figures.append(Figure(label, percentile(rounds, 50), "s", target))
    if sample.idle:
        idle = max(sample.idle.values()) / MIB
        grown = sum(sample.crowded.get(pod, size) - size for pod, size in sample.idle.items()) / MIB
        result.figures.append(Figure("gateway without a stream, the larger replica", idle, "MiB RSS", IDLE_TARGET))
        label = f"gateway with {sample.consoles} consoles open, all on one replica"
        result.figures.append(Figure(label, idle + grown, "MiB RSS", CROWD_TARGET))
        rows: list[list[Cell]] = [
            [pod, sample.idle[pod] / MIB, sample.crowded.get(pod, 0) / MIB] for pod in sorted(sample.idle)
        ]
        result.tables.append(
            FigureTable("Replicas, MiB RSS", ["pod", "idle", f"{sample.consoles} consoles on both"], rows)
        )
    result.notes += [
        "The times include a real guest's echo and a real QEMU's display. QEMU refreshes its display every 30 ms at "
        "most and sends no frame while the previous one is still in its buffer, so that a frame of 1.2 MB (text) "
        "mostly waits for QEMU. Frames of 7.7 MB (1600 × 1200) measure the throughput of the path.",
    ]
    result.samples = {
        "echoes": sample.echoes,
        "s for 20 MB, one viewer": sample.poured,
        f"s for 20 MB, {VIEWERS} viewers": sample.together,
        "s for 20 MB, text screen": sample.text,
        "idle": sample.idle,
        "crowded": sample.crowded,
    }
    return result


class StreamClient:
    """WebSockets through the API server."""

    def __init__(self, session: Session) -> None:
        self._server = session.server
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> StreamClient:
        base = f"https://{self._server.host}:{self._server.port}"
        connector = aiohttp.TCPConnector(ssl=self._server.tls, limit=0)
        self._http = aiohttp.ClientSession(base, connector=connector, headers=self._server.headers())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    @contextlib.asynccontextmanager
    async def stream(self, path: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Opens a stream, closed at the end of the block."""
        assert self._http is not None
        async with self._http.ws_connect(f"{ROOT}/{path}", protocols=["plain.kubevirt.io"], max_msg_size=0) as socket:
            yield socket


async def echo(client: StreamClient, name: str, count: int) -> list[float]:
    """Round-trip times in milliseconds of bytes echoed by the guest's login prompt, measured sequentially."""
    samples = []
    async with client.stream(f"{name}/console") as console:
        await console.send_bytes(b"\r")
        seen = b""
        while b"login:" not in seen:
            seen += await console.receive_bytes(timeout=120)
        await _quiet(console)
        for number in range(count):
            began = time.perf_counter()
            await console.send_bytes(b"x")
            await console.receive_bytes(timeout=10)
            samples.append((time.perf_counter() - began) * 1000)
            if number % LINE == LINE - 1:
                await console.send_bytes(KILL)
                await _quiet(console)
    return samples


async def _quiet(console: aiohttp.ClientWebSocketResponse) -> None:
    """Reads until no output arrives for 0.3 s."""
    reading = asyncio.ensure_future(console.receive_bytes())
    while True:
        done, _ = await asyncio.wait({reading}, timeout=0.3)
        if not done:
            break
        reading = asyncio.ensure_future(console.receive_bytes())
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


class RfbScreen:
    """A VNC viewer that repeatedly requests the whole screen (RFC 6143, raw encoding)."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._rest = bytearray()

    async def _take(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._rest += await self._socket.receive_bytes(timeout=30)
        taken = bytes(self._rest[:count])
        del self._rest[:count]
        return taken

    async def _skip(self, count: int) -> None:
        """Discards bytes without copying, to keep the viewer's own cost low."""
        while count > len(self._rest):
            count -= len(self._rest)
            self._rest = bytearray(await self._socket.receive_bytes(timeout=30))
        del self._rest[:count]

    async def open(self) -> tuple[int, int, int]:
        """Performs the handshake. Width, height and bytes per pixel."""
        await self._take(12)
        await self._socket.send_bytes(b"RFB 003.008\n")
        await self._take((await self._take(1))[0])
        await self._socket.send_bytes(b"\x01")
        await self._take(4)
        await self._socket.send_bytes(b"\x01")
        width, height, bits, name = struct.unpack(">HHB15xI", await self._take(24))
        await self._take(name)
        await self._socket.send_bytes(struct.pack(">BxHi", 2, 1, 0))
        return width, height, bits // 8

    async def ask(self, width: int, height: int) -> None:
        """Requests the whole screen."""
        await self._socket.send_bytes(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))

    async def move(self) -> None:
        """Moves the pointer until cancelled: without input QEMU refreshes its display less and less often."""
        for step in itertools.count():
            await self._socket.send_bytes(struct.pack(">BBHH", 5, 0, step % 2, step % 2))
            await asyncio.sleep(MOVE_SECONDS)

    async def frame(self, width: int, height: int, depth: int) -> int:
        """Receives the next frame, after requesting the following one. Its size in bytes."""
        kind, count = struct.unpack(">BxH", await self._take(4))
        assert kind == 0
        await self.ask(width, height)
        total = 4
        for _ in range(count):
            _, _, wide, high, encoding = struct.unpack(">HHHHi", await self._take(12))
            assert encoding == 0
            await self._skip(wide * high * depth)
            total += 12 + wide * high * depth
        return total


async def pour(client: StreamClient, name: str, amount: int) -> float:
    """Seconds per 20 MB of screen data."""
    async with client.stream(f"{name}/vnc") as socket:
        screen = RfbScreen(socket)
        size = await screen.open()
        moving = asyncio.create_task(screen.move())
        try:
            await screen.ask(*size[:2])
            await screen.frame(*size)
            began, got = time.perf_counter(), 0
            while got < amount:
                got += await screen.frame(*size)
            return (time.perf_counter() - began) * 20 * MB / got
        finally:
            moving.cancel()


@contextlib.contextmanager
def _guests(session: Session, count: int) -> Iterator[list[str]]:
    guests = [objects.vmi(session.name("talk"), image=objects.TINY, memory="128Mi", cloud_init=True)]
    guests += [objects.vmi(session.name("paint"), image=objects.SCREEN)]
    guests += [objects.vmi(session.name("mute")) for _ in range(count - 2)]
    with session.running(guests, "pod over") as names:
        yield names


def resident(session: Session) -> dict[str, int]:
    """RSS in bytes of every gateway pod, without the pause process."""
    found = {}
    for pod in session.system_pods("gateway"):
        sizes = [processes.rss(each.pid) for each in processes.of_pod(pod["metadata"]["uid"]) if each.label != "pause"]
        found[str(pod["metadata"]["name"])] = sum(sizes)
    return found


async def _measure(session: Session, names: list[str], options: BenchOptions) -> GatewaySample:
    sample = GatewaySample(idle=resident(session), consoles=CROWD * 5 if options.quick else CONSOLES)
    async with StreamClient(session) as client:
        sample.echoes = await echo(client, names[0], ECHOES // 10 if options.quick else ECHOES)
        amount = POURED // 8 if options.quick else POURED
        for _ in range(options.rounds(ROUNDS)):
            sample.poured.append(await pour(client, names[1], amount))
            each = await asyncio.gather(*(pour(client, names[1], amount) for _ in range(VIEWERS)))
            sample.together.append(max(each) / VIEWERS)
            sample.text.append(await pour(client, names[0], amount))
        async with contextlib.AsyncExitStack() as stack:
            for number in range(sample.consoles):
                path = f"{names[number % len(names)]}/console?shared=true"
                await stack.enter_async_context(client.stream(path))
            sample.crowded = resident(session)
    return sample


def run(session: Session, options: BenchOptions) -> BenchResult:
    """Runs the benchmark: a guest that echoes, one with a large screen, and CONSOLES consoles."""
    with _guests(session, CROWD) as names:
        return analyse(asyncio.run(_measure(session, names, options)))
