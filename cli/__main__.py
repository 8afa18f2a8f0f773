"""The entry point of `hyperctl`, `kubectl virt` and `python -m cli`."""

import sys


def main() -> int:
    """Runs the command of the command line and returns its exit code: 0, 1 after an error, 130 after ctrl-C."""
    from cli.app import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
