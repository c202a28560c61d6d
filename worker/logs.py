"""Logs: one line an event, on stderr; stdout is for results.

JSON where nobody looks on (stderr is no terminal), readable where somebody does. The standard library's
logging goes the same way, from WARNING up whatever the level. The lines of the Kafka clients are shown only at the
level debug, and from WARNING up: they write one for every attempt, hundreds while a broker restarts, where the worker
writes one for every change of state; below WARNING kafka-python writes its configuration with the passwords.
Rule: secrets never appear.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog
from pydantic import SecretStr

LogFormat = Literal["auto", "json", "console"]

MASK = "**********"
OURS = ("worker", "training")
_SECRET_NAME = re.compile(r"password|secret|token|credential", re.IGNORECASE)


def configure(log_format: LogFormat = "auto", level: str = "info") -> None:
    """Send every log line to stderr, in one format.

    Args:
        log_format: `auto` is `console` on a terminal and `json` elsewhere.
        level: the least important lines of ours that are written: debug, info, warning or error.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        mask_secrets,
    ]
    last: list[Any]
    if console:
        # The default shows a traceback's local variables, secrets among them.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    if level != "debug":
        # On the handler, not on the loggers: worker.adapters.kafka_admin listens to them for the cause of a failure.
        handler.addFilter(lambda record: not record.name.startswith("kafka."))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def mask_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace every SecretStr, and every value whose name speaks of a secret, at any depth."""
    return {name: _masked(name, value) for name, value in event.items()}


def _masked(name: str, value: object) -> object:
    if isinstance(value, SecretStr) or (value is not None and _SECRET_NAME.search(name)):
        return MASK
    if isinstance(value, Mapping):
        return {key: _masked(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked("", inner) for inner in value]
    return value
