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
ERROR_MAPS = Metric(
    "error_maps_total",
    "counter",
    "Error maps of anomalies by outcome, where localisation is on: published; omitted, too large for the map topic: "
    "raise its max.message.bytes, the verdict has its region all the same; failed: the model could not reconstruct, "
    "and there is no region either: see the log.",
    ("outcome",),
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
    "Quantiles of score, error, brightness and sharpness of the calibration's normal images (older bundles lack the "
    "last two); level 0.99 is the 99th percentile. Draw beside histogram_quantile of the live ones: where they part, "
    "the input has drifted.",
    ("quantity", "level", "version"),
)
EXPECTED = Metric(
    "expected_anomaly_ratio",
    "gauge",
    "Share of normal images that the threshold flags, as calibrated (bound=expected), and its 95 % interval (lower, "
    "upper; absent where the method promises none). Compare with anomalies / messages judged: above upper, look for "
    "faults first, then calibrate anew.",
    ("bound", "version"),
    "ratio",
)
TRAINED = Metric(
    "model_trained_timestamp_seconds",
    "gauge",
    "When the bundle in use was made, Unix time. Months old: evaluate it on new images, and fit again if it lost.",
    ("version",),
    "seconds",
)
BRIGHTNESS = Metric(
    "image_brightness",
    "histogram",
    "Mean of the pixel values of judged images, 0 black to 1 white, in buckets from the calibration's quantiles. A "
    "step: light, exposure or a covered lens.",
    ("version",),
)
SHARPNESS = Metric(
    "image_sharpness",
    "histogram",
    "Mean absolute difference of horizontally neighbouring pixels of judged images, 0 to 1, in buckets from the "
    "calibration's quantiles. Falling: clean and focus the lens. Rising: noise; look at gain and light.",
    ("version",),
)
DRIFT = Metric(
    "drift_distance_ratio",
    "gauge",
    "How far the newest images are from the calibration's: Kolmogorov-Smirnov distance, 0 the same to 1 apart, by "
    "quantity (error, brightness, sharpness). Up to 0.1 is chance (1000 images against 500). Brightness or sharpness "
    "high: the camera. Error alone: the parts, or the model has aged. Absent below 100 images.",
    ("quantity", "version"),
    "ratio",
)
DRIFT_WINDOW = Metric(
    "drift_window_images",
    "gauge",
    "Images in the window that drift is measured over, up to 1000; it starts anew with each bundle. Trust drift from "
    "500 on.",
    unit="images",
)
SMALL_ERRORS = Metric(
    "small_errors_total",
    "counter",
    "Judged images whose error is below the calibration's 1 % quantile. 1 % of the judged is normal; far more means "
    "that images lack detail: check focus, lens and light, since faults are then missed in silence.",
    ("stream",),
)
REPEATED_ERRORS = Metric(
    "repeated_errors_total",
    "counter",
    "Judged images whose error is that of the stream's image before, to the last bit. More than a few: the camera, "
    "or what publishes its images, repeats one picture; restart it.",
    ("stream",),
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
PUBLISH = Metric(
    "publish_duration_seconds",
    "histogram",
    "From handing a batch's answers to the Kafka client until all were acknowledged, as the I/O loop sees it: up to "
    "0.1 s more while idle. Seconds: the brokers or the network are slow, or replicas are missing.",
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
    "Their values' size, a map's for each included where maps are published. Near the container's memory: lower the "
    "in-flight limits.",
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
CONNECTED = Metric(
    "kafka_connected",
    "gauge",
    "1 while Kafka answers and the consumer group has this worker as a member. At 0 for a minute: check the brokers, "
    "the network to them, and the log.",
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
MEMORY_LIMIT = Metric(
    "memory_limit_bytes",
    "gauge",
    "The container's memory limit; absent where there is none. process_resident_memory_bytes close to it: raise the "
    "limit, or lower the in-flight limits or the batch size, before the kernel ends the worker.",
    unit="bytes",
)

METRICS = (
    *(MESSAGES, ANOMALIES, SMALL_ERRORS, REPEATED_ERRORS, STREAM_LAST_MESSAGE, DEAD_LETTERS, ERROR_MAPS),
    *(SCORE, ERROR, RATIO, BRIGHTNESS, SHARPNESS, DRIFT, DRIFT_WINDOW),
    *(THRESHOLD, EXPECTED, CALIBRATION, MODEL, TRAINED, DEVICE),
    *(BATCH_SIZE, WAIT, DECODE, INFERENCE, PUBLISH, COMMIT, COMMITTED, LATENCY, CLOCK_SKEW),
    *(LAG, ASSIGNED, PAUSED, IN_FLIGHT_RECORDS, IN_FLIGHT_BYTES, REBALANCES, REVOKED, REBUILDS),
    *(RELOADS, CONNECTED, READY, LAST_PROGRESS, MEMORY_LIMIT),
)


def table() -> str:
    """The table of all metrics, in Markdown."""
    rows = [
        f"| `{PREFIX}{metric.name}` | {metric.kind} | {', '.join(f'`{name}`' for name in metric.labels)} "
        f"| {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(["| metric | type | labels | what it says, and what to do |", "|---|---|---|---|", *rows])
