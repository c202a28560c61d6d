"""What the pipeline does when the outside fails; on in-memory ports, where faults come on demand."""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from tests.contract.test_pipeline import by_position, image, in_flight, wait_for
from tests.support.memory import MemoryBroker, MemoryPublisher, MemorySource, MemoryTicket, PixelScorer
from tests.support.pipelines import Running, running
from worker.core.errors import DeliveryFailed, ExitCode, KafkaRefused, KafkaUnreachable, TooManyDeadLetters
from worker.core.records import OutRecord, TopicPartition, header
from worker.ports import RecordRefused

IN, OUT, LETTERS = "images", "verdicts", "letters"
P0, P1 = TopicPartition(IN, 0), TopicPartition(IN, 1)


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    for topic in (IN, OUT, LETTERS):
        broker.create(topic, 2)
    return broker


def feed(broker: MemoryBroker, count: int, value: bytes | None = None) -> None:
    for i in range(count):
        broker.append(OutRecord(IN, i % 2, None, image(i % 256) if value is None else value, []), timestamp=1)


def start(
    broker: MemoryBroker, source: MemorySource, publisher: MemoryPublisher, **more: Any
) -> AbstractContextManager[Running]:
    return running(source, publisher, output_topic=OUT, dead_letter_topic=LETTERS, **more)


def offsets(broker: MemoryBroker) -> Counter[tuple[int, int]]:
    return Counter({position: len(verdicts) for position, verdicts in by_position(broker.topic(OUT)).items()})


def wait_committed(broker: MemoryBroker, count: int) -> None:
    with broker.changed:
        assert broker.changed.wait_for(lambda: sum(broker.committed.values()) >= count, 20), broker.committed


def test_answers_that_may_not_have_arrived_are_given_again(broker: MemoryBroker) -> None:
    feed(broker, 40)
    source, publisher = MemorySource(broker, IN), MemoryPublisher(broker)
    publisher.failures.append(DeliveryFailed("publish", "the test"))
    with start(broker, source, publisher) as worker:
        wait_committed(broker, 40)
        assert worker.stop() is ExitCode.STOPPED
    assert set(offsets(broker)) == {(p, o) for p in range(2) for o in range(20)}
    assert publisher.rebuilds == 1
    assert worker.telemetry.rebuilt_steps == ["publish"]


def test_the_log_has_a_line_for_each_way_of_failing_and_not_for_each_attempt(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    feed(broker, 16)
    source, publisher = MemorySource(broker, IN), MemoryPublisher(broker)
    publisher.failures += [DeliveryFailed("publish", "no answer")] * 3
    publisher.failures += [DeliveryFailed("refused", "not allowed")] * 3
    with (
        caplog.at_level("INFO", "worker.pipeline"),
        start(broker, source, publisher, refusal_timeout_s=600) as worker,
    ):
        wait_committed(broker, 16)
        assert worker.stop() is ExitCode.STOPPED
    said = [record.getMessage().split(";")[0] for record in caplog.records]
    assert said.count("no answer") == 1
    assert said.count("not allowed") == 1
    assert said.count("answers are delivered again") == 1


class NoLetters(MemoryPublisher):
    """The dead-letter topic cannot be written."""

    def send(self, records: Sequence[OutRecord]) -> MemoryTicket:
        if any(record.topic == LETTERS for record in records):
            return MemoryTicket(DeliveryFailed("publish", "not enough replicas", LETTERS))
        return super().send(records)


@contextmanager
def flow(broker: MemoryBroker) -> Iterator[threading.Thread]:
    """An image every now and then on the second partition, for much longer than a test takes."""
    ended = threading.Event()

    def feed_on() -> None:
        for _ in range(400):
            broker.append(OutRecord(IN, 1, None, image(1), []), timestamp=1)
            if ended.wait(0.02):
                return

    feeder = threading.Thread(target=feed_on)
    feeder.start()
    try:
        yield feeder
    finally:
        ended.set()
        feeder.join()


def test_verdicts_that_get_through_do_not_stop_the_clock_of_the_letters(broker: MemoryBroker) -> None:
    broker.append(OutRecord(IN, 0, None, b"junk", []))
    publisher = NoLetters(broker)
    with (
        start(broker, MemorySource(broker, IN), publisher, max_poll_records=1, refusal_timeout_s=0.5) as worker,
        flow(broker) as feeder,
    ):
        with pytest.raises(KafkaUnreachable, match="dead-letter topic 'letters'"):
            worker.join()
        assert feeder.is_alive(), "it ended only after the verdicts had"
    assert P0 not in broker.committed


class OnlyOnePartition(MemoryPublisher):
    """Answers for the other have no partition to go to."""

    def send(self, records: Sequence[OutRecord]) -> MemoryTicket:
        if any(record.partition == 0 for record in records):
            raise DeliveryFailed("refused", "there is no such partition", OUT)
        return super().send(records)


def test_a_refusal_of_some_records_lasts_while_others_are_answered(broker: MemoryBroker) -> None:
    broker.append(OutRecord(IN, 0, None, image(1), []), timestamp=1)
    publisher = OnlyOnePartition(broker)
    with (
        start(broker, MemorySource(broker, IN), publisher, max_poll_records=1, refusal_timeout_s=0.5) as worker,
        flow(broker) as feeder,
    ):
        with pytest.raises(KafkaRefused, match="no such partition"):
            worker.join()
        assert feeder.is_alive(), "it ended only after the verdicts had"
    assert P0 not in broker.committed


def test_what_fails_as_a_whole_is_not_counted_against_the_letters(broker: MemoryBroker) -> None:
    feed(broker, 1)
    publisher = MemoryPublisher(broker)
    alone, whole = DeliveryFailed("publish", "not enough replicas", LETTERS), DeliveryFailed("publish", "no answer")
    publisher.failures += [alone, whole, whole, whole, whole, alone]
    with start(broker, MemorySource(broker, IN), publisher, refusal_timeout_s=0.5) as worker:
        wait_committed(broker, 1)
        assert worker.stop() is ExitCode.STOPPED
    assert len(worker.telemetry.rebuilt_steps) == 6


def test_a_commit_that_fails_is_followed_by_reading_again(broker: MemoryBroker) -> None:
    feed(broker, 40)
    source = MemorySource(broker, IN)
    source.failing_commits, source.failing_rewinds = 2, 3
    with start(broker, source, MemoryPublisher(broker)) as worker:
        wait_committed(broker, 40)
        assert worker.stop() is ExitCode.STOPPED
    assert set(offsets(broker)) == {(p, o) for p in range(2) for o in range(20)}
    assert worker.telemetry.rebuilt_steps == ["commit", "commit"]


def test_a_commit_during_a_rebalance_waits_and_repeats_nothing(broker: MemoryBroker) -> None:
    feed(broker, 40)
    source = MemorySource(broker, IN)
    source.deferred_commits = 3
    with start(broker, source, MemoryPublisher(broker)) as worker:
        wait_committed(broker, 40)
        assert worker.stop() is ExitCode.STOPPED
    assert set(offsets(broker).values()) == {1}
    assert worker.telemetry.rebuilt_steps == []


def test_nothing_is_committed_before_it_is_acknowledged(broker: MemoryBroker) -> None:
    feed(broker, 20)
    publisher = MemoryPublisher(broker)
    publisher.hold = True
    with start(broker, MemorySource(broker, IN), publisher) as worker:
        wait_for(lambda: sum(offsets(broker).values()) == 20)
        assert worker.thread.is_alive()
        assert broker.committed == {}
        publisher.release()
        wait_committed(broker, 20)
        assert worker.stop() is ExitCode.STOPPED


def test_a_stop_past_its_deadline_commits_only_what_was_acknowledged(broker: MemoryBroker) -> None:
    feed(broker, 20)
    publisher = MemoryPublisher(broker)
    publisher.hold = True
    with start(broker, MemorySource(broker, IN), publisher, drain_timeout_s=0.2) as worker:
        wait_for(lambda: sum(offsets(broker).values()) == 20)
        assert worker.stop() is ExitCode.UNFINISHED
    assert broker.committed == {}


def test_a_second_request_to_stop_does_not_wait(broker: MemoryBroker) -> None:
    feed(broker, 20)
    publisher = MemoryPublisher(broker)
    publisher.hold = True
    with start(broker, MemorySource(broker, IN), publisher, drain_timeout_s=600) as worker:
        wait_for(lambda: sum(offsets(broker).values()) == 20)
        worker.pipeline.request_stop()
        assert worker.stop() is ExitCode.UNFINISHED
    assert broker.committed == {}


def test_revoked_partitions_are_dropped_and_kept_ones_are_finished(broker: MemoryBroker) -> None:
    feed(broker, 20)
    source, scorer = MemorySource(broker, IN), PixelScorer()
    scorer.gate.clear()
    with start(broker, source, MemoryPublisher(broker), scorer=scorer) as worker:
        wait_for(lambda: in_flight(worker) == 20)
        source.revoke([P1])
        wait_for(lambda: in_flight(worker) == 10)
        scorer.gate.set()
        wait_committed(broker, 10)
        assert worker.stop() is ExitCode.STOPPED
    assert broker.committed == {P0: 10}
    assert {partition for partition, _ in offsets(broker)} == {0}
    assert set(offsets(broker).values()) == {1}


def test_a_partition_that_comes_back_is_read_from_its_committed_position(broker: MemoryBroker) -> None:
    feed(broker, 20)
    source, scorer = MemorySource(broker, IN), PixelScorer()
    scorer.gate.clear()
    with start(broker, source, MemoryPublisher(broker), scorer=scorer) as worker:
        wait_for(lambda: in_flight(worker) == 20)
        source.revoke([P0, P1], regain=True)
        wait_for(lambda: source.rebalances == 1)
        scorer.gate.set()
        wait_committed(broker, 20)
        assert worker.stop() is ExitCode.STOPPED
    assert offsets(broker) == Counter({(p, o): 1 for p in range(2) for o in range(10)})


def test_a_letter_that_kafka_refuses_for_its_size_goes_without_its_value(broker: MemoryBroker) -> None:
    feed(broker, 4)
    poison = b"x" * 5000
    broker.append(OutRecord(IN, 0, b"k", poison, []))
    feed(broker, 4)
    publisher = MemoryPublisher(broker)
    publisher.refuse_above = 5000
    with start(broker, MemorySource(broker, IN), publisher) as worker:
        wait_committed(broker, 9)
        assert worker.stop() is ExitCode.STOPPED
    letter = broker.topic(LETTERS)[-1]
    assert letter.value is None
    assert header(letter.headers, "reconstream-value") == b"omitted"
    assert header(letter.headers, "reconstream-value-bytes") == b"5000"
    assert worker.telemetry.rebuilt_steps == ["size"]


def test_a_letter_known_to_be_too_large_costs_no_rebuild(broker: MemoryBroker) -> None:
    broker.append(OutRecord(IN, 0, b"k", b"x" * 5000, []))
    publisher = MemoryPublisher(broker)
    publisher.known_limit = 4000
    with start(broker, MemorySource(broker, IN), publisher) as worker:
        wait_committed(broker, 1)
        worker.stop()
    [letter] = broker.topic(LETTERS)
    assert header(letter.headers, "reconstream-value") == b"omitted"
    assert worker.telemetry.rebuilt_steps == []


def test_too_many_dead_letters_stop_the_worker_only_where_that_is_set(broker: MemoryBroker) -> None:
    feed(broker, 60, b"junk")
    with start(broker, MemorySource(broker, IN), MemoryPublisher(broker), dead_letter_window=20) as worker:
        wait_committed(broker, 60)
        assert worker.stop() is ExitCode.STOPPED
    feed(broker, 60, b"junk")
    source = MemorySource(broker, IN)
    with (
        start(broker, source, MemoryPublisher(broker), dead_letter_window=20, max_dead_letter_ratio=0.5) as worker,
        pytest.raises(TooManyDeadLetters, match=r"100\.0%"),
    ):
        worker.join()


def test_a_null_header_does_not_stop_the_dead_letter(broker: MemoryBroker) -> None:
    broker.append(OutRecord(IN, 0, None, b"junk", [("nothing", None)]))  # type: ignore[list-item]
    with start(broker, MemorySource(broker, IN), MemoryPublisher(broker)) as worker:
        wait_committed(broker, 1)
        worker.stop()
    [letter] = broker.topic(LETTERS)
    assert ("nothing", b"") in letter.headers
    assert header(letter.headers, "reconstream-null-header") == b"nothing"
    assert json.loads(broker.topic(OUT)[0].value or b"")["status"] == "unreadable"


def letters_of(broker: MemoryBroker) -> dict[int, set[tuple[bytes | None, bytes | None]]]:
    """By source offset: values of the letters, and whether they say that a value was left out."""
    found: dict[int, set[tuple[bytes | None, bytes | None]]] = {}
    for letter in broker.topic(LETTERS):
        offset = int(header(letter.headers, "reconstream-source-offset") or b"-1")
        found.setdefault(offset, set()).add((letter.value, header(letter.headers, "reconstream-value")))
    return found


def test_only_the_letter_that_is_too_large_goes_without_its_value(broker: MemoryBroker) -> None:
    large = b"J" * 5000
    for value in (b"junk", large, b"more junk"):
        broker.append(OutRecord(IN, 0, b"k", value, []))
    publisher = MemoryPublisher(broker)
    publisher.refuse_above = len(large)
    with start(broker, MemorySource(broker, IN), publisher) as worker:
        wait_committed(broker, 3)
        assert worker.stop() is ExitCode.STOPPED
    letters = letters_of(broker)
    assert letters[0] == {(b"junk", None)}
    assert {said for _, said in letters[1]} == {b"omitted"}
    assert letters[2] == {(b"more junk", None)}


class SmallOutput(MemoryPublisher):
    """The output topic is too small for a verdict, until the publisher was made anew."""

    def send(self, records: Sequence[OutRecord]) -> MemoryTicket:
        if not self.rebuilds:
            return MemoryTicket(RecordRefused(records[0], "max.message.bytes"))
        return super().send(records)


def test_a_verdict_that_is_too_large_takes_no_letters_value(broker: MemoryBroker) -> None:
    broker.append(OutRecord(IN, 0, None, b"junk", []))
    with start(broker, MemorySource(broker, IN), SmallOutput(broker)) as worker:
        wait_committed(broker, 1)
        assert worker.stop() is ExitCode.STOPPED
    assert letters_of(broker) == {0: {(b"junk", None)}}


class Away(MemoryPublisher):
    """Cannot be rebuilt until `back` is set."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.back = threading.Event()

    def rebuild(self) -> bool:
        return self.back.is_set() and super().rebuild()


def test_while_a_rewind_is_due_the_member_goes_on_polling_and_takes_nothing(broker: MemoryBroker) -> None:
    feed(broker, 20)
    source, publisher = MemorySource(broker, IN), Away(broker)
    publisher.failures.append(DeliveryFailed("publish", "the test's"))
    with start(broker, source, publisher) as worker:
        wait_for(lambda: worker.pipeline.recovering and source.polls_while_paused > 3)
        source.revoke([P1])
        wait_for(lambda: source.rebalances == 1)
        assert source.assignment() == {P0}
        publisher.back.set()
        wait_for(lambda: broker.committed.get(P0) == 10)
        assert worker.stop() is ExitCode.STOPPED
    assert P1 not in broker.committed
    assert {offset for partition, offset in offsets(broker) if partition == 0} == set(range(10))
