"""The Retry-After header of 429 and 503 responses: when a server asks its clients to come back.

The API server sends it with 429 under priority and fairness, and with 503 while it starts. Such a request was not
carried out, so that any can be repeated. Source: RFC 9110, 10.2.3; client-go's rest/request.go.
"""

import random
import time
from collections.abc import Mapping

CODES = frozenset({429, 503})
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
"""Bounds of what a server can ask for."""
JITTER = 1.2


def wait_seconds(code: int, headers: Mapping[str, str]) -> float | None:
    """The seconds that a response asks to wait, within the bounds; None if it does not ask, or cannot be understood."""
    value = headers.get("Retry-After", "").strip()
    if code not in CODES or not value:
        return None
    if value.isascii() and value.isdigit():
        seconds = float(value[:10])
    else:
        # 30 ms of imports, for a form that API servers do not send but proxies may.
        from email.utils import parsedate_to_datetime

        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)


def spread(seconds: float) -> float:
    """Not less than `seconds`, so that clients that were refused together do not return together."""
    return seconds * random.uniform(1.0, JITTER)
