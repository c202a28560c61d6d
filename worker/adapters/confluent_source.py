"""The input topic through librdkafka's consumer. One thread owns it.

Rules: nothing is committed but by commit(); only committed records are read (`read_committed`, which is also what
makes committed() wait for a transaction's end); callbacks only record, and run within consume() alone; what
librdkafka cannot parse is stepped past, offset by offset, and reported as a range.

librdkafka fetches ahead, on threads of its own. What it holds is bounded by PREFETCH_BYTES and one fetch of
FETCH_MAX_BYTES from each broker, compressed as it came; a single batch that is larger comes all the same. It drops
what it holds of a partition that is revoked, paused or sought.
"""

import logging
import operator
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as ClientPartition

from worker.adapters.confluent_membership import Membership
from worker.adapters.confluent_options import (
    AUTHORIZATION,
    FENCED,
    LARGEST_RECORD_BYTES,
    NO_SUCH_TOPIC,
    Log,
    error_of,
    librdkafka_options,
)
from worker.adapters.positions import unreadable_positions
from worker.core.errors import NAME_TAKEN, DeliveryFailed, KafkaRefused
from worker.core.records import Positions, Record, SourceRecord, TopicPartition
from worker.ports import Polled

log = logging.getLogger(__name__)

# As worker.adapters.kafka_source has them, for the same reasons.
SESSION_TIMEOUT_MS = 6_000
HEARTBEAT_INTERVAL_MS = 2_000
MAX_POLL_INTERVAL_MS = 30_000
CALL_TIMEOUT_MS = 5_000
REWIND_TIMEOUT_MS = 1_000
FETCH_MAX_BYTES = 32 << 20
PARTITION_FETCH_BYTES = 1 << 20

PREFETCH_BYTES = 16 << 20
PREFETCH_RECORDS = 2_000
# How long a partition is left alone once that is reached: with the default, 1 s, it would run dry meanwhile.
PREFETCH_BACKOFF_MS = 10
# One fetch at a time is under way to a broker: what is sought, resumed or assigned waits for its end.
FETCH_WAIT_MS = 100
# A topic that was deleted and made again is found by asking.
METADATA_INTERVAL_MS = 5_000
STATISTICS_INTERVAL_MS = 1_000
# To pause drops what was fetched ahead, to resume fetches it again: a shorter rest is no pause.
REST_S = 0.5
COMMIT_LOOK_S = 0.001
REQUEST_OVERHEAD_BYTES = 1 << 20

# What is wrong with the data itself.
_DAMAGED = frozenset(
    {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._UNDERFLOW, KafkaError._NOT_IMPLEMENTED}
)

# Nothing else ends a consumer for good.
_FATAL = frozenset({KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID})
# The binding returns a broken list, and leaves an exception pending, where a header's name is not UTF-8. A plain
# message.headers() is not always checked for that, and something else would raise it; this is, with a SystemError.
headers_of = operator.methodcaller("headers")


class ConfluentSource:
    """A member of a consumer group that reads one topic; fulfils worker.ports.Source.

    Args:
        options: how to reach Kafka, as kafka-python names it.
        topic: to read.
        group_id: of the consumer group.
        group_instance_id: this member's own name, for static membership; None: a dynamic member.
        max_message_bytes: of a record; what a fetch must be able to hold.
    """

    def __init__(
        self,
        options: Mapping[str, object],
        *,
        topic: str,
        group_id: str,
        group_instance_id: str | None = None,
        max_message_bytes: int,
        start_timeout_s: float = 0.0,  # noqa: ARG002 - kafka-python's: this client connects by itself
    ) -> None:
        largest_fetch = max(FETCH_MAX_BYTES, min(max_message_bytes, LARGEST_RECORD_BYTES) + REQUEST_OVERHEAD_BYTES)
        self._topic = topic
        self._assigned: set[int] = set()
        self._taken: set[int] = set()  # within one call of consume()
        self._revoked: set[TopicPartition] = set()  # since the last poll
        self._next: dict[int, int] = {}
        self._held: list[Message] = []  # fetched, and not for the poll that fetched it
        self._rewinding_since: float | None = None  # since when no rewind has succeeded
        self._stuck: dict[int, tuple[int, int]] = {}  # first offset that cannot be read, next to try
        self._refused: dict[int, str] = {}  # what we may not read, and why
        self._unavailable = ""  # why there is nothing to read at all
        self._look_at = 0.0
        self._paused = False
        self._paused_at = 0.0
        self._at_rest: set[int] = set()  # what librdkafka has paused for us
        self._committing: dict[TopicPartition, int] = {}
        self._committed: list[KafkaError | None] = []  # the answer, once there is one
        self._membership = Membership(SESSION_TIMEOUT_MS / 1000)
        self._consumer: Consumer = Consumer(
            {
                **librdkafka_options(options, Log()),
                "group.id": group_id,
                **({} if group_instance_id is None else {"group.instance.id": group_instance_id}),
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                "heartbeat.interval.ms": HEARTBEAT_INTERVAL_MS,
                "max.poll.interval.ms": max(MAX_POLL_INTERVAL_MS, SESSION_TIMEOUT_MS),
                "fetch.max.bytes": largest_fetch,
                "max.partition.fetch.bytes": PARTITION_FETCH_BYTES,
                "message.max.bytes": min(largest_fetch, LARGEST_RECORD_BYTES),
                "receive.message.max.bytes": largest_fetch + REQUEST_OVERHEAD_BYTES,
                "queued.max.messages.kbytes": PREFETCH_BYTES >> 10,
                "queued.min.messages": PREFETCH_RECORDS,
                "fetch.queue.backoff.ms": PREFETCH_BACKOFF_MS,
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "check.crcs": True,
                "topic.metadata.refresh.interval.ms": METADATA_INTERVAL_MS,
                "statistics.interval.ms": STATISTICS_INTERVAL_MS,
                "stats_cb": self._membership.on_statistics,
                "on_commit": self._on_commit,
            }
        )
        self._consumer.subscribe(
            [topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        """See worker.ports.Source.

        Raises:
            DeliveryFailed: reading is not allowed, or the topic was deleted.
        """
        messages = self._rest(timeout_s) if self._paused else self._fetch(timeout_s, max_records)
        # Before the revocations: a generation that came after them may not vouch for what they took. (Within the
        # callbacks librdkafka may be a generation ahead, but leaves what it is to lose to nobody until they ran.)
        group = self._consumer.consumer_group_metadata()
        records, unreadable_until = self._sorted(messages)
        if not records:
            self._complain()
        revoked = frozenset(self._revoked)
        self._revoked.clear()
        return Polled(records, unreadable_until, revoked, group)

    def assignment(self) -> set[TopicPartition]:
        """See worker.ports.Source."""
        return {TopicPartition(self._topic, number) for number in self._assigned}

    def pause(self, paused: bool) -> None:
        """See worker.ports.Source."""
        self._paused = paused
        self._paused_at = time.monotonic()
        if not paused and self._at_rest:
            self._switch(self._consumer.resume, self._at_rest & self._assigned)
            self._at_rest.clear()

    def commit(self, positions: Positions) -> bool:
        """See worker.ports.Source.

        librdkafka's own synchronous commit has no time limit. What is fetched while its answer is looked for waits
        for the next poll.
        """
        self._committing, self._committed = dict(positions), []
        offsets = [ClientPartition(*partition, offset) for partition, offset in positions.items()]
        deadline = time.monotonic() + CALL_TIMEOUT_MS / 1000
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._on_commit(error_of(error), offsets)
        while not self._committed:
            if time.monotonic() >= deadline:
                raise DeliveryFailed("commit", f"positions could not be committed within {CALL_TIMEOUT_MS} ms")
            time.sleep(COMMIT_LOOK_S)
            self._consume(1, 0.0)
        [refusal] = self._committed
        if refusal is None:
            return True
        code = refusal.code()
        if code == KafkaError.REBALANCE_IN_PROGRESS:
            return False
        if code == KafkaError.FENCED_INSTANCE_ID:
            raise KafkaRefused(NAME_TAKEN)
        if code in FENCED:
            raise DeliveryFailed("fenced", f"the group moved on without us: {refusal}")
        if code in AUTHORIZATION:
            raise DeliveryFailed("refused", f"Kafka does not let us commit positions: {refusal}")
        raise DeliveryFailed("commit", f"positions could not be committed: {refusal}")

    def rewind(self) -> bool:
        """See worker.ports.Source."""
        # The group may have moved on: without its callbacks what is no longer ours would be sought for ever.
        self._consume(1, 0.0)
        self._held.clear()
        self._stuck.clear()
        if self._rewinding_since is None:
            self._rewinding_since = time.monotonic()
        asked = [ClientPartition(self._topic, number) for number in self._assigned]
        try:
            for found in self._consumer.committed(asked, timeout=REWIND_TIMEOUT_MS / 1000) if asked else ():
                if found.error is not None:
                    raise KafkaException(found.error)
                self._next.pop(found.partition, None)
                if found.offset < 0:
                    self._seek(found.partition, OFFSET_BEGINNING)
                else:
                    self._seek(found.partition, found.offset)
                    self._next[found.partition] = found.offset
        except KafkaException as exception:
            error = error_of(exception)
            if error.code() in AUTHORIZATION:
                raise DeliveryFailed("refused", f"Kafka does not show us our positions: {error}") from exception
            # An open transaction answers with a timeout; so does an absent broker.
            log.debug("rewind: %s", error)
            return False
        self._rewinding_since = None
        return True

    def lag(self) -> dict[TopicPartition, int]:
        """See worker.ports.Source."""
        lag = {}
        for number in self._assigned & self._next.keys():
            end = self._end(number)
            if end is not None:
                lag[TopicPartition(self._topic, number)] = max(0, end - self._next[number])
        return lag

    def missing(self) -> Sequence[str]:
        """See worker.ports.Source. Called by the HTTP threads as well: reads only."""
        missing, since = self._membership.missing(), self._rewinding_since
        return missing or ([] if since is None else unreadable_positions(time.monotonic() - since))

    def close(self) -> None:
        """Leave the group; bounded in time."""
        # librdkafka waits without a limit for what it has under way.
        thread = threading.Thread(target=self._consumer.close, name="closing the consumer", daemon=True)
        thread.start()
        thread.join(CALL_TIMEOUT_MS / 1000)

    # What comes: messages, errors among them, and callbacks, which run within consume().

    def _fetch(self, timeout_s: float, most: int) -> list[Message]:
        room = most - len(self._held)
        if room > 0:
            self._consume(room, 0.0)
        if not self._held:
            # For the first one only: consume() would wait until it has as many as it may bring.
            self._consume(1, timeout_s)
            if self._held and room > 1:
                self._consume(room - 1, 0.0)
        messages, self._held = self._held, []
        return messages

    def _rest(self, timeout_s: float) -> list[Message]:
        """Bring nothing; what comes all the same is held."""
        if time.monotonic() - self._paused_at < REST_S:
            time.sleep(timeout_s)
            return []
        if more := self._assigned - self._at_rest:
            self._switch(self._consumer.pause, more)
            self._at_rest |= more
        self._consume(1, timeout_s)
        return []

    def _switch(self, change: Callable[[list[ClientPartition]], None], numbers: set[int]) -> None:
        if not numbers:
            return
        try:
            change([ClientPartition(self._topic, number) for number in numbers])
        except KafkaException as error:  # revoked meanwhile, which the next callback tells
            log.debug("%s: %s", change.__name__, error)

    def _consume(self, most: int, timeout_s: float) -> None:
        """Hold what there is, of partitions that are ours; waits until it has as many as it may bring."""
        self._taken.clear()
        try:
            self._held += self._consumer.consume(most, timeout_s)
        except KafkaException as exception:
            raise self._failure(error_of(exception)) from exception
        if self._taken:
            if self._taken & self._assigned:
                # Taken and given back: nobody can say which of the records came before.
                raise DeliveryFailed("revoked", "partitions were revoked and assigned again")
            # Errors stay: what one of these partitions tells, the topic's end perhaps, is told once.
            self._held = [
                message
                for message in self._held
                if message.partition() not in self._taken or message.error() is not None
            ]

    def _sorted(
        self, messages: Sequence[Message]
    ) -> tuple[dict[TopicPartition, Sequence[SourceRecord]], dict[TopicPartition, int]]:
        """Records by partition, and the ends of ranges that could not be read; such a range is alone in its poll."""
        batches: dict[int, list[SourceRecord]] = {}
        until: dict[int, int] = {}
        left: set[int] = set()  # partitions of which nothing more is taken in this poll
        topic = self._topic
        for message in messages:
            error, number = message.error(), message.partition()
            if left and number in left:
                if number in until:
                    self._held.append(message)
                continue  # else it lies before the offset that was sought
            if error is not None:
                if self._take_error(error, number, message.offset()):
                    left.add(number)
                continue
            if self._stuck and number in self._stuck:
                batches[number] = [self._range(number, message.offset(), until)]
                left.add(number)
                self._held.append(message)
                continue
            try:
                headers = headers_of(message)
            except (UnicodeDecodeError, SystemError):  # a name that is not UTF-8
                self._step_past(number, message.offset(), "a header's name is not UTF-8")
                left.add(number)
                continue
            record = Record(
                topic, number, message.offset(), message.timestamp()[1], message.key(), message.value(), headers or ()
            )
            batch = batches.get(number)
            if batch is None:
                batches[number] = [record]
            else:
                batch.append(record)
        for number in [number for number in self._stuck if number not in batches]:
            _, tried = self._stuck[number]
            end = self._end(number)
            [at] = self._consumer.position([ClientPartition(topic, number)])
            # Beyond it there may be a transaction's markers only, and then nothing more will come.
            if end is not None and max(tried, at.offset) >= end:
                batches[number] = [self._range(number, tried, until)]
        for number, batch in batches.items():
            self._next[number] = until.get(number, batch[-1].offset + 1)
            self._refused.pop(number, None)
        return (
            {TopicPartition(topic, number): batch for number, batch in batches.items()},
            {TopicPartition(topic, number): end for number, end in until.items()},
        )

    def _take_error(self, error: KafkaError, number: int, offset: int) -> bool:
        """Whether it was stepped past, and what comes of the partition meanwhile must not be taken."""
        code = error.code()
        if code in _DAMAGED and number >= 0:
            if number in self._assigned:
                self._step_past(number, offset, error.str())
            return True
        if code in NO_SUCH_TOPIC or code in AUTHORIZATION:
            refusal = self._refusal(error)
            if code in AUTHORIZATION and number in self._assigned:
                self._refused[number] = refusal
                return False
            self._unavailable = refusal
            if code in AUTHORIZATION:
                raise DeliveryFailed("refused", refusal)
        elif error.fatal() or code in _FATAL:
            raise self._failure(error)
        else:
            log.debug("%s", error)
        return False

    def _failure(self, error: KafkaError) -> Exception:
        if error.fatal() or error.code() in _FATAL:
            return KafkaRefused(NAME_TAKEN)
        return DeliveryFailed("refused", f"the consumer cannot read '{self._topic}': {error}")

    def _refusal(self, error: KafkaError) -> str:
        why = "it is gone" if error.code() in NO_SUCH_TOPIC else str(error)
        return f"Kafka does not let us read '{self._topic}': {why}"

    def _complain(self) -> None:
        """Say again that reading is refused, as long as it is: librdkafka tells it once."""
        if not self._assigned:
            if not self._unavailable and self._membership.missing():
                self._look_for_topic()
            if self._unavailable:
                raise DeliveryFailed("refused", self._unavailable)
        for number, refusal in list(self._refused.items()):
            # An answer that refuses has no high watermark.
            if self._end(number) is None:
                raise DeliveryFailed("refused", refusal)
            del self._refused[number]

    def _look_for_topic(self) -> None:
        """A consumer whose topic is gone joins no group, and may have said so to nobody."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + METADATA_INTERVAL_MS / 1000
        try:
            error = self._consumer.list_topics(self._topic, REWIND_TIMEOUT_MS / 1000).topics[self._topic].error
        except KafkaException as exception:
            log.debug("list_topics: %s", exception)
            return
        if error is not None and (error.code() in NO_SUCH_TOPIC or error.code() in AUTHORIZATION):
            self._unavailable = self._refusal(error)

    def _end(self, number: int) -> int | None:
        """The partition's high watermark, as the last fetch had it."""
        ends = self._consumer.get_watermark_offsets(ClientPartition(self._topic, number), cached=True)
        return ends[1] if ends is not None and ends[1] >= 0 else None

    # What cannot be read. librdkafka tells that a batch's CRC is wrong and where the batch begins, and may then lose
    # its way in the rest of the fetch: only what comes after a seek is taken.

    def _step_past(self, number: int, offset: int, why: str) -> None:
        """Seek one offset past what cannot be read."""
        known, end = self._next.get(number), self._end(number)
        if known is not None and (offset < known or (end is not None and offset > end)):
            offset = known  # where the batch begins lies before what was read of it, or is as broken as the rest
        first, at = self._stuck.get(number, (offset, offset))
        if number not in self._stuck:
            log.warning("%s-%d cannot be read at offset %d: %s", self._topic, number, offset, why)
        step_to = max(at, offset) + 1
        self._stuck[number] = first, step_to
        try:
            self._seek(number, step_to)
        except KafkaException as exception:  # it is told again
            log.debug("seek: %s", exception)

    def _range(self, number: int, end: int, until: dict[int, int]) -> SourceRecord:
        """The record that stands for what could not be read up to `end`."""
        first, _ = self._stuck.pop(number)
        until[number] = end
        log.warning("%s-%d: offsets %d to %d could not be read", self._topic, number, first, end - 1)
        return Record(self._topic, number, first)

    def _seek(self, number: int, offset: int) -> None:
        self._consumer.seek(ClientPartition(self._topic, number, offset))

    # Callbacks. In cooperative groups librdkafka changes the assignment itself after each.

    def _on_assign(self, _consumer: Consumer, partitions: list[ClientPartition]) -> None:
        numbers = sorted(partition.partition for partition in partitions)
        self._assigned.update(numbers)
        self._membership.assigned()
        if numbers:
            self._unavailable = ""
        log.info("assigned %s", ", ".join(f"{self._topic}-{number}" for number in numbers) or "nothing new")

    def _on_revoke(self, _consumer: Consumer, partitions: list[ClientPartition]) -> None:
        for number in [partition.partition for partition in partitions]:
            self._assigned.discard(number)
            self._taken.add(number)
            self._at_rest.discard(number)
            self._revoked.add(TopicPartition(self._topic, number))
            for state in (self._next, self._stuck, self._refused):
                state.pop(number, None)

    def _on_commit(self, error: KafkaError | None, partitions: list[ClientPartition]) -> None:
        answered = {TopicPartition(found.topic, found.partition): found.offset for found in partitions}
        if answered == self._committing:  # else it answers a commit that was given up
            errors = [error, *(found.error for found in partitions)]
            self._committed = [next((error for error in errors if error is not None), None)]
