"""Serial console and VNC: round-trip time of a byte and time for 20 MB, through launcher and handler.

`python -m bench.console` needs no cluster: launcher and handler code run in their own processes, between a fake QEMU
(sockets only) and a client that connects like the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from api import names
from bench import console_parts as parts
from bench.figures import BenchResult, Cell, Figure, FigureTable, percentile, render
from bench.options import BenchOptions
from bench.session import Session, write
from launcher.paths import Paths
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc, node_pb2, node_pb2_grpc

ECHO_MS = 10.0
SECONDS_FOR_20_MB = 1.0
MB = 1_000_000
ECHOES, POURS = 300, 3
WATCHERS = 20
RUN = Path(os.environ.get("HYPERLET_RUN", str(Path(__file__).resolve().parent.parent / ".run")))
_VMI = node_pb2.Vmi(namespace="bench", name="vm", uid="uid")


class Stream:
    """A bidirectional byte stream. `wrap` converts bytes to a message."""

    def __init__(self, call: Any, wrap: Callable[[bytes], Any]) -> None:
        self._call = call
        self._wrap = wrap

    async def send(self, data: bytes) -> None:
        """Sends bytes."""
        await self._call.write(self._wrap(data))

    async def receive(self) -> bytes:
        """Receives the next bytes. Raises EOFError at the end of the stream."""
        message = await self._call.read()
        if message is grpc.aio.EOF:
            raise EOFError("the stream has ended")
        data: bytes = message.data
        return data


Opener = Callable[..., contextlib.AbstractAsyncContextManager[Stream]]
"""Opens a stream; `watch=True` opens a read-only one."""


@dataclass
class Found:
    """Measurements of one path."""

    echoes: list[float] = field(default_factory=list)
    """Milliseconds."""
    pours: list[float] = field(default_factory=list)
    """Seconds for each MB."""


async def echo(stream: Stream, count: int) -> list[float]:
    """Round-trip times in milliseconds, measured sequentially."""
    samples = []
    for number in range(count):
        began = time.perf_counter()
        await stream.send(b"x")
        while b"x" not in await stream.receive():
            pass
        if number:  # the first one opens the stream
            samples.append((time.perf_counter() - began) * 1e3)
    return samples


async def pour(stream: Stream) -> float:
    """Seconds per received MB."""
    await stream.send(parts.POUR)
    came, began = 0, 0.0
    while True:
        data = await stream.receive()
        began = began or time.perf_counter()
        came += len(data)
        if data.endswith(parts.END):
            return (time.perf_counter() - began) / came * MB


async def measure(opener: Opener, echoes: int, pours: int) -> Found:
    """Measures one path without other load."""
    found = Found()
    async with opener() as stream:
        found.echoes = await echo(stream, echoes + 1)
        for _ in range(pours):
            found.pours.append(await pour(stream))
    return found


async def watched(opener: Opener, watchers: int, echoes: int) -> list[float]:
    """Round-trip times while others watch the same console."""

    async def watch(stream: Stream) -> None:
        with contextlib.suppress(EOFError, grpc.aio.AioRpcError):
            while True:
                await stream.receive()

    async with contextlib.AsyncExitStack() as stack:
        stream = await stack.enter_async_context(opener())
        looking = [
            asyncio.create_task(watch(await stack.enter_async_context(opener(watch=True)))) for _ in range(watchers)
        ]
        samples = await echo(stream, echoes + 1)
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
    return samples


# -- paths


@contextlib.asynccontextmanager
async def _opened(call: Any, first: Any, wrap: Callable[[bytes], Any]) -> AsyncIterator[Stream]:
    await call.write(first)
    try:
        yield Stream(call, wrap)
    finally:
        call.cancel()


def launcher_ways(stub: Any) -> dict[str, Opener]:
    """Console and VNC of a launcher."""

    def console(watch: bool = False) -> Any:
        return _opened(stub.Console(), pb.ConsoleInput(watch=watch), lambda data: pb.ConsoleInput(data=data))

    return {
        "console, launcher": console,
        "screen, launcher": lambda: _opened(stub.Vnc(), pb.Chunk(), lambda data: pb.Chunk(data=data)),
    }


def handler_ways(stub: Any) -> dict[str, Opener]:
    """Console and VNC through a handler."""

    def console(watch: bool = False) -> Any:
        first = node_pb2.ConsoleInput(vmi=_VMI, input=pb.ConsoleInput(watch=watch))
        return _opened(stub.Console(), first, lambda data: node_pb2.ConsoleInput(input=pb.ConsoleInput(data=data)))

    def screen() -> Any:
        first = node_pb2.VncInput(vmi=_VMI)
        return _opened(stub.Vnc(), first, lambda data: node_pb2.VncInput(chunk=pb.Chunk(data=data)))

    return {"console, handler": console, "screen, handler": screen}


@contextlib.contextmanager
def part(name: str, folder: Path) -> Iterator[str]:
    """Runs one of the programs until the end of the block; yields the line that it prints when ready."""
    command = [sys.executable, "-m", "bench.console_parts", name, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        line = process.stdout.readline().strip()
        if not line:
            raise OSError(f"{name} did not start")
        yield line
    finally:
        process.stdin.close()
        process.wait()


def gateway_channel(folder: Path, port: int) -> grpc.aio.Channel:
    """A channel with the gateway's identity."""
    me = parts.gateway_identity(folder)
    credentials = grpc.ssl_channel_credentials(me.roots, me.key, me.certificate)
    options = [("grpc.ssl_target_name_override", names.node_dns_name(parts.NODE)), ("grpc.http2.bdp_probe", 0)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


async def _measure_all(folder: Path, port: int, echoes: int, pours: int) -> tuple[dict[str, Found], list[float]]:
    socket = Paths(str(folder)).socket
    async with (
        grpc.aio.insecure_channel(f"unix:{socket}", options=[("grpc.http2.bdp_probe", 0)]) as direct,
        gateway_channel(folder, port) as channel,
    ):
        ways = {
            **launcher_ways(launcher_pb2_grpc.LauncherStub(direct)),
            **handler_ways(node_pb2_grpc.NodeStub(channel)),
        }
        found = {name: await measure(opener, echoes, pours) for name, opener in ways.items()}
        return found, await watched(ways["console, handler"], WATCHERS, echoes)


def measured(echoes: int, pours: int) -> BenchResult:
    """Runs the benchmark without a cluster."""
    with tempfile.TemporaryDirectory(prefix="hl-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        Path(Paths(name).run).mkdir(parents=True)
        parts.authority(folder)
        stack.enter_context(part("qemu", folder))
        stack.enter_context(part("launcher", folder))
        port = int(stack.enter_context(part("handler", folder)))
        found, crowd = asyncio.run(_measure_all(folder, port, echoes, pours))
    return report(found, crowd)


def report(found: dict[str, Found], crowd: list[float]) -> BenchResult:
    """Figures and table."""
    result = BenchResult("console")
    for name, each in found.items():
        target = ECHO_MS if "handler" in name else None
        result.figures.append(Figure(f"{name}: echo p95", percentile(each.echoes, 95), "ms", target))
        seconds = percentile(each.pours, 50) * 20
        result.figures.append(
            Figure(f"{name}: 20 MB, p50", seconds, "s", SECONDS_FOR_20_MB if "handler" in name else None)
        )
    label = f"console, handler: echo p95, {WATCHERS} watch"
    result.figures.append(Figure(label, percentile(crowd, 95), "ms", None))
    rows: list[list[Cell]] = [
        [name, percentile(each.echoes, 50), percentile(each.echoes, 95), 1 / percentile(each.pours, 50)]
        for name, each in found.items()
    ]
    result.tables.append(FigureTable("By way", ["way", "echo p50 ms", "echo p95 ms", "MB/s p50"], rows))
    result.notes.append(
        "without a cluster: QEMU is replaced by its sockets; API server and gateway are not in the path"
    )
    result.samples = {name: {"echo ms": each.echoes, "s for 1 MB": each.pours} for name, each in found.items()}
    result.samples["watched"] = crowd
    return result


def run(session: Session, options: BenchOptions) -> BenchResult:
    """Entry point for `python -m bench`; does not use the session's cluster."""
    return measured(options.rounds(ECHOES), 1 if options.quick else POURS)


def main() -> int:
    """Exit status: 0 within the targets, 1 a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("--echoes", type=int, default=ECHOES)
    parser.add_argument("--pours", type=int, default=POURS)
    arguments = parser.parse_args()
    result = measured(arguments.echoes, arguments.pours)
    result.conditions = {"cpus": os.cpu_count(), "load average": list(os.getloadavg())}
    print(render(result))
    print(f"\n{write(result.document(), RUN / 'bench')}")
    return 1 if any(figure.verdict == "MISSED" for figure in result.figures) else 0


if __name__ == "__main__":
    sys.exit(main())
