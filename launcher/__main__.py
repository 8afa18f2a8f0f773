"""`python -m launcher`: the gRPC server of a launcher's pod, started by the supervisor."""

import sys


def main() -> int:
    """Runs the server."""
    # asyncio does without ssl where there is none. Here nothing speaks TLS, and OpenSSL would cost every VM a MiB.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    from launcher import server

    server.main()


if __name__ == "__main__":
    sys.exit(main())
