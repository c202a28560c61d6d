"""Verdicts and dead letters through librdkafka's idempotent producer.

Rules: acknowledged by all in-sync replicas; order kept within a partition, without a gap: librdkafka ends a producer
whose batch was refused, instead of sending the next one. Nothing waits: a ticket tells later. The producer is made
when it is needed and given up as a whole when anything failed.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException, Producer

from worker.adapters.confluent_options import LARGEST_RECORD_BYTES, Log, error_of, librdkafka_options
from worker.adapters.confluent_tickets import CONSEQUENCES, ConfluentTicket, failure_of
from worker.adapters.record_sizes import REQUEST_OVERHEAD_BYTES, SizeLimits, size_of
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord
from worker.ports import RecordRefused

# As worker.adapters.kafka_publisher has them, for the same reasons.
DELIVERY_TIMEOUT_MS = 120_000
REQUEST_TIMEOUT_MS = 15_000
MAX_BLOCK_S = 5.0
CLOSE_TIMEOUT_S = 2.0
LINGER_MS = 2
BATCH_BYTES = 256 << 10
# librdkafka does not split a batch that a topic refuses for its size: the next producer makes smaller ones.
LEAST_BATCH_BYTES = 1 << 10
# What the pipeline has in flight is less. When the queue is full all the same, send() waits.
QUEUE_RECORDS = 100_000
QUEUE_BYTES = 1 << 30
FULL_LOOK_S = 0.05
# Only above this a record is measured: the client's own limit is larger.
SMALL_BYTES = 64 << 10


class ConfluentPublisher:
    """Fulfils worker.ports.Publisher.

    Args:
        options: how to reach Kafka, as kafka-python names it.
        max_message_bytes: of a record's value.
        topic_limits: `max.message.bytes` by topic, where it is known.
    """

    def __init__(
        self, options: Mapping[str, object], *, max_message_bytes: int, topic_limits: Mapping[str, int]
    ) -> None:
        self._log = Log()
        self._options = librdkafka_options(options, self._log)
        largest = min(max_message_bytes + REQUEST_OVERHEAD_BYTES, LARGEST_RECORD_BYTES)
        self._sizes = SizeLimits(largest, topic_limits)
        self._batch_bytes = min(BATCH_BYTES, self._sizes.smallest_topic)
        self._producer: Producer | None = None
        self._fatal: KafkaError | None = None  # why the producer has ended by itself
        self._ending: threading.Thread | None = None
        self._under_way: deque[ConfluentTicket] = deque()

    def accepts(self, record: OutRecord) -> bool:
        """See worker.ports.Publisher."""
        return self._sizes.accepts(record)

    def send(self, records: Sequence[OutRecord]) -> ConfluentTicket:
        """See worker.ports.Publisher."""
        self._connected()
        ticket = ConfluentTicket(records, self._serve, self._ended_by, self._under_way)
        # In one call what needs no headers, which are most: half the cost of a call for each.
        groups: dict[tuple[str, int], list[dict[str, object]]] = {}
        for record in records:
            topic, partition, key, value, headers = record
            if (
                (value is not None and len(value) > SMALL_BYTES)
                or headers
                or (key is not None and len(key) > SMALL_BYTES)
            ) and size_of(record) > self._sizes.largest:
                ticket.refuse(RecordRefused(record, f"{size_of(record)} bytes are more than the client sends"))
                break
            if headers:
                # What stands before it in its partition goes first.
                if group := groups.pop((topic, partition), None):
                    self._send_group(ticket, topic, partition, group)
                self._send_one(ticket, record)
            elif (group := groups.get((topic, partition))) is None:
                groups[topic, partition] = [{"value": value, "key": key}]
            else:
                group.append({"value": value, "key": key})
        for (topic, partition), group in groups.items():
            self._send_group(ticket, topic, partition, group)
        return ticket

    def rebuild(self) -> bool:
        """See worker.ports.Publisher. The next send() connects anew."""
        return self._given_up()

    def close(self) -> None:
        """Close without waiting: what is not acknowledged by now is not counted as sent."""
        self._given_up()

    def _send_one(self, ticket: ConfluentTicket, record: OutRecord) -> None:
        topic, partition, key, value, headers = record
        delivery = ticket.delivery(topic)
        deadline = time.monotonic() + MAX_BLOCK_S
        while True:
            try:
                self._connected().produce(
                    topic, value=value, key=key, partition=partition, on_delivery=delivery.report, headers=headers
                )
            except BufferError:
                self._wait_for_room(deadline)
            except KafkaException as exception:
                raise self._not_taken(error_of(exception), record) from exception
            else:
                delivery.waiting += 1
                return

    def _send_group(
        self, ticket: ConfluentTicket, topic: str, partition: int, group: list[dict[str, object]]
    ) -> None:
        """Send records of one partition. (A partition named in the dict would be ignored.)"""
        delivery = ticket.delivery(topic)
        deadline = time.monotonic() + MAX_BLOCK_S
        while True:
            # The errors of what is not taken stand in the dicts. Behind a full queue nothing is taken either.
            taken = self._connected().produce_batch(topic, group, partition=partition, on_delivery=delivery.report)
            delivery.waiting += taken
            if taken == len(group):
                return
            left = [message for message in group if "_error" in message]
            error = left[0].pop("_error")
            assert isinstance(error, KafkaError)  # noqa: S101 - the client's
            if error.code() != KafkaError._QUEUE_FULL:
                raise self._not_taken(error, OutRecord(topic, partition, None, None, []))
            self._wait_for_room(deadline)
            group = [{"value": message["value"], "key": message["key"]} for message in left]

    def _not_taken(self, error: KafkaError, record: OutRecord) -> DeliveryFailed:
        """What it means that the client takes no record: often that an earlier one failed, whose ticket tells it."""
        self._serve()
        failure = (self._ended_by() if error.code() in CONSEQUENCES else None) or failure_of(error, record)
        return failure if isinstance(failure, DeliveryFailed) else DeliveryFailed("size", str(failure), record.topic)

    def _wait_for_room(self, deadline: float) -> None:
        self._serve(FULL_LOOK_S)
        if time.monotonic() >= deadline:
            raise DeliveryFailed("publish", "the client's queue is full: Kafka takes nothing now")

    def _serve(self, timeout_s: float = 0.0) -> None:
        """Have the reports that have come delivered."""
        if self._producer is None:
            return
        try:
            self._producer.poll(timeout_s)
        except KafkaException as exception:  # the producer has ended; the records tell why
            self._fatal = error_of(exception)

    def _ended_by(self) -> Exception | None:
        """Why everything fails, where no record's own failure tells it."""
        return None if self._fatal is None else failure_of(self._fatal, None)

    def _connected(self) -> Producer:
        if self._producer is None:
            try:
                self._connect()
            except KafkaException as exception:
                raise failure_of(error_of(exception), None) from exception
        assert self._producer is not None  # noqa: S101 - _connect
        return self._producer

    def _connect(self) -> None:
        self._producer = self._new_producer(
            {"enable.gapless.guarantee": True, "message.timeout.ms": DELIVERY_TIMEOUT_MS}
        )

    def _new_producer(self, more: Mapping[str, object]) -> Producer:
        return Producer(
            {
                **self._options,
                "acks": "all",
                "enable.idempotence": True,
                "compression.type": "lz4",
                "linger.ms": LINGER_MS,
                "batch.size": self._batch_bytes,
                "message.max.bytes": self._sizes.largest,
                "queue.buffering.max.messages": QUEUE_RECORDS,
                "queue.buffering.max.kbytes": QUEUE_BYTES >> 10,
                "socket.timeout.ms": REQUEST_TIMEOUT_MS,
                # How long a topic that is not there may be about to come.
                "topic.metadata.propagation.max.ms": int(MAX_BLOCK_S * 1000),
                **more,
            }
        )

    def _given_up(self) -> bool:
        """Whether the producer is gone, and with it all that it had not sent.

        There is no call for it: librdkafka's close() delivers, without a limit. A producer ends with the last
        reference to it, so that no frame that an exception keeps may hold one.
        """
        if any(ticket.too_large for ticket in self._under_way):
            self._batch_bytes = max(LEAST_BATCH_BYTES, self._batch_bytes // 4)
        self._under_way = deque()
        self._fatal = None
        if self._producer is not None:
            with contextlib.suppress(KafkaException):
                self._producer.purge()
            box, self._producer = [self._producer], None
            self._ending = threading.Thread(target=box.clear, name="ending a producer", daemon=True)
            self._ending.start()
        if self._ending is not None:
            self._ending.join(CLOSE_TIMEOUT_S)
            if self._ending.is_alive():
                return False
            self._ending = None
        return True
