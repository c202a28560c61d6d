"""Verdicts, dead letters and positions in one Kafka transaction, through kafka-python's transactional producer.

Rules: no end of a transaction waits without a bound; what was left open is sealed before anything new begins.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaProducer
from kafka import TopicPartition as ClientPartition
from kafka.errors import KafkaError, KafkaTimeoutError, UnknownError
from kafka.structs import OffsetAndMetadata

from worker.adapters.kafka_publisher import KafkaPublisher, give_up
from worker.adapters.kafka_tickets import TOO_LARGE, KafkaTicket, alone_at_fault, failure_of, given_up, is_missing
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord, Positions

log = logging.getLogger(__name__)

# A killed worker's open transaction hides everything behind it from read_committed readers for this long. A delivery
# must be decided before, and a request before the delivery.
TRANSACTION_TIMEOUT_MS = 8_000
DELIVERY_IN_TRANSACTION_MS = 6_000
REQUEST_IN_TRANSACTION_MS = 3_000
ABORT_TIMEOUT_MS = 2_000
SEAL_HEADER = ("reconstream-aborted", b"1")


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
        # What the transactions since the last successful commit wrote to, and what that one did; see _seal.
        self._touched: set[tuple[str, int]] = set()
        self._committed: set[tuple[str, int]] = set()
        self._offered: tuple[dict[ClientPartition, OffsetAndMetadata], object] | None = None

    def send(self, records: Sequence[OutRecord]) -> KafkaTicket:
        """See worker.ports.Publisher. Begins a transaction where none is open."""
        producer = self._connected()
        if not self._open:
            try:
                producer.begin_transaction()
            except KafkaError as error:
                raise failure_of(error, None) from error
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
                raise failure_of(error, None) from error
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
        asked_at = time.monotonic()
        _bounded(producer, "begin_commit")
        self._open = False
        took_ms = (time.monotonic() - asked_at) * 1000
        if took_ms > REQUEST_IN_TRANSACTION_MS:
            # The client has asked twice, and a broker that restarted in between may not have ended it; see _seal.
            raise DeliveryFailed("commit", f"acknowledged after {took_ms:.0f} ms, and perhaps not ended")
        self._committed, self._touched = self._touched, set()

    def rebuild(self) -> bool:
        """See worker.ports.Publisher: connects at once, because that ends what was left open.

        Raises:
            DeliveryFailed: Kafka refuses it, or one topic cannot be written; an absent Kafka is False.
        """
        self.close()
        try:
            self._connected()
        except DeliveryFailed as error:
            if error.step in {"refused", "size"} or error.topic is not None:
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
            if self._touched or self._committed or self._offered is not None:
                self._seal(producer)
        except (KafkaError, ValueError, DeliveryFailed) as error:  # ValueError: a partition that is gone
            if producer is not None:
                give_up(producer)
            raise error if isinstance(error, DeliveryFailed) else failure_of(error, None) from error
        return producer

    def _seal(self, producer: KafkaProducer) -> None:
        """Abort once more, wherever the last transactions have written.

        Kafka 4.3.1, right after a restart, skips the markers of partitions whose leader its coordinator does not
        know yet ("Couldn't find leader endpoint ... can be skipped" in its log). The aborted records then stay open,
        and the next commit of this producer would commit them, and positions with them. So a record is sent to each
        of these partitions, which shows that its leader is there, and aborted together with what lies before it. The
        next commit alone shows that all of it has ended: until then each new producer does it again.

        A commit that was acknowledged just before, or by asking again after, the restart stays open as well: nobody
        sees its verdicts, and no member can read on from its positions. Answers and positions are aborted together,
        and its records are read again. Where its markers were written, this ends nothing but itself.
        """
        # Before the transaction begins: it lives for seconds, and to wait for one topic that is gone takes as long.
        written = self._touched | self._committed
        missing = {topic for topic in {topic for topic, _ in written} if _lacks(producer, topic)}
        producer.begin_transaction()
        records = [
            OutRecord(topic, partition, None, b"", [SEAL_HEADER])
            for topic, partition in sorted(written)
            if topic not in missing
        ]
        sealed: list[OutRecord] = []
        futures: list[Any] = []
        # All are sent before the first is waited for: the transaction lives for seconds, and a wait may take as long.
        consequence: KafkaError | None = None  # of a failure that is another's, or nobody's among these
        for record in records:
            try:
                future = producer.send(record.topic, record.value, None, record.headers, record.partition)
            except ValueError:
                continue  # the partition is gone, and with it whatever was open there
            except KafkaError as error:
                consequence = error
                break
            sealed.append(record)
            futures.append(future)
        deadline = time.monotonic() + DELIVERY_IN_TRANSACTION_MS / 1000
        for record, future in zip(sealed, futures, strict=True):
            try:
                future.get(timeout=max(0.0, deadline - time.monotonic()))
            except KafkaError as error:
                if given_up(future):
                    consequence = error
                elif isinstance(error, TOO_LARGE):
                    raise DeliveryFailed(
                        "size", f"max.message.bytes of '{record.topic}' is too small: {error}"
                    ) from error
                elif not (isinstance(error, KafkaTimeoutError) and is_missing(producer, record.topic)):
                    alone = alone_at_fault(sealed, futures, record.topic)
                    raise failure_of(error, record, alone=alone) from error
        if consequence is not None:
            raise consequence
        if self._offered is not None:
            try:
                _bounded(producer, "send_offsets_to_transaction", *self._offered)
            except DeliveryFailed as error:
                # Refused by the group or not, its partition is part of what is aborted. Without its answer it may not
                # be, and positions that nobody ends keep every member from reading on.
                if error.step != "fenced":
                    raise
        _bounded(producer, "begin_abort")
        # kafka-python keeps positions that the group refused, and adds them to the next transaction's: what they
        # cover was never answered, and would be skipped.
        producer._transaction_manager._pending_txn_offset_commits.clear()


def _lacks(producer: KafkaProducer, topic: str) -> bool:
    """Whether Kafka knows no such topic.

    Raises:
        KafkaError: Kafka does not say, or not to us.
    """
    try:
        producer.partitions_for(topic)
    except KafkaTimeoutError:
        if is_missing(producer, topic):
            return True
        raise
    return False


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
        raise failure_of(error, None, step="commit") from error
