"""What the pipeline needs of the outside, as Protocols. Adapters fulfil them; tests bring in-memory ones.

One thread, the I/O thread, calls Source and Publisher; the scoring thread calls Scorer; both read Clock and
report to Telemetry, which must therefore be safe to call from both.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from worker.core.errors import Reason
from worker.core.records import OutRecord, Positions, SourceRecord, TopicPartition


@dataclass(frozen=True, slots=True)
class Polled:
    """What one poll brought.

    Attributes:
        records: by partition, in the order of their offsets.
        unreadable_until: partitions whose one record in `records` stands for a range that Kafka itself could
            not read (CRC), with the offset after that range.
        revoked: partitions that are no longer ours; whatever of theirs is in flight must not be committed.
            Applies before `records`.
        group: the consumer group's metadata, taken before `revoked` was: when the broker accepts it in a
            transaction, every partition that is not in `revoked` was still ours. Opaque.
    """

    records: dict[TopicPartition, Sequence[SourceRecord]] = field(default_factory=dict)
    unreadable_until: dict[TopicPartition, int] = field(default_factory=dict)
    revoked: frozenset[TopicPartition] = frozenset()
    group: object = None


class Source(Protocol):
    """The input topic, read as a member of a consumer group."""

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        """Fetch what there is, at most `max_records`, waiting up to `timeout_s` seconds for the first record."""
        ...

    def assignment(self) -> Collection[TopicPartition]:
        """The partitions that are ours now."""
        ...

    def pause(self, paused: bool) -> None:
        """Stop or go on fetching from all assigned partitions; polling goes on either way."""
        ...

    def commit(self, positions: Positions) -> bool:
        """Commit positions, waiting for the answer. False: the group is rebalancing; poll, then try again.

        Raises:
            DeliveryFailed: it did not succeed: the group moved on without us, or nobody answered.
        """
        ...

    def rewind(self) -> bool:
        """Seek every assigned partition to its committed position. False: not known yet, ask again."""
        ...

    def missing(self) -> Sequence[str]:
        """What is not as it should be: the group's membership, Kafka's answers. Empty when all is well."""
        ...

    def lag(self) -> dict[TopicPartition, int]:
        """Per assigned partition the number of records not yet fetched, as far as known without asking."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class Ticket(Protocol):
    """The fate of records that were sent together."""

    def settled(self) -> bool:
        """Whether every record was acknowledged.

        Raises:
            RecordRefused: Kafka does not take one of them as it is.
            DeliveryFailed: one of them may not have arrived.
        """
        ...


class RecordRefused(Exception):  # noqa: N818 - it names Kafka's answer
    """Kafka does not take `record` because of its size."""

    def __init__(self, record: OutRecord, message: str) -> None:
        super().__init__(message)
        self.record = record


class Publisher(Protocol):
    """Where verdicts and dead letters go."""

    def accepts(self, record: OutRecord) -> bool:
        """Whether the record's topic may take it, by its size. False is certain, True is not."""
        ...

    def send(self, records: Sequence[OutRecord]) -> Ticket:
        """Send without waiting. Records of a partition keep their order.

        Of a record that is larger than the client's own limit the ticket tells; those before it were sent.

        Raises:
            DeliveryFailed: Kafka takes nothing now.
        """
        ...

    def rebuild(self) -> bool:
        """Give up on everything sent and not acknowledged, and start afresh. False: not possible yet, ask again.

        Once it has returned True nothing sent before can still arrive behind what is sent from now on.
        """
        ...

    def close(self) -> None:
        """Close without waiting for what is not acknowledged."""
        ...


class Transactions(Publisher, Protocol):
    """A publisher whose records stay invisible to `read_committed` readers until commit()."""

    def flush(self) -> None:
        """Wait, within a bound, until every record sent has its answer.

        Raises:
            DeliveryFailed: some have none.
        """
        ...

    def commit(self, positions: Positions, group: object) -> None:
        """Commit everything sent since the last commit, and the positions with it.

        Args:
            positions: to commit for the consumer group.
            group: its metadata, as Polled.group has it.

        Raises:
            DeliveryFailed: it did not succeed, or nobody knows whether it did.
        """
        ...


class Scorer(Protocol):
    """The model. Called by one thread at a time."""

    @property
    def batch_capacity(self) -> int:
        """The largest batch it takes."""
        ...

    def score(self, images: NDArray[np.uint8], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score the first `count` of `images`, uint8 (batch_capacity, H, W, C).

        The rest is padding: it may hold anything, and nothing of it is returned.

        Returns:
            scores and errors, float32 (count,). They may hold values that are not finite.

        Raises:
            Exception: the model refuses the batch, in whatever way it likes.
        """
        ...


class Clock(Protocol):
    """Time."""

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary start."""
        ...

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""
        ...


ReloadOutcome = Literal["swapped", "refused"]
MapOutcome = Literal["published", "omitted", "failed"]


class Telemetry(Protocol):
    """What the pipeline tells about itself. Every method returns quickly and never raises."""

    def scored(
        self,
        streams: Sequence[str],
        scores: NDArray[np.float32],
        errors: NDArray[np.float32],
        anomalies: Sequence[bool],
        images: NDArray[np.uint8],
    ) -> None:
        """A batch was judged; one entry per judged image. Called by the scoring thread, once per batch.

        `images` is uint8 (N, H, W, C); it holds others as soon as this returns.
        """
        ...

    def batch(self, *, records: int, wait_s: float, decode_s: float, inference_s: float) -> None:
        """A batch went through the scoring thread; `wait_s` is how long its oldest record waited in it."""
        ...

    def unreadable(self, stream: str, reason: Reason) -> None:
        """A record was answered `unreadable`."""
        ...

    def expired(self, stream: str) -> None:
        """A record was answered `expired`: it was too old to be judged."""
        ...

    def error_maps(self, outcome: MapOutcome, count: int) -> None:
        """So many anomalies' error maps were sent, left out because of their size, or not found, nor a region."""
        ...

    def published(self, durations_s: Sequence[float]) -> None:
        """Batches were acknowledged; for each the seconds since its answers were handed to the client."""
        ...

    def acknowledged(self, latencies_s: NDArray[np.float64]) -> None:
        """Verdicts were acknowledged; seconds since each record's timestamp, not yet clamped."""
        ...

    def committed(self, records: int, seconds: float) -> None:
        """Positions were committed, covering so many records."""
        ...

    def state(
        self,
        *,
        in_flight_records: int,
        in_flight_bytes: int,
        paused: bool,
        assigned: int,
        lag: dict[TopicPartition, int],
        connected: bool,
    ) -> None:
        """Where the I/O thread stands; called about once a second.

        `assigned` is a number of partitions; `connected`: Kafka answers, and the group has us as a member.
        """
        ...

    def rebalanced(self, revoked: int) -> None:
        """Partitions were revoked."""
        ...

    def rebuilt(self, step: str) -> None:
        """Something may not have been delivered: what was in flight is read again."""
        ...

    def reloaded(self, outcome: ReloadOutcome) -> None:
        """A new bundle was found while running, and swapped in or refused."""
        ...
