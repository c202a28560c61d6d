"""What the pipeline promises, on in-memory ports and on a real Kafka through either client: one suite for all."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jsonschema
import numpy as np
import pytest

from tests.support.kafka import CLIENTS
from tests.support.memory import MemoryBroker, MemoryPublisher, MemorySource, MemoryTransactions, PixelScorer
from tests.support.pipelines import CALIBRATION, SPEC, THRESHOLD, Running, running
from worker.core.errors import ExitCode, Reason, ScorerBroken
from worker.core.images import decode
from worker.core.records import Headers, OutRecord, Record, SourceRecord, header
from worker.core.verdicts import verdict_schema
from worker.ports import Publisher, Source

PARTITIONS = 3
SIZE = SPEC.height * SPEC.width


class World(Protocol):
    """A broker with an input, an output and a dead-letter topic."""

    input: str
    output: str
    letters: str
    exactly_once: bool

    def feed(self, records: Sequence[OutRecord]) -> None: ...
    def source(self) -> Source: ...
    def publisher(self) -> Publisher: ...
    def answers(self, count: int) -> list[Record]:
        """Wait for at least so many verdicts; all of them, by partition and offset."""
        ...

    def dead_letters(self, count: int) -> list[Record]: ...
    def maps(self) -> str:
        """A new topic, for error maps."""
        ...

    def records(self, topic: str, count: int) -> list[Record]:
        """As answers(), of any topic."""
        ...

    def committed(self) -> dict[int, int]: ...


class MemoryWorld:
    input, output, letters = "images", "verdicts", "dead-letters"

    def __init__(self, *, exactly_once: bool) -> None:
        self.exactly_once = exactly_once
        self.broker = MemoryBroker()
        for topic in (self.input, self.output, self.letters):
            self.broker.create(topic, PARTITIONS)

    def feed(self, records: Sequence[OutRecord]) -> None:
        for record in records:
            self.broker.append(record, timestamp=1_700_000_000_000)

    def source(self) -> Source:
        return MemorySource(self.broker, self.input)

    def publisher(self) -> Publisher:
        return MemoryTransactions(self.broker) if self.exactly_once else MemoryPublisher(self.broker)

    def answers(self, count: int) -> list[Record]:
        return self.records(self.output, count)

    def dead_letters(self, count: int) -> list[Record]:
        return self.records(self.letters, count)

    def maps(self) -> str:
        self.broker.create("maps", PARTITIONS)
        return "maps"

    def committed(self) -> dict[int, int]:
        return {partition.partition: offset for partition, offset in self.broker.committed.items()}

    def records(self, topic: str, count: int) -> list[Record]:
        with self.broker.changed:
            assert self.broker.changed.wait_for(lambda: len(self.broker.topic(topic)) >= count, 20), (
                f"{len(self.broker.topic(topic))} of {count} records in {topic}"
            )
        return self.broker.topic(topic)


@pytest.fixture(params=["at_least_once", "exactly_once"])
def exactly_once(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "exactly_once")


@pytest.fixture(params=["memory", *CLIENTS])
def world(request: pytest.FixtureRequest, exactly_once: bool) -> World:
    if request.param == "memory":
        return MemoryWorld(exactly_once=exactly_once)
    make_kafka_world: Callable[[str], World] = request.getfixturevalue("make_kafka_world")
    return make_kafka_world(request.param)


def run(world: World, scorer: PixelScorer | None = None, **more: Any) -> Any:
    return running(
        world.source(),
        world.publisher(),
        output_topic=world.output,
        dead_letter_topic=world.letters,
        scorer=scorer,
        exactly_once=world.exactly_once,
        **more,
    )


def image(level: int, first: int | None = None) -> bytes:
    pixels = np.full(SIZE, level, np.uint8)
    if first is not None:
        pixels[0] = first
    return pixels.tobytes()


def record(
    world: World, partition: int, value: bytes | None, key: bytes | None = None, headers: Headers = ()
) -> OutRecord:
    return OutRecord(world.input, partition, key, value, [(name, content or b"") for name, content in headers])


def images(world: World, count: int) -> list[OutRecord]:
    return [record(world, i % PARTITIONS, image(i % 256), b"cam-%d" % (i % 2)) for i in range(count)]


def by_position(answers: Sequence[SourceRecord]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for answer in answers:
        verdict = json.loads(answer.value or b"")
        assert verdict["source"]["partition"] == answer.partition
        found[verdict["source"]["partition"], verdict["source"]["offset"]].append(verdict)
    return found


def test_every_message_gets_exactly_one_answer_in_order_and_is_committed(world: World) -> None:
    world.feed(images(world, 200))
    with run(world) as worker:
        answers = world.answers(200)
        assert worker.stop() is ExitCode.STOPPED
    found = by_position(answers)
    assert len(found) == 200
    assert all(len(verdicts) == 1 for verdicts in found.values())
    for partition in range(PARTITIONS):
        offsets = [json.loads(a.value or b"")["source"]["offset"] for a in answers if a.partition == partition]
        assert offsets == sorted(offsets)
    assert world.committed() == {0: 67, 1: 67, 2: 66}
    assert world.dead_letters(0) == []


def test_a_verdict_says_what_the_contract_says(world: World) -> None:
    level = 200
    headers = [("traceparent", b"00-ab-cd-01"), ("other", b"x"), ("message-id", b"part 7")]
    world.feed([record(world, 1, image(level), b"cam-1", headers)])
    with run(world) as worker:
        [answer] = world.answers(1)
        worker.stop()
    verdict = json.loads(answer.value or b"")
    jsonschema.validate(verdict, verdict_schema())
    error = np.float32(np.mean(np.square(np.full(SIZE, level, np.float32) / 255)))
    assert verdict["score"] == verdict["error"] == pytest.approx(float(error), rel=1e-6)
    assert np.float32(verdict["score"]) == verdict["score"]
    assert verdict["threshold"] == THRESHOLD
    assert verdict["anomaly"] is True
    assert verdict["p_value"] == pytest.approx((1 + int(np.sum(error <= CALIBRATION))) / (len(CALIBRATION) + 1))
    assert (verdict["version"], verdict["status"], verdict["reason"], verdict["region"]) == (1, "judged", None, None)
    assert verdict["id"] == "part 7"
    assert verdict["stream"] == "partition-1"
    assert verdict["model"] == {"name": "pixels", "version": "0123456789ab"}
    assert verdict["source"]["topic"] == world.input
    assert verdict["source"]["offset"] == 0
    assert verdict["source"]["timestamp_ms"] > 1_600_000_000_000
    assert answer.key == b"cam-1"
    assert answer.partition == 1
    assert list(answer.headers) == [("traceparent", b"00-ab-cd-01")]


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (None, [], Reason.NULL_VALUE),
        (b"", [], Reason.EMPTY_VALUE),
        (b"no image at all", [], Reason.NOT_AN_IMAGE),
        (b"x", [("content-type", b"video/mp4")], Reason.UNKNOWN_CONTENT_TYPE),
        (b"\xff\xfe", [("content-type", b"\xff\xfe")], Reason.UNKNOWN_CONTENT_TYPE),
        (b"[1]", [("content-type", b"application/json")], Reason.BAD_JSON),
        (b'{"image": "%%%"}', [], Reason.BAD_BASE64),
        (bytes(5), [("content-type", b"application/octet-stream")], Reason.WRONG_SIZE),
    ],
)
def test_what_cannot_be_read_is_answered_and_dead_lettered_and_its_neighbours_are_judged(
    world: World, value: bytes | None, headers: Headers, reason: Reason
) -> None:
    world.feed(
        [
            record(world, 0, image(10), b"before"),
            record(world, 0, value, b"bad\xff", headers),
            record(world, 0, image(20), b"after"),
        ]
    )
    with run(world) as worker:
        answers = world.answers(3)
        [letter] = world.dead_letters(1)
        assert worker.stop() is ExitCode.STOPPED
    verdicts = [json.loads(answer.value or b"") for answer in answers]
    assert [verdict["status"] for verdict in verdicts] == ["judged", "unreadable", "judged"]
    jsonschema.validate(verdicts[1], verdict_schema())
    assert verdicts[1]["reason"] == reason
    assert verdicts[1]["score"] is verdicts[1]["anomaly"] is verdicts[1]["p_value"] is None
    assert verdicts[1]["id"] == f"{world.input}-0-1"  # the key is not UTF-8
    assert (letter.key, letter.value, letter.partition) == (b"bad\xff", value, 0)
    assert list(letter.headers)[: len(headers)] == list(headers)
    added = dict(letter.headers)
    assert added["reconstream-reason"] == reason.value.encode()
    assert added["reconstream-source-topic"] == world.input.encode()
    assert added["reconstream-source-partition"] == b"0"
    assert added["reconstream-source-offset"] == b"1"
    assert added["reconstream-model-version"] == b"0123456789ab"
    assert world.committed() == {0: 3}


def test_a_letter_without_key_and_value_can_be_told_from_one_with_an_empty_value(world: World) -> None:
    world.feed([record(world, 0, b"", None)])
    with run(world) as worker:
        [letter] = world.dead_letters(1)
        worker.stop()
    assert header(letter.headers, "reconstream-value") is None


@pytest.mark.parametrize("bad", [[0], [7], [3, 4], list(range(8))])
def test_an_image_that_the_model_refuses_stands_alone(world: World, bad: list[int]) -> None:
    world.feed([record(world, 0, image(50, 13 if i in bad else None)) for i in range(8)])
    with run(world, PixelScorer(capacity=8, poison=13)) as worker:
        answers = world.answers(8)
        world.dead_letters(len(bad))
        assert worker.stop() is ExitCode.STOPPED
    verdicts = [json.loads(answer.value or b"") for answer in answers]
    assert [i for i, verdict in enumerate(verdicts) if verdict["reason"] == Reason.MODEL_REFUSED] == bad
    good = [verdict["score"] for i, verdict in enumerate(verdicts) if i not in bad]
    assert good == pytest.approx([(50 / 255) ** 2] * (8 - len(bad)), rel=1e-5)


def test_a_key_and_headers_that_no_answer_can_carry_stop_nothing(world: World) -> None:
    key, trace = b"k" * 900_000, b"t" * 20_000
    world.feed(
        [
            record(world, 0, image(10), key),
            record(world, 0, b"junk", b"k", [("traceparent", trace)]),
            record(world, 0, image(30), b"small", [("traceparent", b"small")]),
        ]
    )
    with run(world) as worker:
        answers = world.answers(3)
        [letter] = world.dead_letters(1)
        assert worker.stop() is ExitCode.STOPPED
    assert [(answer.key, list(answer.headers)) for answer in answers] == [
        (None, []),
        (None, []),
        (b"small", [("traceparent", b"small")]),
    ]
    assert [json.loads(answer.value or b"")["source"]["offset"] for answer in answers] == [0, 1, 2]
    assert header(letter.headers, "traceparent") == trace


def test_the_map_of_an_anomaly_comes_with_its_verdict(world: World) -> None:
    levels = [10, 200, 250, 20, 150, 30, 40, 210, 220]  # from 128 on an anomaly
    world.feed([record(world, i % 2, image(level), b"cam-%d" % i) for i, level in enumerate(levels)])
    topic = world.maps()
    with run(world, localised=True, map_topic=topic) as worker:
        verdicts = {source_of_verdict(answer): answer for answer in world.answers(len(levels))}
        maps = world.records(topic, 5)
        assert worker.stop() is ExitCode.STOPPED
    anomalies = [position for position, answer in sorted(verdicts.items()) if parsed(answer)["anomaly"]]
    assert anomalies == [(0, 1), (0, 2), (0, 4), (1, 0), (1, 3)]
    assert [position for position, answer in sorted(verdicts.items()) if parsed(answer)["region"]] == anomalies
    # In the order of the offsets within a partition, as read.
    assert [source_of_map(found) for found in maps] == anomalies
    for found in maps:
        verdict = verdicts[source_of_map(found)]
        assert (found.partition, found.key) == (verdict.partition, verdict.key)
        region = parsed(verdict)["region"]
        assert region == {"x": 0, "y": 0, "width": SPEC.width, "height": SPEC.height, "peak": region["peak"]}
        assert header(found.headers, "reconstream-map-peak") == repr(region["peak"]).encode()
        levels_read = decode(found.value, None, SPEC).image
        assert (levels_read == 255).all(), "each image is of one level"
    assert world.committed() == {0: 5, 1: 4}
    assert worker.telemetry.maps == {"published": 5}


def source_of_verdict(answer: SourceRecord) -> tuple[int, int]:
    source = parsed(answer)["source"]
    return source["partition"], source["offset"]


def source_of_map(found: SourceRecord) -> tuple[int, int]:
    return found.partition, int(header(found.headers, "reconstream-source-offset") or b"-1")


def parsed(answer: SourceRecord) -> dict[str, Any]:
    verdict: dict[str, Any] = json.loads(answer.value or b"")
    return verdict


def test_a_score_that_is_not_finite_is_never_published(world: World) -> None:
    world.feed([record(world, 0, image(50, 14 if i == 2 else None)) for i in range(5)])
    with run(world, PixelScorer(capacity=8, nan=14)) as worker:
        answers = world.answers(5)
        [letter] = world.dead_letters(1)
        assert worker.stop() is ExitCode.STOPPED
    verdicts = [json.loads(answer.value or b"") for answer in answers]
    assert [verdict["reason"] for verdict in verdicts] == [None, None, Reason.NON_FINITE_SCORE, None, None]
    assert letter.value == image(50, 14)


def test_a_broken_scorer_blames_no_image_and_commits_nothing(world: World) -> None:
    world.feed(images(world, 12))
    scorer = PixelScorer()
    scorer.broken = True
    with run(world, scorer) as worker, pytest.raises(ScorerBroken):
        worker.join()
    assert world.answers(0) == []
    assert world.dead_letters(0) == []
    assert world.committed() == {}


def test_a_second_worker_carries_on_where_the_first_stopped(world: World) -> None:
    world.feed(images(world, 30))
    with run(world) as first:
        world.answers(30)
        first.stop()
    close(first)
    world.feed(images(world, 30))
    with run(world) as second:
        answers = world.answers(60)
        second.stop()
    found = by_position(answers)
    assert len(found) == 60
    assert all(len(verdicts) == 1 for verdicts in found.values())


def test_a_slow_model_pauses_fetching_within_the_bound(world: World) -> None:
    world.feed(images(world, 300))
    scorer = PixelScorer(capacity=4)
    scorer.gate.clear()
    with run(world, scorer, max_poll_records=8, max_in_flight_records=24) as worker:
        wait_for(lambda: in_flight(worker) >= 17)
        peak = in_flight(worker)
        scorer.gate.set()
        answers = world.answers(300)
        assert worker.stop() is ExitCode.STOPPED
    assert peak <= 24
    assert len(by_position(answers)) == 300


def test_large_records_stay_within_the_bound_in_bytes(world: World) -> None:
    """Far fewer of them than the bound in records, or a poll's, would let in."""
    padding = [("padding", bytes(100_000))]
    world.feed([record._replace(headers=[*record.headers, *padding]) for record in images(world, 60)])
    scorer, most = PixelScorer(capacity=4), 1 << 20
    scorer.gate.clear()
    with run(world, scorer, max_in_flight_bytes=most, max_message_bytes=1 << 17) as worker:
        wait_for(lambda: in_flight(worker) == most // 100_000)
        peak = worker.pipeline._ledger.bytes
        scorer.gate.set()
        answers = world.answers(60)
        assert worker.stop() is ExitCode.STOPPED
    assert peak <= most
    assert len(by_position(answers)) == 60


def test_the_committed_schema_is_the_code_s() -> None:
    committed = json.loads(Path("worker/core/verdict.schema.json").read_text("utf-8"))
    assert committed == verdict_schema()


def in_flight(worker: Running) -> int:
    return worker.pipeline._ledger.records


def close(worker: Running) -> None:
    worker.pipeline._source.close()


def wait_for(condition: Callable[[], bool], timeout: float = 20) -> None:
    import threading

    pause = threading.Event()
    for _ in range(int(timeout / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition did not come true in time")
