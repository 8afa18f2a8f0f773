"""`python -m bench.cni`: cnv-bridge and cnv-tuning compared with Debian's containernetworking-plugins.

Both are run as a container runtime runs them, alternating in one loop, each in its own network namespaces. The result
is the ratio of the medians. Needs root, containernetworking-plugins, nftables and musl-tools (apt).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import percentile
from cni import build, client, mac_filter
from kit import proc
from kit.netlink import nft

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(os.environ.get("HYPERLET_RUN", str(ROOT / ".run")))
GO = Path(os.environ.get("CNI_PLUGINS", "/usr/lib/cni"))
PREFIX = "hlcni-bench-"
MOST = 0.5
"""Target: maximum ratio of medians."""
TIMES = 5.0
"""Target: minimum ratio of throughputs."""
MEMORY_MIB = 40.0
CASES = ("VERSION", "bridge ADD", "bridge DEL", "bridge ADD macspoofchk", "bridge DEL macspoofchk", "tuning ADD")


@dataclass(frozen=True)
class Side:
    """One of the two implementations: its executables, and the name used for its namespaces and bridge."""

    name: str
    bridge: Path
    tuning: Path


class CaseFailed(Exception):
    """A plugin call failed."""


def _call(program: Path, command: str, config: bytes, container: str, netns: str, files: Path) -> float:
    """Run time of the plugin's process in seconds. Raises CaseFailed."""
    process, started = _begin(program, command, config, container, netns, files)
    status = os.waitpid(process, 0)[1]
    took = time.perf_counter() - started
    if status:
        raise CaseFailed(f"{program} {command}: {(files / container).with_suffix('.out').read_text()}")
    return took


def _begin(program: Path, command: str, config: bytes, container: str, netns: str, files: Path) -> tuple[int, float]:
    given, printed = files / f"{container}.in", files / f"{container}.out"
    given.write_bytes(config)
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": f"/run/netns/{netns}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(GO),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, str(given), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(printed), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    started = time.perf_counter()
    return os.posix_spawn(program, [program.name], environment, file_actions=actions), started


def _bridge(name: str, guarded: bool) -> bytes:
    conf = {"cniVersion": "1.0.0", "name": f"bench-{name}", "type": "bridge", "bridge": f"br-{name}"}
    return json.dumps(conf | ({"macspoofchk": True} if guarded else {})).encode()


def _tuning(name: str, netns: str, files: Path) -> bytes:
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": f"bench-{name}", "type": "tuning"}
    conf |= {"mac": "02:00:00:00:00:77", "mtu": 1400, "promisc": True, "dataDir": str(files / f"tuning-{name}")}
    conf["sysctl"] = {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "500"}
    sandbox = f"/run/netns/{netns}"
    conf["prevResult"] = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": sandbox}],
    }
    # The Go plugin 1.1.1 accepts sysctl names with slashes or dots.
    return json.dumps(conf).encode()


def _round(side: Side, netns: str, files: Path) -> dict[str, float]:
    """Runs every case once. Seconds by case."""
    container = f"c-{side.name}"
    plain, guarded = _bridge(side.name, False), _bridge(side.name, True)
    tuning = _tuning(side.name, netns, files)
    took = {"VERSION": _call(side.bridge, "VERSION", b'{"cniVersion":"1.0.0"}', container, netns, files)}
    took["bridge ADD"] = _call(side.bridge, "ADD", plain, container, netns, files)
    took["tuning ADD"] = _call(side.tuning, "ADD", tuning, container, netns, files)
    _call(side.tuning, "DEL", tuning, container, netns, files)
    took["bridge DEL"] = _call(side.bridge, "DEL", plain, container, netns, files)
    took["bridge ADD macspoofchk"] = _call(side.bridge, "ADD", guarded, container, netns, files)
    took["bridge DEL macspoofchk"] = _call(side.bridge, "DEL", guarded, container, netns, files)
    return took


def measure(sides: Sequence[Side], rounds: int, files: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of each case for each side, interleaved; the order alternates between rounds."""
    samples: dict[str, dict[str, list[float]]] = {case: {side.name: [] for side in sides} for case in CASES}
    for number in range(rounds + 2):
        for side in sides if number % 2 else list(reversed(sides)):
            took = _round(side, f"{PREFIX}{side.name}", files)
            if number >= 2:  # the first two rounds create bridges and tables, and warm caches
                for case, seconds in took.items():
                    samples[case][side.name].append(seconds)
    return samples


def burst(side: Side, count: int, files: Path) -> dict[str, float]:
    """`count` concurrent ADDs with macspoofchk: throughput per second and 95th percentile of the run time."""
    config = _bridge(side.name, True)
    started = time.perf_counter()
    running: dict[int, float] = {}
    for number in range(count):
        pid, begun = _begin(side.bridge, "ADD", config, f"b{number}-{side.name}", f"{PREFIX}{number}", files)
        running[pid] = begun
    took, failed = [], 0
    while running:
        pid, status = os.waitpid(-1, 0)
        if pid in running:
            took.append(time.perf_counter() - running.pop(pid))
            failed += bool(status)
    elapsed = time.perf_counter() - started
    for number in range(count):
        _call(side.bridge, "DEL", config, f"b{number}-{side.name}", f"{PREFIX}{number}", files)
    return {"per second": count / elapsed, "p95 s": percentile(took, 95), "failed": failed}


@dataclass(frozen=True)
class Holdings:
    """Resources held by the daemon."""

    rss_mib: float
    descriptors: int
    threads: int
    guards: int


def holdings(pid: int) -> Holdings:
    """The resources of a running daemon, and MAC filters in the namespace of this thread."""
    time.sleep(1)  # background work of the last calls has finished then
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    socket_ = nft.Nft()
    guards = len(mac_filter.guarded(socket_))
    socket_.close()
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Holdings(int(status["VmRSS"].split()[0]) / 1024, descriptors, int(status["Threads"]), guards)


def endure(path: str, calls: int, files: Path) -> None:
    """Sends `calls` calls to one daemon: bridge ADD, tuning ADD, tuning DEL, bridge DEL. Raises CaseFailed."""
    netns = f"{PREFIX}ours"
    bridge, tuning = _bridge("ours", True), _tuning("ours", netns, files)
    steps = [("cnv-bridge", "ADD", bridge), ("cnv-tuning", "ADD", tuning)]
    steps += [("cnv-tuning", "DEL", tuning), ("cnv-bridge", "DEL", bridge)]
    environment = {"CNI_NETNS": f"/run/netns/{netns}", "CNI_IFNAME": "eth0", "CNI_PATH": str(GO)}
    for number in range(calls // len(steps)):
        for plugin, command, config in steps:
            given = environment | {"CNI_COMMAND": command, "CNI_CONTAINERID": f"e{number}"}
            answer = client.call(path, plugin, given, config)
            if answer.code:
                raise CaseFailed(f"{plugin} {command}: {answer.stdout.decode()}")


@contextmanager
def workplace(count: int) -> Iterator[tuple[Path, str, int, list[Side]]]:
    """Namespaces, compiled clients and a daemon, removed at the end. Moves this thread to a new network namespace."""
    RUN.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyperlet-bench-")))
        socket_ = str(files / "run" / "cni.sock")
        build.compile_client(files / "client", ("TEST_BUILD",))
        build.install(files / "client", files)
        proc.unshare(proc.CLONE_NEWNET)
        for name in ["ours", "go", *map(str, range(count))]:
            subprocess.run(["ip", "netns", "add", PREFIX + name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", PREFIX + name], check=False)
        command = [sys.executable, "-m", "cni", "--socket", socket_, "--data-root", str(files)]
        journal = stack.enter_context((RUN / "cni-daemon.log").open("w"))
        daemon = subprocess.Popen(command, cwd=ROOT, stderr=journal)
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        _await(socket_)
        sides = [Side("ours", *_wrapped(files, socket_)), Side("go", GO / "bridge", GO / "tuning")]
        yield files, socket_, daemon.pid, sides


def _wrapped(files: Path, socket_: str) -> tuple[Path, Path]:
    # The benchmark sets the plugin's environment, so the socket path has to be compiled in.
    build.compile_client(files / "client", (f'SOCKET_PATH="{socket_}"',))
    build.install(files / "client", files)
    return files / "cnv-bridge", files / "cnv-tuning"


def _await(path: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as one:
                return one.connect(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def report(samples: dict[str, dict[str, list[float]]], bursts: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The figures, with verdicts."""
    calls = {}
    for case in CASES:
        ours, go = samples[case]["ours"], samples[case]["go"]
        ratio = statistics.median(ours) / statistics.median(go)
        calls[case] = {
            "ours p50 ms": statistics.median(ours) * 1e3,
            "ours p95 ms": percentile(ours, 95) * 1e3,
            "go p50 ms": statistics.median(go) * 1e3,
            "go p95 ms": percentile(go, 95) * 1e3,
            "ratio": ratio,
            "ok": ratio <= MOST,
        }
    rate = {name: statistics.median(each["per second"] for each in bursts[name]) for name in ("ours", "go")}
    parallel = {
        "ours per second": rate["ours"],
        "go per second": rate["go"],
        "ours p95 s": statistics.median(each["p95 s"] for each in bursts["ours"]),
        "go p95 s": statistics.median(each["p95 s"] for each in bursts["go"]),
        "ours failed": sum(each["failed"] for each in bursts["ours"]),
        "times": rate["ours"] / rate["go"],
    }
    parallel["ok"] = bool(parallel["times"] >= TIMES and not parallel["ours failed"])
    return {"calls": calls, "parallel": parallel}


def show(found: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{'call':26}{'ours p50':>10}{'p95':>8}{'Go p50':>10}{'p95':>8}{'ratio':>8}   ms; at most {MOST}"]
    for case, row in found["calls"].items():
        lines.append(
            f"{case:26}{row['ours p50 ms']:10.2f}{row['ours p95 ms']:8.2f}{row['go p50 ms']:10.2f}"
            f"{row['go p95 ms']:8.2f}{row['ratio']:8.2f}   {'ok' if row['ok'] else 'MISSED'}"
        )
    row = found["parallel"]
    lines.append(
        f"parallel ADDs macspoofchk: {row['ours per second']:.0f} a second (p95 {row['ours p95 s']:.2f} s, "
        f"{row['ours failed']:.0f} failed), Go {row['go per second']:.0f} (p95 {row['go p95 s']:.2f} s): "
        f"{row['times']:.1f} times, at least {TIMES:.0f}: {'ok' if row['ok'] else 'MISSED'}"
    )
    if row := found.get("endurance"):
        lines.append(
            f"daemon after {row['calls']} calls: {row['rss MiB']:.1f} MiB (at most {MEMORY_MIB:.0f}), more descriptors "
            f"{row['more descriptors']}, threads {row['more threads']}, guards {row['more guards']}: "
            f"{'ok' if row['ok'] else 'MISSED'}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cni", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--parallel", type=int, default=100)
    parser.add_argument("--bursts", type=int, default=3)
    parser.add_argument("--calls", type=int, default=10000)
    options = parser.parse_args()
    missing = [each for each in ("nft", "ip", "musl-gcc") if not shutil.which(each)]
    if missing or not (GO / "bridge").exists():
        print("needs: apt-get install containernetworking-plugins nftables iproute2 musl-tools", file=sys.stderr)
        return 2
    with workplace(options.parallel) as (files, socket_, daemon, sides):
        samples = measure(sides, options.rounds, files)
        bursts: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
        for number in range(options.bursts):
            for side in sides if number % 2 else list(reversed(sides)):
                bursts[side.name].append(burst(side, options.parallel, files))
        found = report(samples, bursts)
        endure(socket_, 2000, files)  # warm-up: descriptors and threads that are allocated once
        before = holdings(daemon)
        endure(socket_, options.calls, files)
        after = holdings(daemon)
    found["endurance"] = {
        "calls": options.calls,
        "rss MiB": after.rss_mib,
        "more descriptors": after.descriptors - before.descriptors,
        "more threads": after.threads - before.threads,
        "more guards": after.guards - before.guards,
    }
    leaks = any(found["endurance"][f"more {what}"] > 0 for what in ("descriptors", "threads", "guards"))
    found["endurance"]["ok"] = bool(after.rss_mib < MEMORY_MIB and not leaks)
    found["conditions"] = {
        "rounds": options.rounds,
        "parallel": options.parallel,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load average": os.getloadavg()[0],
    }
    print(show(found))
    folder = RUN / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cni.json").write_text(json.dumps(found, indent=2) + "\n")
    verdicts = [*(row["ok"] for row in found["calls"].values()), found["parallel"]["ok"], found["endurance"]["ok"]]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
