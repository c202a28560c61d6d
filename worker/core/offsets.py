"""Which records are in flight, and which positions may be committed.

Theory of operation. A *lease* is our hold on one partition, from an assignment or a rewind to the next. What
is handed to the scorer carries its lease; when the partition is revoked, or everything must be read again,
the lease ends, and whatever comes back under it is dropped. Answered records are grouped as they were batched
and settle first in, first out; within a partition batches keep the order of the offsets. So a position that
is ready to commit never lies beyond a record whose answers were not all acknowledged.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from worker.core.records import SourceRecord, TopicPartition


class Lease:
    """Our hold on one partition. The I/O thread alone changes it; the scoring thread reads `alive`."""

    __slots__ = ("alive", "bytes", "partition", "records")

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        self.alive = True
        self.records = 0
        self.bytes = 0


class Part(NamedTuple):
    """A run of one partition's records within a batch.

    Attributes:
        lease: the hold under which they were read.
        records: the records, in the order of their offsets.
        bytes: what they are counted with in flight, together.
        next_offset: the position once they are all answered.
        unreadable_until: the one record stands for a range that Kafka could not read, up to this offset.
    """

    lease: Lease
    records: Sequence[SourceRecord]
    bytes: int
    next_offset: int
    unreadable_until: int | None


class Fate(Protocol):
    """Tells whether everything sent for a batch was acknowledged; raises what went wrong."""

    def settled(self) -> bool: ...


class Ledger:
    """The account of everything between poll and commit."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self._leases: dict[TopicPartition, Lease] = {}
        self._published: deque[tuple[Sequence[Part], Fate]] = deque()
        self._settled: list[Part] = []
        self._positions: dict[TopicPartition, int] = {}

    def lease(self, partition: TopicPartition) -> Lease:
        """The partition's lease; a new one where there is none."""
        lease = self._leases.get(partition)
        if lease is None:
            lease = self._leases[partition] = Lease(partition)
        return lease

    def handed_over(self, lease: Lease, records: int, size: int) -> None:
        """So many records, of so many bytes, went to the scorer."""
        lease.records += records
        lease.bytes += size
        self.records += records
        self.bytes += size

    def holds_uncommitted(self, partitions: Iterable[TopicPartition]) -> bool:
        """Whether answers of these partitions were published, and their positions not committed."""
        wanted = set(partitions)
        published = (part for parts, _ in self._published for part in parts)
        return any(part.lease.partition in wanted for part in (*published, *self._settled) if part.lease.alive)

    def revoke(self, partitions: Iterable[TopicPartition]) -> int:
        """End these partitions' leases. Returns how many records in flight are dropped."""
        dropped = 0
        for partition in partitions:
            self._positions.pop(partition, None)
            lease = self._leases.pop(partition, None)
            if lease is not None:
                lease.alive = False
                dropped += lease.records
                self.records -= lease.records
                self.bytes -= lease.bytes
        return dropped

    def revoke_all(self) -> int:
        """End every lease and forget what was published. Returns how many records in flight are dropped."""
        self._published.clear()
        self._settled.clear()
        return self.revoke(tuple(self._leases))

    def published(self, parts: Sequence[Part], fate: Fate) -> None:
        """All answers of these parts were sent; batches settle in the order of these calls."""
        self._published.append((parts, fate))

    def settle(self) -> list[Sequence[Part]]:
        """Take the batches at the head of the line that are acknowledged; their positions become ready.

        Raises:
            whatever Fate.settled raises; the batch stays at the head.
        """
        batches = []
        while self._published and self._published[0][1].settled():
            parts, _ = self._published.popleft()
            batches.append(parts)
            for part in parts:
                if part.lease.alive:
                    self._settled.append(part)
                    self._positions[part.lease.partition] = part.next_offset
        return batches

    @property
    def oldest_published(self) -> Sequence[Part] | None:
        """The batch at the head of the line, sent and not yet acknowledged."""
        return self._published[0][0] if self._published else None

    @property
    def all_settled(self) -> bool:
        """Whether nothing published waits for its acknowledgement."""
        return not self._published

    @property
    def ready(self) -> dict[TopicPartition, int]:
        """Positions that may be committed now."""
        return dict(self._positions)

    @property
    def ready_records(self) -> int:
        """How many records a commit of `ready` would cover."""
        return sum(len(part.records) for part in self._settled if part.lease.alive)

    def committed(self) -> int:
        """`ready` was committed. Returns how many records that covered."""
        count = 0
        for part in self._settled:
            if part.lease.alive:
                records = len(part.records)
                part.lease.records -= records
                part.lease.bytes -= part.bytes
                self.records -= records
                self.bytes -= part.bytes
                count += records
        self._settled.clear()
        self._positions.clear()
        return count
