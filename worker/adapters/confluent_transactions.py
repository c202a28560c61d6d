"""Verdicts, dead letters and positions in one Kafka transaction, through librdkafka's transactional producer.

Rules: no step waits without a bound; what was left open is sealed before anything new begins.
"""

import contextlib
import logging
import struct
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ClientPartition

from worker.adapters.confluent_options import NO_SUCH_TOPIC, error_of
from worker.adapters.confluent_publisher import MAX_BLOCK_S, ConfluentPublisher
from worker.adapters.confluent_tickets import ConfluentTicket, failure_of
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord, Positions
from worker.ports import RecordRefused

log = logging.getLogger(__name__)

# As worker.adapters.kafka_transactions has them, for the same reasons.
TRANSACTION_TIMEOUT_MS = 8_000
DELIVERY_IN_TRANSACTION_MS = 6_000
REQUEST_IN_TRANSACTION_MS = 3_000
ABORT_TIMEOUT_S = 2.0
STEP_TIMEOUT_S = DELIVERY_IN_TRANSACTION_MS / 1000
SEAL_HEADER = ("reconstream-aborted", b"1")
# How librdkafka writes a group's metadata down: this, the generation, the names of group and member.
METADATA_BEGINS = b"CGMDv2:"


class ConfluentTransactions(ConfluentPublisher):
    """Fulfils worker.ports.Transactions.

    The transactional id is this process's own: what an earlier producer of this process left open ends when the next
    one initialises (KIP-98), what a killed process left open ends after TRANSACTION_TIMEOUT_MS. That a successor may
    already own our partitions is what the group's metadata is for.

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
        self._offered: tuple[list[ClientPartition], bytes] | None = None

    def send(self, records: Sequence[OutRecord]) -> ConfluentTicket:
        """See worker.ports.Publisher. Begins a transaction where none is open."""
        producer = self._connected
        if not self._open:
            _step("publish", lambda: producer().begin_transaction())
            self._open = True
        self._touched.update((record.topic, record.partition) for record in records)
        return super().send(records)

    def flush(self) -> None:
        """See worker.ports.Transactions."""
        self._flush()

    def _flush(self) -> None:
        try:
            left = self._connected().flush(STEP_TIMEOUT_S)
        except KafkaException as exception:
            raise failure_of(error_of(exception), None) from exception
        if left:
            raise DeliveryFailed("publish", "answers were not acknowledged in time")

    def commit(self, positions: Positions, group: object) -> None:
        """See worker.ports.Transactions."""
        offsets = [ClientPartition(*partition, offset) for partition, offset in positions.items()]
        if not isinstance(group, bytes) or not is_member(group):
            # Without a member's name and generation the broker would accept positions from anybody.
            raise DeliveryFailed("fenced", "this worker is no member of the consumer group now")
        if not self._open:
            # Positions without answers: every record of them belongs to a range that needed none.
            self.send(())
        producer = self._connected
        self._offered = offsets, group
        _step("commit", lambda: producer().send_offsets_to_transaction(offsets, group, STEP_TIMEOUT_S))
        asked_at = time.monotonic()
        _step("commit", lambda: producer().commit_transaction(STEP_TIMEOUT_S))
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
        self._abort()
        if not super().rebuild():
            return False
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
        self._abort()
        super().close()

    def _abort(self) -> None:
        if self._open and self._producer is not None:
            # A failure leaves it to the next producer of this id, or to the broker's timeout.
            with contextlib.suppress(KafkaException):
                self._producer.abort_transaction(ABORT_TIMEOUT_S)
        self._open = False

    def _connect(self) -> None:
        self._log.not_added = None
        self._producer = self._new_producer(
            {
                "transactional.id": self._id,
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                "message.timeout.ms": DELIVERY_IN_TRANSACTION_MS,
                "socket.timeout.ms": REQUEST_IN_TRANSACTION_MS,
            }
        )
        try:
            _step("publish", lambda: self._connected().init_transactions(MAX_BLOCK_S))
            if self._touched or self._committed or self._offered is not None:
                self._seal()
        except BaseException:
            self._given_up()
            raise

    def _ended_by(self) -> Exception | None:
        """See ConfluentPublisher. A transaction that has failed says so when another is to begin."""
        if self._producer is None:
            return None
        try:
            self._producer.begin_transaction()
        except KafkaException as exception:
            error = error_of(exception)
        else:
            self._open = True
            return None
        if error.code() == KafkaError._STATE:
            return None
        topic, why = self._log.not_added or ("", "")
        return failure_of(
            error, OutRecord(topic, 0, None, None, []) if why == KafkaError(error.code()).str() else None
        )

    def _seal(self) -> None:
        """Abort once more, wherever the last transactions have written.

        Why and what, of transactions given up and of one that was committed: see KafkaTransactions._seal.
        """
        producer = self._connected
        # Before the transaction begins: it lives for seconds, and to wait for one topic that is gone takes as long.
        written = self._touched | self._committed
        missing = {topic for topic in {topic for topic, _ in written} if self._lacks(topic)}
        _step("publish", lambda: producer().begin_transaction())
        records = [
            OutRecord(topic, partition, None, b"", [SEAL_HEADER])
            for topic, partition in sorted(written)
            if topic not in missing
        ]
        ticket = super().send(records)
        failure: DeliveryFailed | None = None
        try:
            self._flush()
        except DeliveryFailed as error:
            failure = error  # of the records themselves more is known
        try:
            settled = ticket.settled()
        except RecordRefused as refusal:
            raise DeliveryFailed("size", str(refusal)) from refusal
        if not settled:
            raise failure or DeliveryFailed("publish", "the seal was not acknowledged in time")
        if self._offered is not None:
            offsets, group = self._offered
            try:
                _step("commit", lambda: producer().send_offsets_to_transaction(offsets, group, STEP_TIMEOUT_S))
            except DeliveryFailed as error:
                # Refused by the group or not, its partition is part of what is aborted. Without its answer it may not
                # be, and positions that nobody ends keep every member from reading on.
                if error.step != "fenced":
                    raise
        _step("commit", lambda: producer().abort_transaction(STEP_TIMEOUT_S))

    def _lacks(self, topic: str) -> bool:
        """Whether Kafka knows no such topic.

        Raises:
            DeliveryFailed: Kafka does not say, or not to us.
        """
        try:
            found = self._connected().list_topics(topic, MAX_BLOCK_S).topics[topic]
        except KafkaException as exception:
            raise failure_of(error_of(exception), None) from exception
        if found.error is None:
            return False
        if found.error.code() in NO_SUCH_TOPIC:
            return True
        raise failure_of(found.error, OutRecord(topic, 0, None, None, []))


def _step(step: str, do: Callable[[], object]) -> None:
    """Take a step of a transaction. (The producer is asked for within: a frame may not keep it.)"""
    try:
        do()
    except KafkaException as exception:
        raise failure_of(error_of(exception), None, step=step) from exception


def is_member(group: bytes) -> bool:
    """Whether a group's metadata names a member and a generation.

    librdkafka calls them opaque, and has no other call for the generation as it was then.
    """
    if not group.startswith(METADATA_BEGINS):
        raise NotImplementedError(f"librdkafka writes a group's metadata in a way that is not known: {group[:8]!r}")
    at = len(METADATA_BEGINS)
    (generation,) = struct.unpack_from("=i", group, at)
    _group_id, member_id, *_ = group[at + 4 :].split(b"\0")
    return bool(generation >= 0 and member_id)
