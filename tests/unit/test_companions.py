"""Error maps share the fate of their verdicts, and their size is nobody's but their own."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from tests.contract.test_pipeline import image, in_flight, parsed, wait_for
from tests.support.memory import (
    MemoryBroker,
    MemoryPublisher,
    MemorySource,
    MemoryTicket,
    MemoryTransactions,
    PixelScorer,
)
from tests.support.pipelines import SPEC, running
from tests.unit.test_pipeline_faults import IN, LETTERS, OUT, offsets, wait_committed
from worker.core.errors import DeliveryFailed, ExitCode, KafkaUnreachable
from worker.core.records import OutRecord, Record, header
from worker.ports import RecordRefused

MAPS = "maps"
NORMAL, FAULT = image(10), image(200)


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    for topic in (IN, OUT, LETTERS, MAPS):
        broker.create(topic, 2)
    return broker


class Choosy:
    """What a publisher does not take, by topic: `failing` come to nothing, `small` take no value of a map's size."""

    failing: frozenset[str] = frozenset()
    small: frozenset[str] = frozenset()
    known = False

    def accepts(self, record: OutRecord) -> bool:
        return not (self.known and self._too_large(record))

    def send(self, records: Sequence[OutRecord]) -> MemoryTicket:
        for record in records:
            if record.topic in self.failing:
                return MemoryTicket(DeliveryFailed("publish", "not enough replicas", record.topic))
            if self._too_large(record):
                return MemoryTicket(RecordRefused(record, "max.message.bytes"))
        ticket: MemoryTicket = super().send(records)  # type: ignore[misc]  # a publisher's
        return ticket

    def _too_large(self, record: OutRecord) -> bool:
        return record.topic in self.small and len(record.value or b"") > 10


class ChoosyPublisher(Choosy, MemoryPublisher): ...


class ChoosyTransactions(Choosy, MemoryTransactions): ...


Chosen = ChoosyPublisher | ChoosyTransactions


@pytest.fixture(params=[ChoosyPublisher, ChoosyTransactions], ids=["at_least_once", "exactly_once"])
def publisher(request: pytest.FixtureRequest, broker: MemoryBroker) -> Chosen:
    made: Chosen = request.param(broker)
    return made


def start(broker: MemoryBroker, publisher: Chosen, **more: Any) -> Any:
    return running(
        MemorySource(broker, IN),
        publisher,
        output_topic=OUT,
        dead_letter_topic=LETTERS,
        localised=True,
        map_topic=MAPS,
        exactly_once=isinstance(publisher, MemoryTransactions),
        **more,
    )


def feed(broker: MemoryBroker, *values: bytes) -> None:
    for number, value in enumerate(values):
        broker.append(OutRecord(IN, number % 2, b"k", value, []), timestamp=1)


def sources(records: Sequence[Record]) -> Counter[tuple[int, int]]:
    return Counter(
        (record.partition, int(header(record.headers, "reconstream-source-offset") or b"-1")) for record in records
    )


def test_a_map_that_cannot_be_sent_keeps_its_batch_from_being_committed(
    broker: MemoryBroker, publisher: Chosen
) -> None:
    feed(broker, NORMAL, FAULT)
    publisher.failing = frozenset({MAPS})
    with (
        start(broker, publisher, refusal_timeout_s=0.3) as worker,
        pytest.raises(KafkaUnreachable, match=f"the map topic '{MAPS}' could not be written"),
    ):
        worker.join()
    assert broker.committed == {}
    assert broker.topic(MAPS) == []
    if isinstance(publisher, MemoryTransactions):
        assert broker.topic(OUT) == []


def test_when_the_map_topic_is_back_every_anomaly_has_its_map(broker: MemoryBroker, publisher: Chosen) -> None:
    feed(broker, *[NORMAL, NORMAL, FAULT, FAULT] * 5)
    publisher.failures.append(DeliveryFailed("publish", "not enough replicas", MAPS))
    with start(broker, publisher, refusal_timeout_s=60) as worker:
        wait_committed(broker, 20)
        assert worker.stop() is ExitCode.STOPPED
    faults = {(partition, offset) for partition in (0, 1) for offset in range(1, 10, 2)}
    maps = sources(broker.topic(MAPS))
    assert set(maps) == faults
    assert worker.telemetry.rebuilt_steps == ["publish"]
    if isinstance(publisher, MemoryTransactions):
        assert set(maps.values()) == {1}
        assert set(offsets(broker).values()) == {1}


def test_a_transaction_that_is_undone_takes_its_maps_along(broker: MemoryBroker) -> None:
    feed(broker, FAULT, FAULT, NORMAL, FAULT)
    publisher = ChoosyTransactions(broker)
    publisher.failing_commits = 2
    with start(broker, publisher) as worker:
        wait_committed(broker, 4)
        assert worker.stop() is ExitCode.STOPPED
    assert worker.telemetry.rebuilt_steps == ["commit", "commit"]
    assert sources(broker.topic(MAPS)) == {(0, 0): 1, (1, 0): 1, (1, 1): 1}


@pytest.mark.parametrize(("known", "rebuilds"), [(False, ["size"]), (True, [])], ids=["refused", "known"])
def test_a_map_that_is_too_large_goes_without_its_value_and_its_verdict_is_as_ever(
    broker: MemoryBroker, publisher: Chosen, known: bool, rebuilds: list[str]
) -> None:
    feed(broker, NORMAL, FAULT, NORMAL)
    publisher.small, publisher.known = frozenset({MAPS}), known
    with start(broker, publisher) as worker:
        wait_committed(broker, 3)
        assert worker.stop() is ExitCode.STOPPED
    [found] = broker.topic(MAPS)
    assert found.value == b""
    assert header(found.headers, "reconstream-value") == b"omitted"
    assert sources([found]) == {(1, 0): 1}
    assert [parsed(answer)["anomaly"] for answer in broker.topic(OUT)] == [False, False, True]
    assert parsed(broker.topic(OUT)[-1])["region"]["width"] == SPEC.width
    assert worker.telemetry.rebuilt_steps == rebuilds
    assert worker.telemetry.maps["omitted"] == 1


def test_a_record_in_flight_is_counted_with_the_map_that_it_may_cause(broker: MemoryBroker) -> None:
    feed(broker, *[NORMAL] * 40)
    scorer = PixelScorer()
    scorer.gate.clear()
    room = {"map_bytes": 1000, "max_in_flight_bytes": 10_000, "max_message_bytes": 1007}
    with start(broker, ChoosyPublisher(broker), scorer=scorer, **room) as worker:
        wait_for(lambda: in_flight(worker) == 9)
        assert worker.pipeline._ledger.bytes == 9 * (1000 + len(NORMAL) + len(b"k"))
        scorer.gate.set()
        wait_committed(broker, 40)
        assert worker.stop() is ExitCode.STOPPED
    assert worker.pipeline._ledger.bytes == 0


def test_a_map_that_is_larger_than_thought_is_counted_as_such_from_then_on(broker: MemoryBroker) -> None:
    feed(broker, FAULT, *[NORMAL] * 9)
    with start(broker, ChoosyPublisher(broker), map_bytes=1, max_poll_records=1) as worker:
        wait_committed(broker, 10)
        assert worker.stop() is ExitCode.STOPPED
    [found] = broker.topic(MAPS)
    assert worker.pipeline._companions.sizes([Record(IN, 0, 0)]) == [len(found.value or b"")]
