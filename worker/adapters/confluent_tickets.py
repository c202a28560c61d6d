"""What became of records that librdkafka's producer was given, and what its errors mean to the pipeline.

Rules: nothing waits; a failure names a topic only where that topic is known to be at fault, and not Kafka as a whole.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, Message

from worker.adapters.confluent_options import AUTHORIZATION, FENCED, NO_SUCH_TOPIC, TOO_LARGE
from worker.core.errors import NAME_TAKEN, DeliveryFailed, KafkaRefused
from worker.core.records import OutRecord
from worker.ports import RecordRefused

# What a record fails with because another has failed, or because its producer was given up.
CONSEQUENCES = frozenset(
    {
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._GAPLESS_GUARANTEE,
        KafkaError._FATAL,
        KafkaError._STATE,
    }
)
_REFUSED = AUTHORIZATION | NO_SUCH_TOPIC | {KafkaError.TOPIC_EXCEPTION}


class Failure(NamedTuple):
    """A record that was not delivered; of which one is known by what it holds."""

    error: KafkaError
    record: OutRecord | None


class Delivery:
    """Counts the acknowledgements of one topic's records in a ticket."""

    __slots__ = ("errors", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.errors: list[tuple[KafkaError, Message]] = []

    def report(self, error: KafkaError | None, message: Message) -> None:
        """Called by librdkafka once for each record."""
        self.waiting -= 1
        if error is not None:
            self.errors.append((error, message))


class ConfluentTicket:
    """Records that were sent together; fulfils worker.ports.Ticket.

    Args:
        records: that were sent.
        serve: has the reports that have come delivered.
        ended_by: why everything fails, where no record's own failure tells it.
        under_way: tickets of this producer that are not settled, oldest first; this one adds and removes itself.
    """

    __slots__ = ("_deliveries", "_ended_by", "_records", "_refusal", "_serve", "_under_way")

    def __init__(
        self,
        records: Sequence[OutRecord],
        serve: Callable[[], None],
        ended_by: Callable[[], Exception | None],
        under_way: "deque[ConfluentTicket]",
    ) -> None:
        self._records = records
        self._serve = serve
        self._ended_by = ended_by
        self._under_way = under_way
        self._deliveries: dict[str, Delivery] = {}
        self._refusal: RecordRefused | None = None
        under_way.append(self)

    def delivery(self, topic: str) -> Delivery:
        """Where a topic's records are counted."""
        found = self._deliveries.get(topic)
        if found is None:
            found = self._deliveries[topic] = Delivery()
        return found

    @property
    def too_large(self) -> bool:
        """Whether Kafka has refused one of the records for its size, or for that of its batch."""
        return any(error.code() in TOO_LARGE for found in self._deliveries.values() for error, _ in found.errors)

    def refuse(self, refusal: RecordRefused) -> None:
        """The client itself does not take a record, nor were those behind it sent."""
        self._refusal = refusal

    def settled(self) -> bool:
        """See worker.ports.Ticket."""
        self._serve()
        waiting = 0
        for delivery in self._deliveries.values():
            if delivery.errors:
                raise self._cause(delivery.errors[0][0])
            waiting += delivery.waiting
        if waiting:
            return False
        if self._refusal is not None:
            raise self._refusal
        self._under_way.remove(self)
        return True

    def _cause(self, error: KafkaError) -> Exception:
        """Why something failed: after a refusal what else is under way fails too."""
        for ticket in (self, *self._under_way):
            failure = ticket._own_failure()
            if failure is not None:
                topic = None if failure.record is None else failure.record.topic
                return failure_of(failure.error, failure.record, alone=topic is not None and ticket._only(topic))
        return self._ended_by() or failure_of(error, None)

    def _own_failure(self) -> Failure | None:
        """The first record that failed by itself; of those that are too large, the largest.

        A batch is refused as a whole: which of its records is too large the broker does not say.
        """
        own = [
            (error, message)
            for delivery in self._deliveries.values()
            for error, message in delivery.errors
            if error.code() not in CONSEQUENCES
        ]
        if not own:
            return None
        error, message = own[0]
        if error.code() in TOO_LARGE:
            error, message = max(
                (found for found in own if found[0].code() in TOO_LARGE),
                key=lambda found: len(found[1].value() or b""),
            )
        return Failure(error, self._find(message))

    def _find(self, message: Message) -> OutRecord | None:
        wanted = message.topic(), message.partition(), message.key(), message.value()
        return next((record for record in self._records if record[:4] == wanted), None)

    def _only(self, topic: str) -> bool:
        """Whether what was sent to other topics has arrived."""
        return all(
            not delivery.waiting and all(error.code() in CONSEQUENCES for error, _ in delivery.errors)
            for name, delivery in self._deliveries.items()
            if name != topic
        )


def gone(topic: str) -> DeliveryFailed:
    """What to raise when a topic is."""
    return DeliveryFailed("refused", f"Kafka does not let us write to '{topic}': it is gone", topic)


def failure_of(
    error: KafkaError, record: OutRecord | None, *, step: str = "publish", alone: bool = False
) -> Exception:
    """What a client's error means to the pipeline.

    Args:
        error: the client's.
        record: that failed, where it is known.
        step: at which, where nothing better is known.
        alone: nothing but this record's topic fails.
    """
    code = error.code()
    topic = None if record is None else record.topic
    if code in TOO_LARGE:
        if record is None:
            return DeliveryFailed("size", f"Kafka refuses a record for its size: {error.str()}")
        return RecordRefused(record, f"max.message.bytes of '{topic}' is too small for it: {error.str()}")
    if code == KafkaError.FENCED_INSTANCE_ID:
        return KafkaRefused(NAME_TAKEN)
    if code in FENCED:
        return DeliveryFailed("fenced", f"somebody else has taken over: {error}")
    if code in NO_SUCH_TOPIC and topic is not None:
        return gone(topic)
    if code == KafkaError._UNKNOWN_PARTITION and record is not None:
        # A topic that was deleted has no partitions for a while.
        return DeliveryFailed(
            "refused",
            f"Kafka does not let us write to '{topic}': it is gone, or its partition {record.partition}",
            topic,
        )
    if code in _REFUSED:
        where = f" to '{topic}'" if topic else ""
        return DeliveryFailed("refused", f"Kafka does not let us write{where}: {error}", topic)
    return DeliveryFailed(step, f"answers could not be delivered: {error}", topic if alone else None)
