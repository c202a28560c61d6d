"""What became of records that kafka-python's producer was given, and what its errors mean to the pipeline.

Rules: nothing waits; a failure names a topic only where that topic is known to be at fault, and not Kafka as a whole.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.errors import (
    AuthorizationError,
    CommitFailedError,
    FencedInstanceIdError,
    IllegalGenerationError,
    InvalidTopicError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)

from worker.core.errors import NAME_TAKEN, DeliveryFailed, KafkaRefused
from worker.core.records import OutRecord
from worker.ports import RecordRefused

# How long send() may wait for metadata: the I/O thread must not stand still for longer.
MAX_BLOCK_MS = 5_000
ANSWERED_S = 2.0
# What the client has not decided so long after its own limit it never will.
OVERDUE_S = 10.0
# The offset that kafka-python gives to a batch that it ends itself.
GIVEN_UP = -1

_FENCED = (
    ProducerFencedError,
    CommitFailedError,
    IllegalGenerationError,
    UnknownMemberIdError,
)
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_REFUSED = (AuthorizationError, InvalidTopicError, UnknownTopicOrPartitionError)


class KafkaTicket:
    """The futures of records that were sent together; fulfils worker.ports.Ticket.

    Args:
        producer: that sent them.
        records, futures: as many of the one as of the other; the last may be a RecordRefused instead of a future.
        under_way: tickets of this producer that are not settled, oldest first; this one adds and removes itself.
        delivery_timeout_s: within which the client says of each record what became of it.
    """

    __slots__ = ("_futures", "_look_at", "_overdue_at", "_producer", "_records", "_under_way")

    def __init__(
        self,
        producer: KafkaProducer,
        records: Sequence[OutRecord],
        futures: list[Any],
        under_way: "deque[KafkaTicket]",
        delivery_timeout_s: float,
    ) -> None:
        self._producer = producer
        self._records = records
        self._futures = futures
        self._under_way = under_way
        now = time.monotonic()
        self._look_at = now + MAX_BLOCK_MS / 1000
        self._overdue_at = now + delivery_timeout_s + OVERDUE_S
        under_way.append(self)

    def settled(self) -> bool:
        """See worker.ports.Ticket."""
        futures = self._futures
        # The last is acknowledged last, mostly: while it is under way one look is enough.
        while futures:
            future = futures[-1]
            if isinstance(future, RecordRefused):
                raise self._cause(future) from future
            if not future.is_done:
                self._look_closer(self._records[len(futures) - 1].topic)
                return False
            if future.exception is not None:
                raise self._cause(future.exception) from future.exception
            futures.pop()
        self._under_way.remove(self)
        return True

    def _cause(self, error: BaseException) -> Exception:
        """Why something failed: after a refusal the client gives up what else is under way, with the same error."""
        for ticket in (self, *self._under_way):
            index = _first_refused(ticket._futures)
            if index is not None:
                cause, record = ticket._futures[index].exception, ticket._records[index]
                alone = alone_at_fault(ticket._records, ticket._futures, record.topic)
                return failure_of(cause, record, alone=alone)
        # No record's own failure: a transaction's partitions, for example, are refused as a whole.
        return error if isinstance(error, RecordRefused) else failure_of(error, None)

    def _look_closer(self, topic: str) -> None:
        """Whether there is anything to wait for.

        The client sends to a topic that was deleted until its delivery times out. And it may never say what became of
        a record: when a batch's time was up after it had been sent once, kafka-python drops its producer id and never
        asks for another (TransactionManager.reset_producer_id leaves a state in which init_producer_id does nothing);
        from then on it sends nothing and gives nothing up.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + MAX_BLOCK_MS / 1000
        if is_missing(self._producer, topic):
            raise gone(topic)
        if now >= self._overdue_at:
            raise self._cause(KafkaTimeoutError("the client has neither delivered them nor given them up in time"))


def is_missing(producer: KafkaProducer, topic: str) -> bool:
    """Whether Kafka answers and knows no such topic; to be asked after a wait of MAX_BLOCK_MS for it.

    No public call tells that from an absent Kafka: the client waits for either, and gives the same error. It asks
    again and again for a topic that is not there; an answer that is older is of before it asked.
    """
    metadata = producer._metadata
    answered = time.monotonic() - metadata._last_successful_refresh_ms / 1000 < ANSWERED_S
    return answered and metadata.partitions_for_topic(topic) is None


def gone(topic: str) -> DeliveryFailed:
    """What to raise when it is."""
    return DeliveryFailed("refused", f"Kafka does not let us write to '{topic}': it is gone", topic)


def given_up(future: Any) -> bool:
    """Whether it failed only because the client ended it together with another; no public call tells."""
    result = future._produce_future.value
    return future.exception is not None and result is not None and result[0] == GIVEN_UP


def _first_refused(futures: Sequence[Any]) -> int | None:
    """Where the first future stands that failed by itself."""
    for index, future in enumerate(futures):
        if not isinstance(future, RecordRefused) and future.exception is not None and not given_up(future):
            return index
    return None


def alone_at_fault(records: Sequence[OutRecord], futures: Sequence[Any], topic: str) -> bool:
    """Whether what was sent to other topics, together with a record that failed, has arrived."""
    return all(
        future.is_done and (future.exception is None or given_up(future))
        for record, future in zip(records, futures, strict=False)
        if record.topic != topic
    )


def _named(error: BaseException) -> str | None:
    """The topic that an error names, which may be another than that of the record that it came with."""
    named = error.args[0] if error.args else None
    if isinstance(error, TopicAuthorizationFailedError) and isinstance(named, str):
        return named  # of a batch that was refused, told by all that the client does afterwards
    if isinstance(named, set) and len(named) == 1:
        [topic] = named  # whose partitions a transaction may not have
        return str(topic)
    return None


def failure_of(
    error: BaseException, record: OutRecord | None, *, step: str = "publish", alone: bool = False
) -> Exception:
    """What a client's error means to the pipeline.

    Args:
        error: the client's.
        record: that failed, where it is known.
        step: at which, where nothing better is known.
        alone: nothing but this record's topic fails.
    """
    topic = None if record is None else record.topic
    if isinstance(error, TOO_LARGE):
        if record is None:
            return DeliveryFailed("size", f"Kafka refuses a record for its size: {error}")
        return RecordRefused(record, f"max.message.bytes of '{topic}' is too small for it: {error}")
    if isinstance(error, FencedInstanceIdError):
        return KafkaRefused(NAME_TAKEN)
    if isinstance(error, _FENCED):
        return DeliveryFailed("fenced", f"somebody else has taken over: {error!r}")
    if isinstance(error, _REFUSED):
        topic = _named(error) or topic
        where = f" to '{topic}'" if topic else ""
        return DeliveryFailed("refused", f"Kafka does not let us write{where}: {error!r}", topic)
    return DeliveryFailed(step, f"answers could not be delivered: {error!r}", topic if alone else None)
