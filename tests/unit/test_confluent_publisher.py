"""librdkafka's producer as a publisher: order, a full queue, what it does not take, its end."""

from typing import Any, ClassVar

import pytest
from confluent_kafka import KafkaError, KafkaException

from worker.adapters import confluent_publisher
from worker.adapters.confluent_publisher import ConfluentPublisher
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord
from worker.ports import RecordRefused


class Producer:
    """Plays librdkafka's: takes up to `room` records, then refuses with `code`."""

    made: ClassVar[list["Producer"]] = []

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.taken: list[tuple[str, int, bytes | None]] = []
        self.reports: list[Any] = []
        self.room = 1000
        self.code = KafkaError._QUEUE_FULL
        self.room_after_poll: int | None = None
        self.fatal: KafkaError | None = None
        self.purged = False
        Producer.made.append(self)

    def produce_batch(self, topic: str, messages: list[dict[str, Any]], partition: int, on_delivery: Any) -> int:
        taken = 0
        for message in messages:
            if self.room <= 0:
                message["_error"] = KafkaError(self.code)
                continue
            self.room -= 1
            taken += 1
            self.taken.append((topic, partition, message["value"]))
            self.reports.append(on_delivery)
        return taken

    def produce(self, topic: str, *, value: Any, key: Any, partition: int, on_delivery: Any, headers: Any) -> None:
        if self.room <= 0:
            raise BufferError if self.code == KafkaError._QUEUE_FULL else KafkaException(KafkaError(self.code))
        self.room -= 1
        self.taken.append((topic, partition, value))
        self.reports.append(on_delivery)

    def poll(self, timeout_s: float) -> None:
        if self.room_after_poll is not None:
            self.room, self.room_after_poll = self.room_after_poll, None
        if self.fatal is not None:
            raise KafkaException(self.fatal)

    def purge(self) -> None:
        self.purged = True

    def acknowledge(self) -> None:
        for report in self.reports:
            report(None, None)
        self.reports = []


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> ConfluentPublisher:
    Producer.made = []
    monkeypatch.setattr(confluent_publisher, "Producer", Producer)
    publisher = ConfluentPublisher(
        {"bootstrap_servers": "nowhere:1"}, max_message_bytes=1 << 20, topic_limits={"verdicts": 70_000}
    )
    publisher.send([])
    return publisher


def verdict(number: int, partition: int = 0, **more: Any) -> OutRecord:
    return OutRecord("verdicts", partition, None, b"%d" % number, more.get("headers", []))


def test_records_of_a_partition_keep_their_order_with_and_without_headers(publisher: ConfluentPublisher) -> None:
    records = [verdict(n, n % 2, headers=[("h", b"x")] if n % 3 == 0 else []) for n in range(20)]
    ticket = publisher.send(records)
    [producer] = Producer.made
    for partition in (0, 1):
        sent = [int(value or b"") for _, number, value in producer.taken if number == partition]
        assert sent == [n for n in range(20) if n % 2 == partition]
    assert not ticket.settled()
    producer.acknowledge()
    assert ticket.settled()


@pytest.mark.parametrize("headers", [[], [("h", b"x")]])
def test_a_full_queue_is_waited_for_and_loses_nothing(publisher: ConfluentPublisher, headers: list[Any]) -> None:
    [producer] = Producer.made
    producer.room, producer.room_after_poll = 3, 100
    publisher.send([verdict(n, headers=headers) for n in range(8)])
    assert [int(value or b"") for _, _, value in producer.taken] == list(range(8))


@pytest.mark.parametrize("headers", [[], [("h", b"x")]])
def test_a_queue_that_stays_full_is_waited_for_within_a_bound(
    publisher: ConfluentPublisher, monkeypatch: pytest.MonkeyPatch, headers: list[Any]
) -> None:
    monkeypatch.setattr(confluent_publisher, "MAX_BLOCK_S", 0.0)
    Producer.made[0].room = 0
    with pytest.raises(DeliveryFailed, match="queue is full"):
        publisher.send([verdict(0, headers=headers)])


@pytest.mark.parametrize("headers", [[], [("h", b"x")]])
def test_a_producer_that_has_ended_takes_nothing_and_the_earlier_ticket_tells_why(
    publisher: ConfluentPublisher, headers: list[Any]
) -> None:
    [producer] = Producer.made
    first = verdict(0)
    ticket = publisher.send([first])

    class Refused:
        topic, partition, key, value = (lambda self, found=found: found for found in first[:4])

    producer.reports[0](KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), Refused())
    producer.room, producer.code = 0, KafkaError._GAPLESS_GUARANTEE
    producer.fatal = KafkaError(KafkaError._GAPLESS_GUARANTEE)
    # The pipeline asks the tickets before it says why it could not send.
    with pytest.raises(DeliveryFailed):
        publisher.send([verdict(1, headers=headers)])
    with pytest.raises(RecordRefused) as caught:
        ticket.settled()
    assert caught.value.record == first


def test_a_record_that_is_larger_than_the_client_s_limit_is_told_by_the_ticket(publisher: ConfluentPublisher) -> None:
    large = OutRecord("letters", 0, None, bytes(3 << 20), [("reason", b"x")])
    assert not publisher.accepts(large)
    ticket = publisher.send([verdict(0), large, verdict(1)])
    [producer] = Producer.made
    assert [value for _, _, value in producer.taken] == [b"0"]
    producer.acknowledge()
    with pytest.raises(RecordRefused) as caught:
        ticket.settled()
    assert caught.value.record is large


def test_batches_are_no_larger_than_the_smallest_topic_takes_and_shrink_when_one_is_refused(
    publisher: ConfluentPublisher,
) -> None:
    [producer] = Producer.made
    assert producer.config["batch.size"] == 70_000
    publisher.send([verdict(0)])
    producer.reports[0](KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), None)
    assert publisher.rebuild()
    assert producer.purged
    publisher.send([verdict(0)])
    assert Producer.made[1].config["batch.size"] == 17_500


def test_it_writes_with_what_the_guarantee_needs(publisher: ConfluentPublisher) -> None:
    [producer] = Producer.made
    config = producer.config
    assert (config["acks"], config["enable.idempotence"], config["enable.gapless.guarantee"]) == ("all", True, True)
    assert config["allow.auto.create.topics"] is False
