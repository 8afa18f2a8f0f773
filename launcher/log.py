"""Log lines for the operator: JSON on stderr.

The logging module and structlog would cost every VM about a MiB, the typing module half of one. `kubectl logs` is the
guest's console, so only warnings and worse are written unless HYPERLET_LOG says otherwise.
"""

import json
import os
import sys
import time

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_threshold = _LEVELS.get(os.environ.get("HYPERLET_LOG", "warning"), 30)
_vmi = {"namespace": os.environ.get("HYPERLET_NAMESPACE", ""), "vmi": os.environ.get("HYPERLET_NAME", "")}


def log(level: str, event: str, **context: object) -> None:
    """Writes one line: what happened, to which VMI, with `context` (made of JSON types; others as their str)."""
    if _LEVELS[level] < _threshold:
        return
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"timestamp": moment, "level": level, "event": event, **_vmi, **context}
    print(json.dumps(line, default=str), file=sys.stderr, flush=True)
