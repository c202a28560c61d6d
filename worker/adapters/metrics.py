"""Every metric of the worker: name, type, unit, labels, and what its reader should do about it.

Rules: names and units follow Prometheus' naming rules (https://prometheus.io/docs/practices/naming/); no label
takes an unlimited number of values. The README's table is made from METRICS.
"""

from dataclasses import dataclass
from typing import Literal

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

PREFIX = "reconstream_"
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric's description; `name` is without the prefix and with its unit and `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""

    def family(self) -> Family:
        """Its exposition, still without samples."""
        kinds: dict[str, type[Family]] = {
            "counter": CounterMetricFamily,
            "gauge": GaugeMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        return kinds[self.kind](PREFIX + self.name, self.help, labels=self.labels, unit=self.unit)


MESSAGES = Metric(
    "messages_total",
    "counter",
    "Messages that got their answer, by status (judged, unreadable, expired) and stream (camera). A stream whose "
    "rate falls to zero has gone silent: look at its camera. Stream 'other' holds all after the first 64.",
    ("status", "stream"),
)
ANOMALIES = Metric(
    "anomalies_total",
    "counter",
    "Judged images whose score was above the threshold. Compare with messages judged: one stream alone points to "
    "its camera or line, all streams at once to the model or the light.",
    ("stream",),
)
STREAM_LAST_MESSAGE = Metric(
    "stream_last_message_timestamp_seconds",
    "gauge",
    "When this stream's last message was answered here, Unix time. Take the maximum over workers; where it falls "
    "behind the clock while other streams go on, check that camera.",
    ("stream",),
    "seconds",
)
DEAD_LETTERS = Metric(
    "dead_letters_total",
    "counter",
    "Messages that could not be judged, by reason. Read the dead-letter topic's newest records of this reason: "
    "their headers name the source position and what was wrong.",
    ("reason",),
)
SCORE = Metric(
    "score",
    "histogram",
    "Anomaly scores, in buckets from the calibration's quantiles; one edge is the threshold, and a score equal to "
    "it counts below, as in verdicts. Compare live quantiles with reconstream_calibration_quantile.",
    ("version",),
)
ERROR = Metric(
    "reconstruction_error",
    "histogram",
    "Mean squared reconstruction errors, in buckets from the calibration's quantiles. All larger: new kind of "
    "image, or light. All smaller: defocus. All in one bucket: a camera that repeats one picture.",
    ("version",),
)
RATIO = Metric(
    "score_threshold_ratio",
    "histogram",
    "Score divided by threshold: above 1 is an anomaly. Fixed buckets, so models can be compared; a crowd just "
    "below 1 means that the threshold wants a new calibration. Empty where the threshold is not positive.",
    unit="ratio",
)
THRESHOLD = Metric(
    "score_threshold",
    "gauge",
    "The decision threshold in force. It must be the same on all workers of a group: roll out one bundle.",
    ("version",),
)
MODEL = Metric(
    "model_info",
    "gauge",
    "1 for the bundle in use. More than one version in a group outside a rollout: workers judge differently, "
    "restart those that are behind.",
    ("name", "version", "backend", "precision"),
)
CALIBRATION = Metric(
    "calibration_quantile",
    "gauge",
    "Quantiles of score and error on the calibration's normal images; level 0.99 is the 99th percentile. Draw "
    "beside histogram_quantile of the live ones: where they part, the input has drifted.",
    ("quantity", "level", "version"),
)
DEVICE = Metric(
    "device_info",
    "gauge",
    "1 for the device that the model runs on. A CPU where a GPU was expected: check driver and image.",
    ("kind", "name"),
)
BATCH_SIZE = Metric(
    "batch_records",
    "histogram",
    "Records per batch. Always at max_batch_size with growing lag: add workers. Always 1: raise "
    "max_batch_delay_ms if latency allows.",
    unit="records",
)
WAIT = Metric(
    "wait_duration_seconds",
    "histogram",
    "How long a batch's oldest record waited in the worker. Above max_batch_delay_ms: the model is the "
    "bottleneck, see inference and decode.",
    unit="seconds",
)
DECODE = Metric(
    "decode_duration_seconds",
    "histogram",
    "Decoding of a batch's images. If it exceeds inference, send smaller images or add workers.",
    unit="seconds",
)
INFERENCE = Metric(
    "inference_duration_seconds",
    "histogram",
    "The model's time for a batch. A step up without a new version: the device is shared, throttled or gone; see "
    "reconstream_device_info.",
    unit="seconds",
)
COMMIT = Metric(
    "commit_duration_seconds",
    "histogram",
    "How long Kafka took to commit positions. Seconds: the brokers are busy or short of replicas.",
    unit="seconds",
)
COMMITTED = Metric(
    "committed_records_total",
    "counter",
    "Records whose positions were committed. Zero while messages are answered: commits fail, and a restart would "
    "read them again; see the log and reconstream_rebuilds_total.",
)
LATENCY = Metric(
    "latency_seconds",
    "histogram",
    "From a record's timestamp to its acknowledged verdict. Growing with lag: add workers. Growing without: the "
    "producers deliver late, or wait, inference or commit have slowed.",
    unit="seconds",
)
CLOCK_SKEW = Metric(
    "clock_skew_total",
    "counter",
    "Records stamped later than their verdict (their latency counts as 0). If it grows, set the producers' or "
    "this machine's clock by NTP.",
)
LAG = Metric(
    "lag_records",
    "gauge",
    "Records of an assigned partition that were not fetched yet. Growing for minutes: add workers, up to one per "
    "partition. Gone with its worker: alert on absence too.",
    ("topic", "partition"),
    "records",
)
ASSIGNED = Metric(
    "assigned_partitions",
    "gauge",
    "Partitions that this worker reads. Zero on a worker for long: more workers than partitions.",
)
PAUSED = Metric(
    "paused_partitions",
    "gauge",
    "Assigned partitions whose fetching rests because the worker's queues are full. Often above zero is normal "
    "in a backlog; always, with growing lag: add workers.",
)
IN_FLIGHT_RECORDS = Metric(
    "in_flight_records",
    "gauge",
    "Records fetched and not yet committed: the most that a crash now would repeat. Stuck above zero: see last "
    "progress and the brokers.",
    unit="records",
)
IN_FLIGHT_BYTES = Metric(
    "in_flight_bytes",
    "gauge",
    "Their values' size. Near the container's memory: lower the in-flight limits.",
    unit="bytes",
)
REBALANCES = Metric(
    "rebalances_total",
    "counter",
    "Times that partitions were taken from this worker. Outside deployments more than a few an hour: workers die "
    "or miss max_poll_interval; see their logs.",
)
REVOKED = Metric(
    "revoked_partitions_total",
    "counter",
    "Partitions taken from this worker; their records in flight are judged again elsewhere. See "
    "reconstream_rebalances_total.",
)
REBUILDS = Metric(
    "rebuilds_total",
    "counter",
    "Times that delivery was in doubt and records in flight were read again, by cause. Now and then: a broker "
    "restarted. Steadily: read the log for the cause; verdicts may repeat.",
    ("cause",),
)
RELOADS = Metric(
    "reloads_total",
    "counter",
    "New bundles found while running, by outcome: swapped, or refused, and then the one before goes on judging. Any "
    "refused: the log says why; put it right or switch 'current' back.",
    ("outcome",),
)
READY = Metric(
    "ready",
    "gauge",
    "1 while /readyz says yes. At 0 for minutes: GET /readyz lists what is missing.",
)
LAST_PROGRESS = Metric(
    "last_progress_timestamp_seconds",
    "gauge",
    "When the slowest of the worker's threads last finished a step or had nothing to do, Unix time. Minutes old: "
    "it hangs, /livez fails and the watchdog restarts it; keep its log.",
    unit="seconds",
)

METRICS = (
    *(MESSAGES, ANOMALIES, STREAM_LAST_MESSAGE, DEAD_LETTERS),
    *(SCORE, ERROR, RATIO, THRESHOLD, MODEL, CALIBRATION, DEVICE),
    *(BATCH_SIZE, WAIT, DECODE, INFERENCE, COMMIT, COMMITTED, LATENCY, CLOCK_SKEW),
    *(LAG, ASSIGNED, PAUSED, IN_FLIGHT_RECORDS, IN_FLIGHT_BYTES, REBALANCES, REVOKED, REBUILDS),
    *(RELOADS, READY, LAST_PROGRESS),
)
