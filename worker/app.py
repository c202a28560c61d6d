"""The composition root: the only place that builds adapters and wires them together.

Order of a start: bundle, HTTP (so that probes are answered while the model loads), Kafka's topics, model, group.
What is wrong is found in the order of what it costs to find it.
"""

import importlib.metadata
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from prometheus_client import CollectorRegistry, ProcessCollector

from worker.adapters import kafka_admin
from worker.adapters.http_server import HttpServer
from worker.adapters.kafka_publisher import KafkaPublisher
from worker.adapters.kafka_source import KafkaSource
from worker.adapters.prometheus import PrometheusTelemetry
from worker.adapters.system_clock import SystemClock
from worker.core.batching import Batcher
from worker.core.bundle import Bundle, read_bundle
from worker.core.errors import ConfigurationError, ExitCode
from worker.core.progress import Progress
from worker.core.records import SourceRecord, header
from worker.core.verdicts import Judge
from worker.pipeline import Limits, Pipeline
from worker.scoring import Answerer, Model, ScoringThread
from worker.settings import RunSettings
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)

MAX_STREAM_CHARACTERS = 128
UNNAMED_STREAM = "none"
MIN_IN_FLIGHT_POLLS = 2
MAX_POLL_RECORDS = 500


class Readiness:
    """What is still missing before the worker can do its work. Read by the HTTP threads."""

    def __init__(self) -> None:
        self._pending = "starting"
        self._checks: Sequence[Callable[[], Sequence[str]]] = ()

    def waiting_for(self, what: str) -> None:
        """Not ready, because of one thing."""
        self._pending = what

    def decided_by(self, *checks: Callable[[], Sequence[str]]) -> None:
        """From now on, ready when none of these finds anything missing."""
        self._checks = checks
        self._pending = ""

    def missing(self) -> list[str]:
        """What is missing; nothing means ready."""
        if self._pending:
            return [self._pending]
        return [what for check in self._checks for what in check()]


class StopRequest:
    """SIGTERM and SIGINT: the first asks the pipeline to finish, the second to stop at once."""

    def __init__(self) -> None:
        self.requested = False
        self._stop: Callable[[], None] | None = None

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """Only sets flags: a handler may run between any two instructions of the main thread."""
        self.requested = True
        if self._stop is not None:
            self._stop()

    def goes_to(self, stop: Callable[[], None]) -> None:
        """Pass requests on, one that came before included."""
        self._stop = stop
        if self.requested:
            stop()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(settings: RunSettings) -> ExitCode:
    """Work until asked to stop.

    Raises:
        ReconstreamError: with the exit code that says why the worker cannot start or go on.
    """
    stop = StopRequest()
    with stop.installed(), ExitStack() as resources:
        return _run(settings, stop, resources)


def _run(settings: RunSettings, stop: StopRequest, resources: ExitStack) -> ExitCode:
    clock = SystemClock()
    bundle = read_bundle(settings.bundle)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    telemetry = PrometheusTelemetry(registry, clock)
    readiness = Readiness()
    io_progress, scoring_progress = (Progress(name, clock.monotonic()) for name in ("I/O", "scoring"))
    watchdog = Watchdog([io_progress, scoring_progress], settings.stall_timeout_s, clock)
    http = HttpServer(settings.http_host, settings.http_port, registry, watchdog.stalled, readiness.missing)
    resources.callback(http.close)
    telemetry.watch(missing=readiness.missing, progress_age_s=watchdog.age_s)
    log.info("serving %s/metrics, /livez and /readyz", http.url)

    readiness.waiting_for("Kafka's topics")
    limits = _check_topics(settings)
    readiness.waiting_for("the model")
    model = _load(bundle, settings, telemetry)

    readiness.waiting_for("the consumer group")
    max_poll_records = max(1, min(MAX_POLL_RECORDS, settings.max_in_flight_records // MIN_IN_FLIGHT_POLLS))
    options = settings.kafka.client_options()
    publisher = KafkaPublisher(options, max_message_bytes=settings.max_message_bytes, topic_limits=limits)
    resources.callback(publisher.close)
    source = KafkaSource(
        options,
        topic=settings.input_topic,
        group_id=settings.group_id,
        max_poll_records=max_poll_records,
        max_message_bytes=settings.max_message_bytes,
    )
    resources.callback(source.close)
    answerer = Answerer(
        model,
        output_topic=settings.output_topic,
        stream_of=stream_naming(settings.stream_from),
        carry_headers=settings.carried_headers,
        clock=clock,
        telemetry=telemetry,
    )
    batcher = Batcher(settings.max_batch_size, settings.max_batch_delay_ms / 1000)
    scoring = ScoringThread(answerer, batcher, clock, scoring_progress)
    pipeline = Pipeline(
        source=source,
        publisher=publisher,
        scoring=scoring,
        clock=clock,
        telemetry=telemetry,
        limits=Limits(
            max_poll_records=max_poll_records,
            max_in_flight_records=settings.max_in_flight_records,
            max_in_flight_bytes=settings.max_in_flight_bytes,
            commit_interval_s=settings.commit_interval_ms / 1000,
            drain_timeout_s=settings.drain_timeout_s,
            max_dead_letter_ratio=settings.max_dead_letter_ratio,
            dead_letter_window=settings.dead_letter_window,
        ),
        dead_letter_topic=settings.dead_letter_topic,
        worker_version=importlib.metadata.version("reconstream"),
        progress=io_progress,
    )
    stop.goes_to(pipeline.request_stop)
    readiness.decided_by(
        source.missing, lambda: ["recovering: reading the committed positions"] if pipeline.recovering else []
    )
    watchdog.start()
    resources.callback(watchdog.stop)
    outcome = pipeline.run()
    readiness.waiting_for("nothing: the worker is stopping")
    return outcome


def _check_topics(settings: RunSettings) -> dict[str, int]:
    """Refuse topics that would lose something; returns `max.message.bytes` by topic, where it may be seen."""
    options, topics = settings.kafka.client_options(), settings.topics
    if settings.create_topics:
        for name in kafka_admin.create_topics(
            options,
            *topics,
            settings.create_topics_partitions,
            settings.create_topics_replication_factor,
            settings.start_timeout_s,
        ):
            log.info("created topic '%s'", name)
    problems = kafka_admin.inspect(options, *topics, settings.max_message_bytes, settings.start_timeout_s)
    if problems:
        raise kafka_admin.error_of(problems)
    return kafka_admin.topic_limits(options, topics, settings.start_timeout_s)


def _load(bundle: Bundle, settings: RunSettings, telemetry: PrometheusTelemetry) -> Model:
    """Load, verify and warm up the bundle's model."""
    from worker.adapters import keras_scorer  # noqa: PLC0415 - imports Keras: seconds, and only after the checks

    manifest = bundle.manifest
    try:
        spec = bundle.image_spec(max_bytes=settings.max_message_bytes, max_pixels=settings.max_image_pixels)
    except ValueError as error:
        raise ConfigurationError(f"the bundle's images do not fit the settings: {error}") from error
    keras_scorer.select_backend(manifest.serving.backend)
    keras_scorer.prepare_device()
    scorer = keras_scorer.KerasScorer.load(bundle, settings.max_batch_size)
    scorer.warm_up()
    telemetry.set_model(
        bundle.model,
        threshold=manifest.threshold.value,
        quantiles=manifest.calibration_quantiles,
        backend=manifest.serving.backend,
        precision=manifest.serving.precision,
    )
    kind, name = scorer.device
    telemetry.set_device(kind, name)
    log.info("scoring with %s on %s (%s); threshold %s", bundle.folder.name, kind, name, bundle.threshold)
    judge = Judge(bundle.model, float(bundle.threshold), bundle.calibration.scores)
    return Model(scorer, judge, spec, keras_scorer.golden_check(scorer, bundle))


def stream_naming(rule: str) -> Callable[[SourceRecord], str]:
    """How a record's stream (camera, line) is named.

    Args:
        rule: `key`, `partition`, `none` or `header:NAME`.
    """

    def text(value: bytes | None) -> str:
        return value.decode(errors="replace")[:MAX_STREAM_CHARACTERS] if value else UNNAMED_STREAM

    if rule == "key":
        return lambda record: text(record.key)
    if rule == "partition":
        return lambda record: str(record.partition)
    if rule.startswith("header:"):
        name = rule.removeprefix("header:")
        return lambda record: text(header(record.headers, name))
    return lambda _: UNNAMED_STREAM
