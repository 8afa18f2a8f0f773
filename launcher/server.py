"""The gRPC server of the launcher's pod: `python -m launcher`, started by the supervisor.

Listens as early as possible; libvirt is imported and connected meanwhile. Exits once the VM has ended and a client has
received the final report.
"""

import asyncio
import gc
import os
import pathlib
import signal
import sys
from typing import NoReturn

import grpc

from kit.tasks import until_one_ends
from launcher.domain_builder.process import DomainBuilder
from launcher.paths import Paths
from launcher.service import OPTIONS, LauncherService
from launcher.vm.controller import VmController
from launcher.vm.state_files import StateFiles
from protos import launcher_pb2_grpc

_CLOSE_SECONDS = 0.2


async def serve(paths: Paths, builder: DomainBuilder) -> None:
    """Serve until the final report is delivered."""
    record = StateFiles(paths)
    machine = VmController(paths, record, builder)
    machine.restore()
    server = grpc.aio.server(options=OPTIONS)
    service = LauncherService(machine, paths)
    launcher_pb2_grpc.add_LauncherServicer_to_server(service, server)
    await _listen(server, paths)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, machine.stop)
    if os.environ.get("HYPERLET_STOPPING"):
        machine.stop()
    service.restore()
    gc.freeze()
    try:
        await until_one_ends(machine.run(), machine.delivered.wait())
        await server.stop(_CLOSE_SECONDS)
    finally:
        await service.close()
        await machine.close()


async def _listen(server: grpc.aio.Server, paths: Paths) -> None:
    """Bind under a temporary name: the socket's name appears only when it accepts connections."""
    temporary = pathlib.Path(f"{paths.socket}.{os.getpid()}")
    server.add_insecure_port(f"unix:{temporary}")
    await server.start()
    temporary.replace(paths.socket)


def main(paths: Paths, builder: DomainBuilder) -> NoReturn:
    """Run the server. Exits without cleanup: a thread may be stuck in libvirt."""
    asyncio.run(serve(paths, builder))
    sys.stderr.flush()
    os._exit(0)
