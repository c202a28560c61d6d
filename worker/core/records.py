"""Records as they come from and go to Kafka, whichever client carries them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

Headers = Sequence[tuple[str, bytes | None]]


class TopicPartition(NamedTuple):
    """One partition of a topic; equal to any client's own (topic, partition) tuple."""

    topic: str
    partition: int


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
    def timestamp(self) -> int:
        """Milliseconds since the epoch; -1 where the record has none."""
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
    timestamp: int = -1
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


def header(headers: Headers, name: str) -> bytes | None:
    """The value of the first header called `name`, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None
