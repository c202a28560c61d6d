"""What a message costs, in figures that do not depend on the machine's mood: calls, memory, copies.

Both threads' programs run here, one after the other on one thread, with ports that do nothing and Prometheus's real
metrics, on full batches of raw images. What the model and the Kafka client cost is not among it.

A figure in LIMITS is a little above what was measured with Python 3.11 (3.12 and later need no more calls). A test
that fails says what was measured: mend it, or, where the cost is worth it, write half a call or block more than that
into LIMITS, with the reason in the commit. The last tests fail when a limit is so far above that one more call, block
or copy a message would pass: lower it then.
"""

import gc
import sys
import tracemalloc
from collections.abc import Callable, Collection, Sequence
from types import FrameType
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from tests.support.pipelines import limits
from tests.support.telemetry import Desk, FixedClock
from worker.answering import Answerer, Answers, Model
from worker.companions import Companions
from worker.core.batching import Batch, Batcher, Chunk
from worker.core.images import ImageSpec
from worker.core.offsets import Lease, Part
from worker.core.progress import Progress
from worker.core.records import OutRecord, Positions, Record, SourceRecord, TopicPartition
from worker.core.verdicts import Judge, ModelName
from worker.delivery import AtLeastOnce
from worker.pipeline import Pipeline
from worker.ports import Polled
from worker.scoring import ScoringThread


class Cost(NamedTuple):
    """Of one message.

    Attributes:
        python_calls: Python functions entered, generators resumed included.
        c_calls: built-in functions called.
        blocks: pieces of memory that live when its answer is handed over, and did not when it was polled.
        peak_bytes: the same as bytes, at the highest point between.
        kept_blocks: pieces of memory that are still there when it is committed.
    """

    python_calls: float
    c_calls: float
    blocks: float
    peak_bytes: float
    kept_blocks: float


# Measured: 22.97, 34.14, 5.70, 2566 (of which brightness and sharpness need two images, 784 bytes each), 0.011.
LIMITS = Cost(python_calls=23.5, c_calls=34.6, blocks=6.2, peak_bytes=2800, kept_blocks=0.02)
# What a batch of large raw images needs beside its own buffer, in images; measured: 0.385. A single image's copy,
# however short-lived, is 1.
COPIES_LIMIT = 0.5

BATCH = 256
PARTITIONS = 4
POLLS = 12
SPEC = ImageSpec(28, 28, 1)


class NullScorer:
    """Fulfils worker.ports.Scorer at no cost."""

    def __init__(self, capacity: int) -> None:
        self.batch_capacity = capacity
        self._scores = np.linspace(0, 0.03, capacity, dtype=np.float32)

    def score(self, images: NDArray[np.uint8], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._scores[:count], self._scores[:count]


class Settled:
    def settled(self) -> bool:
        return True


class Waiting:
    """Fulfils worker.ports.Source: full batches that wait, then the end. `polled` sees each poll begin."""

    def __init__(self, polls: int, polled: Callable[[], None]) -> None:
        self._waiting = [_records(number) for number in range(polls)]
        self._next = 0
        self._polled = polled
        self.ended: Callable[[], None] = lambda: None
        self.committed: dict[TopicPartition, int] = {}

    def poll(self, timeout_s: float, max_records: int) -> Polled:
        self._polled()
        if self._next == len(self._waiting):
            self.ended()
            return Polled()
        self._next += 1
        return Polled(self._waiting[self._next - 1])

    def assignment(self) -> Collection[TopicPartition]:
        return ()

    def pause(self, paused: bool) -> None: ...

    def commit(self, positions: Positions) -> bool:
        self.committed.update(positions)
        return True

    def rewind(self) -> bool:
        return True

    def missing(self) -> Sequence[str]:
        return ()

    def lag(self) -> dict[TopicPartition, int]:
        return {}

    def close(self) -> None: ...


class Taking:
    """Fulfils worker.ports.Publisher: takes and acknowledges everything. `sent` sees each batch handed over."""

    def __init__(self, sent: Callable[[Sequence[OutRecord]], None]) -> None:
        self._sent = sent
        self._ticket = Settled()

    def accepts(self, record: OutRecord) -> bool:
        return True

    def send(self, records: Sequence[OutRecord]) -> Settled:
        self._sent(records)
        return self._ticket

    def rebuild(self) -> bool:
        return True

    def close(self) -> None: ...


class Inline:
    """In place of worker.scoring.ScoringThread: the same work, when its answers are asked for."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._batcher = Batcher(BATCH, 1.0)

    def start(self) -> None: ...

    def put(self, chunk: Chunk) -> None:
        self._batcher.add(chunk)

    def get(self, timeout_s: float) -> Answers | None:
        batch = self._batcher.take(FixedClock().monotonic())
        return None if batch is None else self._answerer.answer(batch)


def _records(number: int) -> dict[TopicPartition, Sequence[SourceRecord]]:
    each = BATCH // PARTITIONS
    rng = np.random.default_rng(number)
    headers = (("content-type", b"application/octet-stream"), ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c"))
    return {
        TopicPartition("images", partition): [
            Record(
                "images",
                partition,
                number * each + index,
                1_700_000_000_000,
                b"line-%d" % partition,
                rng.bytes(SPEC.height * SPEC.width),
                headers,
            )
            for index in range(each)
        ]
        for partition in range(PARTITIONS)
    }


def _answerer(
    spec: ImageSpec, capacity: int, stream_of: Callable[[SourceRecord], str], desk: Desk | None = None
) -> Answerer:
    judge = Judge(ModelName("mnist", "aaa"), 0.0123, np.linspace(0, 0.03, 500, dtype=np.float32))
    return Answerer(
        Model(NullScorer(capacity), judge, spec, lambda: None),
        output_topic="verdicts",
        stream_of=stream_of,
        carry_headers=("traceparent",),
        clock=FixedClock(),
        telemetry=(desk or Desk()).telemetry,
        progress=Progress("scoring", 0),
    )


def stream_of_key(record: SourceRecord) -> str:
    return (record.key or b"").decode()


def run(
    polls: int,
    *,
    polled: Callable[[], None] = lambda: None,
    sent: Callable[[Sequence[OutRecord]], None] = lambda _: None,
    stream_of: Callable[[SourceRecord], str] = stream_of_key,
    around: Callable[[Callable[[], object]], object] = lambda work: work(),
) -> None:
    """Let the pipeline answer and commit so many batches; `around` runs it."""
    desk = Desk()
    source = Waiting(polls, polled)
    publisher = Taking(sent)
    pipeline = Pipeline(
        source=source,
        publisher=publisher,
        guarantee=AtLeastOnce(source),
        scoring=cast("ScoringThread", Inline(_answerer(SPEC, BATCH, stream_of, desk))),
        companions=Companions(
            "letters",
            worker_version="test",
            accepts=publisher.accepts,
            clock=FixedClock(),
            telemetry=desk.telemetry,
        ),
        clock=FixedClock(),
        telemetry=desk.telemetry,
        limits=limits(
            max_poll_records=BATCH, max_in_flight_records=4 * BATCH, max_in_flight_bytes=1 << 24, commit_interval_s=0
        ),
        progress=Progress("io", 0),
    )
    source.ended = pipeline.request_stop
    around(pipeline.run)
    assert sum(source.committed.values()) == polls * BATCH


def calls(stream_of: Callable[[SourceRecord], str] = stream_of_key) -> tuple[float, float]:
    """Python functions entered and built-in ones called, a message."""

    run(2, stream_of=stream_of)  # what is made or looked up once

    def counted(polls: int) -> tuple[int, int]:
        counts = {"call": 0, "c_call": 0}

        def profile(_frame: FrameType, event: str, _argument: Any) -> None:
            if event in counts:
                counts[event] += 1

        def around(work: Callable[[], object]) -> None:
            before = sys.getprofile()
            sys.setprofile(profile)
            try:
                work()
            finally:
                sys.setprofile(before)

        run(polls, stream_of=stream_of, around=around)
        return counts["call"], counts["c_call"]

    # The difference: what is done once is none of a message's cost.
    few, many = counted(2), counted(POLLS)
    messages = (POLLS - 2) * BATCH
    return (many[0] - few[0]) / messages, (many[1] - few[1]) / messages


def memory(stream_of: Callable[[SourceRecord], str] = stream_of_key) -> tuple[float, float]:
    """Pieces that live when the answers are handed over, and pieces that stay after the commit, a message."""
    at_poll: list[int] = []
    at_send: list[int] = []

    def polled() -> None:
        gc.collect()
        at_poll.append(sys.getallocatedblocks())

    def sent(_: Sequence[OutRecord]) -> None:
        at_send.append(sys.getallocatedblocks())

    gc.disable()
    try:
        run(POLLS, polled=polled, sent=sent, stream_of=stream_of)
    finally:
        gc.enable()
    held = [sent - polled for sent, polled in zip(at_send, at_poll, strict=False)]
    # The first ones also fill what is made once.
    return float(np.median(held[2:])) / BATCH, (at_poll[-1] - at_poll[2]) / ((POLLS - 2) * BATCH)


def peak_bytes(stream_of: Callable[[SourceRecord], str] = stream_of_key) -> float:
    """The highest use of memory between poll and handing over, a message."""
    peaks: list[int] = []
    base = [0]

    def polled() -> None:
        gc.collect()
        tracemalloc.reset_peak()
        base[0] = tracemalloc.get_traced_memory()[0]

    def sent(_: Sequence[OutRecord]) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1] - base[0])

    tracemalloc.start()
    try:
        run(POLLS, polled=polled, sent=sent, stream_of=stream_of)
    finally:
        tracemalloc.stop()
    return float(np.median(peaks[2:])) / BATCH


def copies(stream_of: Callable[[SourceRecord], str] = stream_of_key) -> float:
    """The highest use of memory while a batch of large raw images is answered, as a share of one image."""
    spec, count = ImageSpec(512, 512, 3), 8
    size = spec.height * spec.width * spec.channels
    answerer = _answerer(spec, count, stream_of)
    headers = (("content-type", b"application/octet-stream"),)
    records = [Record("images", 0, offset, -1, b"k", bytes([offset]) * size, headers) for offset in range(count)]
    batch = Batch([Part(Lease(TopicPartition("images", 0)), records, 0, count, None)], count, 0.0)
    answerer.answer(batch)
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        answerer.answer(batch)
        return (tracemalloc.get_traced_memory()[1] - base) / size
    finally:
        tracemalloc.stop()


def test_calls_a_message() -> None:
    python_calls, c_calls = calls()
    assert python_calls <= LIMITS.python_calls
    assert c_calls <= LIMITS.c_calls


def test_memory_a_message() -> None:
    blocks, kept_blocks = memory()
    assert blocks <= LIMITS.blocks
    assert kept_blocks <= LIMITS.kept_blocks
    assert peak_bytes() <= LIMITS.peak_bytes


def test_no_raw_image_is_copied_but_into_its_batch() -> None:
    assert copies() <= COPIES_LIMIT


def test_one_more_call_a_message_is_seen() -> None:
    def one_more(record: SourceRecord) -> str:
        return stream_of_key(record)

    assert calls(one_more)[0] > LIMITS.python_calls
    assert calls(lambda record: stream_of_key(record)[: len("line-0")])[1] > LIMITS.c_calls


def test_one_more_piece_of_memory_a_message_is_seen() -> None:
    pieces: list[object] = []

    def one_more(record: SourceRecord) -> str:
        pieces.append(object())
        return stream_of_key(record)

    blocks, kept_blocks = memory(one_more)
    assert blocks > LIMITS.blocks
    assert kept_blocks > LIMITS.kept_blocks


def test_one_more_copy_of_an_image_is_seen() -> None:
    pieces: list[object] = []

    def kept(record: SourceRecord) -> str:
        pieces.append(bytearray(record.value or b""))
        return stream_of_key(record)

    def dropped(record: SourceRecord) -> str:
        return stream_of_key(record)[: len(bytearray(record.value or b""))]

    assert peak_bytes(kept) > LIMITS.peak_bytes
    assert copies(dropped) > COPIES_LIMIT
