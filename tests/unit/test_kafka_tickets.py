"""What a ticket says of its records, on the client's own batches and futures."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import (
    InvalidRecordError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.transaction_manager import ProducerIdAndEpoch, TransactionManager, TransactionState
from kafka.record.memory_records import MemoryRecordsBuilder

from worker.adapters import kafka_tickets
from worker.adapters.kafka_tickets import KafkaTicket
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord
from worker.ports import RecordRefused

VERDICTS, LETTERS = "verdicts", "letters"
REFUSED = InvalidRecordError("no key")


class Line:
    """A producer's tickets, a batch for each record."""

    def __init__(self, producer: object = None, delivery_timeout_s: float = 60.0) -> None:
        self.under_way: deque[KafkaTicket] = deque()
        self.producer = producer
        self.delivery_timeout_s = delivery_timeout_s

    def send(self, *topics: str) -> tuple[KafkaTicket, list[Any]]:
        batches = [ProducerBatch(TopicPartition(topic, 0), MemoryRecordsBuilder(2, 0, 1000)) for topic in topics]
        futures = [batch.try_append(0, None, b"answer", []) for batch in batches]
        records = [OutRecord(topic, 0, None, b"answer", []) for topic in topics]
        return KafkaTicket(self.producer, records, futures, self.under_way, self.delivery_timeout_s), batches


def fail(batch: Any, error: Exception) -> None:
    batch.complete_exceptionally(error, lambda _: error)


def test_a_ticket_is_settled_when_all_was_acknowledged() -> None:
    line = Line()
    ticket, (verdict, letter) = line.send(VERDICTS, LETTERS)
    letter.complete(0, -1)
    assert not ticket.settled()
    verdict.complete(0, -1)
    assert ticket.settled()
    assert not line.under_way


def test_a_topic_is_named_when_it_alone_fails() -> None:
    ticket, (verdict, letter) = Line().send(VERDICTS, LETTERS)
    verdict.complete(0, -1)
    fail(letter, KafkaTimeoutError())
    with pytest.raises(DeliveryFailed) as caught:
        ticket.settled()
    assert (caught.value.step, caught.value.topic) == ("publish", LETTERS)


@pytest.mark.parametrize("done", [True, False])
def test_no_topic_is_named_when_others_have_not_arrived_either(done: bool) -> None:
    ticket, (verdict, letter) = Line().send(VERDICTS, LETTERS)
    fail(letter, KafkaTimeoutError())
    if done:
        fail(verdict, KafkaTimeoutError())
    with pytest.raises(DeliveryFailed) as caught:
        ticket.settled()
    assert (caught.value.step, caught.value.topic) == ("publish", None)


def test_what_the_client_gives_up_with_a_refused_record_is_not_the_cause() -> None:
    line = Line()
    first, (before,) = line.send(VERDICTS)
    second, (verdict, letter, after) = line.send(VERDICTS, LETTERS, VERDICTS)
    fail(letter, REFUSED)
    for batch in (before, verdict, after):
        batch.abort(REFUSED)
    for ticket in (first, second):
        with pytest.raises(DeliveryFailed) as caught:
            ticket.settled()
        assert (caught.value.step, caught.value.topic) == ("publish", LETTERS)


@pytest.mark.parametrize("named", [{LETTERS}, LETTERS], ids=["by the transaction", "by a batch before"])
def test_a_refusal_without_a_record_of_its_own_is_one_all_the_same(named: object) -> None:
    ticket, batches = Line().send(VERDICTS, LETTERS)
    for batch in batches:
        batch.abort(TopicAuthorizationFailedError(named))
    with pytest.raises(DeliveryFailed, match="does not let us write") as caught:
        ticket.settled()
    assert (caught.value.step, caught.value.topic) == ("refused", LETTERS)


def test_a_later_tickets_record_that_is_too_large_is_named() -> None:
    line = Line()
    first, (before,) = line.send(VERDICTS)
    _, (verdict, letter) = line.send(VERDICTS, LETTERS)
    too_large = MessageSizeTooLargeError()
    fail(letter, too_large)
    for batch in (before, verdict):
        batch.abort(too_large)
    with pytest.raises(RecordRefused) as caught:
        first.settled()
    assert caught.value.record.topic == LETTERS


def test_what_the_client_never_decides_has_failed_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others of the same producer may have failed; the last one of the oldest ticket is the one that is looked at."""
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(kafka_tickets, "time", SimpleNamespace(monotonic=lambda: clock.now))
    silent = SimpleNamespace(_metadata=SimpleNamespace(_last_successful_refresh_ms=0))
    ticket, (failed, undecided) = Line(silent, delivery_timeout_s=120).send(VERDICTS, LETTERS)
    fail(failed, KafkaTimeoutError())
    for clock.now in (1_000.0, 1_060.0, 1_129.0):
        assert not ticket.settled()
    assert not undecided.is_done
    clock.now = 1_136.0
    with pytest.raises(DeliveryFailed, match="could not be delivered") as caught:
        ticket.settled()
    assert (caught.value.step, caught.value.topic) == ("publish", None)


def test_why_that_is_needed_the_client_forgets_to_ask_for_another_producer_id() -> None:
    """Once this fails the client was mended, and its time limit can be relied on."""
    manager = TransactionManager(api_version=(4, 0))
    manager.init_producer_id()
    assert manager.next_request_handler(has_incomplete_batches=False) is not None
    manager.set_producer_id_and_epoch(ProducerIdAndEpoch(5, 0))
    manager._transition_to(TransactionState.READY)
    manager.reset_producer_id()  # what a timeout after the first attempt does
    manager.init_producer_id()  # what the sender does on every turn
    assert not manager.has_producer_id()
    assert manager.next_request_handler(has_incomplete_batches=False) is None
