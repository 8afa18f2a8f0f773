"""python -m cluster: see `python -m cluster --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import deps, venv
from cluster.console import ClusterError, ProgressConsole, report_error


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m cluster", description="A two-node Kubernetes on this machine.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    packages = verbs.add_parser("deps", help="install the Debian packages that are missing")
    packages.add_argument("--tests", action="store_true", help="also those for the tests")
    verbs.add_parser("venv", help="create or update the virtual environment")
    build = verbs.add_parser("build", help="build the cluster's programs into the cache")
    build.add_argument("group", nargs="*", help="kubernetes, core, dns, extras, runc, or all; default: what `up` needs")
    up = verbs.add_parser("up", help="start everything that is not running; writes .run/kubeconfig")
    up.add_argument("--image", action="append", default=[], type=Path, metavar="ARCHIVE", help="an image for the nodes")
    verbs.add_parser("down", help="stop and remove everything")
    verbs.add_parser("status", help="show what runs, and its memory use")
    for name, text in (
        ("off", "cut a node's power"),
        ("shutdown", "shut a node down gracefully (pods first), then power it off"),
        ("on", "power a node on and wait until it is Ready"),
        ("cut", "disconnect a node's network"),
        ("mend", "reconnect a node's network"),
    ):
        verbs.add_parser(name, help=text).add_argument("node")
    server = verbs.add_parser("apiserver", help="kill the API server, or restart it on its data")
    server.add_argument("switch", choices=("off", "on"))
    load = verbs.add_parser("load", help="import image archives (docker-archive, OCI) into the nodes")
    load.add_argument("archive", nargs="+", type=Path)
    volume = verbs.add_parser("pv", help="create a PersistentVolume on a node's disk")
    volume.add_argument("name")
    volume.add_argument("node")
    volume.add_argument("size", help="as in Kubernetes: 1Gi")
    volume.add_argument("--storage-class", default="local")
    verbs.add_parser("storage", help="install CSI storage: classes local and shared, with snapshots (docs/cluster.md)")
    verbs.add_parser("dns", help="deploy CoreDNS (built at first use)")
    bridge = verbs.add_parser("bridge", help="create a bridge on the nodes, kept over a power cycle")
    bridge.add_argument("name")
    bridge.add_argument("--port", default="", help="a device of the node that becomes its port (eth1: all nodes)")
    bridge.add_argument("--node", action="append", help="on this node only (repeatable)")
    bridge.add_argument("--remove", action="store_true", help="remove it")
    inside = verbs.add_parser("exec", help="run a command in a node (or 'control-plane'): exec NODE -- CMD...")
    inside.add_argument("node")
    inside.add_argument("command", nargs=argparse.REMAINDER)
    logs = verbs.add_parser("logs", help="show a component's log; without a name, list the logs")
    logs.add_argument("component", nargs="?")
    logs.add_argument("-f", "--follow", action="store_true")
    logs.add_argument("-n", "--lines", type=int, default=100)
    return top


def run(arguments: argparse.Namespace, console: ProgressConsole) -> int:
    """Run the command line's verb. Errors: ClusterError."""
    verb: str = arguments.verb
    if verb == "deps":
        # Until the packages are installed, no other module of this package is imported.
        deps.ensure(console, tests=arguments.tests)
        return 0
    if verb == "venv":
        deps.ensure(console)
        venv.ensure(console)
        return 0
    from cluster import binaries, bridges, lifecycle, storage, verbs

    match verb:
        case "build":
            binaries.build_all(console, binaries.choose(arguments.group))
            console.summary("built")
        case "up":
            lifecycle.up(console, arguments.image)
        case "down":
            lifecycle.down(console)
        case "status":
            verbs.status(console)
        case "off":
            verbs.off(console, arguments.node)
        case "shutdown":
            verbs.shutdown(console, arguments.node)
        case "on":
            verbs.on(console, arguments.node)
        case "cut" | "mend":
            verbs.cable(console, arguments.node, plugged=verb == "mend")
        case "apiserver":
            verbs.apiserver(console, running=arguments.switch == "on")
        case "load":
            verbs.load(console, arguments.archive)
        case "pv":
            verbs.volume(console, arguments.name, arguments.node, arguments.size, arguments.storage_class)
        case "storage":
            storage.install(console)
        case "dns":
            verbs.dns(console)
        case "bridge":
            bridges.change(console, arguments.name, arguments.port, arguments.node, remove=arguments.remove)
        case "exec":
            words = arguments.command
            verbs.inside(arguments.node, words[1:] if words[:1] == ["--"] else words)
        case "logs":
            verbs.logs(arguments.component, follow=arguments.follow, lines=arguments.lines)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb: exit status 0 for success, 1 for failure, 130 when interrupted."""
    try:
        return run(parser().parse_args(argv), ProgressConsole())
    except ClusterError as problem:
        report_error(problem)
        return 1
    except BrokenPipeError:
        # The reader closed the pipe ("| head"); keep the interpreter's last flush from reporting it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; 'python -m cluster down' cleans up", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
