import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest

import worker.core
from worker.core.errors import Reason
from worker.core.records import Headers, Record
from worker.core.verdicts import (
    Judge,
    ModelName,
    Region,
    SourcePosition,
    Verdict,
    record_id,
    source_position,
    unreadable_verdict,
    verdict_schema,
)

MODEL = ModelName("line-3", "0123456789ab")
RECORD = Record("images", 2, 7, 1_700_000_000_000)
JUDGED = Verdict(
    version=1,
    id="Prüfling-№7",
    stream="カメラ",
    status="judged",
    reason=None,
    source=SourcePosition("images", 2, 7, 1_700_000_000_000),
    model=MODEL,
    score=0.5,
    error=0.25,
    threshold=0.125,
    anomaly=True,
    p_value=0.1,
    region=None,
    scored_at_ms=1_700_000_000_500,
)


def judge(threshold: float = 0.5) -> Judge:
    return Judge(MODEL, threshold, np.array([3, 1, 2, 2], np.float32))


def committed_schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(Path(worker.core.__path__[0], "verdict.schema.json").read_text("utf-8"))
    return schema


def test_the_committed_schema_is_that_of_the_code() -> None:
    assert committed_schema() == verdict_schema()
    jsonschema.Draft202012Validator.check_schema(committed_schema())


@pytest.mark.parametrize(
    "verdict",
    [
        JUDGED,
        msgspec.structs.replace(JUDGED, region=Region(1, 2, 3, 4, 0.5)),
        unreadable_verdict(
            RECORD, identity="ÿ", stream="none", reason=Reason.WRONG_SIZE, judge=judge(), scored_at_ms=5
        ),
        unreadable_verdict(
            Record("images", 0, 0), identity="i", stream="s", reason=Reason.NULL_VALUE, judge=judge(), scored_at_ms=5
        ),
    ],
    ids=["judged", "with a region", "unreadable", "without a timestamp"],
)
def test_a_verdict_is_as_the_schema_says_and_comes_back(verdict: Verdict) -> None:
    text = msgspec.json.encode(verdict)
    jsonschema.validate(json.loads(text), committed_schema())
    assert msgspec.json.decode(text, type=Verdict) == verdict


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"id": None},
        {"id": 7},
        {"stream": None},
        {"status": "ok"},
        {"reason": 1},
        {"source": {"topic": "images", "partition": 2, "offset": 7}},
        {"source": {"topic": "images", "partition": "2", "offset": 7, "timestamp_ms": None}},
        {"model": {"name": "line-3"}},
        {"score": "0.5"},
        {"error": True},
        {"threshold": None},
        {"anomaly": 1},
        {"p_value": "small"},
        {"region": {"x": 1, "y": 2, "width": 3, "height": 4}},
        {"scored_at_ms": 1.5},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_no_verdict(change: dict[str, Any]) -> None:
    verdict = json.loads(msgspec.json.encode(JUDGED))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(verdict | change, committed_schema())


@pytest.mark.parametrize("field", Verdict.__struct_fields__)
def test_every_field_is_required(field: str) -> None:
    verdict = json.loads(msgspec.json.encode(JUDGED))
    del verdict[field]
    with pytest.raises(jsonschema.ValidationError, match=f"'{field}' is a required property"):
        jsonschema.validate(verdict, committed_schema())


def test_an_unreadable_record_is_answered_without_a_judgement() -> None:
    verdict = unreadable_verdict(
        RECORD, identity="i", stream="s", reason=Reason.TOO_LARGE, judge=judge(0.1), scored_at_ms=5
    )
    assert verdict == Verdict(
        version=1,
        id="i",
        stream="s",
        status="unreadable",
        reason="too_large",
        source=SourcePosition("images", 2, 7, 1_700_000_000_000),
        model=MODEL,
        score=None,
        error=None,
        threshold=float(np.float32(0.1)),
        anomaly=None,
        p_value=None,
        region=None,
        scored_at_ms=5,
    )


def test_a_record_without_a_timestamp_has_none() -> None:
    assert source_position(Record("images", 1, 2, -1)).timestamp_ms is None
    assert source_position(Record("images", 1, 2, 0)).timestamp_ms == 0


def test_a_judgement_by_hand() -> None:
    judgement = judge(2).judge(np.array([0, 2, 2.5, 4], np.float32), np.array([5, 6, 7, 8], np.float32))
    assert judgement.scores == [0, 2, 2.5, 4]
    assert judgement.errors == [5, 6, 7, 8]
    assert judgement.anomalies == [False, False, True, True]
    assert judgement.p_values == [1, 4 / 5, 2 / 5, 1 / 5]


def test_an_empty_batch_has_an_empty_judgement() -> None:
    empty = np.empty(0, np.float32)
    judgement = judge().judge(empty, empty)
    assert judgement.scores == judgement.errors == judgement.anomalies == judgement.p_values == []


LONGEST = "ü" * 128


@pytest.mark.parametrize(
    ("headers", "json_id", "key", "expected"),
    [
        ([("message-id", b"header")], "json", b"key", "header"),
        ([("message-id", b"first"), ("message-id", b"second")], None, None, "first"),
        ([("Message-Id", b"header")], "json", b"key", "json"),
        ([("message-id", None)], "json", b"key", "json"),
        ([("message-id", b"")], "json", b"key", "json"),
        ([("message-id", b"\xff")], "json", b"key", "json"),
        ([("message-id", b"x" * 257)], "json", b"key", "json"),
        ([("message-id", LONGEST.encode())], "json", b"key", LONGEST),
        ([], "json", b"key", "json"),
        ([], "", b"key", "key"),
        ([], None, "Schlüssel".encode(), "Schlüssel"),
        ([], None, LONGEST.encode(), LONGEST),
        ([], None, LONGEST.encode() + b"x", "images-2-7"),
        ([], None, b"\xff\xfe", "images-2-7"),
        ([], None, b"", "images-2-7"),
        ([], None, None, "images-2-7"),
    ],
)
def test_where_an_id_comes_from(headers: Headers, json_id: str | None, key: bytes | None, expected: str) -> None:
    assert record_id(RECORD._replace(headers=headers, key=key), json_id) == expected
