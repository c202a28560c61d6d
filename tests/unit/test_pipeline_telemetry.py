"""What the I/O loop tells about itself: connection, and how long answers took to be acknowledged."""

from collections.abc import Callable, Sequence

import pytest

from tests.contract.test_pipeline import image
from tests.support.memory import MemoryBroker, MemoryPublisher, MemorySource, MemoryTransactions
from tests.support.pipelines import running
from worker.adapters.system_clock import SystemClock
from worker.core.errors import DeliveryFailed, ExitCode
from worker.core.records import OutRecord

IN, OUT, LETTERS = "images", "verdicts", "letters"


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    for topic in (IN, OUT, LETTERS):
        broker.create(topic, 2)
    return broker


def feed(broker: MemoryBroker, count: int) -> None:
    for number in range(count):
        broker.append(OutRecord(IN, number % 2, None, image(number % 256), []), timestamp=1)


def wait_committed(broker: MemoryBroker, count: int) -> None:
    with broker.changed:
        assert broker.changed.wait_for(lambda: sum(broker.committed.values()) >= count, 20), broker.committed


class Source(MemorySource):
    """Its state is what the test says."""

    lacking: Sequence[str] = ()

    def missing(self) -> Sequence[str]:
        return self.lacking


@pytest.mark.parametrize(
    ("publisher", "exactly_once"), [(MemoryPublisher, False), (MemoryTransactions, True)], ids=["alo", "eos"]
)
def test_every_acknowledged_batch_has_its_duration(
    broker: MemoryBroker, publisher: Callable[[MemoryBroker], MemoryPublisher], exactly_once: bool
) -> None:
    feed(broker, 40)
    source = MemorySource(broker, IN)
    with running(
        source, publisher(broker), output_topic=OUT, dead_letter_topic=LETTERS, exactly_once=exactly_once
    ) as worker:
        wait_committed(broker, 40)
        assert worker.stop() is ExitCode.STOPPED
    durations = worker.telemetry.publish_durations_s
    assert len(durations) == len(worker.scorer.batches)
    assert all(0 <= seconds < 20 for seconds in durations)


class LeapingClock(SystemClock):
    """Leaps forward when the test says so."""

    leaps_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.leaps_s


class SlowToRebuild(MemoryPublisher):
    """Takes 1000 s to start afresh, by its clock."""

    def __init__(self, broker: MemoryBroker, clock: LeapingClock) -> None:
        super().__init__(broker)
        self._clock = clock

    def rebuild(self) -> bool:
        self._clock.leaps_s += 1000
        return super().rebuild()


def test_a_batch_that_is_given_up_has_no_duration_and_its_successor_its_own(broker: MemoryBroker) -> None:
    feed(broker, 8)
    clock = LeapingClock()
    source, publisher = MemorySource(broker, IN), SlowToRebuild(broker, clock)
    publisher.failures += [DeliveryFailed("publish", "the test")] * 3
    with running(source, publisher, output_topic=OUT, dead_letter_topic=LETTERS, clock=clock) as worker:
        wait_committed(broker, 8)
        assert worker.stop() is ExitCode.STOPPED
    assert publisher.rebuilds == len(worker.telemetry.rebuilt_steps) >= 1
    durations = worker.telemetry.publish_durations_s
    assert durations
    assert all(0 <= seconds < 900 for seconds in durations)


def test_a_held_acknowledgement_is_time_spent(broker: MemoryBroker) -> None:
    feed(broker, 4)
    source, publisher = MemorySource(broker, IN), MemoryPublisher(broker)
    publisher.hold = True
    with running(source, publisher, output_topic=OUT, dead_letter_topic=LETTERS) as worker:
        with broker.changed:
            assert broker.changed.wait_for(lambda: len(broker.topic(OUT)) == 4, 20)
        assert worker.telemetry.publish_durations_s == []
        publisher.release()
        wait_committed(broker, 4)
        assert worker.stop() is ExitCode.STOPPED
    assert len(worker.telemetry.publish_durations_s) == len(worker.scorer.batches)


@pytest.mark.parametrize(("lacking", "connected"), [((), True), (["no heartbeat was answered"], False)])
def test_connected_is_what_the_source_says(broker: MemoryBroker, lacking: Sequence[str], connected: bool) -> None:
    source = Source(broker, IN)
    source.lacking = lacking
    with running(source, MemoryPublisher(broker), output_topic=OUT, dead_letter_topic=LETTERS) as worker:
        feed(broker, 4)
        wait_committed(broker, 4)
        assert worker.stop() is ExitCode.STOPPED
    assert set(worker.telemetry.connected) == {connected}
