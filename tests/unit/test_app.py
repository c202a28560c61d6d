import os
import signal
import threading

import pytest

from worker.app import Readiness, SignalRequest, stream_naming
from worker.core.records import Headers, Record

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
