"""Verdicts and dead letters through kafka-python's idempotent producer.

Rules: acknowledged by all in-sync replicas; order kept within a partition; nothing waits: a ticket tells
later. The producer is made when it is needed and given up as a whole when anything failed, so that nothing of
a doubtful past is sent again behind the pipeline's back.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import lz4.frame
from kafka import KafkaProducer
from kafka import TopicPartition as ClientPartition
from kafka.errors import (
    AuthorizationError,
    CommitFailedError,
    FencedInstanceIdError,
    IllegalGenerationError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    RecordListTooLargeError,
    UnknownError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)
from kafka.structs import OffsetAndMetadata

from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord, Positions
from worker.ports import RecordRefused

log = logging.getLogger(__name__)

# Longer than a broker's restart: what waits is sent when it is back, in order and once. What outlives it is read
# again. (Were it short, a later batch could be accepted before an earlier one, given up, is sent anew.)
DELIVERY_TIMEOUT_MS = 120_000
REQUEST_TIMEOUT_MS = 15_000
# A killed worker's open transaction hides everything behind it from read_committed readers for this long. A delivery
# must be decided before, and a request before the delivery.
TRANSACTION_TIMEOUT_MS = 8_000
DELIVERY_IN_TRANSACTION_MS = 6_000
REQUEST_IN_TRANSACTION_MS = 3_000
ABORT_TIMEOUT_MS = 2_000
CLOSE_TIMEOUT_S = 2.0
SEAL_HEADER = ("reconstream-aborted", b"1")
# How long send() may wait for metadata: the I/O thread must not stand still for longer.
MAX_BLOCK_MS = 5_000
ANSWERED_S = 2.0
# Small batches leave at once under light load, and fill under heavy load.
LINGER_MS = 2
BATCH_BYTES = 256 << 10
# Of a batch with one record, and of each of its headers: the most that Kafka's format adds.
RECORD_OVERHEAD_BYTES = 128
HEADER_OVERHEAD_BYTES = 10
# Headers and key come on top of the largest message's value.
REQUEST_OVERHEAD_BYTES = 1 << 20

_FENCED = (
    ProducerFencedError,
    CommitFailedError,
    IllegalGenerationError,
    UnknownMemberIdError,
    FencedInstanceIdError,
)
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_REFUSED = (AuthorizationError, InvalidTopicError, UnknownTopicOrPartitionError)


class KafkaTicket:
    """The futures of records that were sent together; fulfils worker.ports.Ticket."""

    __slots__ = ("_futures", "_look_at", "_producer", "_records")

    def __init__(self, producer: KafkaProducer, records: Sequence[OutRecord], futures: list[Any]) -> None:
        self._producer = producer
        self._records = records
        self._futures = futures
        self._look_at = time.monotonic() + MAX_BLOCK_MS / 1000

    def settled(self) -> bool:
        """See worker.ports.Ticket."""
        futures = self._futures
        # The last is acknowledged last, mostly: while it is under way one look is enough.
        while futures:
            future = futures[-1]
            if isinstance(future, RecordRefused):
                raise future
            if not future.is_done:
                self._look_for_topic(self._records[len(futures) - 1].topic)
                return False
            if future.exception is not None:
                index = len(futures) - 1
                topic = self._records[index].topic
                alone = _alone(self._records, futures, index)
                raise _failure(future.exception, index, topic, alone=alone) from future.exception
            futures.pop()
        return True

    def _look_for_topic(self, topic: str) -> None:
        """The client sends to a topic that was deleted until its delivery times out: say so before."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + MAX_BLOCK_MS / 1000
        if _is_missing(self._producer, topic):
            raise _gone(topic)


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
        except MessageSizeTooLargeError as error:
            futures.append(RecordRefused(len(futures), str(error)))
        except KafkaError as error:
            topic = records[len(futures)].topic
            if isinstance(error, KafkaTimeoutError) and _is_missing(producer, topic):
                raise _gone(topic) from error
            raise _failure(error, len(futures), topic, alone=_alone(records, futures, len(futures))) from error
        except ValueError as error:
            # The client's word for a partition that its metadata does not have; the rebuild brings a fresh one.
            topic, partition = records[len(futures)][:2]
            raise DeliveryFailed("refused", f"'{topic}' has no partition {partition}: {error}", topic) from error
        return KafkaTicket(producer, records, futures)

    def rebuild(self) -> bool:
        """See worker.ports.Publisher. The next send() connects anew."""
        self.close()
        return True

    def close(self) -> None:
        """Close without waiting: what is not acknowledged by now is not counted as sent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            _give_up(producer)

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            try:
                self._producer = self._connect()
            except KafkaError as error:
                raise _failure(error, 0, None) from error
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
                "max_request_size": self._max_request_size,
                "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
                "request_timeout_ms": REQUEST_TIMEOUT_MS,
                "max_block_ms": MAX_BLOCK_MS,
                "bootstrap_timeout_ms": MAX_BLOCK_MS,
                **self._options,
                **more,
            }
        )


class KafkaTransactions(KafkaPublisher):
    """Fulfils worker.ports.Transactions.

    The transactional id is this process's own: what an earlier producer of this process left open ends when
    the next one initialises (KIP-98), what a killed process left open ends after TRANSACTION_TIMEOUT_MS. That
    a successor may already own our partitions is what the group's metadata is for.

    Args:
        id_prefix: first part of the transactional id, for ACLs.
    """

    def __init__(
        self,
        options: Mapping[str, object],
        *,
        max_message_bytes: int,
        topic_limits: Mapping[str, int],
        id_prefix: str,
    ) -> None:
        super().__init__(options, max_message_bytes=max_message_bytes, topic_limits=topic_limits)
        self._id = f"{id_prefix}-{uuid.uuid4().hex}"
        self._open = False
        # What the transactions since the last successful commit wrote to; see _seal.
        self._touched: set[tuple[str, int]] = set()
        self._offered: tuple[dict[ClientPartition, OffsetAndMetadata], object] | None = None

    def send(self, records: Sequence[OutRecord]) -> KafkaTicket:
        """See worker.ports.Publisher. Begins a transaction where none is open."""
        producer = self._connected()
        if not self._open:
            try:
                producer.begin_transaction()
            except KafkaError as error:
                raise _failure(error, 0, None) from error
            self._open = True
        self._touched.update((record.topic, record.partition) for record in records)
        return super().send(records)

    def flush(self) -> None:
        """See worker.ports.Transactions."""
        deadline = time.monotonic() + DELIVERY_IN_TRANSACTION_MS / 1000
        while True:
            try:
                self._connected().flush(timeout=max(0.0, deadline - time.monotonic()))
            except UnknownError:
                # The client's word for a batch that was split while it was waited for; its halves are under way.
                if time.monotonic() >= deadline:
                    raise DeliveryFailed("publish", "answers were not acknowledged in time") from None
            except KafkaError as error:
                raise _failure(error, 0, None) from error
            else:
                return

    def commit(self, positions: Positions, group: object) -> None:
        """See worker.ports.Transactions."""
        offsets = {
            ClientPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in positions.items()
        }
        if not getattr(group, "member_id", "") or getattr(group, "generation_id", -1) < 0:
            # Without a member's name and generation the broker would accept positions from anybody.
            raise DeliveryFailed("fenced", "this worker is no member of the consumer group now")
        if not self._open:
            # Positions without answers: every record of them belongs to a range that needed none.
            self.send(())
        producer = self._connected()
        self._offered = offsets, group
        _bounded(producer, "send_offsets_to_transaction", offsets, group)
        _bounded(producer, "begin_commit")
        self._open, self._offered = False, None
        self._touched.clear()

    def rebuild(self) -> bool:
        """See worker.ports.Publisher: connects at once, because that ends what was left open.

        Raises:
            DeliveryFailed: Kafka refuses it; an absent one is False.
        """
        self.close()
        try:
            self._connected()
        except DeliveryFailed as error:
            if error.step == "refused":
                raise
            log.debug("no new producer yet: %s", error)
            return False
        return True

    def close(self) -> None:
        """Abort what is open, within a bound, and close."""
        if self._open and self._producer is not None:
            # A failure leaves it to the next producer of this id, or to the broker's timeout.
            with contextlib.suppress(DeliveryFailed):
                _bounded(self._producer, "begin_abort", timeout_ms=ABORT_TIMEOUT_MS)
        self._open = False
        super().close()

    def _connect(self, **more: object) -> KafkaProducer:
        producer = None
        try:
            producer = super()._connect(
                transactional_id=self._id,
                transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
                delivery_timeout_ms=DELIVERY_IN_TRANSACTION_MS,
                request_timeout_ms=REQUEST_IN_TRANSACTION_MS,
                **more,
            )
            producer.init_transactions()
            if self._touched:
                self._seal(producer)
        except (KafkaError, ValueError, DeliveryFailed) as error:  # ValueError: a partition that is gone
            if producer is not None:
                _give_up(producer)
            raise error if isinstance(error, DeliveryFailed) else _failure(error, 0, None) from error
        return producer

    def _seal(self, producer: KafkaProducer) -> None:
        """Abort once more, wherever a transaction that was given up has written.

        Kafka 4.3.1, right after a restart, skips the markers of partitions whose leader its coordinator does not
        know yet ("Couldn't find leader endpoint ... can be skipped" in its log). The aborted records then stay open,
        and the next commit of this producer would commit them, and positions with them. So a record is sent to each
        of these partitions, which shows that its leader is there, and aborted together with what lies before it.
        """
        producer.begin_transaction()
        gone: set[str] = set()
        for topic, partition in sorted(self._touched):
            if topic in gone:
                continue
            try:
                sent = producer.send(topic, b"", None, [SEAL_HEADER], partition)
                sent.get(timeout=DELIVERY_IN_TRANSACTION_MS / 1000)
            except _TOO_LARGE:
                pass  # the leader has spoken, and the partition is part of what is aborted
            except KafkaTimeoutError:
                if not _is_missing(producer, topic):
                    raise
                gone.add(topic)  # and with it whatever was open there
        if self._offered is not None:
            # Refused or not, it makes the group's partition part of what is aborted.
            with contextlib.suppress(DeliveryFailed):
                _bounded(producer, "send_offsets_to_transaction", *self._offered)
        _bounded(producer, "begin_abort")
        # kafka-python keeps positions that the group refused, and adds them to the next transaction's: what they
        # cover was never answered, and would be skipped.
        producer._transaction_manager._pending_txn_offset_commits.clear()
        self._touched.clear()
        self._offered = None


def _is_missing(producer: KafkaProducer, topic: str) -> bool:
    """Whether Kafka answers and knows no such topic; to be asked after a wait of MAX_BLOCK_MS for it.

    No public call tells that from an absent Kafka: the client waits for either, and gives the same error. It asks
    again and again for a topic that is not there; an answer that is older is of before it asked.
    """
    metadata = producer._metadata
    answered = time.monotonic() - metadata._last_successful_refresh_ms / 1000 < ANSWERED_S
    return answered and metadata.partitions_for_topic(topic) is None


def _gone(topic: str) -> DeliveryFailed:
    return DeliveryFailed("refused", f"Kafka does not let us write to '{topic}': it is gone", topic)


def _give_up(producer: KafkaProducer) -> None:
    """Close without waiting; what is not acknowledged by now is not delivered any more."""
    # close(timeout=0) alone raises before it has closed anything, and the sender goes on delivering.
    producer._sender.force_close()
    producer._sender.join(CLOSE_TIMEOUT_S)
    with contextlib.suppress(KafkaError):
        producer.close(timeout=0)


def _bounded(
    producer: KafkaProducer, step: str, *arguments: object, timeout_ms: int = DELIVERY_IN_TRANSACTION_MS
) -> None:
    """Take a step of a transaction's end, and wait for it, but not for ever.

    kafka-python's own send_offsets_to_transaction(), commit_transaction() and abort_transaction() do the same and
    wait without a bound: one was seen to block for 10 minutes. This is the one place that goes around them.
    """
    try:
        result = getattr(producer._transaction_manager, step)(*arguments)
        producer._sender.wakeup()
        if not result.wait(timeout_ms):
            raise DeliveryFailed("commit", f"{step}: no answer within {timeout_ms} ms")
    except KafkaError as error:
        raise _failure(error, 0, None, step="commit") from error


def _alone(records: Sequence[OutRecord], futures: Sequence[Any], index: int) -> bool:
    """Whether what was sent before record `index`, and to other topics, has arrived: only its topic is at fault."""
    topic = records[index].topic
    elsewhere = (future for record, future in zip(records, futures[:index], strict=False) if record.topic != topic)
    return all(future.is_done and future.exception is None for future in elsewhere)


def _failure(
    error: BaseException, index: int, topic: str | None, *, step: str = "publish", alone: bool = False
) -> Exception:
    """What a client's error means to the pipeline. alone: nothing but this topic fails."""
    if isinstance(error, _TOO_LARGE):
        return RecordRefused(index, f"max.message.bytes of '{topic}' is too small for it: {error}")
    if isinstance(error, _FENCED):
        return DeliveryFailed("fenced", f"somebody else has taken over: {error!r}", topic)
    if isinstance(error, _REFUSED):
        where = f" to '{topic}'" if topic else ""
        return DeliveryFailed("refused", f"Kafka does not let us write{where}: {error!r}", topic)
    return DeliveryFailed(step, f"answers could not be delivered: {error!r}", topic if alone else None)
