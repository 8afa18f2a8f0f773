"""`python -m launcher`: the gRPC server of a launcher's pod, started by the supervisor."""

import os
import signal
import sys
import types


def leave_out() -> None:
    """Keep libraries from loading modules that are never used here: saves more than 1 MiB per VM."""
    # asyncio works without ssl, and hashlib without OpenSSL. Nothing here uses TLS.
    for absent in ("ssl", "_hashlib"):
        sys.modules[absent] = None  # type: ignore[assignment]
    # protobuf imports its pure Python implementation although it uses the C one.
    unused = "google.protobuf.internal.python_message"
    sys.modules[unused] = types.ModuleType(unused)


def main() -> int:
    """Run the server."""
    leave_out()
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from launcher.domain_builder.process import DomainBuilder
    from launcher.paths import from_environment

    paths, builder = from_environment(), DomainBuilder()
    if not os.path.exists(paths.state):  # noqa: PTH110 (pathlib is for later)
        # There is no VM yet, so a build is expected.
        builder.warm()
    from launcher import server

    server.main(paths, builder)


if __name__ == "__main__":
    sys.exit(main())
