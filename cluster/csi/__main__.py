"""python -m cluster.csi: the driver of one or both kinds of storage, on one node."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from cluster.csi import csi_pb2_grpc as services
from cluster.csi import registration_pb2_grpc as registration_services
from cluster.csi.controller import CsiControllerService
from cluster.csi.driver import Refusals
from cluster.csi.host import CsiHost
from cluster.csi.identity import CsiIdentityService, Registration
from cluster.csi.kinds import KINDS, StorageKind
from cluster.csi.node import CsiNodeService
from cluster.csi.pools import Pools

GIBIBYTE = 1 << 30


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m cluster.csi", description=__doc__)
    top.add_argument("kind", nargs="+", choices=sorted(KINDS))
    top.add_argument("--node", required=True, help="the node's name")
    top.add_argument(
        "--storage", type=Path, required=True, help="the folder behind all volumes, the same on every node"
    )
    top.add_argument("--sockets", type=Path, required=True, help="the folder of DRIVER/csi.sock")
    top.add_argument("--registry", type=Path, help="the kubelet's plugin registration folder")
    top.add_argument("--host-pid", type=int, help="a process in the node's mount namespace, if it differs")
    top.add_argument("--capacity", type=int, default=200, help="capacity of a pool in GiB")
    return top


def serve(kind: StorageKind, options: argparse.Namespace, pool: ThreadPoolExecutor) -> list[grpc.Server]:
    """Start the services of one kind; returns its servers."""
    node, pools = CsiHost(options.host_pid), Pools(options.storage / kind.name, options.capacity * GIBIBYTE)
    own = CsiNodeService(kind, pools, node, options.node)
    own.join()
    server = grpc.server(pool, interceptors=[Refusals()])
    services.add_IdentityServicer_to_server(CsiIdentityService(kind), server)
    services.add_ControllerServicer_to_server(CsiControllerService(kind, pools, node), server)
    services.add_NodeServicer_to_server(own, server)
    socket = _bind(server, options.sockets / kind.driver / "csi.sock")
    servers = [server]
    if options.registry:
        server = grpc.server(pool)
        registration_services.add_RegistrationServicer_to_server(Registration(kind, str(socket)), server)
        _bind(server, options.registry / f"{kind.driver}-reg.sock")
        servers.append(server)
    return servers


def _bind(server: grpc.Server, socket: Path) -> Path:
    socket.parent.mkdir(parents=True, exist_ok=True)
    # Remove a socket left by an earlier process.
    socket.unlink(missing_ok=True)
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    return socket


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM."""
    options = parser().parse_args(argv)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with ThreadPoolExecutor(max_workers=4) as pool:
        servers = [server for name in options.kind for server in serve(KINDS[name], options, pool)]
        print(f"serving {', '.join(options.kind)} on {options.node}", flush=True)
        ended.wait()
        for server in servers:
            server.stop(grace=5).wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
