import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import worker.scoring
import worker.watchdog
from worker.answering import Answers
from worker.core.batching import Batch, Batcher
from worker.core.errors import ExitCode
from worker.core.progress import Progress
from worker.scoring import ScoringThread
from worker.watchdog import Watchdog, stacks


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is slow, and not stuck, is waited for; the test of one that is stuck says otherwise."""
    monkeypatch.setattr(worker.watchdog, "REPORT_LIMIT_S", 60.0)


class FakeClock:
    """Time that passes when the test says so; counts how often it was read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0
        self.changed = threading.Condition()

    def monotonic(self) -> float:
        with self.changed:
            self.reads += 1
            self.changed.notify_all()
            return self.now

    def now_ms(self) -> int:
        return int(self.now * 1000)

    def advance(self, seconds: float) -> None:
        with self.changed:
            self.now += seconds

    def wait_for_reads(self, count: int) -> None:
        with self.changed:
            before = self.reads
            assert self.changed.wait_for(lambda: self.reads >= before + count, 20)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ended() -> list[int]:
    return []


@pytest.fixture
def threads(clock: FakeClock) -> list[Progress]:
    return [Progress("I/O", clock.now), Progress("scoring", clock.now)]


@pytest.fixture
def watchdog(clock: FakeClock, ended: list[int], threads: list[Progress]) -> Watchdog:
    return Watchdog(threads, 60, clock, ended.append)


def test_nothing_happens_up_to_the_limit(watchdog: Watchdog, clock: FakeClock, ended: list[int]) -> None:
    clock.advance(60)
    watchdog.check()
    assert ended == []
    assert watchdog.stalled() is None
    assert watchdog.age_s() == 60


@pytest.mark.parametrize("stuck", [0, 1])
def test_beyond_the_limit_the_process_ends_and_the_thread_is_named(
    watchdog: Watchdog,
    clock: FakeClock,
    ended: list[int],
    threads: list[Progress],
    stuck: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock.advance(50)
    threads[1 - stuck].done(clock.now)
    clock.advance(10.5)
    assert watchdog.age_s() == 60.5
    name = ("I/O", "scoring")[stuck]
    assert watchdog.stalled() == f"the {name} thread made no progress for 60 s"
    watchdog.check()
    assert ended == [5]
    assert f"the {name} thread made no progress for 60 s (limit 60 s)" in caplog.text


def test_progress_begins_the_wait_anew(
    watchdog: Watchdog, clock: FakeClock, ended: list[int], threads: list[Progress]
) -> None:
    for _ in range(10):
        clock.advance(59)
        for progress in threads:
            progress.done(clock.now)
        watchdog.check()
    assert ended == []


def test_the_log_says_where_every_thread_stands(
    watchdog: Watchdog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with hanging("the one that hangs"):
        clock.advance(61)
        watchdog.check()
    assert "thread the one that hangs:\n" in caplog.text
    assert "a_call_that_never_returns" in caplog.text
    assert "thread MainThread:\n" in caplog.text
    assert caplog.records[-1].levelno == logging.CRITICAL


def test_handlers_are_flushed_before_the_end(clock: FakeClock, threads: list[Progress]) -> None:
    happened: list[str] = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            happened.append("written")

        def flush(self) -> None:
            happened.append("flushed")

    with handling(Slow()):
        clock.advance(61)
        Watchdog(threads, 60, clock, lambda _: happened.append("ended")).check()
    assert happened == ["written", "flushed", "ended"]


def test_a_log_that_nobody_reads_does_not_keep_the_process(
    watchdog: Watchdog, clock: FakeClock, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            release.wait()

    monkeypatch.setattr(worker.watchdog, "REPORT_LIMIT_S", 0.05)
    clock.advance(61)
    try:
        with handling(Stuck()):
            watchdog.check()
            assert ended == [5]
            release.set()
    finally:
        release.set()


def test_the_thread_checks_by_itself_and_stops(
    clock: FakeClock, threads: list[Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.watchdog, "CHECK_INTERVAL_S", 0.005)
    ended: list[int] = []
    over = threading.Event()

    def end(status: int) -> None:
        ended.append(status)
        over.set()

    watchdog = Watchdog(threads, 60, clock, end)
    clock.advance(1000)  # before the start nothing is expected
    watchdog.start()
    clock.wait_for_reads(3)
    assert ended == []
    clock.advance(61)
    assert over.wait(20)
    watchdog.stop()
    assert set(ended) == {ExitCode.STALLED}
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_a_watchdog_that_never_started_can_be_stopped(watchdog: Watchdog) -> None:
    watchdog.stop()


def test_a_thread_that_waits_for_work_is_no_stall(
    clock: FakeClock, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.scoring, "IDLE_S", 0.005)

    class Idle:
        def answer(self, batch: Batch) -> Answers:
            raise AssertionError("there is no work")

    progress = Progress("scoring", clock.now)
    scoring = ScoringThread(Idle(), Batcher(8, 0.005), clock, progress)  # type: ignore[arg-type]  # never asked
    watchdog = Watchdog([progress], 60, clock, ended.append)
    scoring.start()
    try:
        for _ in range(3):
            clock.advance(1000)
            clock.wait_for_reads(3)  # at least one whole turn of the idle thread
            watchdog.check()
    finally:
        scoring.stop(20)
    assert ended == []
    assert progress.age(clock.now) == 0


def test_stacks_name_the_functions() -> None:
    with hanging("by name"):
        assert "thread by name:\n" in stacks()
        assert "a_call_that_never_returns" in stacks()


@contextmanager
def hanging(name: str) -> Iterator[None]:
    began, release = threading.Event(), threading.Event()

    def a_call_that_never_returns() -> None:
        began.set()
        release.wait()

    thread = threading.Thread(target=a_call_that_never_returns, name=name, daemon=True)
    thread.start()
    assert began.wait(20)
    try:
        yield
    finally:
        release.set()
        thread.join()


@contextmanager
def handling(handler: logging.Handler) -> Iterator[None]:
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def test_what_is_watched_may_change_and_gets_its_full_time(clock: FakeClock, ended: list[int]) -> None:
    starting, io = Progress("starting", clock.now), Progress("I/O", clock.now)
    watchdog = Watchdog([starting], 60, clock, ended.append)
    clock.advance(61)
    assert "starting" in (watchdog.stalled() or "")
    watchdog.watch([io])
    assert watchdog.stalled() is None
    clock.advance(61)
    assert "I/O" in (watchdog.stalled() or "")


def test_the_process_ends_where_no_thread_can_be_started(
    clock: FakeClock, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog = Watchdog([Progress("I/O", clock.now)], 60, clock, ended.append)

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    clock.advance(61)
    with pytest.raises(RuntimeError, match="can't start"):
        watchdog.check()
    assert ended == [ExitCode.STALLED]
