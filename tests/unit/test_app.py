import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.property.test_bundle import QUANTILES, THRESHOLD, write_fake_bundle
from worker.adapters.prometheus import PrometheusTelemetry
from worker.adapters.system_clock import SystemClock
from worker.app import (
    Readiness,
    SignalRequest,
    _unready,
    announce,
    expected_anomaly_ratio,
    localisation,
    run,
    unix_time,
)
from worker.core.bundle import read_bundle
from worker.core.errors import ExitCode, KafkaRefused
from worker.core.records import Headers, Record
from worker.core.streams import stream_naming
from worker.settings import RunSettings, load

STOPS = (signal.SIGTERM, signal.SIGINT)


class Pipeline:
    """Counts the requests: the first drains, the second aborts."""

    def __init__(self) -> None:
        self.requests = 0

    def request_stop(self) -> None:
        self.requests += 1


def test_every_signal_is_passed_on() -> None:
    stop, pipeline = SignalRequest(*STOPS), Pipeline()
    stop.goes_to(pipeline.request_stop)
    assert pipeline.requests == 0
    stop.handle(signal.SIGTERM, None)
    assert pipeline.requests == 1
    stop.handle(signal.SIGTERM, None)
    assert pipeline.requests == 2


def test_a_signal_during_the_start_is_kept() -> None:
    stop, pipeline = SignalRequest(*STOPS), Pipeline()
    stop.handle(signal.SIGINT, None)
    stop.goes_to(pipeline.request_stop)
    assert pipeline.requests == 1
    stop.handle(signal.SIGINT, None)
    assert pipeline.requests == 2


def test_without_a_signal_nothing_is_asked() -> None:
    stop, pipeline = SignalRequest(*STOPS), Pipeline()
    with stop.installed():
        stop.goes_to(pipeline.request_stop)
    assert pipeline.requests == 0


@pytest.mark.parametrize("number", STOPS)
def test_signals_are_handled_within_the_block_only(number: signal.Signals) -> None:
    stop, pipeline = SignalRequest(*STOPS), Pipeline()
    stop.goes_to(pipeline.request_stop)
    before = [signal.getsignal(each) for each in (*STOPS, signal.SIGHUP)]
    with stop.installed():
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_BLOCK, [])  # a system call: the handler has run after it
        assert pipeline.requests == 1
        assert signal.getsignal(signal.SIGHUP) == before[-1]
    assert [signal.getsignal(each) for each in (*STOPS, signal.SIGHUP)] == before


def test_the_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="mine"), SignalRequest(*STOPS).installed():
        raise RuntimeError("mine")
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    seen: list[object] = []

    def run() -> None:
        with SignalRequest(*STOPS).installed():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_start_is_ready_only_when_its_checks_find_nothing() -> None:
    readiness = Readiness()
    assert readiness.missing() == ["starting"]
    readiness.waiting_for("the model")
    assert readiness.missing() == ["the model"]
    first: list[str] = ["no partitions are assigned"]
    second: list[str] = []
    readiness.decided_by(lambda: first, lambda: second)
    assert readiness.missing() == ["no partitions are assigned"]
    second.append("recovering")
    assert readiness.missing() == ["no partitions are assigned", "recovering"]
    first.clear()
    second.clear()
    assert readiness.missing() == []
    second.append("recovering")
    assert readiness.missing() == ["recovering"]


def test_a_pipeline_is_ready_while_it_neither_recovers_nor_stops() -> None:
    pipeline: Any = SimpleNamespace(stopping=False, recovering=False)
    assert _unready(pipeline) == []
    pipeline.recovering = True
    assert _unready(pipeline) == ["recovering: reading the committed positions"]
    # While it drains: an orchestrator sends it nothing more, and waits for its successor.
    pipeline.stopping = True
    assert _unready(pipeline) == ["nothing: the worker is stopping"]


def test_a_worker_that_stops_is_not_ready() -> None:
    readiness = Readiness()
    readiness.decided_by(list)
    assert readiness.missing() == []
    readiness.waiting_for("nothing: the worker is stopping")
    assert readiness.missing() == ["nothing: the worker is stopping"]


@pytest.mark.parametrize(
    ("rule", "key", "headers", "stream"),
    [
        ("key", b"camera-1", [], "camera-1"),
        ("key", "Kamera-ß".encode(), [], "Kamera-ß"),
        ("key", b"\xffcamera", [], "\ufffdcamera"),
        ("key", b"", [], "none"),
        ("key", None, [], "none"),
        ("key", b"x" * 128, [], "x" * 128),
        ("key", b"x" * 129, [], "x" * 128),
        ("key", "ü".encode() * 129, [], "ü" * 128),
        ("partition", b"camera-1", [], "3"),
        ("none", b"camera-1", [("line", b"7")], "none"),
        ("header:line", b"camera-1", [("line", b"7"), ("line", b"8")], "7"),
        ("header:line", b"camera-1", [("other", b"7")], "none"),
        ("header:line", b"camera-1", [("line", None)], "none"),
        ("header:line", b"camera-1", [("line", b"")], "none"),
        ("header:a:b", None, [("a:b", b"7")], "7"),
        ("header:header:x", None, [("header:x", b"7")], "7"),
    ],
)
def test_how_a_stream_is_named(rule: str, key: bytes | None, headers: Headers, stream: str) -> None:
    assert stream_naming(rule)(Record("images", 3, 7, key=key, headers=headers)) == stream


def test_a_signal_ends_a_start_that_waits() -> None:
    stop = SignalRequest(*STOPS, ends_start=True)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - it is private, and no Exception
        stop.handle(signal.SIGTERM, None)
    assert not isinstance(caught.value, Exception)
    pipeline = Pipeline()
    stop.goes_to(pipeline.request_stop)
    stop.handle(signal.SIGTERM, None)
    assert pipeline.requests == 1


class Left(BaseException):
    """In place of the process's end."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KafkaRefused("Kafka refuses"), ExitCode.KAFKA_REFUSED, "Kafka refuses"),
        (ValueError("nobody foresaw it"), ExitCode.DEFECT, "a defect"),
    ],
)
def test_what_ends_the_pipeline_while_the_model_is_at_work_has_its_exit_code(
    error: Exception, code: ExitCode, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def leave(status: int) -> None:
        assert status == code
        raise Left

    monkeypatch.setattr("worker.app.os._exit", leave)
    settings = load(RunSettings, ["--bundle=models/current"], "run")
    monkeypatch.setattr("worker.app._run", lambda *_: (error, False))
    with pytest.raises(Left):
        run(settings)
    assert said in caplog.text
    monkeypatch.setattr("worker.app._run", lambda *_: (error, True))
    with pytest.raises(type(error)):
        run(settings)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "off"),
        (["--localisation=regions"], "an anomaly's verdict names its region"),
        (
            ["--localisation=maps", "--map-topic=heat"],
            "an anomaly's verdict names its region, and its error map goes to 'heat'",
        ),
    ],
)
def test_what_the_start_says_of_localisation(arguments: list[str], said: str) -> None:
    assert localisation(load(RunSettings, ["--bundle=models/current", *arguments], "run")) == said


@pytest.mark.parametrize(
    ("iso", "seconds"),
    [
        ("2026-01-02T03:04:05+00:00", 1767323045.0),
        ("2026-01-02T05:04:05+02:00", 1767323045.0),
        ("2026-01-02T03:04:05", 1767323045.0),
        ("yesterday", None),
        ("", None),
    ],
)
def test_the_time_of_a_bundle(iso: str, seconds: float | None) -> None:
    assert unix_time(iso) == seconds


@pytest.mark.parametrize(
    ("change", "ratios"),
    [
        ({"interval": [0.002, 0.05]}, {"lower": 0.002, "expected": 0.01, "upper": 0.05}),
        # Of the nine scores from 0.1 to 0.9 two are above 0.75.
        ({"method": "mean_plus_k_std", "parameters": {"k": 3.0}, "interval": None}, {"expected": 2 / 9}),
        ({"method": "conformal", "parameters": {"false_positive_rate": 0.02}, "interval": None}, {"expected": 0.02}),
        ({"parameters": {}, "interval": None}, {"expected": 2 / 9}),
    ],
)
def test_the_expected_ratio_is_the_percentiles_or_the_calibrations(
    tmp_path: Path, change: dict[str, Any], ratios: dict[str, float]
) -> None:
    bundle = read_bundle(write_fake_bundle(tmp_path, manifest={"threshold": {**THRESHOLD, **change}}))
    assert expected_anomaly_ratio(bundle) == pytest.approx(ratios)


@pytest.mark.parametrize("more", [{}, {"brightness": {"0.5": 0.3}, "sharpness": {"0.5": 0.1}}], ids=["old", "new"])
def test_an_older_bundle_is_announced_with_what_it_has(tmp_path: Path, more: dict[str, Any]) -> None:
    bundle = read_bundle(write_fake_bundle(tmp_path, manifest={"calibration_quantiles": {**QUANTILES, **more}}))
    registry = CollectorRegistry()
    announce(bundle, PrometheusTelemetry(registry, SystemClock()))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"reconstream_{name}", {**labels, "version": bundle.model.version})

    assert value("model_trained_timestamp_seconds") == 1767323045
    assert value("expected_anomaly_ratio", bound="upper") == 0.05
    assert value("reconstruction_error_count") == 0
    assert value("image_brightness_count") == (0 if more else None)
    assert value("calibration_quantile", quantity="sharpness", level="0.5") == (0.1 if more else None)
