"""Telemetry for Prometheus: the state behind the metrics that worker.adapters.metrics describes.

Rules: distributions are fed a batch at a time, never an image at a time; labels that come with the input are
bounded in number and length; one collector answers a scrape from one consistent state, which one lock guards.
(prometheus_client's own Counter and Histogram lock per metric, have no buckets per label value, and write
`_created` series unless a global switch of the process says otherwise.)
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily

from worker.adapters import metrics
from worker.adapters.histograms import (
    BATCH_EDGES,
    DURATION_EDGES,
    LATENCY_EDGES,
    RATIO_EDGES,
    Histogram,
    bucket_edges,
)
from worker.adapters.metrics import Family, Metric
from worker.core.drift import Drift, level_places, rank_places
from worker.core.errors import Reason
from worker.core.image_statistics import brightness_and_sharpness
from worker.core.records import TopicPartition
from worker.core.verdicts import ModelName, Status
from worker.ports import Clock, MapOutcome, ReloadOutcome

MAX_STREAMS = 64
MAX_STEPS = 16
MAX_LABEL_CHARACTERS = 128
OTHER = "other"

_FIXED_EDGES: Mapping[Metric, tuple[float, ...]] = {
    metrics.RATIO: RATIO_EDGES,
    metrics.BATCH_SIZE: BATCH_EDGES,
    metrics.WAIT: DURATION_EDGES,
    metrics.DECODE: DURATION_EDGES,
    metrics.INFERENCE: DURATION_EDGES,
    metrics.PUBLISH: DURATION_EDGES,
    metrics.COMMIT: DURATION_EDGES,
    metrics.LATENCY: LATENCY_EDGES,
}


# What of a judged image is counted, by its name in the manifest's `calibration_quantiles`.
_QUANTITIES: Mapping[str, Metric] = {
    "score": metrics.SCORE,
    "error": metrics.ERROR,
    "brightness": metrics.BRIGHTNESS,
    "sharpness": metrics.SHARPNESS,
}
_OF_IMAGES = ("brightness", "sharpness")
# The calibration's quantile below which an error is small.
SMALL_LEVEL = "0.01"


@dataclass(frozen=True)
class _Model:
    """What judged images are counted into.

    Attributes:
        small_error: an error below it is small.
        of_images: whether brightness and sharpness are known of the calibration.
        histograms: by quantity.
    """

    version: str
    threshold: float
    small_error: float
    of_images: bool
    histograms: Mapping[str, Histogram]
    drift: Drift


class PrometheusTelemetry:
    """A worker.ports.Telemetry that Prometheus can scrape.

    Args:
        registry: where it registers itself.
        clock: gives the time of last messages and of progress.
    """

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {
            metric: defaultdict(float) for metric in metrics.METRICS if metric.kind != "histogram"
        }
        for metric, values in self._values.items():
            if not metric.labels and metric not in {metrics.LAST_PROGRESS, metrics.MEMORY_LIMIT}:
                values[()] = 0
        for reason in Reason:
            self._values[metrics.DEAD_LETTERS][reason.value,] = 0
        for metric, outcomes in ((metrics.RELOADS, ReloadOutcome), (metrics.ERROR_MAPS, MapOutcome)):
            for outcome in get_args(outcomes):
                self._values[metric][outcome,] = 0
        self._histograms: dict[Metric, dict[tuple[str, ...], Histogram]] = {
            metric: {} for metric in metrics.METRICS if metric.kind == "histogram"
        }
        for metric, edges in _FIXED_EDGES.items():
            self._histograms[metric][()] = Histogram(edges)
        self._model: _Model | None = None
        self._versions: list[str] = []
        self._last_errors: dict[str, float] = {}
        self._streams: dict[str, str] = {}
        self._steps: dict[str, str] = {}
        self._missing: Callable[[], Sequence[str]] | None = None
        self._progress_age_s: Callable[[], float] | None = None
        self._memory_limit_bytes: Callable[[], int | None] | None = None
        registry.register(self)

    def set_model(
        self,
        model: ModelName,
        *,
        threshold: float,
        expected: Mapping[str, float],
        quantiles: Mapping[str, Mapping[str, float]],
        errors: NDArray[np.float32],
        trained_s: float | None,
        backend: str,
        precision: str,
    ) -> None:
        """Name the model that judges from now on.

        The distributions of the version before it stay, older ones go; drift is measured anew.

        Args:
            model: its name and version.
            threshold: the threshold in force.
            expected: the share of normal images above it: `expected`, and perhaps its limits `lower` and `upper`.
            quantiles: the manifest's `calibration_quantiles`: for `score`, `error` and perhaps `brightness` and
                `sharpness` values by level.
            errors: those of the calibration images, (n,), n > 0.
            trained_s: when the bundle was made, Unix time; None where that is not known.
            backend: what Keras runs on.
            precision: the scoring precision.
        """
        threshold = float(np.float32(threshold))
        of_images = all(quantity in quantiles for quantity in _OF_IMAGES)
        quantities = [quantity for quantity in _QUANTITIES if of_images or quantity not in _OF_IMAGES]
        edges = {quantity: bucket_edges(quantiles.get(quantity, {}).values()) for quantity in quantities}
        edges["score"] = bucket_edges(quantiles.get("score", {}).values(), threshold)
        places = {"error": rank_places(errors)}
        if of_images:
            for quantity in _OF_IMAGES:
                places[quantity] = level_places(quantiles[quantity])
                edges[quantity] = edges[quantity][edges[quantity] <= 1]
        key = (model.version,)
        with self._lock:
            # A version that comes back goes on counting, and becomes the newest.
            others = [version for version in self._versions if version != model.version]
            self._versions = [*others[-1:], model.version]
            for quantity, metric in _QUANTITIES.items():
                histograms = self._histograms[metric]
                if quantity in edges and key not in histograms:
                    histograms[key] = Histogram(edges[quantity])
                for old in [labels for labels in histograms if labels[0] not in self._versions]:
                    del histograms[old]
            self._model = _Model(
                version=model.version,
                threshold=threshold,
                small_error=quantiles.get("error", {}).get(SMALL_LEVEL, -np.inf),
                of_images=of_images,
                histograms={quantity: self._histograms[_QUANTITIES[quantity]][key] for quantity in quantities},
                drift=Drift(places),
            )
            for metric in (metrics.THRESHOLD, metrics.MODEL, metrics.CALIBRATION, metrics.EXPECTED, metrics.TRAINED):
                self._values[metric].clear()
            self._values[metrics.THRESHOLD][key] = threshold
            self._values[metrics.MODEL][model.name, model.version, backend, precision] = 1
            for bound, ratio in expected.items():
                self._values[metrics.EXPECTED][bound, model.version] = ratio
            if trained_s is not None:
                self._values[metrics.TRAINED][key] = trained_s
            for quantity, levels in quantiles.items():
                for level, value in levels.items():
                    self._values[metrics.CALIBRATION][quantity, level, model.version] = value

    def set_device(self, kind: str, name: str) -> None:
        """Name the device that the model runs on: `CPU` or `GPU`, and what it calls itself."""
        with self._lock:
            self._values[metrics.DEVICE].clear()
            self._values[metrics.DEVICE][kind, name] = 1

    def watch(
        self,
        *,
        missing: Callable[[], Sequence[str]],
        progress_age_s: Callable[[], float],
        memory_limit_bytes: Callable[[], int | None],
    ) -> None:
        """Ask these at each scrape; they must be quick and safe to call from any thread.

        Args:
            missing: what /readyz lists; nothing means ready.
            progress_age_s: seconds since the slowest thread's last progress; 0 while it has nothing to do.
            memory_limit_bytes: the container's; None where there is none.
        """
        with self._lock:
            self._missing, self._progress_age_s = missing, progress_age_s
            self._memory_limit_bytes = memory_limit_bytes

    def scored(
        self,
        streams: Sequence[str],
        scores: NDArray[np.float32],
        errors: NDArray[np.float32],
        anomalies: Sequence[bool],
        images: NDArray[np.uint8],
    ) -> None:
        """Count a judged batch; every argument has one entry per image, scores and errors are finite."""
        by_stream = Counter(streams)
        flagged = Counter(compress(streams, anomalies))
        small: Counter[str] = Counter()
        values = {"score": scores, "error": errors}
        model = self._model
        if model is not None:
            small.update(compress(streams, (errors < model.small_error).tolist()))
            if model.of_images:
                values["brightness"], values["sharpness"] = brightness_and_sharpness(images)
        now_s = self._clock.now_ms() / 1000
        with self._lock:
            labels = {stream: self._stream(stream) for stream in by_stream}
            for stream, count in by_stream.items():
                label = labels[stream]
                self._values[metrics.MESSAGES]["judged", label] += count
                self._values[metrics.ANOMALIES][label,] += flagged[stream]
                self._values[metrics.SMALL_ERRORS][label,] += small[stream]
                self._values[metrics.STREAM_LAST_MESSAGE][label,] = now_s
            for stream, error in zip(streams, errors.tolist(), strict=True):
                label = labels[stream]
                if self._last_errors.get(label) == error:
                    self._values[metrics.REPEATED_ERRORS][label,] += 1
                self._last_errors[label] = error
            if model is not None and len(scores):
                for quantity, histogram in model.histograms.items():
                    histogram.observe(values[quantity])
                    model.drift.add(quantity, values[quantity])
                if model.threshold > 0:
                    # In float64 two different float32 never divide to 1: the edge at 1 agrees with verdicts.
                    self._histograms[metrics.RATIO][()].observe(scores.astype(np.float64) / model.threshold)

    def batch(self, *, records: int, wait_s: float, decode_s: float, inference_s: float) -> None:
        """Count a batch that went through the scoring thread."""
        with self._lock:
            for metric, value in (
                (metrics.BATCH_SIZE, records),
                (metrics.WAIT, wait_s),
                (metrics.DECODE, decode_s),
                (metrics.INFERENCE, inference_s),
            ):
                self._histograms[metric][()].observe(value)

    def unreadable(self, stream: str, reason: Reason) -> None:
        """Count a record that was answered `unreadable`, and its dead letter."""
        now_s = self._clock.now_ms() / 1000
        with self._lock:
            label = self._stream(stream)
            self._values[metrics.MESSAGES]["unreadable", label] += 1
            self._values[metrics.STREAM_LAST_MESSAGE][label,] = now_s
            self._values[metrics.DEAD_LETTERS][reason.value,] += 1

    def expired(self, stream: str) -> None:
        """Count a record that was answered `expired`."""
        now_s = self._clock.now_ms() / 1000
        with self._lock:
            label = self._stream(stream)
            self._values[metrics.MESSAGES]["expired", label] += 1
            self._values[metrics.STREAM_LAST_MESSAGE][label,] = now_s

    def error_maps(self, outcome: MapOutcome, count: int) -> None:
        """Count error maps by what became of them."""
        with self._lock:
            self._values[metrics.ERROR_MAPS][outcome,] += count

    def published(self, durations_s: Sequence[float]) -> None:
        """Count batches whose answers were acknowledged, by the seconds since they were handed to the client."""
        with self._lock:
            self._histograms[metrics.PUBLISH][()].observe(durations_s)

    def acknowledged(self, latencies_s: NDArray[np.float64]) -> None:
        """Count the latencies of acknowledged verdicts, (N,) in seconds; negative ones as 0 and as clock skew."""
        if len(latencies_s) == 0:
            return
        skewed = int(np.count_nonzero(latencies_s < 0))
        with self._lock:
            self._histograms[metrics.LATENCY][()].observe(np.maximum(latencies_s, 0.0) if skewed else latencies_s)
            self._values[metrics.CLOCK_SKEW][()] += skewed

    def committed(self, records: int, seconds: float) -> None:
        """Count a commit that covered `records` and took `seconds`."""
        with self._lock:
            self._values[metrics.COMMITTED][()] += records
            self._histograms[metrics.COMMIT][()].observe(seconds)

    def state(
        self,
        *,
        in_flight_records: int,
        in_flight_bytes: int,
        paused: bool,
        assigned: int,
        lag: dict[TopicPartition, int],
        connected: bool,
    ) -> None:
        """Take where the I/O thread stands; partitions that are not in `lag` vanish from the scrape."""
        with self._lock:
            self._values[metrics.IN_FLIGHT_RECORDS][()] = in_flight_records
            self._values[metrics.IN_FLIGHT_BYTES][()] = in_flight_bytes
            self._values[metrics.CONNECTED][()] = connected
            self._values[metrics.ASSIGNED][()] = assigned
            self._values[metrics.PAUSED][()] = assigned if paused else 0
            self._values[metrics.LAG] = {
                (topic, str(partition)): records for (topic, partition), records in lag.items()
            }

    def rebalanced(self, revoked: int) -> None:
        """Count a rebalance that took `revoked` partitions."""
        with self._lock:
            self._values[metrics.REBALANCES][()] += 1
            self._values[metrics.REVOKED][()] += revoked

    def rebuilt(self, step: str) -> None:
        """Count that what was in flight is read again, because `step` did not succeed."""
        with self._lock:
            self._values[metrics.REBUILDS][_bounded(self._steps, step, MAX_STEPS),] += 1

    def reloaded(self, outcome: ReloadOutcome) -> None:
        """Count a new bundle that was swapped in or refused."""
        with self._lock:
            self._values[metrics.RELOADS][outcome,] += 1

    def describe(self) -> Iterable[Family]:
        """All families without samples: the registry checks their names."""
        return [metric.family() for metric in metrics.METRICS]

    def collect(self) -> Iterable[Family]:
        """All families as of now."""
        with self._lock:
            missing, progress_age_s = self._missing, self._progress_age_s
            memory_limit_bytes = self._memory_limit_bytes
        # Asked without the lock: they may take locks of their own.
        ready = missing is not None and not missing()
        progress_s = None if progress_age_s is None else self._clock.now_ms() / 1000 - progress_age_s()
        limit = None if memory_limit_bytes is None else memory_limit_bytes()
        families = []
        with self._lock:
            self._values[metrics.READY][()] = ready
            self._values[metrics.MEMORY_LIMIT] = {} if limit is None else {(): limit}
            if (model := self._model) is not None:
                distances = model.drift.distances()
                self._values[metrics.DRIFT] = {(name, model.version): value for name, value in distances.items()}
                self._values[metrics.DRIFT_WINDOW][()] = model.drift.images
            if progress_s is not None:
                self._values[metrics.LAST_PROGRESS][()] = progress_s
            for metric in metrics.METRICS:
                family = metric.family()
                if isinstance(family, HistogramMetricFamily):
                    for labels, histogram in self._histograms[metric].items():
                        family.add_metric(labels, *histogram.samples())
                else:
                    for labels, value in self._values[metric].items():
                        family.add_metric(labels, value)
                families.append(family)
        return families

    def _stream(self, stream: str) -> str:
        """The label for a stream. A new one's counters start at 0, so that rates see their first increase."""
        label = _bounded(self._streams, stream, MAX_STREAMS)
        if (label,) not in self._values[metrics.ANOMALIES]:
            for metric in (metrics.ANOMALIES, metrics.SMALL_ERRORS, metrics.REPEATED_ERRORS):
                self._values[metric][label,] = 0
            for status in get_args(Status):
                self._values[metrics.MESSAGES][status, label] = 0
        return label


def _bounded(known: dict[str, str], value: str, limit: int) -> str:
    """The label for `value`: itself for the first `limit` different ones, then `other`."""
    label = known.get(value)
    if label is None:
        if len(known) >= limit:
            return OTHER
        # A lone surrogate cannot be encoded and would fail every scrape from then on.
        label = known[value] = value[:MAX_LABEL_CHARACTERS].encode("utf-8", "replace").decode()
    return label
