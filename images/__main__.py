"""`python -m images`: build the container images, without a registry.

build [NAME ...]   build what is not built yet (all, or these), print sizes and times
list [--json]      the images of the present sources: name, reference, archive
constraints        write images/constraints.txt from the environment this runs in
needs              the Debian packages needed for building
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from images import catalog, deps
from images.builder import ImageBuildError
from images.paths import ROOT

CONSTRAINTS_HEAD = """\
# Versions of everything in the development environment: the images and `make venv` use the same ones.
# Written by `python -m images constraints`.
"""


def _build(names: list[str]) -> int:
    total = 0.0
    for built in catalog.build(catalog.choose(names)):
        size = built.plan.archive.stat().st_size / 1e6
        print(f"{built.plan.role:18} {built.plan.reference:42} {size:7.1f} MB {built.seconds:6.1f} s", flush=True)
        total += built.seconds
    print(f"{'':18} {'':42} {'':7}    {total:6.1f} s")
    return 0


def _list(as_json: bool) -> int:
    listing = catalog.listing()
    if as_json:
        print(
            json.dumps({role: {"ref": p.reference, "archive": str(p.archive)} for role, p in listing.items()}, indent=1)
        )
        return 0
    for role, plan in listing.items():
        print(f"{role:18} {plan.reference:42} {'built' if plan.archive.exists() else 'to build':9} {plan.archive}")
    return 0


def _constraints() -> int:
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    frozen = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (ROOT / "images/constraints.txt").write_text(CONSTRAINTS_HEAD + frozen)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m images", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build").add_argument("names", nargs="*")
    verbs.add_parser("list").add_argument("--json", action="store_true")
    verbs.add_parser("constraints")
    verbs.add_parser("needs")
    words = parser.parse_args()
    try:
        if words.verb == "build":
            return _build(words.names)
    except (ImageBuildError, LookupError, subprocess.CalledProcessError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    if words.verb == "list":
        return _list(words.json)
    if words.verb == "needs":
        print(" ".join(deps.PACKAGES))
        return 0
    return _constraints()


if __name__ == "__main__":
    sys.exit(main())
