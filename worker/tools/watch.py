"""Shows verdicts as they come: a live table on a terminal, JSON lines elsewhere.

Rule: reads as no group and with read_committed, so that watching changes nothing and shows nothing that is not so.
"""

import sys
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple

import msgspec
import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from pydantic import Field
from rich.console import Console
from rich.live import Live

from worker.adapters.kafka_admin import partition_count
from worker.core.errors import KafkaRefused, KafkaUnreachable
from worker.core.verdicts import Verdict
from worker.settings import ConnectionSettings
from worker.tools.board import VerdictBoard

POLL_MS = 200
FRAMES_PER_S = 4

_log = structlog.get_logger(__name__)


class Settings(ConnectionSettings):
    """Show verdicts as they come. On a terminal a live table, elsewhere one JSON line each.

    Example:
      reconstream-worker watch
      reconstream-worker watch --once > verdicts.jsonl
    """

    once: bool = Field(default=False, description="show what is there from the beginning, then end")
    from_beginning: bool = Field(default=False, description="show what is there already, then go on")
    count: int | None = Field(default=None, ge=1, description="end after so many verdicts; default: at Ctrl-C")


class Seen(NamedTuple):
    """A record of the output topic; `verdict` is None if it is none."""

    value: bytes
    verdict: Verdict | None
    timestamp_ms: int


def read_verdicts(
    client_options: Mapping[str, object],
    topic: str,
    *,
    from_beginning: bool = False,
    once: bool = False,
    timeout_s: float = 60,
) -> Generator[list[Seen]]:
    """Read the output topic as it fills; gives an empty list when nothing came for a while.

    Args:
        client_options: kafka-python's keyword arguments for the connection.
        topic: the output topic.
        from_beginning: from the oldest record on; otherwise only new ones.
        once: end with the last record that there is now.
        timeout_s: how long to wait for Kafka at the start.

    Raises:
        KafkaRefused, KafkaUnreachable
    """
    count = partition_count(client_options, topic, timeout_s)
    partitions = [TopicPartition(topic, number) for number in range(count)]
    timeout_ms = int(timeout_s * 1000)
    try:
        consumer = KafkaConsumer(
            **client_options,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            bootstrap_timeout_ms=timeout_ms,
        )
        try:
            consumer.assign(partitions)
            ends = consumer.end_offsets(partitions, timeout_ms=timeout_ms)
            if from_beginning or once:
                consumer.seek_to_beginning(*partitions)
            else:
                for partition, end in ends.items():
                    consumer.seek(partition, end)
            while not (once and all(consumer.position(partition) >= ends[partition] for partition in partitions)):
                polled = consumer.poll(timeout_ms=POLL_MS)
                records = (record for part in polled.values() for record in part)
                yield [Seen(record.value or b"", parse(record.value), record.timestamp) for record in records]
        finally:
            consumer.close()
    except KafkaError as error:
        cls = KafkaUnreachable if error.retriable else KafkaRefused
        raise cls(f"reading '{topic}' failed: {type(error).__name__}: {error}") from error


def parse(value: bytes | None) -> Verdict | None:
    """A record's value as a verdict, or None if it is none."""
    try:
        return msgspec.json.decode(value or b"", type=Verdict)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None


def main(settings: Settings) -> int:
    """Show verdicts until Ctrl-C, --count, or with --once the last one that there is."""
    batches = read_verdicts(
        settings.kafka.client_options(),
        settings.output_topic,
        from_beginning=settings.from_beginning,
        once=settings.once,
        timeout_s=settings.start_timeout_s,
    )
    if sys.stdout.isatty():
        _show(batches, settings)
    else:
        _write(batches, settings.count)
    return 0


def _show(batches: Iterator[list[Seen]], settings: Settings) -> None:
    board = VerdictBoard(f"verdicts on '{settings.output_topic}'")
    with Live(console=Console(), get_renderable=board.render, refresh_per_second=FRAMES_PER_S) as live:
        for seen in _until(batches, settings.count):
            if seen.verdict is None:
                board.strange += 1
            else:
                board.update(seen.verdict, seen.timestamp_ms)
        live.refresh()


def _write(batches: Iterator[list[Seen]], count: int | None) -> None:
    for seen in _until(batches, count):
        if seen.verdict is None:
            _log.warning("a record on the output topic is no verdict", bytes=len(seen.value))
        else:
            # Encoded anew: one line, whatever white space the record has.
            sys.stdout.buffer.write(msgspec.json.encode(seen.verdict) + b"\n")
            sys.stdout.buffer.flush()


def _until(batches: Iterator[list[Seen]], count: int | None) -> Iterator[Seen]:
    number = 0
    for batch in batches:
        for seen in batch:
            yield seen
            number += seen.verdict is not None
            if number == count:
                return
