"""Scores files without Kafka: one verdict a file, as JSON lines.

Rule: files go through the code that answers records in the running worker, so that the verdicts are the same;
a file whose content is no image gets its verdict `unreadable`.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from worker.adapters.system_clock import SystemClock
from worker.answering import Answerer, Model
from worker.core.batching import Batch
from worker.core.bundle import Bundle, read_bundle
from worker.core.errors import ConfigurationError
from worker.core.offsets import Lease, Part
from worker.core.progress import Progress
from worker.core.records import Record, TopicPartition
from worker.core.verdicts import Judge
from worker.settings import CommonSettings

TOPIC = "file"
BATCH = 64


class Settings(CommonSettings):
    r"""Score image files, without Kafka: a verdict each, one JSON line, on stdout.

    Example:
      reconstream-worker score models/current photos/*.png
    """

    bundle: CliPositionalArg[Path] = Field(description="folder that reconstream-train wrote, or its 'current' link")
    files: CliPositionalArg[list[Path]] = Field(description="image files: PNG, JPEG, raw or JSON, as in messages")


class _Silence:
    """A worker.ports.Telemetry for a program without metrics."""

    def scored(self, *_: object) -> None: ...

    def batch(self, **_: object) -> None: ...

    def unreadable(self, stream: str, reason: object) -> None: ...

    def expired(self, stream: str) -> None: ...

    def reloaded(self, outcome: object) -> None: ...

    def error_maps(self, outcome: object, count: int) -> None: ...

    def published(self, durations_s: object) -> None: ...

    def acknowledged(self, latencies_s: object) -> None: ...

    def committed(self, records: int, seconds: float) -> None: ...

    def state(self, **_: object) -> None: ...

    def rebalanced(self, revoked: int) -> None: ...

    def rebuilt(self, step: str) -> None: ...


def load_model(bundle: Bundle) -> Model:
    """The bundle's model, ready to answer. Takes seconds: it imports Keras.

    Raises:
        BundleError: the model is not what the manifest says.
    """
    from worker.adapters.keras_scorer import KerasScorer, golden_check  # noqa: PLC0415 - see its docstring

    scorer = KerasScorer.load(bundle, batch_capacity=BATCH)
    judge = Judge(bundle.model, float(bundle.threshold), bundle.calibration.scores)
    return Model(scorer, judge, bundle.image_spec(), golden_check(scorer, bundle))


def verdicts(model: Model, files: Sequence[Path]) -> Iterator[bytes]:
    """One verdict per file, JSON, in their order; the file's place is its offset, its path the id.

    Raises:
        ConfigurationError: a file cannot be read at all.
        ScorerBroken: the golden images no longer score as they did.
    """
    clock = SystemClock()
    answerer = Answerer(
        model,
        output_topic=TOPIC,
        stream_of=lambda record: TOPIC,  # noqa: ARG005
        carry_headers=(),
        clock=clock,
        telemetry=_Silence(),
        progress=Progress("scoring", clock.monotonic()),
    )
    lease = Lease(TopicPartition(TOPIC, 0))
    for start in range(0, len(files), BATCH):
        records = [_record(start + place, file) for place, file in enumerate(files[start : start + BATCH])]
        size = sum(len(record.value or b"") for record in records)
        part = Part(lease, records, size, start + len(records), None)
        answers = answerer.answer(Batch([part], len(records), clock.monotonic()))
        yield from (verdict.value or b"" for verdict in answers.verdicts)


def main(settings: Settings) -> int:
    """Write one JSON line per file to stdout."""
    missing = [str(file) for file in settings.files if not file.is_file()]
    if missing:
        raise ConfigurationError(f"expected image files; these are none: {', '.join(missing)}")
    model = load_model(read_bundle(settings.bundle))
    for verdict in verdicts(model, settings.files):
        sys.stdout.buffer.write(verdict + b"\n")
        sys.stdout.buffer.flush()
    return 0


def _record(offset: int, file: Path) -> Record:
    try:
        value = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"'{file}' cannot be read: {error}") from error
    # A name that is no text gives no id; the position takes its place.
    name = str(file).encode(errors="surrogateescape")
    return Record(TOPIC, 0, offset, value=value, headers=[("message-id", name)])
