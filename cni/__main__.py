"""`python -m cni`: the daemon. `python -m cni build FILE`, `python -m cni install CLIENT FOLDER`: the client."""

import argparse
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

from cni import wire


def _serve(options: argparse.Namespace) -> int:
    from cni import daemon
    from cni.host import HostResources
    from cni.tuning_state import DATA_ROOTS
    from kit import log, proc

    log.setup("cni")
    if options.netns:
        with proc.closing(os.open(options.netns, os.O_RDONLY | os.O_CLOEXEC)) as namespace:
            proc.setns(namespace, proc.CLONE_NEWNET)
    _frugal()
    resources = HostResources(tuple(options.data_root or DATA_ROOTS))
    listener = daemon.listen(options.socket)
    service = daemon.Daemon(listener, resources)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    signal.set_wakeup_fd(service.waker, warn_on_full_buffer=False)
    service.run()
    resources.close()
    return 0


def _frugal() -> None:
    """Limit malloc arenas and raise RLIMIT_NOFILE: threads come and go here, and each would keep an arena."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-8, 2)  # M_ARENA_MAX
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cni", description=__doc__)
    parser.add_argument("--socket", default=wire.SOCKET)
    parser.add_argument(
        "--netns", help="the host's network namespace, /proc/1/ns/net in a pod that shares the host's pids"
    )
    parser.add_argument(
        "--data-root", action="append", help="where a dataDir may be (again for more; default: /run/cni, /var/lib/cni)"
    )
    verbs = parser.add_subparsers(dest="verb")
    build = verbs.add_parser("build", help="compile the client (needs musl-gcc)")
    build.add_argument("file", type=Path)
    install = verbs.add_parser("install", help="put the client where the runtime looks for plugins")
    install.add_argument("client", type=Path)
    install.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.verb is None:
        return _serve(options)
    from cni import build as builder

    if options.verb == "build":
        builder.compile_client(options.file)
    else:
        builder.install(options.client, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
