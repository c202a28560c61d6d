"""In-memory ports: a broker with partitions, committed positions, and faults on demand.

tests/contract runs one suite on these and on a real Kafka, so that they cannot drift from it.
"""

import threading
from collections import Counter, deque
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord, Positions, Record, SourceRecord, TopicPartition
from worker.ports import Polled, RecordRefused


class MemoryBroker:
    """Topics as lists of records; thread-safe."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._logs: dict[TopicPartition, list[Record]] = {}
        self.committed: dict[TopicPartition, int] = {}

    def create(self, topic: str, partitions: int) -> None:
        for number in range(partitions):
            self._logs[TopicPartition(topic, number)] = []

    def partitions(self, topic: str) -> list[TopicPartition]:
        return sorted(partition for partition in self._logs if partition.topic == topic)

    def append(self, record: OutRecord, timestamp: int = 0) -> None:
        with self.changed:
            log = self._logs[TopicPartition(record.topic, record.partition)]
            log.append(
                Record(
                    record.topic,
                    record.partition,
                    len(log),
                    timestamp,
                    record.key,
                    record.value,
                    tuple(record.headers),
                )
            )
            self.changed.notify_all()

    def read(self, partition: TopicPartition, position: int, count: int) -> list[Record]:
        with self.changed:
            return self._logs[partition][position : position + count]

    def end(self, partition: TopicPartition) -> int:
        with self.changed:
            return len(self._logs[partition])

    def topic(self, topic: str) -> list[Record]:
        with self.changed:
            return [record for partition in self.partitions(topic) for record in self._logs[partition]]


class MemorySource:
    """Fulfils worker.ports.Source. `revoke` plays a rebalance; `failing_commits` and `failing_rewinds` count down."""

    def __init__(self, broker: MemoryBroker, topic: str) -> None:
        self._broker = broker
        self._assigned = broker.partitions(topic)
        self._positions: dict[TopicPartition, int] = {}
        self._revoked: set[TopicPartition] = set()
        self._regain: set[TopicPartition] = set()
        self._lock = threading.Lock()
        self.paused = False
        self.failing_commits = 0
        self.failing_rewinds = 0
        self.deferred_commits = 0
        self.polls_while_paused = 0
        self.rebalances = 0
        self.rewind()

    def revoke(self, partitions: Collection[TopicPartition], *, regain: bool = False) -> None:
        with self._lock:
            self._revoked |= set(partitions)
            if regain:
                self._regain |= set(partitions)

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        with self._lock:
            revoked, self._revoked = frozenset(self._revoked), set()
            regain, self._regain = self._regain, set()
        self.rebalances += bool(revoked)
        self._assigned = [p for p in self._assigned if p not in revoked or p in regain]
        for partition in regain:
            self._positions[partition] = self._broker.committed.get(partition, 0)
        if self.paused:
            self.polls_while_paused += 1
            return Polled(revoked=revoked)
        with self._broker.changed:
            self._broker.changed.wait_for(self._any, timeout_s)
        records: dict[TopicPartition, Sequence[SourceRecord]] = {}
        room = max_records
        # Rotate, so that no partition starves another.
        self._assigned.append(self._assigned.pop(0)) if self._assigned else None
        for partition in self._assigned:
            batch = self._broker.read(partition, self._positions[partition], room)
            if batch:
                records[partition] = batch
                self._positions[partition] += len(batch)
                room -= len(batch)
            if not room:
                break
        return Polled(records, {}, revoked)

    def _any(self) -> bool:
        return any(self._broker.end(partition) > self._positions[partition] for partition in self._assigned)

    def assignment(self) -> Collection[TopicPartition]:
        return set(self._assigned)

    def pause(self, paused: bool) -> None:
        self.paused = paused

    def commit(self, positions: Positions) -> bool:
        if self.failing_commits:
            self.failing_commits -= 1
            raise DeliveryFailed("commit", "the test lets this commit fail")
        if self.deferred_commits:
            self.deferred_commits -= 1
            return False
        with self._broker.changed:
            self._broker.committed.update(positions)
            self._broker.changed.notify_all()
        return True

    def rewind(self) -> bool:
        if self.failing_rewinds:
            self.failing_rewinds -= 1
            return False
        self._positions = {partition: self._broker.committed.get(partition, 0) for partition in self._assigned}
        return True

    def missing(self) -> Sequence[str]:
        return ()

    def lag(self) -> dict[TopicPartition, int]:
        return {partition: self._broker.end(partition) - self._positions[partition] for partition in self._assigned}

    def close(self) -> None:
        pass


class MemoryTicket:
    def __init__(self, error: Exception | None = None) -> None:
        self.done = threading.Event()
        self.error = error

    def settled(self) -> bool:
        if self.error is not None:
            raise self.error
        return self.done.is_set()


class MemoryPublisher:
    """Fulfils worker.ports.Publisher.

    `failures` are raised by the next tickets, in order, whose records are then lost; with `hold` nothing is
    acknowledged until release(); records of `refuse_above` bytes or more are refused.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.failures: deque[Exception] = deque()
        self.hold = False
        self.refuse_above: int | None = None
        self.known_limit: int | None = None
        self.rebuilds = 0
        self._held: list[MemoryTicket] = []

    def accepts(self, record: OutRecord) -> bool:
        return self.known_limit is None or len(record.value or b"") <= self.known_limit

    def send(self, records: Sequence[OutRecord]) -> MemoryTicket:
        if self.failures:
            return MemoryTicket(self.failures.popleft())
        for record in records:
            if self.refuse_above is not None and len(record.value or b"") >= self.refuse_above:
                return MemoryTicket(RecordRefused(record, "the test's limit"))
            self._broker.append(record)
        ticket = MemoryTicket()
        if self.hold:
            self._held.append(ticket)
        else:
            ticket.done.set()
        return ticket

    def release(self) -> None:
        self.hold = False
        for ticket in self._held:
            ticket.done.set()

    def rebuild(self) -> bool:
        self.rebuilds += 1
        return True

    def close(self) -> None:
        pass


class MemoryTransactions(MemoryPublisher):
    """Fulfils worker.ports.Transactions: nothing is in the broker before commit(), and positions come with it.

    `failing_commits` counts down commits that fail, by `step`: `fenced` is a zombie's.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self._staged: list[OutRecord] = []
        self.failing_commits = 0
        self.step = "commit"
        self.commits = 0

    def send(self, records: Sequence[OutRecord]) -> MemoryTicket:
        if self.failures:
            return MemoryTicket(self.failures.popleft())
        for record in records:
            if self.refuse_above is not None and len(record.value or b"") >= self.refuse_above:
                return MemoryTicket(RecordRefused(record, "the test's limit"))
        self._staged += records
        ticket = MemoryTicket()
        self._held.append(ticket)
        if not self.hold:
            ticket.done.set()
        return ticket

    def flush(self) -> None:
        if self.hold:
            raise DeliveryFailed("publish", "the test holds the acknowledgements")

    def commit(self, positions: Positions, group: object) -> None:
        if self.failing_commits:
            self.failing_commits -= 1
            raise DeliveryFailed(self.step, "the test lets this commit fail")
        with self._broker.changed:
            for record in self._staged:
                self._broker.append(record)
            self._staged.clear()
            self._broker.committed.update(positions)
            self._broker.changed.notify_all()
        self.commits += 1

    def rebuild(self) -> bool:
        self._staged.clear()
        return super().rebuild()


class PixelScorer:
    """A model one can predict: the error is the mean of the squared pixels, scaled to [0, 1].

    An image whose first pixel is `poison` makes the model raise, one whose first pixel is `nan` makes its score
    NaN.
    """

    def __init__(self, capacity: int = 8, poison: int | None = None, nan: int | None = None) -> None:
        self.batch_capacity = capacity
        self.poison = poison
        self.nan = nan
        self.broken = False
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def score(self, images: NDArray[np.uint8], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.gate.wait()
        self.batches.append(count)
        if self.broken:
            raise RuntimeError("the scorer is broken")
        images = images[:count]
        first = images[:, 0, 0, 0]
        if self.poison is not None and np.any(first == self.poison):
            raise ValueError("the model does not like this batch")
        errors = np.asarray(np.mean(np.square(images / 255), axis=(1, 2, 3)), np.float32)
        if self.nan is not None:
            errors[first == self.nan] = np.nan
        return errors, errors

    def reconstruct(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """All black, so that the error by pixel is the pixel squared."""
        return np.zeros(images.shape, np.float32)


class SilentTelemetry:
    """Fulfils worker.ports.Telemetry and says nothing; keeps what tests look at."""

    def __init__(self) -> None:
        self.rebuilt_steps: list[str] = []
        self.expired_streams: list[str] = []
        self.reloads: list[str] = []
        self.maps: Counter[str] = Counter()
        self.judged: list[tuple[list[str], NDArray[np.float32], NDArray[np.uint8]]] = []
        self.publish_durations_s: list[float] = []
        self.connected: list[bool] = []

    def scored(
        self,
        streams: Sequence[str],
        scores: NDArray[np.float32],
        errors: NDArray[np.float32],
        anomalies: Sequence[bool],
        images: NDArray[np.uint8],
    ) -> None:
        self.judged.append((list(streams), errors, images.copy()))

    def batch(self, **_: object) -> None: ...

    def unreadable(self, stream: str, reason: object) -> None: ...

    def expired(self, stream: str) -> None:
        self.expired_streams.append(stream)

    def error_maps(self, outcome: str, count: int) -> None:
        self.maps[outcome] += count

    def published(self, durations_s: Sequence[float]) -> None:
        self.publish_durations_s += durations_s

    def acknowledged(self, latencies_s: object) -> None: ...

    def committed(self, records: int, seconds: float) -> None: ...

    def state(self, *, connected: bool, **_: object) -> None:
        self.connected.append(connected)

    def rebalanced(self, revoked: int) -> None: ...

    def rebuilt(self, step: str) -> None:
        self.rebuilt_steps.append(step)

    def reloaded(self, outcome: str) -> None:
        self.reloads.append(outcome)
