"""The scoring thread: one model per batch, however models are exchanged, and records that came too late."""

import gc
import json
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import worker.answering
from tests.support.memory import PixelScorer, SilentTelemetry
from worker.adapters.system_clock import SystemClock
from worker.answering import Answerer, Answers, Model
from worker.core.batching import Batch, Batcher, Chunk
from worker.core.errors import Reason
from worker.core.images import ImageSpec, decode_into
from worker.core.offsets import Lease, Part
from worker.core.progress import Progress
from worker.core.records import Headers, Record, TopicPartition
from worker.core.verdicts import Judge, ModelName, verdict_schema
from worker.scoring import ScoringThread

SMALL, LARGE = ImageSpec(2, 3, 1), ImageSpec(3, 4, 1)
CAPACITY = 8
NOW_MS = 1_700_000_000_000
PARTITION = TopicPartition("images", 0)
CALIBRATION = np.linspace(0.01, 0.3, 30, dtype=np.float32)


class FixedClock:
    def monotonic(self) -> float:
        return 5.0

    def now_ms(self) -> int:
        return NOW_MS


class ScaledScorer(PixelScorer):
    """Scores so that one can tell which model it was; `entered` is set while score() is at work."""

    def __init__(self, scale: float) -> None:
        super().__init__(CAPACITY, poison=255)
        self.scale = np.float32(scale)
        self.entered = threading.Event()

    def score(self, images: NDArray[np.uint8], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.entered.set()
        scores, errors = super().score(images, count)
        return scores * self.scale, errors


def threshold_of(scale: float) -> float:
    return 0.05 * scale


def model(scale: int, spec: ImageSpec = SMALL) -> Model:
    """The model of version `scale`: its score is the mean square times `scale`, its threshold follows."""
    judge = Judge(ModelName("scaled", f"{scale:012d}"), threshold_of(scale), CALIBRATION)
    return Model(ScaledScorer(scale), judge, spec, lambda: None)


def answerer(first: Model, telemetry: SilentTelemetry | None = None, **more: Any) -> Answerer:
    return Answerer(
        first,
        output_topic="verdicts",
        stream_of=lambda record: f"partition-{record.partition}",
        carry_headers=(),
        clock=more.pop("clock", FixedClock()),
        telemetry=telemetry or SilentTelemetry(),
        progress=more.pop("progress", None) or Progress("scoring", 0),
        **more,
    )


def records(levels: Sequence[int], spec: ImageSpec = SMALL, first: int = 0) -> list[Record]:
    """One record per level, all pixels of which have it."""
    size = spec.height * spec.width
    return [
        Record("images", 0, first + index, NOW_MS, b"k", bytes([level]) * size) for index, level in enumerate(levels)
    ]


def chunk(lease: Lease, of: Sequence[Record]) -> Chunk:
    return Chunk(lease, of, [len(record.value or b"") for record in of], SystemClock().monotonic())


def verdicts(answers: Answers) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"") for record in answers.verdicts]


def check_one_model(answers: Answers) -> int:
    """All of a batch was answered by one model; which."""
    [version] = {verdict["model"]["version"] for verdict in verdicts(answers)}
    assert answers.model_version == version
    scale = int(version)
    originals = [record for part in answers.parts for record in part.records]
    for index, (record, verdict) in enumerate(zip(originals, verdicts(answers), strict=True)):
        assert np.float32(verdict["threshold"]) == np.float32(threshold_of(scale))
        level = (record.value or b"")[0]
        if level == 255:
            assert verdict["status"] == "unreadable"
            assert answers.rejections[index].reason is Reason.MODEL_REFUSED
            continue
        assert verdict["score"] == pytest.approx(scale * (level / 255) ** 2, rel=1e-5)
        assert verdict["anomaly"] == (np.float32(verdict["score"]) > np.float32(verdict["threshold"]))
    return scale


@contextmanager
def scoring(first: Model) -> Iterator[ScoringThread]:
    clock = SystemClock()
    thread = ScoringThread(
        answerer(first, clock=clock), Batcher(CAPACITY, 0.001), clock, Progress("scoring", clock.monotonic())
    )
    del first
    thread.start()
    try:
        yield thread
    finally:
        thread.stop(10)


def next_answers(thread: ScoringThread) -> Answers:
    answers = thread.get(20)
    assert answers is not None, "no answers within 20 s"
    return answers


def test_a_batch_in_work_is_finished_by_the_model_that_began_it() -> None:
    first = model(1)
    scorer = first.scorer
    assert isinstance(scorer, ScaledScorer)
    scorer.gate.clear()
    swapped_by: list[str] = []
    with scoring(first) as thread:
        lease = Lease(PARTITION)
        thread.put(chunk(lease, records(range(CAPACITY))))
        assert scorer.entered.wait(20)
        thread.replace(model(2, LARGE), lambda: swapped_by.append(threading.current_thread().name))
        thread.put(chunk(lease, records(range(CAPACITY), LARGE, first=CAPACITY)))
        assert swapped_by == []
        scorer.gate.set()
        assert [check_one_model(next_answers(thread)) for _ in range(2)] == [1, 2]
    assert swapped_by == ["scoring"]


def test_models_exchanged_under_load_never_share_a_batch() -> None:
    total, every = 60 * CAPACITY, 4 * CAPACITY
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, total).tolist()  # 255 is what the model refuses
    levels[3] = levels[200] = 255
    found: list[int] = []
    offsets: list[int] = []

    def take(answers: Answers) -> None:
        found.append(check_one_model(answers))
        offsets.extend(record.offset for part in answers.parts for record in part.records)

    with scoring(model(1)) as thread:
        lease = Lease(PARTITION)
        for start in range(0, total, CAPACITY):
            if start and start % every == 0:
                thread.replace(model(1 + start // every), lambda: None)
            thread.put(chunk(lease, records(levels[start : start + CAPACITY], first=start)))
            if start >= 3 * CAPACITY:  # so that some are always under way
                take(next_answers(thread))
        while len(offsets) < total:
            take(next_answers(thread))
    assert offsets == list(range(total))
    assert found == sorted(found)
    assert set(found) == set(range(1, total // every + 1))


def test_an_idle_thread_takes_a_new_model_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.scoring.IDLE_S", 3600.0)  # who waits for it to pass fails
    swapped = threading.Event()
    with scoring(model(1)) as thread:
        thread.replace(model(2), swapped.set)
        assert swapped.wait(20), "it waited for work"


def test_the_model_before_is_released() -> None:
    first = model(1)
    gone = weakref.ref(first.scorer)
    with scoring(first) as thread:
        thread.put(chunk(Lease(PARTITION), records(range(CAPACITY))))
        next_answers(thread)
        del first
        assert gone() is not None
        swapped = threading.Event()
        thread.replace(model(2), swapped.set)
        assert swapped.wait(20)
        gc.collect()
        assert gone() is None


def batch(*parts: tuple[Sequence[Record], int | None]) -> Batch:
    made = [
        Part(Lease(PARTITION), of, 0, of[-1].offset + 1 if until is None else until, until)
        for of, until in parts
        if of
    ]
    return Batch(made, sum(len(part.records) for part in made), 5.0)


AGES = st.one_of(st.none(), st.integers(-5_000, 5_000))
VALUES = st.sampled_from([bytes([10]) * 6, bytes([200]) * 6, b"junk", b"", None])
MAX_AGE_MS = 1000


@given(st.lists(st.tuples(AGES, VALUES), min_size=1, max_size=CAPACITY))
def test_exactly_the_old_ones_expire_and_the_others_are_answered_as_ever(
    drawn: list[tuple[int | None, bytes | None]],
) -> None:
    of = [
        Record("images", 0, offset, -1 if age is None else NOW_MS - age, b"k", value)
        for offset, (age, value) in enumerate(drawn)
    ]
    old = [age is not None and age > MAX_AGE_MS for age, _ in drawn]
    telemetry = SilentTelemetry()
    judging = model(1)
    answers = answerer(judging, telemetry, max_age_ms=MAX_AGE_MS).answer(batch((of, None)))
    without_limit = verdicts(answerer(model(1)).answer(batch((of, None))))
    assert len(answers.verdicts) == len(of)
    for index, (verdict, same) in enumerate(zip(verdicts(answers), without_limit, strict=True)):
        if not old[index]:
            assert verdict == same
            continue
        jsonschema.validate(verdict, verdict_schema())
        assert (verdict["status"], verdict["reason"]) == ("expired", "too_old")
        assert {verdict[name] for name in ("score", "error", "anomaly", "p_value", "region")} == {None}
        assert {name: verdict[name] for name in ("id", "stream", "source", "model", "threshold", "scored_at_ms")} == {
            name: same[name] for name in ("id", "stream", "source", "model", "threshold", "scored_at_ms")
        }
    assert not any(old[index] for index in answers.rejections), "an expired record got a dead letter"
    assert telemetry.expired_streams == ["partition-0"] * sum(old)
    scorer = judging.scorer
    assert isinstance(scorer, PixelScorer)
    judged = sum(verdict["status"] == "judged" for verdict in verdicts(answers))
    assert sum(scorer.batches) == judged, "the model saw an expired image"


def test_nothing_expires_unless_it_is_asked_for() -> None:
    of = [record._replace(timestamp=0) for record in records([10, 20])]
    assert [verdict["status"] for verdict in verdicts(answerer(model(1)).answer(batch((of, None))))] == ["judged"] * 2


def test_a_range_that_kafka_cannot_read_is_lettered_however_old_it_is() -> None:
    headers: Headers = ()
    corrupt = [Record("images", 0, 5, NOW_MS - 10_000, None, None, headers)]
    fresh, old = records([10]), [record._replace(timestamp=NOW_MS - 10_000) for record in records([20], first=9)]
    answers = answerer(model(1), max_age_ms=MAX_AGE_MS).answer(batch((fresh, None), (corrupt, 9), (old, None)))
    assert [verdict["status"] for verdict in verdicts(answers)] == ["judged", "unreadable", "expired"]
    assert {index: rejection.reason for index, rejection in answers.rejections.items()} == {1: Reason.CORRUPT_RECORD}


def test_telemetry_sees_the_judged_images_alone_and_each_with_its_error() -> None:
    telemetry = SilentTelemetry()
    of = [
        *records([10, 255, 30]),  # the model refuses 255
        Record("images", 0, 3, NOW_MS, b"k", b"too short"),
        Record("images", 0, 4, NOW_MS - 10_000, b"k", bytes([40]) * 6),
        *records([50], first=5),
    ]
    answers = answerer(model(1), telemetry, max_age_ms=MAX_AGE_MS).answer(batch((of, None)))
    statuses = [verdict["status"] for verdict in verdicts(answers)]
    assert statuses == ["judged", "unreadable", "judged", "unreadable", "expired", "judged"]
    [(streams, errors, images)] = telemetry.judged
    assert streams == ["partition-0"] * 3
    assert images.shape == (3, 2, 3, 1)
    assert images[:, 0, 0, 0].tolist() == [10, 30, 50]
    assert errors.tolist() == pytest.approx([(level / 255) ** 2 for level in (10, 30, 50)])


def test_telemetry_sees_no_image_where_none_was_judged() -> None:
    telemetry = SilentTelemetry()
    answerer(model(1), telemetry).answer(batch((records([255, 255]), None)))
    [(streams, errors, images)] = telemetry.judged
    assert (streams, len(errors), len(images)) == ([], 0, 0)


def test_every_image_and_every_call_of_the_model_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is slow to decode, and refused again and again, must not pass for a hung thread."""
    now, progress, ages = [0.0], Progress("scoring", 0), []

    class Clock(FixedClock):
        def monotonic(self) -> float:
            return now[0]

    def takes_long() -> None:
        ages.append(progress.age(now[0]))
        now[0] += 100

    class Slow(ScaledScorer):
        def score(self, images: NDArray[np.uint8], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            takes_long()
            return super().score(images, count)

    decode = decode_into

    def slow_decode(*arguments: Any) -> tuple[str | None, int | None]:
        takes_long()
        return decode(*arguments)

    monkeypatch.setattr(worker.answering, "decode_into", slow_decode)
    judge = Judge(ModelName("scaled", "0" * 12), 1.0, CALIBRATION)
    wanted = records([10, 255, 30, 40, 255, 60, 70, 80])
    answers = answerer(Model(Slow(1), judge, SMALL, takes_long), clock=Clock(), progress=progress).answer(
        Batch([Part(Lease(PARTITION), wanted, 0, len(wanted), None)], len(wanted), 0.0)
    )
    assert set(answers.rejections) == {1, 4}
    assert len(ages) > len(wanted) + 5, "it was bisected"
    assert set(ages) == {0.0}
    assert progress.age(now[0]) == 0
