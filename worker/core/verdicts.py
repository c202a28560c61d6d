"""A verdict: the one answer that every input record gets.

`anomaly = score > threshold`, both float32 as stored in the bundle: whoever reads the verdict can repeat
the comparison. The p-value is the conformal one (Vovk, Gammerman & Shafer, *Algorithmic Learning in a
Random World*, 2005, eq. 2.20 without smoothing): (1 + #{calibration scores >= score}) / (n + 1).
"""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.core.errors import Reason
from worker.core.records import SourceRecord, header

VERDICT_VERSION: Literal[1] = 1
MAX_ID_BYTES = 256

Status = Literal["judged", "unreadable", "expired"]


class SourcePosition(msgspec.Struct, frozen=True):
    """Where the judged record stands; this, not the id, identifies it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None


class ModelName(msgspec.Struct, frozen=True):
    """The bundle that judged: its name and the first 12 hex digits of its digest."""

    name: str
    version: str


class Region(msgspec.Struct, frozen=True):
    """The most anomalous rectangle in pixels, and the error map's peak in it."""

    x: int
    y: int
    width: int
    height: int
    peak: float


class Verdict(msgspec.Struct, frozen=True):
    """One answer, as it stands on the output topic (JSON, version 1)."""

    version: Literal[1]
    id: str
    stream: str
    status: Status
    reason: str | None
    source: SourcePosition
    model: ModelName
    score: float | None
    error: float | None
    threshold: float
    anomaly: bool | None
    p_value: float | None
    region: Region | None
    scored_at_ms: int


class Judgement(msgspec.Struct, frozen=True):
    """What a batch of scores means; every field has one entry per image, ready for JSON."""

    scores: list[float]
    errors: list[float]
    anomalies: list[bool]
    p_values: list[float]


class Judge:
    """A bundle's threshold and calibration scores, applied to batches.

    Args:
        model: name and version that verdicts carry.
        threshold: float32 as stored in the manifest.
        calibration_scores: float32 (n,), the scores of the held-out normal images, in any order.
    """

    def __init__(self, model: ModelName, threshold: float, calibration_scores: NDArray[np.float32]) -> None:
        self.model = model
        self.threshold = np.float32(threshold)
        self._sorted = np.sort(calibration_scores)

    def judge(self, scores: NDArray[np.float32], errors: NDArray[np.float32]) -> Judgement:
        """Judge finite scores; both arguments have shape (N,)."""
        n = len(self._sorted)
        not_below = n - np.searchsorted(self._sorted, scores, side="left")
        return Judgement(
            scores=scores.tolist(),
            errors=errors.tolist(),
            anomalies=(scores > self.threshold).tolist(),
            p_values=((1 + not_below) / (n + 1)).tolist(),
        )


def record_id(record: SourceRecord, json_id: str | None) -> str:
    """The record's id: header `message-id`, else the JSON's, else the key, else its position.

    A header or key that is empty, longer than 256 bytes or no UTF-8 is passed over, and so is an empty JSON id.
    """
    for candidate in (header(record.headers, "message-id"), json_id, record.key):
        if isinstance(candidate, bytes):
            if 0 < len(candidate) <= MAX_ID_BYTES:
                try:
                    return candidate.decode()
                except UnicodeDecodeError:
                    continue
        elif candidate:
            return candidate
    return f"{record.topic}-{record.partition}-{record.offset}"


def source_position(record: SourceRecord) -> SourcePosition:
    """The position that a verdict answers."""
    timestamp = record.timestamp if record.timestamp is not None else -1
    return SourcePosition(
        record.topic,
        record.partition,
        record.offset,
        timestamp if timestamp >= 0 else None,
    )


def unreadable_verdict(
    record: SourceRecord, *, identity: str, stream: str, reason: Reason, judge: Judge, scored_at_ms: int
) -> Verdict:
    """The answer to a record that has no score."""
    return Verdict(
        version=VERDICT_VERSION,
        id=identity,
        stream=stream,
        status="unreadable",
        reason=reason.value,
        source=source_position(record),
        model=judge.model,
        score=None,
        error=None,
        threshold=float(judge.threshold),
        anomaly=None,
        p_value=None,
        region=None,
        scored_at_ms=scored_at_ms,
    )


def verdict_schema() -> dict[str, object]:
    """The verdict's JSON Schema (draft 2020-12), as committed in verdict.schema.json."""
    schema = msgspec.json.schema(Verdict)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Reconstream verdict, version 1",
        **schema,
    }
