"""Log lines: JSON on stderr.

The logging module and structlog would cost every VM about 1 MiB, the typing module half of that. `kubectl logs` shows
the guest's console, so the default level is warning (HYPERLET_LOG).
"""

import json
import os
import sys
import time
from collections.abc import Mapping

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_threshold = _LEVELS.get(os.environ.get("HYPERLET_LOG", "warning"), 30)
_vmi = {"namespace": os.environ.get("HYPERLET_NAMESPACE", ""), "vmi": os.environ.get("HYPERLET_NAME", "")}


def task_failed(name: str, error: BaseException, about: Mapping[str, object]) -> None:
    """Log the exception of a background task: the report of `kit.tasks.BackgroundTasks`."""
    log("error", "unhandled exception in a background task", task=name, error=repr(error), **about)


def log(level: str, event: str, **context: object) -> None:
    """Write one line: the event, the VMI, and `context` (JSON types; others as their str)."""
    if _LEVELS[level] < _threshold:
        return
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"timestamp": moment, "level": level, "event": event, **_vmi, **context}
    print(json.dumps(line, default=str), file=sys.stderr, flush=True)
