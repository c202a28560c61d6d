"""The input topic through kafka-python's consumer. One thread owns it.

Rules: nothing is committed but by commit(); only committed records are read (`read_committed`, which is also
what makes committed() wait for a transaction's end); no deserializer, since one that raises stops the
partition for ever; what the client cannot parse is stepped past, offset by offset, and reported as a range.

The client hands out a batch's records until it meets what it cannot parse, and nothing behind it: one wrong CRC, or
one header whose name is not UTF-8, makes a range of the rest of its producer's batch.
"""

import logging
import math
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka import TopicPartition as ClientPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    AuthorizationError,
    CommitFailedError,
    FencedInstanceIdError,
    KafkaError,
    RebalanceInProgressError,
    UnsupportedCodecError,
)
from kafka.structs import MemberState, OffsetAndMetadata

from worker.adapters.positions import unreadable_positions
from worker.core.errors import NAME_TAKEN, DeliveryFailed, KafkaRefused, KafkaUnreachable
from worker.core.records import Positions, Record, SourceRecord, TopicPartition
from worker.ports import Polled

log = logging.getLogger(__name__)

# A killed worker's partitions move on after this long; three heartbeats fit into it.
SESSION_TIMEOUT_MS = 6_000
HEARTBEAT_INTERVAL_MS = 2_000
# The rebalance waits this long for a member that does not poll. Ours polls several times a second whatever the
# model does, so this only bounds what a hung process costs the group.
MAX_POLL_INTERVAL_MS = 30_000
CALL_TIMEOUT_MS = 5_000
REWIND_TIMEOUT_MS = 1_000
CONNECT_PAUSE_S = 0.2
# With polls of 1 to 5 ms the look-up of a partition's first position was seen to bring nothing for 6 s.
LEAST_POLL_MS = 20
# In one fetch from one broker; beside the bytes in flight this is what the client itself may hold.
FETCH_MAX_BYTES = 32 << 20
# Batches fetched while the last one is worked on: the client holds a partition's fetch until it is drained.
PARTITION_FETCH_BYTES = 1 << 20


class _Assignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """The client's, which goes on claiming in its joins what the member has lost.

    The member that leads the group then gives it such a partition at once, while its owner still works on it.
    """

    def forget(self) -> None:
        """Claim nothing."""
        self.member_assignment = None


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Only records: a blocking consumer call in here is an error of the client's."""

    def __init__(self, assignor: _Assignor) -> None:
        self.revoked: set[TopicPartition] = set()
        self._assignor = assignor

    def on_partitions_revoked(self, revoked: Collection[ClientPartition]) -> None:
        self.revoked.update(TopicPartition(*partition) for partition in revoked)

    def on_partitions_lost(self, lost: Collection[ClientPartition]) -> None:
        self._assignor.forget()
        self.on_partitions_revoked(lost)

    def on_partitions_assigned(self, assigned: Collection[ClientPartition]) -> None:
        log.info("assigned %s", ", ".join(f"{topic}-{number}" for topic, number in sorted(assigned)) or "nothing new")


class KafkaSource:
    """A member of a consumer group that reads one topic; fulfils worker.ports.Source.

    Args:
        options: how to reach Kafka, as kafka-python names it.
        topic: to read.
        group_id: of the consumer group.
        group_instance_id: this member's own name, for static membership; None: a dynamic member.
        max_message_bytes: of a record; what a fetch must be able to hold.
        start_timeout_s: how long to try again while no broker answers, or one that is not ready for it.

    Raises:
        KafkaUnreachable: none did.
    """

    def __init__(
        self,
        options: Mapping[str, object],
        *,
        topic: str,
        group_id: str,
        group_instance_id: str | None = None,
        max_message_bytes: int,
        start_timeout_s: float = 0.0,
    ) -> None:
        assignor = _Assignor()
        settings = {
            "group_id": group_id,
            "group_instance_id": group_instance_id,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "isolation_level": "read_committed",
            "allow_auto_create_topics": False,
            "partition_assignment_strategy": (assignor,),
            "session_timeout_ms": SESSION_TIMEOUT_MS,
            "heartbeat_interval_ms": HEARTBEAT_INTERVAL_MS,
            "max_poll_interval_ms": MAX_POLL_INTERVAL_MS,
            "fetch_max_bytes": max(FETCH_MAX_BYTES, max_message_bytes),
            "max_partition_fetch_bytes": max(PARTITION_FETCH_BYTES, max_message_bytes),
            **options,
        }
        deadline = time.monotonic() + start_timeout_s
        while True:
            try:
                self._consumer = _connected(settings, topic)
                break
            except KafkaError as error:
                if not error.retriable or time.monotonic() >= deadline:
                    raise KafkaUnreachable(f"Kafka cannot be reached: {error}") from error
                log.debug("no consumer yet: %r", error)
            time.sleep(CONNECT_PAUSE_S)
        self._topic = topic
        self._listener = _Listener(assignor)
        self._group: object = None  # as of the assignment that we have
        self._consumer.subscribe([topic], listener=self._listener)
        self._paused = False
        self._settled = False  # whether the group has given us its answer once
        self._next: dict[TopicPartition, int] = {}
        self._stuck: dict[TopicPartition, tuple[int, int]] = {}  # first offset that cannot be read, next to try
        self._held: dict[TopicPartition, Sequence[SourceRecord]] = {}
        # Since when no rewind has succeeded, and partitions of ours have had no position.
        self._rewinding_since: float | None = None
        self._unplaced_since: float | None = None

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        """See worker.ports.Source.

        Raises:
            DeliveryFailed: reading is not allowed, or the topic was deleted.
        """
        if self._paused:
            self._consumer.pause(*(set(self._consumer.assignment()) - set(self._consumer.paused())))
        self._finish_join()
        try:
            fetched = self._consumer.poll(max(int(timeout_s * 1000), self._least_poll_ms()), max_records)
        except AuthorizationError as error:
            raise DeliveryFailed("refused", f"Kafka does not let us read '{self._topic}': {error!r}") from error
        except FencedInstanceIdError as error:
            raise KafkaRefused(NAME_TAKEN) from error
        except Exception as error:
            if not self._step_past(error):
                if not isinstance(error, KafkaError):
                    raise
                if not error.retriable:
                    raise DeliveryFailed("refused", f"the consumer cannot read '{self._topic}': {error!r}") from error
                log.debug("poll: %r", error)
            fetched = {}
        if not fetched and self._is_gone():
            # Nothing else asks while nothing is ours, and by itself the client does so every five minutes.
            self._consumer._cluster.request_update()
            raise DeliveryFailed("refused", f"Kafka does not let us read '{self._topic}': it is gone")
        # Before the revocations: a generation that came after them may not vouch for what they took.
        group = self._group_of_assignment()
        revoked = frozenset(self._listener.revoked)
        self._listener.revoked.difference_update(revoked)
        for partition in revoked:
            for state in (self._next, self._stuck, self._held):
                state.pop(partition, None)
        records: dict[TopicPartition, Sequence[SourceRecord]] = {}
        if self._held:
            records, self._held = self._held, {}
        for client_partition, batch in fetched.items():
            partition = TopicPartition(*client_partition)
            records[partition] = [*records.get(partition, ()), *batch] if partition in records else batch
            self._next[partition] = batch[-1].offset + 1
        unreadable_until = self._report_stuck(records) if self._stuck else {}
        return Polled(records, unreadable_until, revoked, group)

    def assignment(self) -> set[TopicPartition]:
        """See worker.ports.Source."""
        return {TopicPartition(*partition) for partition in self._consumer.assignment()}

    def pause(self, paused: bool) -> None:
        """See worker.ports.Source. Partitions assigned later are paused by the next poll."""
        self._paused = paused
        if not paused:
            self._consumer.resume(*self._consumer.paused())

    def commit(self, positions: Positions) -> bool:
        """See worker.ports.Source."""
        offsets = {
            ClientPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in positions.items()
        }
        try:
            self._consumer.commit(offsets, timeout_ms=CALL_TIMEOUT_MS)
        except RebalanceInProgressError:
            return False
        except FencedInstanceIdError as error:
            # The heartbeats' own such error is swallowed by the client.
            raise KafkaRefused(NAME_TAKEN) from error
        except CommitFailedError as error:
            raise DeliveryFailed("fenced", f"the group moved on without us: {error}") from error
        except AuthorizationError as error:
            raise DeliveryFailed("refused", f"Kafka does not let us commit positions: {error!r}") from error
        except KafkaError as error:
            raise DeliveryFailed("commit", f"positions could not be committed: {error!r}") from error
        return True

    def rewind(self) -> bool:
        """See worker.ports.Source."""
        self._held.clear()
        self._stuck.clear()
        if self._rewinding_since is None:
            self._rewinding_since = time.monotonic()
        for partition in self._consumer.assignment():
            try:
                committed = self._consumer.committed(partition, timeout_ms=REWIND_TIMEOUT_MS)
                if committed is None:
                    self._consumer.seek_to_beginning(partition)
                else:
                    self._consumer.seek(partition, committed)
                    self._next[TopicPartition(*partition)] = committed
            except AuthorizationError as error:
                raise DeliveryFailed("refused", f"Kafka does not show us our positions: {error!r}") from error
            except KafkaError as error:
                # An open transaction answers with a timeout; so does an absent broker.
                log.debug("committed(%s): %r", partition, error)
                return False
        self._rewinding_since = None
        return True

    def lag(self) -> dict[TopicPartition, int]:
        """See worker.ports.Source."""
        lag = {}
        for client_partition in self._consumer.assignment():
            end = self._consumer.highwater(client_partition)
            partition = TopicPartition(*client_partition)
            if end is not None and partition in self._next:
                lag[partition] = max(0, end - self._next[partition])
        return lag

    def missing(self) -> list[str]:
        """See worker.ports.Source. Called by the HTTP threads as well: reads only."""
        state = self._consumer.group_metadata().state
        if state == MemberState.STABLE:
            self._settled = True
        elif not self._settled:
            return [f"the consumer group has not answered yet (member state {state})"]
        silent = self._heartbeat_age_s()
        if silent == math.inf:
            return ["no heartbeat of the consumer group was answered yet"]
        if silent is not None and silent > SESSION_TIMEOUT_MS / 1000:
            return [f"Kafka has not answered a heartbeat for {silent:.0f} s"]
        since = [since for since in (self._rewinding_since, self._unplaced_since) if since is not None]
        return unreadable_positions(time.monotonic() - min(since)) if since else []

    def close(self) -> None:
        """Leave the group; bounded in time."""
        self._consumer.close(autocommit=False, timeout_ms=CALL_TIMEOUT_MS)

    def _is_gone(self) -> bool:
        """Whether the topic was deleted: the group has taken its partitions, and Kafka's last answer lacks it.

        The public partitions_for_topic() would wait for Kafka, without a bound, to say so.
        """
        return not self._consumer.assignment() and self._consumer._cluster.partitions_for_topic(self._topic) is None

    def _heartbeat_age_s(self) -> float | None:
        for group in self._consumer.metrics().values():
            if "last-heartbeat-seconds-ago" in group:
                return float(group["last-heartbeat-seconds-ago"])
        return None

    def _group_of_assignment(self) -> object:
        """The group's metadata as of the generation that assigned our partitions.

        Of a join under way the client has the generation already while it still has the partitions of the one before.
        Positions under the new generation would be accepted for a partition that is another member's by now, and both
        would answer its records; under the old one Kafka refuses them.
        """
        group = self._consumer.group_metadata()
        if group.state == MemberState.STABLE:
            self._group = group
        return self._group

    def _finish_join(self) -> None:
        """Have a join that is under way completed.

        kafka-python begins one when the topic's metadata differ from those of the assignment, and forgets it when
        they are the same again before it is through: the member then sends no heartbeat for ever, and the group
        drops it. No public call tells; within poll() nothing else changes these.
        """
        coordinator = self._consumer._coordinator
        if coordinator.rejoining and not coordinator.rejoin_needed:
            coordinator.request_rejoin()

    def _least_poll_ms(self) -> int:
        """How long a poll must be: a join, and the look-up of positions, take none of the time between polls."""
        consumer = self._consumer
        return 0 if self._note_placed() and not consumer._coordinator.need_rejoin() else LEAST_POLL_MS

    def _note_placed(self) -> bool:
        """Whether all partitions of ours have a position; since when not is kept for missing()."""
        placed = bool(self._consumer._subscription.has_all_fetch_positions())
        if placed:
            self._unplaced_since = None
        elif self._unplaced_since is None:
            self._unplaced_since = time.monotonic()
        return placed

    # kafka-python raises for a batch that it cannot read, then returns nothing of that partition for ever. What
    # follows looks into the client: no public call tells which partition it was, or where.

    def _step_past(self, error: Exception) -> bool:
        """Seek one offset past what raised. False: it was not a partition's data."""
        part = self._consumer._fetcher._next_partition_records
        # Only what was raised while this partition's records were taken: a step past a sound record would lose it.
        frames = traceback.walk_tb(error.__traceback__)
        if part is None or not any(frame.f_code is type(part).take.__code__ for frame, _ in frames):
            return False
        if isinstance(error, UnsupportedCodecError):
            return False  # the data is sound, this installation lacks a library
        client_partition, offset = part.topic_partition, part.next_fetch_offset
        partition = TopicPartition(*client_partition)
        first, at = self._stuck.get(partition, (offset, offset))
        if partition not in self._stuck:
            log.warning("%s-%d cannot be read at offset %d: %s", *partition, offset, error)
        step_to = max(at, offset) + 1
        self._stuck[partition] = (first, step_to)
        # Its generator is dead and yet looks alive: a seek back to where it stands would make poll() loop for ever.
        part.drain()
        self._consumer.seek(client_partition, step_to)
        return True

    def _report_stuck(self, records: dict[TopicPartition, Sequence[SourceRecord]]) -> dict[TopicPartition, int]:
        """Report the ranges whose end is known: records came after it, or the partition ends there."""
        reported = {}
        for partition, (first, tried) in list(self._stuck.items()):
            end = self._consumer.highwater(ClientPartition(*partition))
            if partition in records:
                self._held[partition] = records[partition]
            elif end is None or self._consumer.position(ClientPartition(*partition)) < end:
                continue  # beyond the end, or only a transaction's markers on the way to it: nothing more will come
            del self._stuck[partition]
            records[partition] = [Record(*partition, first)]
            reported[partition] = tried
            log.warning("%s-%d: offsets %d to %d could not be read", *partition, first, tried - 1)
        return reported


def _connected(settings: Mapping[str, Any], topic: str) -> KafkaConsumer:
    """A consumer that has spoken with Kafka.

    Raises:
        KafkaError: it could not.
    """
    consumer = KafkaConsumer(**settings)
    try:
        # Without the topic's metadata a group's first assignment is empty, and a second join follows.
        consumer.partitions_for_topic(topic)
    except KafkaError:
        consumer.close(autocommit=False, timeout_ms=CALL_TIMEOUT_MS)
        raise
    return consumer
