"""What all tests share."""

import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# A shell that was told to run us in the background leaves the interrupt ignored, and so it would be for every program
# that a test starts and then interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The kubectl that was built with the cluster lies there, and hyperctl.
os.environ["PATH"] = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"

# A test fails because of what happened, never because of how long it took.
hypothesis.settings.register_profile("hyperlet", deadline=None)
hypothesis.settings.load_profile("hyperlet")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the golden files instead of comparing with them")
