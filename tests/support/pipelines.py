"""Builds a pipeline on any ports, and runs it on a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from tests.support.memory import PixelScorer, SilentTelemetry
from worker.adapters.system_clock import SystemClock
from worker.answering import Answerer, Model
from worker.companions import Companions
from worker.core.batching import Batcher
from worker.core.errors import ExitCode, ScorerBroken
from worker.core.images import ImageSpec
from worker.core.progress import Progress
from worker.core.records import SourceRecord
from worker.core.verdicts import Judge, ModelName
from worker.delivery import AtLeastOnce, ExactlyOnce
from worker.localisation import Localiser
from worker.pipeline import Limits, Pipeline
from worker.ports import Clock, Publisher, Source, Transactions
from worker.scoring import ScoringThread

SPEC = ImageSpec(2, 3, 1)
THRESHOLD = 0.25
CALIBRATION = np.linspace(0.01, 0.3, 30, dtype=np.float32)
MODEL = ModelName("pixels", "0123456789ab")


@dataclass
class Running:
    """A pipeline on a thread of its own."""

    pipeline: Pipeline
    scorer: PixelScorer
    telemetry: SilentTelemetry
    thread: threading.Thread
    outcome: list[ExitCode | BaseException] = field(default_factory=list)

    def stop(self, timeout: float = 20) -> ExitCode:
        self.pipeline.request_stop()
        return self.join(timeout)

    def join(self, timeout: float = 20) -> ExitCode:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the pipeline did not stop"
        outcome = self.outcome[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def limits(**changes: Any) -> Limits:
    values: dict[str, Any] = {
        "max_poll_records": 16,
        "max_in_flight_records": 64,
        "max_in_flight_bytes": 1 << 20,
        "max_message_bytes": 1 << 16,
        "commit_interval_s": 0.05,
        "drain_timeout_s": 10,
        "refusal_timeout_s": 10,
    }
    return Limits(**{**values, **changes})


@contextmanager
def running(
    source: Source,
    publisher: Publisher,
    *,
    output_topic: str,
    dead_letter_topic: str,
    scorer: PixelScorer | None = None,
    exactly_once: bool = False,
    max_dead_letter_ratio: float | None = None,
    dead_letter_window: int = 1000,
    localised: bool = False,
    map_topic: str | None = None,
    map_bytes: int = 0,
    clock: Clock | None = None,
    **limit_changes: Any,
) -> Iterator[Running]:
    """Run a pipeline with a PixelScorer until the block ends. `exactly_once` needs a publisher of transactions.

    Where anomalies are is found with `localised`, and published as maps with a `map_topic`.
    """
    guarantee = ExactlyOnce(cast("Transactions", publisher)) if exactly_once else AtLeastOnce(source)
    scorer = scorer if scorer is not None else PixelScorer()
    clock, telemetry = clock or SystemClock(), SilentTelemetry()

    def golden_check() -> None:
        if scorer.broken:
            raise ScorerBroken("the golden images cannot be scored")

    def stream_of(record: SourceRecord) -> str:
        return f"partition-{record.partition}"

    localiser = Localiser(scorer.reconstruct, map_topic=map_topic, telemetry=telemetry) if localised else None
    model = Model(scorer, Judge(MODEL, THRESHOLD, CALIBRATION), SPEC, golden_check, localiser)
    now = clock.monotonic()
    progress = Progress("scoring", now)
    answerer = Answerer(
        model,
        output_topic=output_topic,
        stream_of=stream_of,
        carry_headers=("traceparent",),
        clock=clock,
        telemetry=telemetry,
        progress=progress,
    )
    scoring = ScoringThread(answerer, Batcher(scorer.batch_capacity, 0.005), clock, progress)
    pipeline = Pipeline(
        source=source,
        publisher=publisher,
        guarantee=guarantee,
        scoring=scoring,
        companions=Companions(
            dead_letter_topic,
            map_topic=map_topic,
            map_bytes=map_bytes,
            worker_version="test",
            accepts=publisher.accepts,
            clock=clock,
            telemetry=telemetry,
            max_ratio=max_dead_letter_ratio,
            window=dead_letter_window,
        ),
        clock=clock,
        telemetry=telemetry,
        limits=limits(**limit_changes),
        progress=Progress("io", now),
    )
    outcome: list[ExitCode | BaseException] = []

    def run() -> None:
        try:
            outcome.append(pipeline.run())
        except BaseException as error:  # noqa: BLE001 - handed to the test
            outcome.append(error)

    thread = threading.Thread(target=run, name="pipeline", daemon=True)
    run_ = Running(pipeline, scorer, telemetry, thread, outcome)
    thread.start()
    try:
        yield run_
    finally:
        scorer.gate.set()
        pipeline.request_stop()
        pipeline.request_stop()
        thread.join(10)
        scoring.stop(10)
