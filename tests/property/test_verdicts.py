import json
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

import worker.core
from worker.core.errors import Reason
from worker.core.records import Record
from worker.core.verdicts import Judge, ModelName, Region, SourcePosition, Verdict, record_id, unreadable_verdict

SCHEMA = jsonschema.Draft202012Validator(
    json.loads(Path(worker.core.__path__[0], "verdict.schema.json").read_text("utf-8"))
)
MODEL = ModelName("line-3", "0123456789ab")

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Few values, so that scores meet calibration scores.
scores = float32s | st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0])
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, 2**63 - 1)
models = st.builds(ModelName, text, text)
judged = st.builds(
    Verdict,
    version=st.just(1),
    id=text,
    stream=text,
    status=st.just("judged"),
    reason=st.none(),
    source=st.builds(SourcePosition, text, st.integers(0, 2**31 - 1), numbers, st.none() | numbers),
    model=models,
    score=float32s,
    error=float32s,
    threshold=float32s,
    anomaly=st.booleans(),
    p_value=st.floats(0, 1, exclude_min=True),
    region=st.none() | st.builds(Region, numbers, numbers, numbers, numbers, float32s),
    scored_at_ms=numbers,
)
records = st.builds(
    Record,
    text,
    st.integers(0, 2**31 - 1),
    numbers,
    st.integers(-1, 2**63 - 1),
    st.none() | st.binary(max_size=300),
    st.none() | st.binary(max_size=5),
    st.lists(st.tuples(st.sampled_from(["message-id", "other"]), st.none() | st.binary(max_size=300)), max_size=3),
)


def check(verdict: Verdict) -> None:
    encoded = msgspec.json.encode(verdict)
    assert b"\n" not in encoded
    assert msgspec.json.decode(encoded, type=Verdict) == verdict
    SCHEMA.validate(json.loads(encoded))
    # A reader without msgspec sees the same numbers.
    plain = json.loads(encoded)
    assert (plain["score"], plain["threshold"], plain["id"]) == (verdict.score, verdict.threshold, verdict.id)


@given(judged)
def test_a_judged_verdict_is_as_the_schema_says_and_comes_back(verdict: Verdict) -> None:
    check(verdict)


@given(record=records, identity=text, stream=text, reason=st.sampled_from(Reason), now=numbers, threshold=float32s)
def test_an_unreadable_verdict_is_as_the_schema_says_and_comes_back(
    record: Record, identity: str, stream: str, reason: Reason, now: int, threshold: float
) -> None:
    judge = Judge(MODEL, threshold, np.ones(1, np.float32))
    verdict = unreadable_verdict(
        record, identity=identity, stream=stream, reason=reason, judge=judge, scored_at_ms=now
    )
    check(verdict)
    assert verdict.anomaly is verdict.score is verdict.p_value is None


@given(batch=st.lists(scores, max_size=20), calibration=st.lists(scores, min_size=1, max_size=20))
@example([0.5], [0.5])
@example([-0.0], [0.0])
def test_the_p_value_is_the_share_of_scores_at_least_as_high(batch: list[float], calibration: list[float]) -> None:
    judge = Judge(MODEL, 0.5, np.array(calibration, np.float32))
    found = judge.judge(np.array(batch, np.float32), np.zeros(len(batch), np.float32)).p_values
    n = len(calibration)
    assert found == [(1 + sum(other >= score for other in calibration)) / (n + 1) for score in batch]


@given(threshold=float32s, rest=st.lists(scores, max_size=5))
@example(0.0, [])
def test_an_anomaly_is_a_score_above_the_threshold_and_equality_is_none(threshold: float, rest: list[float]) -> None:
    value = np.float32(threshold)
    with np.errstate(over="ignore"):  # beyond the largest float32 there is infinity, which is no score
        around = np.array([np.nextafter(value, np.float32(side)) for side in (-np.inf, np.inf)], np.float32)
    batch = np.concatenate([[value], around, rest]).astype(np.float32)
    judgement = Judge(MODEL, threshold, np.ones(1, np.float32)).judge(batch, batch)
    assert judgement.anomalies[:3] == [False, False, True]
    # Whoever reads score and threshold as doubles repeats the comparison.
    assert judgement.anomalies == [score > float(value) for score in judgement.scores]


@given(st.floats(-1e30, 1e30))
def test_a_threshold_is_compared_as_float32(threshold: float) -> None:
    judge = Judge(MODEL, threshold, np.ones(1, np.float32))
    stored = np.array([threshold], np.float32)
    assert judge.judge(stored, stored).anomalies == [False]


@given(record=records, json_id=st.none() | text)
def test_an_id_is_never_empty_and_never_long(record: Record, json_id: str | None) -> None:
    found = record_id(record, json_id)
    assert found
    assert len(found.encode()) <= 256
    candidates = [value for name, value in record.headers if name == "message-id"][:1]
    position = f"{record.topic}-{record.partition}-{record.offset}"
    assert found in {json_id, position} or found.encode() in {*candidates, record.key}
