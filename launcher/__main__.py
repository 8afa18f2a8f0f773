"""`python -m launcher`: the gRPC server of a launcher's pod, started by the supervisor."""

import os
import signal
import sys
import types


def leave_out() -> None:
    """Has libraries do without what they would load and never use here: it costs every VM a MiB and more."""
    # asyncio does without ssl where there is none, and hashlib has hashes of its own. Nothing here speaks TLS.
    for absent in ("ssl", "_hashlib"):
        sys.modules[absent] = None  # type: ignore[assignment]
    # protobuf loads its implementation in Python beside the one in C that it uses.
    unused = "google.protobuf.internal.python_message"
    sys.modules[unused] = types.ModuleType(unused)


def main() -> int:
    """Runs the server."""
    leave_out()
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from launcher.domain_builder.process import DomainBuilder
    from launcher.paths import from_environment

    paths, builder = from_environment(), DomainBuilder()
    if not os.path.exists(paths.state):  # noqa: PTH110 (pathlib is for later)
        # There is no VM yet, so one is about to be built.
        builder.warm()
    from launcher import server

    server.main(paths, builder)


if __name__ == "__main__":
    sys.exit(main())
