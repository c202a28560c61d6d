"""The composition root: the only place that builds adapters and wires them together.

Order of a start: bundle, HTTP (so that probes are answered while the model loads), Kafka's topics, model, group.
What is wrong is found in the order of what it costs to find it.
"""

import gc
import importlib.metadata
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from types import FrameType

import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector

from worker.adapters import kafka_admin, topic_rules
from worker.adapters.clients import Client, client
from worker.adapters.http_server import HttpServer
from worker.adapters.memory_limit import memory_limit_bytes
from worker.adapters.prometheus import PrometheusTelemetry
from worker.adapters.system_clock import SystemClock
from worker.answering import Answerer, Model
from worker.companions import Companions
from worker.core.batching import Batcher
from worker.core.bundle import Bundle, read_bundle
from worker.core.errors import ConfigurationError, ExitCode, ReconstreamError
from worker.core.progress import Progress
from worker.core.streams import stream_naming
from worker.core.verdicts import Judge
from worker.delivery import AtLeastOnce, ExactlyOnce, Guarantee
from worker.localisation import Localiser
from worker.pipeline import Limits, Pipeline
from worker.ports import Publisher, Source
from worker.reload import Reloader
from worker.scoring import ScoringThread
from worker.settings import RunSettings
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)

SCORING_END_S = 1.0
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


class _StoppedAtStart(BaseException):
    """A signal came while the worker started. No Exception: nothing may take it for a failure of its own."""


class SignalRequest:
    """What signals ask of the worker; passed on as soon as there is somebody who can do it.

    Args:
        numbers: the signals.
        ends_start: before that, a request ends the start, whatever it waits for: nothing is in flight yet.
    """

    def __init__(self, *numbers: signal.Signals, ends_start: bool = False) -> None:
        self._numbers = numbers
        self._ends_start = ends_start
        self._early = 0  # requests that came before there was anybody
        self._do: Callable[[], None] | None = None

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """Does next to nothing: a handler may run between any two instructions of the main thread."""
        if self._do is not None:
            self._do()
        elif self._ends_start:
            raise _StoppedAtStart
        else:
            self._early += 1

    def goes_to(self, do: Callable[[], None]) -> None:
        """Pass requests on, those that came before included. `do` must be safe in a signal handler."""
        # Blocked, so that a request that comes right now is passed on once: by the handler, or from here.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        self._do, early, self._early = do, self._early, 0
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        for _ in range(early):
            do()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle) for number in self._numbers}
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
    # The first asks the pipeline to finish, the second to stop at once.
    stop = SignalRequest(signal.SIGTERM, signal.SIGINT, ends_start=True)
    reload = SignalRequest(signal.SIGHUP)
    with stop.installed(), reload.installed(), ExitStack() as resources:
        try:
            outcome, idle = _run(settings, stop, reload, resources)
        except _StoppedAtStart:
            log.info("stopped while starting; nothing was read")
            outcome, idle = ExitCode.STOPPED, False
    if not idle:
        # Native code, a model call or a half-done import, that still runs when the interpreter is taken down ends in
        # a segmentation fault.
        code = outcome if isinstance(outcome, ExitCode) else _code_of(outcome)
        logging.shutdown()
        os._exit(code)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _code_of(error: Exception) -> ExitCode:
    """Log what would have been raised; its exit code."""
    if isinstance(error, ReconstreamError):
        log.error("%s", error)
        return error.exit_code
    log.error("a defect: please report it", exc_info=error)
    return ExitCode.DEFECT


def _run(
    settings: RunSettings, stop: SignalRequest, reload: SignalRequest, resources: ExitStack
) -> tuple[ExitCode | Exception, bool]:
    """The exit code, or what ended the pipeline, and whether the threads that run native code have ended."""
    clock = SystemClock()
    adapters = client(settings.kafka.client)
    bundle = read_bundle(settings.bundle)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    telemetry = PrometheusTelemetry(registry, clock)
    readiness = Readiness()
    # The start has a progress of its own: the threads that come later are not there yet, and it may hang as they may.
    starting, io_progress, scoring_progress = (
        Progress(name, clock.monotonic()) for name in ("starting", "I/O", "scoring")
    )
    watchdog = Watchdog([starting], settings.stall_timeout_s, clock)

    def step(allowed_s: float = 0.0) -> None:
        """Something is done; what comes next may wait for Kafka for so long, which is no stall."""
        starting.done(clock.monotonic() + allowed_s)

    http = HttpServer(settings.http_host, settings.http_port, registry, watchdog.stalled, readiness.missing)
    resources.callback(http.close)
    resources.callback(watchdog.stop)  # after everything that closes later, and may hang
    telemetry.watch(missing=readiness.missing, progress_age_s=watchdog.age_s, memory_limit_bytes=memory_limit_bytes)
    watchdog.start()
    log.info("serving %s/metrics, /livez and /readyz", http.url)

    readiness.waiting_for("Kafka's topics")
    log.info("asking Kafka at %s for the topics", settings.kafka.bootstrap_servers)
    step(settings.start_timeout_s)
    limits = _check_topics(settings)
    step()
    readiness.waiting_for("the model")
    _prepare_backend(bundle)
    step()
    model = _load(bundle, settings, telemetry, step)
    step()
    announce(bundle, telemetry)
    log.info("localisation: %s", localisation(settings))

    readiness.waiting_for("the consumer group")
    step(settings.start_timeout_s)
    options = settings.kafka.client_options()
    source = adapters.source(
        options,
        topic=settings.input_topic,
        group_id=settings.group_id,
        group_instance_id=settings.kafka.group_instance_id,
        max_message_bytes=settings.max_message_bytes,
        start_timeout_s=settings.start_timeout_s,
    )
    resources.callback(source.close)
    step()
    publisher, guarantee = _delivery(settings, adapters, source, limits)
    resources.callback(publisher.close)
    answerer = Answerer(
        model,
        output_topic=settings.output_topic,
        stream_of=stream_naming(settings.stream_from),
        carry_headers=settings.carried_headers,
        clock=clock,
        telemetry=telemetry,
        progress=scoring_progress,
        max_age_ms=settings.max_age_ms,
    )
    batcher = Batcher(settings.max_batch_size, settings.max_batch_delay_ms / 1000)
    scoring = ScoringThread(answerer, batcher, clock, scoring_progress)
    pipeline = Pipeline(
        source=source,
        publisher=publisher,
        guarantee=guarantee,
        scoring=scoring,
        companions=Companions(
            settings.dead_letter_topic,
            map_topic=settings.maps_to,
            map_bytes=0 if settings.maps_to is None else model.spec.height * model.spec.width,
            worker_version=importlib.metadata.version("reconstream"),
            accepts=publisher.accepts,
            clock=clock,
            telemetry=telemetry,
            max_ratio=settings.max_dead_letter_ratio,
            window=settings.dead_letter_window,
        ),
        clock=clock,
        telemetry=telemetry,
        limits=Limits(
            max_poll_records=max(1, min(MAX_POLL_RECORDS, settings.max_in_flight_records // MIN_IN_FLIGHT_POLLS)),
            max_in_flight_records=settings.max_in_flight_records,
            max_in_flight_bytes=settings.max_in_flight_bytes,
            max_message_bytes=settings.max_message_bytes,
            commit_interval_s=settings.commit_interval_ms / 1000,
            drain_timeout_s=settings.drain_timeout_s,
            refusal_timeout_s=settings.refusal_timeout_s,
        ),
        progress=io_progress,
    )
    stop.goes_to(pipeline.request_stop)
    readiness.decided_by(source.missing, lambda: _unready(pipeline))
    watchdog.watch([io_progress, scoring_progress])
    reloader = Reloader(
        settings.bundle,
        bundle,
        interval_s=settings.reload_interval_s,
        load=lambda found: _load(found, settings, telemetry),
        replace=scoring.replace,
        announce=lambda found: announce(found, telemetry),
        telemetry=telemetry,
        late_after_s=settings.stall_timeout_s,
    )
    reloader.start()
    resources.callback(reloader.stop)
    reload.goes_to(reloader.request)
    outcome: ExitCode | Exception
    try:
        outcome = pipeline.run()
    except Exception as error:  # noqa: BLE001 - raised when these threads have ended
        outcome = error
    readiness.waiting_for("nothing: the worker is stopping")
    idle = [reloader.stop(), scoring.stop(SCORING_END_S)]
    return outcome, all(idle)


def _unready(pipeline: Pipeline) -> list[str]:
    """What of the pipeline itself keeps the worker from being ready."""
    if pipeline.stopping:
        return ["nothing: the worker is stopping"]
    return ["recovering: reading the committed positions"] if pipeline.recovering else []


def _delivery(
    settings: RunSettings, adapters: Client, source: Source, topic_limits: Mapping[str, int]
) -> tuple[Publisher, Guarantee]:
    """Publisher and guarantee for the delivery that the settings ask for."""
    options = settings.kafka.client_options()
    if settings.delivery == "at_least_once":
        publisher = adapters.publisher(
            options, max_message_bytes=settings.max_message_bytes, topic_limits=topic_limits
        )
        return publisher, AtLeastOnce(source)
    transactions = adapters.transactions(
        options,
        max_message_bytes=settings.max_message_bytes,
        topic_limits=topic_limits,
        id_prefix=settings.kafka.transactional_id_prefix,
    )
    return transactions, ExactlyOnce(transactions)


def _check_topics(settings: RunSettings) -> dict[str, int]:
    """Refuse topics that would lose something; returns `max.message.bytes` by topic, where it may be seen."""
    options, topics = settings.kafka.client_options(), settings.topics
    if settings.create_topics:
        for name in kafka_admin.create_topics(
            options,
            topics,
            settings.create_topics_partitions,
            settings.create_topics_replication_factor,
            settings.start_timeout_s,
        ):
            log.info("created topic '%s'", name)
    problems = kafka_admin.inspect(options, topics, settings.max_message_bytes, settings.start_timeout_s)
    if problems:
        raise topic_rules.error_of(problems)
    return kafka_admin.topic_limits(options, topics, settings.start_timeout_s)


def _prepare_backend(bundle: Bundle) -> None:
    """Import and set up what the bundle's model runs on. Once, before the first model."""
    from worker.adapters import keras_scorer  # noqa: PLC0415 - imports Keras: seconds, and only after the checks

    keras_scorer.select_backend(bundle.manifest.serving.backend)
    keras_scorer.prepare_device()
    # The libraries' own objects stay for good. Kept out of every later collection, which stops all threads, they
    # shorten it from 0.17 s to 0.01 s. Before the first model: a reload must be able to release that one.
    gc.collect()
    gc.freeze()


def _load(
    bundle: Bundle,
    settings: RunSettings,
    telemetry: PrometheusTelemetry,
    step: Callable[[], None] = lambda: None,
) -> Model:
    """Load, verify and warm up the bundle's model; `step` is called after each part that may take long.

    Any thread may, while another model scores.
    """
    from worker.adapters import keras_scorer  # noqa: PLC0415 - imports Keras: seconds, and only after the checks

    try:
        spec = bundle.image_spec(max_bytes=settings.max_message_bytes, max_pixels=settings.max_image_pixels)
    except ValueError as error:
        raise ConfigurationError(f"the bundle's images do not fit the settings: {error}") from error
    scorer = keras_scorer.KerasScorer.load(bundle, settings.max_batch_size)
    step()
    localised = settings.localisation != "off"
    scorer.warm_up(step, reconstructions=localised)
    kind, name = scorer.device
    telemetry.set_device(kind, name)
    log.info("loaded %s on %s (%s); threshold %s", bundle.folder.name, kind, name, bundle.threshold)
    judge = Judge(bundle.model, float(bundle.threshold), bundle.calibration.scores)
    localiser = Localiser(scorer.reconstruct, map_topic=settings.maps_to, telemetry=telemetry) if localised else None
    return Model(scorer, judge, spec, keras_scorer.golden_check(scorer, bundle), localiser)


def localisation(settings: RunSettings) -> str:
    """What the worker says at its start of regions and error maps."""
    if settings.localisation == "off":
        return "off"
    maps = "" if settings.maps_to is None else f", and its error map goes to '{settings.maps_to}'"
    return f"an anomaly's verdict names its region{maps}"


def announce(bundle: Bundle, telemetry: PrometheusTelemetry) -> None:
    """Tell which bundle judges from now on."""
    manifest = bundle.manifest
    telemetry.set_model(
        bundle.model,
        threshold=manifest.threshold.value,
        expected=expected_anomaly_ratio(bundle),
        quantiles=manifest.calibration_quantiles,
        errors=bundle.calibration.errors,
        trained_s=unix_time(manifest.created),
        backend=manifest.serving.backend,
        precision=manifest.serving.precision,
    )


def expected_anomaly_ratio(bundle: Bundle) -> dict[str, float]:
    """The false-positive rate that the threshold stands for, by bound: what it was fitted for, else calibration's."""
    threshold, scores = bundle.manifest.threshold, bundle.calibration.scores
    share = float(np.mean(scores > bundle.threshold))
    if "percentile" in threshold.parameters:
        share = (100 - threshold.parameters["percentile"]) / 100
    share = threshold.parameters.get("false_positive_rate", share)
    if threshold.interval is None:
        return {"expected": share}
    lower, upper = threshold.interval
    return {"lower": lower, "expected": share, "upper": upper}


def unix_time(iso: str) -> float | None:
    """Seconds since the epoch of a time in ISO 8601, UTC where it names no zone; None where it is something else."""
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
