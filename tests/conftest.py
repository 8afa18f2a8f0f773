"""What all tests share."""

import hypothesis
import pytest

# A test fails because of what happened, never because of how long it took.
hypothesis.settings.register_profile("hyperlet", deadline=None)
hypothesis.settings.load_profile("hyperlet")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the golden files instead of comparing with them")
