"""Memory and CPU of a handler that a launcher floods with HTTP/2 frames of each type, and cost of the relay."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench.figures import BenchResult, Cell, Figure, FigureTable, percentile
from bench.hostile import FLOODS, HostilePeer
from bench.options import BenchOptions
from bench.session import Session
from handler.launchers.frame_budget import Budget
from handler.launchers.relay import relay
from kit import proc, rpc
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc as services

SECONDS = 5.0
"""Duration of each flood."""
RATIO = 1.2
"""Target: maximum ratio of a handler's memory, during and after a flood, to its idle memory."""
MESSAGES, CHUNK = 1000, 64 << 10
"""Console messages, and bytes in each, to measure the relay."""
ROUNDS = 5
ROOT = Path(__file__).resolve().parent.parent


def flood(name: str, reads: bool, seconds: float) -> dict[str, float | str]:
    """Floods a handler process."""
    with tempfile.TemporaryDirectory(prefix="flood-") as folder:
        peer = HostilePeer(Path(folder), *FLOODS[name], reads=reads)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "bench.flood_victim", folder, str(seconds)],
                cwd=ROOT, check=True, capture_output=True, text=True,
            )  # fmt: skip
        finally:
            peer.close()
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "sent": peer.sent, "connections": peer.connections}


class _Console(services.LauncherServicer):
    async def Console(  # type: ignore[override]  # gRPC's reader/writer API, which the stub lacks
        self, requests: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Sends messages as fast as they are received."""
        for _ in range(MESSAGES):
            await context.write(pb.ConsoleOutput(data=b"x" * CHUNK))


async def _read(fd: int) -> float:
    async with rpc.channel(fd) as channel:
        began = time.process_time()
        async for _ in services.LauncherStub(channel).Console():
            pass
        return time.process_time() - began


async def console_cost(rounds: int) -> dict[str, list[float]]:
    """CPU ms per MiB of console output, directly and through the relay. Includes both ends of gRPC."""
    found: dict[str, list[float]] = {"direct": [], "through the relay": []}
    with tempfile.TemporaryDirectory(prefix="flood-") as folder:
        server = grpc.aio.server()
        services.add_LauncherServicer_to_server(_Console(), server)
        server.add_insecure_port(f"unix:{folder}/s")
        await server.start()
        with proc.closing(os.open(f"{folder}/s", os.O_PATH)) as fd:
            for _ in range(rounds):
                found["direct"].append(await _read(fd) * 1000 / (MESSAGES * CHUNK >> 20))
                async with relay(fd, Budget()) as way:
                    found["through the relay"].append(await _read(way.fd) * 1000 / (MESSAGES * CHUNK >> 20))
        await server.stop(0)
    return found


def analyse(floods: dict[str, dict[str, float | str]], console: dict[str, list[float]]) -> BenchResult:
    """Targets apply to the worst flood. Pure."""
    result = BenchResult("floods")
    rows: list[list[Cell]] = []
    for name, found in floods.items():
        rest, most, after = (float(found[key]) for key in ("rest", "most", "after"))
        sent = round(float(found["sent"]) / 1024)
        rows.append([name, round(rest), most / rest, after / rest, found["cpu"], sent, found["connections"]])
    result.figures.append(Figure("most memory in a flood / at rest", max(row[2] for row in rows), "", RATIO))  # type: ignore[type-var,arg-type]
    result.figures.append(Figure("memory after a flood / at rest", max(row[3] for row in rows), "", RATIO))  # type: ignore[type-var,arg-type]
    header = ["flood", "MiB at rest", "most", "after", "CPU s", "KiB sent", "connections"]
    result.tables.append(FigureTable(f"each for {SECONDS:g} s", header, rows))
    costs = {name: percentile(found, 50) for name, found in console.items()}
    result.tables.append(
        FigureTable(
            "CPU ms for a MiB of console (median)", ["way", "ms"], [[name, cost] for name, cost in costs.items()]
        )
    )
    result.notes.append("console: both ends of gRPC in one process; messages of 64 KiB")
    result.samples = {"floods": floods, "console": console}
    return result


def run(_session: Session, options: BenchOptions) -> BenchResult:
    """Runs the benchmark. Needs no cluster: measures the local code."""
    seconds = 1.0 if options.quick else SECONDS
    floods = {
        f"{name}, {'reads' if reads else 'reads nothing'}": flood(name, reads, seconds)
        for name in FLOODS
        for reads in (True, False)
    }
    return analyse(floods, asyncio.run(console_cost(options.rounds(ROUNDS))))
