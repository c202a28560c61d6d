"""Verdicts and dead letters through kafka-python's idempotent producer.

Rules: acknowledged by all in-sync replicas; order kept within a partition; nothing waits: a ticket tells
later. The producer is made when it is needed and given up as a whole when anything failed, so that nothing of
a doubtful past is sent again behind the pipeline's back.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence

import lz4.frame
from kafka import KafkaProducer
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)

from worker.core.errors import DeliveryFailed, KafkaRefused
from worker.core.records import OutRecord
from worker.ports import RecordRefused

log = logging.getLogger(__name__)

# Long enough for a broker's restart or a leader's change; after it the pipeline rebuilds and reads again.
DELIVERY_TIMEOUT_MS = 60_000
REQUEST_TIMEOUT_MS = 15_000
# How long send() may wait for metadata: the I/O thread must not stand still for longer.
MAX_BLOCK_MS = 5_000
# Small batches leave at once under light load, and fill under heavy load.
LINGER_MS = 2
BATCH_BYTES = 256 << 10
# Of a batch with one record, and of each of its headers: the most that Kafka's format adds.
RECORD_OVERHEAD_BYTES = 128
HEADER_OVERHEAD_BYTES = 10
# Headers and key come on top of the largest message's value.
REQUEST_OVERHEAD_BYTES = 1 << 20


class KafkaTicket:
    """The futures of records that were sent together; fulfils worker.ports.Ticket."""

    __slots__ = ("_futures",)

    def __init__(self, futures: list[object]) -> None:
        self._futures = futures

    def settled(self) -> bool:
        """See worker.ports.Ticket."""
        futures = self._futures
        # The last is acknowledged last, mostly: while it is under way one look is enough.
        while futures:
            future = futures[-1]
            if isinstance(future, RecordRefused):
                raise future
            if not future.is_done:  # type: ignore[attr-defined]
                return False
            error = future.exception  # type: ignore[attr-defined]
            if error is not None:
                raise _failure(error, len(futures) - 1) from error
            futures.pop()
        return True


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
        self._max_request_size = max_message_bytes + REQUEST_OVERHEAD_BYTES
        self._topic_limits = topic_limits
        self._producer: KafkaProducer | None = None

    def accepts(self, record: OutRecord) -> bool:
        """See worker.ports.Publisher. A topic's limit is on the compressed size."""
        value = record.value or b""
        others = RECORD_OVERHEAD_BYTES + len(record.key or b"")
        others += sum(len(name) + len(content) + HEADER_OVERHEAD_BYTES for name, content in record.headers)
        limit = self._topic_limits.get(record.topic)
        if others + len(value) > self._max_request_size:
            return False
        if limit is None or others + len(value) <= limit:
            return True
        return others + len(lz4.frame.compress(value)) <= limit

    def send(self, records: Sequence[OutRecord]) -> KafkaTicket:
        """See worker.ports.Publisher."""
        futures: list[object] = []
        try:
            if self._producer is None:
                self._producer = self._connect()
            send = self._producer.send
            for topic, partition, key, value, headers in records:
                futures.append(send(topic, value, key, headers, partition))
        except MessageSizeTooLargeError as error:
            futures.append(RecordRefused(len(futures), str(error)))
        except KafkaError as error:
            raise _failure(error, len(futures)) from error
        return KafkaTicket(futures)

    def rebuild(self) -> None:
        """See worker.ports.Publisher. The next send() connects anew."""
        self.close()

    def close(self) -> None:
        """Close without waiting: what is not acknowledged by now is not counted as sent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            # flush(0) within close() says that it did not wait for what is under way.
            with contextlib.suppress(KafkaError):
                producer.close(timeout=0)

    def _connect(self) -> KafkaProducer:
        return KafkaProducer(
            acks="all",
            enable_idempotence=True,
            allow_auto_create_topics=False,
            compression_type="lz4",
            linger_ms=LINGER_MS,
            batch_size=BATCH_BYTES,
            max_request_size=self._max_request_size,
            delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_block_ms=MAX_BLOCK_MS,
            bootstrap_timeout_ms=MAX_BLOCK_MS,
            **self._options,
        )


def _failure(error: BaseException, index: int) -> Exception:
    """What a client's error means to the pipeline."""
    if isinstance(error, (MessageSizeTooLargeError, RecordListTooLargeError)):
        return RecordRefused(index, str(error))
    if isinstance(error, AuthorizationError):
        return KafkaRefused(f"Kafka does not let us write: {error!r}")
    return DeliveryFailed("publish", f"answers could not be delivered: {error!r}")
