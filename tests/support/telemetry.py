"""A telemetry with one model set, and what Prometheus would scrape of it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from worker.adapters.metrics import PREFIX
from worker.adapters.prometheus import PrometheusTelemetry
from worker.core.errors import Reason
from worker.core.records import TopicPartition
from worker.core.verdicts import Judge, ModelName
from worker.ports import Clock

Images = NDArray[np.uint8]
THRESHOLD = np.float32(0.0123)
QUANTILES = {
    "score": {"0.01": 0.001, "0.5": 0.004, "0.9": 0.008, "0.99": float(THRESHOLD), "1": 0.02},
    "error": {"0.01": 0.002, "0.5": 0.005, "1": 0.03},
    "brightness": {"0": 0.1, "0.5": 0.4, "1": 0.6},
    "sharpness": {"0": 0.0, "0.5": 0.05, "1": 0.2},
}
# So that the place of an error in the calibration is the error itself, divided by 0.03.
ERRORS = np.linspace(0, 0.03, 3001, dtype=np.float32)
TRAINED_S = datetime(2026, 1, 2, tzinfo=UTC).timestamp()


def grey(*levels: int) -> NDArray[np.uint8]:
    """Images of one level each, uint8 (N, 4, 6, 1)."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 4, 6, 1))


class FixedClock:
    def monotonic(self) -> float:
        return 5.0

    def now_ms(self) -> int:
        return 1_700_000_000_500


class Scraped:
    """The values of one scrape by name and labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.text = generate_latest(registry).decode()
        self.families = list(parse_text(self.text))
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, /, **labels: str) -> float | None:
        return self._values.get((PREFIX + name, frozenset(labels.items())))

    def by(self, name: str, label: str, /, **labels: str) -> dict[str, float]:
        """All samples of `name` with these labels, by another label's value."""
        return {
            dict(key)[label]: value
            for (sample, key), value in self._values.items()
            if sample == PREFIX + name and labels.items() <= dict(key).items()
        }


class Desk:
    """A telemetry with one model set, and its scrapes."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.registry = CollectorRegistry()
        self.telemetry = PrometheusTelemetry(self.registry, clock or FixedClock())
        self.set_model("aaa")

    def set_model(
        self,
        version: str,
        threshold: float = float(THRESHOLD),
        *,
        quantiles: Mapping[str, Mapping[str, float]] = QUANTILES,
        expected: Mapping[str, float] | None = None,
    ) -> None:
        self.telemetry.set_model(
            ModelName("mnist", version),
            threshold=threshold,
            expected={"lower": 0.002, "expected": 0.01, "upper": 0.03} if expected is None else expected,
            quantiles=quantiles,
            errors=ERRORS,
            trained_s=TRAINED_S,
            backend="tensorflow",
            precision="float32",
        )

    def score(
        self, *scores: float | np.float32, stream: str = "left", threshold: np.float32 = THRESHOLD
    ) -> list[bool]:
        values = np.array(scores, np.float32)
        judge = Judge(ModelName("mnist", "aaa"), float(threshold), np.array([0.5], np.float32))
        anomalies = judge.judge(values, values).anomalies
        self.telemetry.scored([stream] * len(values), values, values, anomalies, grey(*[128] * len(values)))
        return anomalies

    def judged(
        self, errors: Sequence[float] | NDArray[np.float32], streams: Sequence[str] = (), images: Images | None = None
    ) -> None:
        """Judge images with these errors, none of them an anomaly."""
        values = np.asarray(errors, np.float32)
        images = grey(*[128] * len(values)) if images is None else images
        self.telemetry.scored(streams or ["left"] * len(values), values, values, [False] * len(values), images)

    def scrape(self) -> Scraped:
        return Scraped(self.registry)


def fill(desk: Desk) -> None:
    """Give every metric a value."""
    telemetry = desk.telemetry
    desk.score(0.001, 0.5)
    desk.judged(ERRORS)
    telemetry.unreadable("left", Reason.TRUNCATED_IMAGE)
    telemetry.batch(records=3, wait_s=0.01, decode_s=0.002, inference_s=0.03)
    telemetry.error_maps("omitted", 2)
    telemetry.published([0.02])
    telemetry.acknowledged(np.array([0.2, 0.3, -1.0]))
    telemetry.committed(3, 0.004)
    telemetry.state(
        in_flight_records=7,
        in_flight_bytes=900,
        paused=True,
        assigned=1,
        lag={TopicPartition("images", 2): 11},
        connected=True,
    )
    telemetry.rebalanced(2)
    telemetry.rebuilt("commit")
    telemetry.set_device("GPU", "H100")
    telemetry.watch(missing=list, progress_age_s=lambda: 1.5, memory_limit_bytes=lambda: 1 << 30)
