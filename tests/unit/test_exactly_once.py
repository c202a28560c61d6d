"""exactly_once on in-memory ports, where faults come on demand: whatever fails, readers see each answer once."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.contract.test_pipeline import in_flight, wait_for
from tests.support.memory import MemoryBroker, MemorySource, MemoryTicket, MemoryTransactions, PixelScorer
from tests.support.pipelines import Running, running
from tests.unit.test_pipeline_faults import IN, LETTERS, OUT, P0, P1, feed, offsets, wait_committed
from worker.core.errors import DeliveryFailed, ExitCode, KafkaRefused, KafkaUnreachable
from worker.core.records import OutRecord
from worker.ports import RecordRefused


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    for topic in (IN, OUT, LETTERS):
        broker.create(topic, 2)
    return broker


def start(
    broker: MemoryBroker, source: MemorySource, publisher: MemoryTransactions, **more: Any
) -> AbstractContextManager[Running]:
    return running(source, publisher, output_topic=OUT, dead_letter_topic=LETTERS, exactly_once=True, **more)


def once(partitions: int, count: int) -> dict[tuple[int, int], int]:
    return {(partition, offset): 1 for partition in range(partitions) for offset in range(count)}


def test_a_failed_answer_undoes_its_transaction(broker: MemoryBroker) -> None:
    feed(broker, 40)
    source, publisher = MemorySource(broker, IN), MemoryTransactions(broker)
    publisher.failures.append(DeliveryFailed("publish", "the test"))
    with start(broker, source, publisher) as worker:
        wait_committed(broker, 40)
        assert worker.stop() is ExitCode.STOPPED
    assert offsets(broker) == once(2, 20)
    assert worker.telemetry.rebuilt_steps == ["publish"]


@pytest.mark.parametrize("step", ["commit", "fenced"])
def test_a_failed_commit_undoes_its_transaction_and_is_counted(broker: MemoryBroker, step: str) -> None:
    feed(broker, 40)
    source, publisher = MemorySource(broker, IN), MemoryTransactions(broker)
    publisher.failing_commits, publisher.step = 2, step
    with start(broker, source, publisher) as worker:
        wait_committed(broker, 40)
        assert worker.stop() is ExitCode.STOPPED
    assert offsets(broker) == once(2, 20)
    assert worker.telemetry.rebuilt_steps == [step, step]


def test_a_revocation_undoes_the_transaction_that_holds_its_answers(broker: MemoryBroker) -> None:
    feed(broker, 20)
    source, publisher = MemorySource(broker, IN), MemoryTransactions(broker)
    with start(broker, source, publisher, commit_interval_s=3600.0, max_in_flight_records=1000) as worker:
        # Everything is published, nothing committed; then one partition goes.
        wait_for(lambda: len(publisher._staged) == 20)
        source.revoke([P1])
        wait_for(lambda: worker.telemetry.rebuilt_steps == ["revoked"])
        wait_for(lambda: in_flight(worker) == 10)
        assert worker.stop() is ExitCode.STOPPED
    assert broker.committed == {P0: 10}
    assert offsets(broker) == once(1, 10)


def test_a_revocation_of_what_is_only_at_the_scorer_undoes_nothing(broker: MemoryBroker) -> None:
    feed(broker, 20)
    source, publisher, scorer = MemorySource(broker, IN), MemoryTransactions(broker), PixelScorer()
    scorer.gate.clear()
    with start(broker, source, publisher, scorer=scorer) as worker:
        wait_for(lambda: in_flight(worker) == 20)
        source.revoke([P1])
        wait_for(lambda: in_flight(worker) == 10)
        scorer.gate.set()
        wait_committed(broker, 10)
        assert worker.stop() is ExitCode.STOPPED
    assert offsets(broker) == once(1, 10)
    assert worker.telemetry.rebuilt_steps == []


def test_answers_and_positions_become_visible_together(broker: MemoryBroker) -> None:
    feed(broker, 20)
    publisher = MemoryTransactions(broker)
    with start(broker, MemorySource(broker, IN), publisher) as worker:
        wait_committed(broker, 20)
        assert worker.stop() is ExitCode.STOPPED
    assert offsets(broker) == once(2, 10)
    assert publisher.commits < 20, "a transaction holds more than one batch"


def test_a_refusal_is_retried_for_a_while_and_then_ends_the_worker(broker: MemoryBroker) -> None:
    feed(broker, 4)
    publisher = MemoryTransactions(broker)
    publisher.failures.extend(DeliveryFailed("refused", "not authorised") for _ in range(100))
    with (
        start(broker, MemorySource(broker, IN), publisher, refusal_timeout_s=0.5) as worker,
        pytest.raises(KafkaRefused, match="not authorised"),
    ):
        worker.join()
    assert len(worker.telemetry.rebuilt_steps) > 1
    assert broker.committed == {}


def test_a_refusal_that_passes_is_survived(broker: MemoryBroker) -> None:
    feed(broker, 4)
    publisher = MemoryTransactions(broker)
    publisher.failures.extend(DeliveryFailed("refused", "not authorised") for _ in range(3))
    with start(broker, MemorySource(broker, IN), publisher, refusal_timeout_s=30) as worker:
        wait_committed(broker, 4)
        assert worker.stop() is ExitCode.STOPPED
    assert offsets(broker) == once(2, 2)


def test_a_dead_letter_topic_that_stays_unwritable_ends_the_worker_and_skips_nothing(broker: MemoryBroker) -> None:
    broker.append(OutRecord(IN, 0, b"k", b"junk", []))
    publisher = MemoryTransactions(broker)
    publisher.failures.extend(DeliveryFailed("publish", "not enough replicas", LETTERS) for _ in range(100))
    with (
        start(broker, MemorySource(broker, IN), publisher, refusal_timeout_s=0.5) as worker,
        pytest.raises(KafkaUnreachable, match="dead-letter topic 'letters'"),
    ):
        worker.join()
    assert broker.committed == {}
    assert broker.topic(OUT) == []


class Unsealed(MemoryTransactions):
    """After a failure only its dead-letter topic keeps it from starting afresh."""

    def rebuild(self) -> bool:
        raise DeliveryFailed("publish", "not enough replicas", LETTERS)


def test_a_dead_letter_topic_that_keeps_the_publisher_from_starting_afresh_ends_the_worker(
    broker: MemoryBroker,
) -> None:
    broker.append(OutRecord(IN, 0, b"k", b"junk", []))
    publisher = Unsealed(broker)
    publisher.failures.append(DeliveryFailed("publish", "not enough replicas", LETTERS))
    with (
        start(broker, MemorySource(broker, IN), publisher, refusal_timeout_s=0.5) as worker,
        pytest.raises(KafkaUnreachable, match="dead-letter topic 'letters'"),
    ):
        worker.join()
    assert broker.committed == {}


class Stopped(MemoryTransactions):
    """The first batch is refused when the second is sent, which cannot be: a client's transaction that failed."""

    def send(self, records: Sequence[OutRecord]) -> MemoryTicket:
        if self.rebuilds:
            return super().send(records)
        if self._held:
            self._held[0].error = RecordRefused(OutRecord(OUT, 0, None, b"", []), "the test's limit")
            raise DeliveryFailed("publish", "cannot send in this state")
        self._held.append(MemoryTicket())
        return self._held[0]

    def flush(self) -> None:
        """The first batch is still under way."""


def test_what_was_refused_counts_more_than_that_nothing_can_be_sent_since(broker: MemoryBroker) -> None:
    feed(broker, 12)
    publisher = Stopped(broker)
    with start(broker, MemorySource(broker, IN), publisher, max_poll_records=1) as worker:
        wait_committed(broker, 12)
        assert worker.stop() is ExitCode.STOPPED
    assert worker.telemetry.rebuilt_steps == ["size"]
    assert offsets(broker) == once(2, 6)
