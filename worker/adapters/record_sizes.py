"""Whether a record may be taken, by its size: the same rule whichever client sends it."""

from collections.abc import Mapping

import lz4.frame

from worker.core.records import OutRecord

# Of a batch with one record, and of each of its headers: the most that Kafka's format adds.
RECORD_OVERHEAD_BYTES = 128
HEADER_OVERHEAD_BYTES = 10
# Headers and key come on top of the largest message's value.
REQUEST_OVERHEAD_BYTES = 1 << 20


def size_of(record: OutRecord) -> int:
    """The most that a record takes, uncompressed."""
    size = RECORD_OVERHEAD_BYTES + len(record.key or b"") + len(record.value or b"")
    return size + sum(len(name) + len(content) + HEADER_OVERHEAD_BYTES for name, content in record.headers)


class SizeLimits:
    """What the client and the topics take.

    Args:
        largest: of a record, the client's own limit.
        topics: `max.message.bytes` by topic, where it is known.
    """

    def __init__(self, largest: int, topics: Mapping[str, int]) -> None:
        self.largest = largest
        self._topics = topics

    @property
    def smallest_topic(self) -> int:
        """The least that one of the topics takes, or the client's limit."""
        return min(self._topics.values(), default=self.largest)

    def accepts(self, record: OutRecord) -> bool:
        """Whether the record may be taken. False is certain; True is not, as topics limit the compressed size."""
        size = size_of(record)
        if size > self.largest:
            return False
        limit = self._topics.get(record.topic)
        if limit is None or size <= limit:
            return True
        value = record.value or b""
        return size - len(value) + len(lz4.frame.compress(value)) <= limit
