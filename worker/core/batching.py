"""Batches: closed when full, or when the oldest record in them has waited long enough.

Rules: nothing is lost, nothing twice, the order of arrival is kept; records whose lease has ended are left out.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from worker.core.offsets import Lease, Part
from worker.core.records import SourceRecord


class Chunk(NamedTuple):
    """What one poll brought of one partition.

    Attributes:
        lease: the hold under which it was read.
        records: in the order of their offsets.
        sizes: bytes that each record is counted with while it is in flight.
        received: when, on the monotonic clock in seconds.
        unreadable_until: see worker.ports.Polled.
    """

    lease: Lease
    records: Sequence[SourceRecord]
    sizes: Sequence[int]
    received: float
    unreadable_until: int | None = None


class Batch(NamedTuple):
    """Records to score together.

    Attributes:
        parts: the records, in the order of their arrival; empty when every lease has ended.
        taken: how many records left the batcher, those left out included.
        oldest: when the first of them was received, on the monotonic clock in seconds.
    """

    parts: list[Part]
    taken: int
    oldest: float


class Batcher:
    """Cuts chunks into batches.

    Args:
        max_size: records in a batch.
        max_delay_s: how long a record may wait for its batch to fill, in seconds.
    """

    def __init__(self, max_size: int, max_delay_s: float) -> None:
        self._max_size = max_size
        self._max_delay = max_delay_s
        self._waiting: deque[tuple[Chunk, int]] = deque()
        self._records = 0

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk."""
        if chunk.records:
            self._waiting.append((chunk, 0))
            self._records += len(chunk.records)

    def due_in(self, now: float) -> float | None:
        """Seconds until a batch must close: 0 if one may now, None if nothing waits."""
        if not self._waiting:
            return None
        if self._records >= self._max_size:
            return 0.0
        return max(0.0, self._waiting[0][0].received + self._max_delay - now)

    def take(self, now: float) -> Batch | None:
        """The next batch, if one is full or due."""
        due = self.due_in(now)
        if due is None or due > 0:
            return None
        parts: list[Part] = []
        room = self._max_size
        before = self._records
        oldest = self._waiting[0][0].received
        while room and self._waiting:
            chunk, start = self._waiting.popleft()
            if not chunk.lease.alive:
                self._records -= len(chunk.records) - start
                continue
            stop = min(len(chunk.records), start + room)
            if stop < len(chunk.records):
                self._waiting.appendleft((chunk, stop))
            records = chunk.records[start:stop]
            self._records -= len(records)
            room -= len(records)
            parts.append(
                Part(
                    chunk.lease,
                    records,
                    sum(chunk.sizes[start:stop]),
                    chunk.unreadable_until or records[-1].offset + 1,
                    chunk.unreadable_until,
                )
            )
        return Batch(parts, before - self._records, oldest)
