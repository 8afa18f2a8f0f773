"""`python -m bench <name|all|list> [--repeat N] [--quick]`: run benchmarks on the running cluster."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench import admission, api_calls, console, cpu, delete, floods, gateway, memory, start
from bench.api import ApiFailure
from bench.figures import BenchResult, render
from bench.options import BenchOptions
from bench.session import Session, say, write
from bench.timeline import Timeout

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(os.environ.get("HYPERLET_RUN", str(ROOT / ".run")))

# In the order of `all`: benchmarks that need an idle machine first, those that load it last.
BENCHES = {
    "admission": admission,
    "floods": floods,
    "memory": memory,
    "api-calls": api_calls,
    "console": console,
    "gateway": gateway,
    "delete": delete,
    "cpu": cpu,
    "start": start,
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=[*BENCHES, "all", "list"])
    parser.add_argument(
        "--repeat", type=int, default=0, help="rounds of each measurement (default: depends on the benchmark)"
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each, as a smoke test")
    parser.add_argument(
        "--sizes", default="1,5,20", help="start: numbers of guests started at once (default: %(default)s)"
    )
    parser.add_argument("--no-disk", action="store_true", help="start: use guests without a containerDisk")
    return parser.parse_args(argv)


def kubeconfig() -> Path:
    """The cluster of `make up`, on this machine or an existing one."""
    if os.environ.get("HYPERLET_CLUSTER") == "existing":
        return Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    return RUN / "kubeconfig"


def measure(names: Sequence[str], options: BenchOptions) -> list[BenchResult]:
    """Run the benchmarks in one session; each result is printed and written immediately."""
    results = []
    with Session(kubeconfig(), ROOT) as session:
        session.launcher()
        for name in names:
            conditions = session.conditions(options.repeat)
            say(f"{name}: load average {conditions['load average'][0]:.2f}")
            result = BENCHES[name].run(session, options)
            result.conditions = {**conditions, "load average after": list(os.getloadavg()), "quick": options.quick}
            if session.images() != conditions["images"]:
                result.notes.append("images changed during the measurement: measure again")
            results.append(result)
            print(render(result))
            print(f"\n{write(result.document(), RUN / 'bench')}", flush=True)
    return results


def stop(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM like Ctrl-C: clean up."""
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured (even if targets are missed), 1 measurement failed, 130 interrupted."""
    arguments = parse(argv)
    if arguments.name == "list":
        for name, module in BENCHES.items():
            print(f"{name:<10} {(module.__doc__ or '').splitlines()[0]}")
        return 0
    sizes = tuple(int(size) for size in arguments.sizes.split(","))
    options = BenchOptions(arguments.repeat, arguments.quick, sizes, not arguments.no_disk, RUN / "audit.log")
    signal.signal(signal.SIGTERM, stop)
    try:
        measure(list(BENCHES) if arguments.name == "all" else [arguments.name], options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ApiFailure, Timeout, OSError) as failure:
        print(f"failed: {failure}\n  next: make up; kubectl --kubeconfig={kubeconfig()} get pods -A", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
