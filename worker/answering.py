"""What the scoring thread makes of a batch: an answer for each of its records. It never touches Kafka.

    decode ──▶ score ──▶ judge ──▶ locate ──▶ verdicts
       │         │                    └─▶ maps: where anomalies are, if that is wanted
       ├─────────┴─▶ rejections: what cannot be read, or the model refuses
       └─▶ expired: what is too old to be worth the model's time

Rules: every record of a batch is answered exactly once, whatever its neighbours do; a batch that the model
refuses is bisected until the culprit stands alone; before any image is blamed, the golden images must score
correctly, or the scorer itself is broken and nothing is answered.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.core.batching import Batch
from worker.core.errors import Reason, Unreadable
from worker.core.images import ImageSpec, decode_into
from worker.core.offsets import Part
from worker.core.progress import Progress
from worker.core.records import MAX_CARRIED_BYTES, OutRecord, SourceRecord, header, headers_bytes
from worker.core.regions import Located, map_record
from worker.core.verdicts import (
    VERDICT_VERSION,
    Judge,
    Judgement,
    Region,
    Verdict,
    record_id,
    source_position,
    unreadable_verdict,
)
from worker.localisation import Localiser
from worker.ports import Clock, Scorer, Telemetry

# The reason in a verdict `expired`. Not one of errors.Reason: nothing is wrong with the record, no letter is written.
TOO_OLD = "too_old"


@dataclass(frozen=True, slots=True)
class Model:
    """What a bundle gives to the scoring thread; replaced as one. `localiser`: None where nothing is localised."""

    scorer: Scorer
    judge: Judge
    spec: ImageSpec
    golden_check: Callable[[], None]
    localiser: Localiser | None = None


class Answers(NamedTuple):
    """A batch, answered.

    Attributes:
        parts: the records, by partition.
        verdicts: one per record, in the order of the parts' records.
        rejections: why, by the index of each record that is to be dead-lettered.
        model_version: of the bundle that judged.
        taken: how many records this batch took from the inbox, those of ended leases included.
        maps: error maps, by the index of each record that has one.
    """

    parts: Sequence[Part]
    verdicts: Sequence[OutRecord]
    rejections: dict[int, Unreadable]
    model_version: str
    taken: int
    maps: Mapping[int, OutRecord]


class Answerer:
    """Turns a batch of records into answers. Not thread-safe.

    Args:
        model: what scores and judges.
        output_topic: where verdicts go.
        stream_of: names the stream (camera, line) of a record.
        carry_headers: names of input headers that the verdict repeats, with the key, up to MAX_CARRIED_BYTES.
        progress: of the thread that calls answer(): each decoded image and each call of the model is some, or a
            batch of large images, or one that the model refuses again and again, would pass for a hung thread.
        max_age_ms: records older than this when their batch is answered are answered `expired`; None = none is.
            Without a timestamp a record never expires, nor does one that stands for records which Kafka could not
            read: those are a loss that a dead letter reports.
    """

    def __init__(
        self,
        model: Model,
        *,
        output_topic: str,
        stream_of: Callable[[SourceRecord], str],
        carry_headers: Collection[str],
        clock: Clock,
        telemetry: Telemetry,
        progress: Progress,
        max_age_ms: int | None = None,
    ) -> None:
        self._output_topic = output_topic
        self._stream_of = stream_of
        self._carry = frozenset(carry_headers)
        self._clock = clock
        self._telemetry = telemetry
        self._progress = progress
        self._max_age_ms = max_age_ms
        self._encode = msgspec.json.Encoder().encode
        self.use(model)

    def use(self, model: Model) -> None:
        """Answer with `model` from the next batch on."""
        self._model = model
        spec = model.spec
        shape = (model.scorer.batch_capacity, spec.height, spec.width, spec.channels)
        self._images = np.zeros(shape, np.uint8)

    def answer(self, batch: Batch) -> Answers:
        """Answer every record of the batch.

        Raises:
            ScorerBroken: the golden images no longer score as they did.
        """
        if not batch.parts:
            return Answers((), (), {}, self._model.judge.model.version, batch.taken, {})
        began = self._clock.monotonic()
        # A record from before this is too old; before 0 there is none.
        not_before = 0 if self._max_age_ms is None else self._clock.now_ms() - self._max_age_ms
        records: list[SourceRecord] = []
        rejections: dict[int, Unreadable] = {}
        expired: set[int] = set()
        json_ids: dict[int, str] = {}
        readable: list[int] = []
        for part in batch.parts:
            for record in part.records:
                index = len(records)
                records.append(record)
                if 0 <= (record.timestamp or -1) < not_before and part.unreadable_until is None:
                    expired.add(index)
                    continue
                try:
                    json_id = self._decode(record, part.unreadable_until, self._images[len(readable)])
                except Unreadable as rejection:
                    rejections[index] = rejection
                    continue
                finally:
                    self._advance()
                readable.append(index)
                if json_id is not None:
                    json_ids[index] = json_id
        decoded = self._clock.monotonic()
        scores, errors, images = self._score(self._images, readable, rejections)
        judged = self._model.judge.judge(scores, errors)
        located = self._locate(images, judged.anomalies)
        scored = self._clock.monotonic()
        verdicts, streams = self._verdicts(records, readable, rejections, expired, json_ids, judged, located)
        self._telemetry.scored(streams, scores, errors, judged.anomalies, images)
        self._telemetry.batch(
            records=len(records),
            wait_s=began - batch.oldest,
            decode_s=decoded - began,
            inference_s=scored - decoded,
        )
        version = self._model.judge.model.version
        maps: dict[int, OutRecord] = {}
        for slot, found in located.items():
            if found.map is not None:
                index = readable[slot]
                maps[index] = map_record(records[index], verdicts[index], found.map, version)
        return Answers(batch.parts, verdicts, rejections, version, batch.taken, maps)

    def _advance(self) -> None:
        self._progress.done(self._clock.monotonic())

    def _golden_check(self) -> None:
        self._advance()
        self._model.golden_check()
        self._advance()

    def _decode(self, record: SourceRecord, unreadable_until: int | None, out: NDArray[np.uint8]) -> str | None:
        if unreadable_until is not None:
            raise Unreadable(
                Reason.CORRUPT_RECORD,
                f"Kafka could not read the records from offset {record.offset} up to {unreadable_until}.",
            )
        headers = record.headers
        content_type = header(headers, "content-type") if headers else None
        json_id, _ = decode_into(
            record.value,
            content_type.decode(errors="replace") if content_type is not None else None,
            self._model.spec,
            out,
        )
        return json_id

    def _score(
        self, images: NDArray[np.uint8], readable: list[int], rejections: dict[int, Unreadable]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """Scores, errors and images of what is readable; what has no finite score moves from there to rejections."""
        count = len(readable)
        if count == 0:
            return np.empty(0, np.float32), np.empty(0, np.float32), images[:0]
        refused: dict[int, Unreadable] = {}
        try:
            scores, errors = self._model.scorer.score(images, count)
        except Exception as error:  # noqa: BLE001 - a model raises whatever its backend raises
            self._golden_check()
            scores, errors = np.empty(count, np.float32), np.empty(count, np.float32)
            scratch = np.zeros_like(images)
            self._bisect(images, range(count), scratch, scores, errors, refused, error)
        self._advance()
        finite = np.isfinite(scores) & np.isfinite(errors)
        suspects = [slot for slot in np.flatnonzero(~finite).tolist() if slot not in refused]
        if suspects:
            self._golden_check()
            for slot in suspects:
                refused[slot] = Unreadable(
                    Reason.NON_FINITE_SCORE,
                    f"expected a finite score, the model gave score {scores[slot]} and error {errors[slot]}.",
                )
        if not refused:
            return scores, errors, images[:count]
        rejections.update({readable[slot]: rejection for slot, rejection in refused.items()})
        kept = [slot for slot in range(count) if slot not in refused]
        readable[:] = [readable[slot] for slot in kept]
        return scores[kept], errors[kept], images[kept]

    def _bisect(
        self,
        images: NDArray[np.uint8],
        slots: range,
        scratch: NDArray[np.uint8],
        scores: NDArray[np.float32],
        errors: NDArray[np.float32],
        refused: dict[int, Unreadable],
        cause: Exception,
    ) -> None:
        """Halve `slots`, which the model refused together, until each culprit stands alone."""
        if len(slots) == 1:
            refused[slots[0]] = Unreadable(
                Reason.MODEL_REFUSED, f"the model refuses this image: {type(cause).__name__}: {cause}"
            )
            scores[slots[0]] = errors[slots[0]] = np.nan
            return
        middle = len(slots) // 2
        for half in (slots[:middle], slots[middle:]):
            self._advance()
            scratch[: len(half)] = images[half.start : half.stop]
            try:
                part = self._model.scorer.score(scratch, len(half))
            except Exception as error:  # noqa: BLE001 - see _score
                self._bisect(images, half, scratch, scores, errors, refused, error)
            else:
                scores[half.start : half.stop], errors[half.start : half.stop] = part

    def _locate(self, images: NDArray[np.uint8], anomalies: list[bool]) -> dict[int, Located]:
        """Where the anomalies among `images` are, by their slots; nothing where nothing is localised."""
        localiser = self._model.localiser
        if localiser is None or not any(anomalies):
            return {}
        slots = list(compress(range(len(anomalies)), anomalies))
        found = localiser.locate(images[slots], self._advance)
        return {slot: located for slot, located in zip(slots, found, strict=True) if located is not None}

    def _verdicts(
        self,
        records: list[SourceRecord],
        readable: list[int],
        rejections: dict[int, Unreadable],
        expired: set[int],
        json_ids: dict[int, str],
        judged: Judgement,
        located: Mapping[int, Located],
    ) -> tuple[list[OutRecord], list[str]]:
        """The verdicts, and the stream of each judged image."""
        judge = self._model.judge
        regions: list[Region | None] = [None] * len(readable)
        for place, found in located.items():
            regions[place] = found.region
        now_ms = self._clock.now_ms()
        threshold = float(judge.threshold)
        slot_of = dict(zip(readable, range(len(readable)), strict=True))
        streams: list[str] = []
        out: list[OutRecord] = []
        for index, record in enumerate(records):
            identity = record_id(record, json_ids.get(index))
            stream = self._stream_of(record)
            slot = slot_of.get(index)
            if index in expired:
                verdict = _expired_verdict(record, identity, stream, judge, now_ms)
                self._telemetry.expired(stream)
            elif slot is None:
                rejection = rejections[index]
                verdict = unreadable_verdict(
                    record,
                    identity=identity,
                    stream=stream,
                    reason=rejection.reason,
                    judge=judge,
                    scored_at_ms=now_ms,
                )
                self._telemetry.unreadable(stream, rejection.reason)
            else:
                streams.append(stream)
                verdict = Verdict(
                    VERDICT_VERSION,
                    identity,
                    stream,
                    "judged",
                    None,
                    source_position(record),
                    judge.model,
                    judged.scores[slot],
                    judged.errors[slot],
                    threshold,
                    judged.anomalies[slot],
                    judged.p_values[slot],
                    regions[slot],
                    now_ms,
                )
            key, headers = record.key, []
            if record.headers:
                headers = [(k, v) for k, v in record.headers if k in self._carry and v is not None]
            if (key or headers) and len(key or b"") + headers_bytes(headers) > MAX_CARRIED_BYTES:
                key, headers = None, []
            out.append(OutRecord(self._output_topic, record.partition, key, self._encode(verdict), headers))
        return out, streams


def _expired_verdict(record: SourceRecord, identity: str, stream: str, judge: Judge, now_ms: int) -> Verdict:
    """The answer to a record that came too late to be judged; it names the model that would have."""
    return Verdict(
        VERDICT_VERSION,
        identity,
        stream,
        "expired",
        TOO_OLD,
        source_position(record),
        judge.model,
        None,
        None,
        float(judge.threshold),
        None,
        None,
        None,
        now_ms,
    )
