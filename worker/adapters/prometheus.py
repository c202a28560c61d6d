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
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily

from worker.adapters import metrics
from worker.adapters.metrics import Family, Metric
from worker.core.errors import Reason
from worker.core.records import TopicPartition
from worker.core.verdicts import ModelName, Status
from worker.ports import Clock, ReloadOutcome

MAX_STREAMS = 64
MAX_STEPS = 16
MAX_LABEL_CHARACTERS = 128
OTHER = "other"

RATIO_EDGES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
BATCH_EDGES = tuple(float(1 << power) for power in range(13))
DURATION_EDGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Up to an hour: after an outage the backlog's latency is the length of the outage.
LATENCY_EDGES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


_FIXED_EDGES: Mapping[Metric, tuple[float, ...]] = {
    metrics.RATIO: RATIO_EDGES,
    metrics.BATCH_SIZE: BATCH_EDGES,
    metrics.WAIT: DURATION_EDGES,
    metrics.DECODE: DURATION_EDGES,
    metrics.INFERENCE: DURATION_EDGES,
    metrics.COMMIT: DURATION_EDGES,
    metrics.LATENCY: LATENCY_EDGES,
}


class Histogram:
    """Counts of values by bucket; a value equal to an edge belongs below it. Not thread-safe.

    Args:
        edges: (E,), ascending, finite; the bucket above the last is added.
    """

    def __init__(self, edges: ArrayLike) -> None:
        self._edges = np.asarray(edges, np.float64)
        self._names = [*map(repr, self._edges.tolist()), "+Inf"]
        self._counts = np.zeros(len(self._names), np.int64)
        self._sum = 0.0

    def observe(self, values: ArrayLike) -> None:
        """Count values, (N,) or a single one."""
        array = np.atleast_1d(np.asarray(values))
        self._counts += np.bincount(np.searchsorted(self._edges, array, side="left"), minlength=len(self._names))
        self._sum += float(array.sum(dtype=np.float64))

    def samples(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper edge, and the sum of all values."""
        return list(zip(self._names, self._counts.cumsum().tolist(), strict=True)), self._sum


def bucket_edges(quantiles: Iterable[float], threshold: float | None = None) -> NDArray[np.float64]:
    """Edges that resolve the calibration's range, and reach beyond it on both sides.

    Below: the smallest divided by 2, 4 and 8, where it is positive (a defocused camera makes every error a
    fraction of itself). Above: up to 16 times the calibration's width past its largest.

    Returns:
        float64 (E,), ascending, each exactly a float32, so that they compare with scores as the threshold does.
    """
    marks = sorted(
        {float(np.float32(mark)) for mark in quantiles} | ({threshold} if threshold is not None else set())
    )
    if not marks:
        return np.empty(0)
    low, high = marks[0], marks[-1]
    below = [low / divisor for divisor in (8, 4, 2)] if low > 0 else []
    above = [high + (high - low) * factor for factor in (0.5, 1, 2, 4, 8, 16)]
    limit = float(np.finfo(np.float32).max)
    edges = [edge for edge in (*below, *marks, *above) if abs(edge) <= limit]
    return np.unique(np.array(edges, np.float32)).astype(np.float64)


@dataclass(frozen=True)
class _Model:
    """What judged images are counted into."""

    threshold: float
    score: Histogram
    error: Histogram


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
            if not metric.labels and metric is not metrics.LAST_PROGRESS:
                values[()] = 0
        for reason in Reason:
            self._values[metrics.DEAD_LETTERS][reason.value,] = 0
        for outcome in get_args(ReloadOutcome):
            self._values[metrics.RELOADS][outcome,] = 0
        self._histograms: dict[Metric, dict[tuple[str, ...], Histogram]] = {
            metric: {} for metric in metrics.METRICS if metric.kind == "histogram"
        }
        for metric, edges in _FIXED_EDGES.items():
            self._histograms[metric][()] = Histogram(edges)
        self._model: _Model | None = None
        self._streams: dict[str, str] = {}
        self._steps: dict[str, str] = {}
        self._missing: Callable[[], Sequence[str]] | None = None
        self._progress_age_s: Callable[[], float] | None = None
        registry.register(self)

    def set_model(
        self,
        model: ModelName,
        *,
        threshold: float,
        quantiles: Mapping[str, Mapping[str, float]],
        backend: str,
        precision: str,
    ) -> None:
        """Name the model that judges from now on.

        The distributions of the version before it stay, older ones go.

        Args:
            model: its name and version.
            threshold: the threshold in force.
            quantiles: the manifest's `calibration_quantiles`: for `score` and `error` values by level.
            backend: what Keras runs on.
            precision: the scoring precision.
        """
        threshold = float(np.float32(threshold))
        scores = bucket_edges(quantiles.get("score", {}).values(), threshold)
        errors = bucket_edges(quantiles.get("error", {}).values())
        key = (model.version,)
        with self._lock:
            for metric, edges in ((metrics.SCORE, scores), (metrics.ERROR, errors)):
                histograms = self._histograms[metric]
                # A version that comes back goes on counting, and becomes the newest.
                histograms[key] = histograms.pop(key) if key in histograms else Histogram(edges)
                for old in list(histograms)[:-2]:
                    del histograms[old]
            self._model = _Model(
                threshold, self._histograms[metrics.SCORE][key], self._histograms[metrics.ERROR][key]
            )
            for metric in (metrics.THRESHOLD, metrics.MODEL, metrics.CALIBRATION):
                self._values[metric].clear()
            self._values[metrics.THRESHOLD][key] = threshold
            self._values[metrics.MODEL][model.name, model.version, backend, precision] = 1
            for quantity, levels in quantiles.items():
                for level, value in levels.items():
                    self._values[metrics.CALIBRATION][quantity, level, model.version] = value

    def set_device(self, kind: str, name: str) -> None:
        """Name the device that the model runs on: `CPU` or `GPU`, and what it calls itself."""
        with self._lock:
            self._values[metrics.DEVICE].clear()
            self._values[metrics.DEVICE][kind, name] = 1

    def watch(self, *, missing: Callable[[], Sequence[str]], progress_age_s: Callable[[], float]) -> None:
        """Ask these at each scrape; they must be quick and safe to call from any thread.

        Args:
            missing: what /readyz lists; nothing means ready.
            progress_age_s: seconds since the slowest thread's last progress; 0 while it has nothing to do.
        """
        with self._lock:
            self._missing, self._progress_age_s = missing, progress_age_s

    def scored(
        self,
        streams: Sequence[str],
        scores: NDArray[np.float32],
        errors: NDArray[np.float32],
        anomalies: Sequence[bool],
    ) -> None:
        """Count a judged batch; every argument has one entry per image, scores and errors are finite."""
        by_stream = Counter(streams)
        flagged = Counter(compress(streams, anomalies))
        now_s = self._clock.now_ms() / 1000
        with self._lock:
            for stream, count in by_stream.items():
                label = self._stream(stream)
                self._values[metrics.MESSAGES]["judged", label] += count
                self._values[metrics.ANOMALIES][label,] += flagged[stream]
                self._values[metrics.STREAM_LAST_MESSAGE][label,] = now_s
            if (model := self._model) is not None and len(scores):
                model.score.observe(scores)
                model.error.observe(errors)
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
    ) -> None:
        """Take where the I/O thread stands; partitions that are not in `lag` vanish from the scrape."""
        with self._lock:
            self._values[metrics.IN_FLIGHT_RECORDS][()] = in_flight_records
            self._values[metrics.IN_FLIGHT_BYTES][()] = in_flight_bytes
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
        # Asked without the lock: they may take locks of their own.
        ready = missing is not None and not missing()
        progress_s = None if progress_age_s is None else self._clock.now_ms() / 1000 - progress_age_s()
        families = []
        with self._lock:
            self._values[metrics.READY][()] = ready
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
            self._values[metrics.ANOMALIES][label,] = 0
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
