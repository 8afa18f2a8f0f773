"""Steps back, for an ADD that fails."""

from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger("cni")


def log_errors(work: Callable[..., Any], *arguments: Any) -> None:
    """Runs a step back. What goes wrong then is logged: the first error is the one that counts."""
    try:
        work(*arguments)
    except Exception as error:
        name = getattr(work, "__name__", str(work))
        log.warning("the rollback of a failed ADD is incomplete", step=name, error=str(error))
