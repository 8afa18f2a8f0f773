"""Rollback of a failed ADD."""

from collections.abc import Callable
from typing import Any

import structlog

from cni.errors import CniError

log = structlog.get_logger("cni")


def log_errors(work: Callable[..., Any], *arguments: Any) -> None:
    """Run a rollback step. Its CniError or OSError is logged, so that the original error is reported."""
    try:
        work(*arguments)
    except (CniError, OSError) as error:
        name = getattr(work, "__name__", str(work))
        log.warning("the rollback of a failed ADD is incomplete", step=name, error=str(error))
