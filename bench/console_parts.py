"""The programs of `bench.console`: a fake QEMU (sockets only), a launcher and a handler, each in its own process.

`python -m bench.console_parts <qemu|launcher|handler> <folder>`; each prints one line when ready (the handler its port)
and exits when standard input is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from api import names
from handler.service import node_service
from kit import rpc, tls
from kit.tls import Names, TlsIdentity
from launcher.paths import Paths
from launcher.service import OPTIONS, LauncherService
from protos import launcher_pb2_grpc

NODE = "bench"
POUR = b"\x01"
"""Requests SIZE bytes followed by END; everything else is echoed."""
SIZE = 64 << 20
END = b"\x02"
_PIECE = 64 << 10


async def qemu(folder: Path) -> None:
    """The serial and VNC sockets: an echo server that also sends SIZE bytes on POUR."""
    paths = Paths(str(folder))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_PIECE):
                if data != POUR:
                    writer.write(data)
                    continue
                for _ in range(SIZE // _PIECE):
                    writer.write(bytes(_PIECE))
                    await writer.drain()
                writer.write(END)
        writer.close()

    async with (
        await asyncio.start_unix_server(talk, paths.serial_socket),
        await asyncio.start_unix_server(talk, paths.vnc_socket),
    ):
        await _serve_until_eof("ready")


async def launcher(folder: Path) -> None:
    """A launcher's gRPC server without a VM."""
    paths = Paths(str(folder))
    server = grpc.aio.server(options=OPTIONS)
    machine: Any = None
    service: Any = LauncherService(machine, paths)
    launcher_pb2_grpc.add_LauncherServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{paths.socket}")
    await server.start()
    await _serve_until_eof("ready")
    await server.stop(0)


class _Direct:
    """A launcher connection with a known stub."""

    pod_uid = "pod"

    def __init__(self, stub: Any) -> None:
        self.stub = stub


async def handler(folder: Path) -> None:
    """A handler's node service for that launcher, with the authority from the folder."""
    me, roots = node_identity(folder), (folder / "ca.crt").read_bytes()
    credentials = grpc.ssl_server_credentials([(me.key, me.certificate)], roots, True)
    fd = os.open(Paths(str(folder)).socket, os.O_PATH)
    async with rpc.channel(fd) as channel:
        direct: Any = _Direct(launcher_pb2_grpc.LauncherStub(channel))
        service = node_service.NodeService(lambda *_: direct)
        async with node_service.serving(service, credentials, "127.0.0.1:0") as port:
            await _serve_until_eof(str(port))


def authority(folder: Path) -> None:
    """Creates a certificate authority in the folder."""
    ca = tls.authority("bench", time.time(), 86400)
    (folder / "ca.crt").write_bytes(ca.certificate)
    (folder / "ca.key").write_bytes(ca.key)


def _identity(folder: Path, wanted: Names, client: bool) -> TlsIdentity:
    ca = tls.KeyPair((folder / "ca.crt").read_bytes(), (folder / "ca.key").read_bytes())
    key = tls.new_key()
    signed = tls.issue(ca, tls.public_key(key), wanted, client=client, now=time.time(), seconds=86400)
    return TlsIdentity(signed, key, ca.certificate)


def node_identity(folder: Path) -> TlsIdentity:
    """The handler's identity."""
    return _identity(folder, Names((names.node_dns_name(NODE),), (names.node_uri(NODE),)), client=False)


def gateway_identity(folder: Path) -> TlsIdentity:
    """The client's identity, as a gateway."""
    return _identity(folder, Names((), (names.URI_GATEWAY,)), client=True)


async def _serve_until_eof(line: str) -> None:
    print(line, flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run({"qemu": qemu, "launcher": launcher, "handler": handler}[sys.argv[1]](Path(sys.argv[2])))
