"""Records as they come from and go to Kafka, whichever client carries them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

Headers = Sequence[tuple[str, bytes | None]]


class TopicPartition(NamedTuple):
    """One partition of a topic; equal to any client's own (topic, partition) tuple."""

    topic: str
    partition: int


# What an answer repeats of its record, at most: key and headers of a record may fill a message of any size, and an
# answer that its topic refuses would be tried for ever.
MAX_CARRIED_BYTES = 16 << 10

Positions = Mapping[TopicPartition, int]
"""Per partition the offset of the next record to read."""


class SourceRecord(Protocol):
    """A consumed record. kafka-python's ConsumerRecord is one as it stands: nothing is copied per message."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int | None:
        """Milliseconds since the epoch; -1 or None where the record has none."""
        ...

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


class Record(NamedTuple):
    """The plain SourceRecord: for sources without a record class of their own."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None = -1
    key: bytes | None = None
    value: bytes | None = None
    headers: Headers = ()


class OutRecord(NamedTuple):
    """A record to produce."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


PREFIX = "reconstream-"
"""How the names of the headers begin that the worker adds."""


def source_headers(record: SourceRecord) -> list[tuple[str, bytes]]:
    """Headers that say where `record` stands, their names without PREFIX; a record without a timestamp has -1."""
    return [
        ("source-topic", record.topic.encode()),
        ("source-partition", b"%d" % record.partition),
        ("source-offset", b"%d" % record.offset),
        ("source-timestamp-ms", b"%d" % (-1 if record.timestamp is None else record.timestamp)),
    ]


def source_of(record: OutRecord) -> tuple[TopicPartition, int]:
    """Partition and offset that `record` names in the headers of source_headers()."""
    # Of a name that stands there twice dict() keeps the last, which is ours.
    headers = dict(record.headers)
    topic, partition, offset = (headers[f"{PREFIX}source-{name}"] for name in ("topic", "partition", "offset"))
    return TopicPartition(topic.decode(), int(partition)), int(offset)


def headers_bytes(headers: Headers) -> int:
    """Bytes of names and values."""
    return sum(len(name) + len(value or b"") for name, value in headers)


def record_bytes(record: SourceRecord) -> int:
    """Bytes of a record's value, key and headers."""
    size = len(record.value) if record.value is not None else 0
    if record.key is not None:
        size += len(record.key)
    return size + headers_bytes(record.headers) if record.headers else size


def header(headers: Headers, name: str) -> bytes | None:
    """The value of the first header called `name`, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None
