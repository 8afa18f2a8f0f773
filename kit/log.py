"""Structured logs: one JSON object per line.

The message says what happened and what is done next. Everything else, such as the object's name, is a key, so that
`kubectl logs | jq 'select(.name=="web")'` works.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _render(_logger: Any, _method: str, event: structlog.types.EventDict) -> str:
    first = {"ts": event.pop("timestamp", None), "level": event.pop("level", None), "msg": event.pop("event", "")}
    return _encoded({**first, **event})


def _encoded(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=str).decode()
    except UnicodeEncodeError:  # lone surrogates, from file names that are not UTF-8
        return json.dumps(line, default=str)


class _Line(logging.Formatter):
    """Formats libraries' log records as JSON as well, so that text from a peer cannot forge a log line."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        line = {"level": record.levelname.lower(), "msg": record.getMessage(), "logger": record.name}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encoded(line)


def setup(role: str, level: str | None = None) -> None:
    """Logs to stderr as JSON, for the whole process. `level` defaults to HYPERLET_LOG, then info."""
    threshold = LEVELS.get((level or os.environ.get("HYPERLET_LOG") or "info").lower(), logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            cast(Callable[..., str], _render),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(_Line())
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])


def logger(**context: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger that adds `context` to every line."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(**context))


def task_failed(name: str, error: BaseException, about: Mapping[str, object]) -> None:
    """Logs the exception of a background task: the report of `kit.tasks.BackgroundTasks`."""
    logger(component="tasks").error("Unhandled exception in a background task", task=name, exc_info=error, **about)


def about(obj: Any) -> dict[str, str]:
    """The keys that identify an object: `log.info("Created the pod", **about(vmi))`."""
    meta = obj.metadata
    found = {"kind": obj.kind or type(obj).__name__, "namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
    return {key: value for key, value in found.items() if value}
