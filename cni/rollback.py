"""Rollback of a failed ADD."""

from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger("cni")


def log_errors(work: Callable[..., Any], *arguments: Any) -> None:
    """Run a rollback step. Its exceptions are logged, so that the original error is reported."""
    try:
        work(*arguments)
    except Exception as error:
        name = getattr(work, "__name__", str(work))
        log.warning("the rollback of a failed ADD is incomplete", step=name, error=str(error))
