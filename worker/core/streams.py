"""How the stream (camera, line) of a record is named."""

from collections.abc import Callable

from worker.core.records import SourceRecord, header

MAX_STREAM_CHARACTERS = 128
UNNAMED_STREAM = "none"


def stream_naming(rule: str) -> Callable[[SourceRecord], str]:
    """How a record's stream (camera, line) is named.

    Args:
        rule: `key`, `partition`, `none` or `header:NAME`.
    """

    def text(value: bytes | None) -> str:
        return value.decode(errors="replace")[:MAX_STREAM_CHARACTERS] if value else UNNAMED_STREAM

    if rule == "key":
        return lambda record: text(record.key)
    if rule == "partition":
        return lambda record: str(record.partition)
    if rule.startswith("header:"):
        name = rule.removeprefix("header:")
        return lambda record: text(header(record.headers, name))
    return lambda _: UNNAMED_STREAM
