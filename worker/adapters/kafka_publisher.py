"""Verdicts and dead letters through kafka-python's idempotent producer.

Rules: acknowledged by all in-sync replicas; order kept within a partition; nothing waits: a ticket tells
later. The producer is made when it is needed and given up as a whole when anything failed, so that nothing of
a doubtful past is sent again behind the pipeline's back.
"""

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from worker.adapters.kafka_tickets import (
    MAX_BLOCK_MS,
    TOO_LARGE,
    KafkaTicket,
    alone_at_fault,
    failure_of,
    gone,
    is_missing,
)
from worker.adapters.record_sizes import REQUEST_OVERHEAD_BYTES, SizeLimits
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord
from worker.ports import RecordRefused

# Longer than a broker's restart: what waits is sent when it is back, in order and once. What outlives it is read
# again. (Were it short, a later batch could be accepted before an earlier one, given up, is sent anew.)
DELIVERY_TIMEOUT_MS = 120_000
REQUEST_TIMEOUT_MS = 15_000
CLOSE_TIMEOUT_S = 2.0
# Small batches leave at once under light load, and fill under heavy load.
LINGER_MS = 2
BATCH_BYTES = 256 << 10


class KafkaPublisher:
    """Fulfils worker.ports.Publisher.

    Args:
        options: how to reach Kafka, as kafka-python names it.
        max_message_bytes: of a record's value.
        topic_limits: `max.message.bytes` by topic, where it is known.
    """

    def __init__(
        self, options: Mapping[str, object], *, max_message_bytes: int, topic_limits: Mapping[str, int]
    ) -> None:
        self._options = dict(options)
        self._sizes = SizeLimits(max_message_bytes + REQUEST_OVERHEAD_BYTES, topic_limits)
        self._producer: KafkaProducer | None = None
        self._under_way: deque[KafkaTicket] = deque()

    def accepts(self, record: OutRecord) -> bool:
        """See worker.ports.Publisher."""
        return self._sizes.accepts(record)

    def send(self, records: Sequence[OutRecord]) -> KafkaTicket:
        """See worker.ports.Publisher."""
        futures: list[Any] = []
        producer = self._connected()
        try:
            send = producer.send
            for topic, partition, key, value, headers in records:
                future = send(topic, value, key, headers, partition)
                # What a broker has refused comes as a future that has failed, and the next record may be taken: it
                # would stand before this one.
                if future.exception is not None:
                    raise future.exception
                futures.append(future)
        except TOO_LARGE as error:
            futures.append(RecordRefused(records[len(futures)], str(error)))
        except KafkaError as error:
            record = records[len(futures)]
            if isinstance(error, KafkaTimeoutError) and is_missing(producer, record.topic):
                raise gone(record.topic) from error
            raise failure_of(error, record, alone=alone_at_fault(records, futures, record.topic)) from error
        except ValueError as error:
            # The client's word for a partition that its metadata does not have; the rebuild brings a fresh one.
            topic, partition = records[len(futures)][:2]
            raise DeliveryFailed("refused", f"'{topic}' has no partition {partition}: {error}", topic) from error
        delivery_timeout_s = producer.config["delivery_timeout_ms"] / 1000
        return KafkaTicket(producer, records, futures, self._under_way, delivery_timeout_s)

    def rebuild(self) -> bool:
        """See worker.ports.Publisher. The next send() connects anew."""
        self.close()
        return True

    def close(self) -> None:
        """Close without waiting: what is not acknowledged by now is not counted as sent."""
        self._under_way = deque()
        producer, self._producer = self._producer, None
        if producer is not None:
            give_up(producer)

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            try:
                self._producer = self._connect()
            except KafkaError as error:
                raise failure_of(error, None) from error
        return self._producer

    def _connect(self, **more: object) -> KafkaProducer:
        return KafkaProducer(
            **{
                "acks": "all",
                "enable_idempotence": True,
                "allow_auto_create_topics": False,
                "compression_type": "lz4",
                "linger_ms": LINGER_MS,
                "batch_size": BATCH_BYTES,
                "max_request_size": self._sizes.largest,
                "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
                "request_timeout_ms": REQUEST_TIMEOUT_MS,
                "max_block_ms": MAX_BLOCK_MS,
                "bootstrap_timeout_ms": MAX_BLOCK_MS,
                **self._options,
                **more,
            }
        )


def give_up(producer: KafkaProducer) -> None:
    """Close without waiting; what is not acknowledged by now is not delivered any more."""
    # close(timeout=0) alone raises before it has closed anything, and the sender goes on delivering.
    producer._sender.force_close()
    producer._sender.join(CLOSE_TIMEOUT_S)
    with contextlib.suppress(KafkaError):
        producer.close(timeout=0)
