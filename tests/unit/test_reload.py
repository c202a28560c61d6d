"""Which bundles are taken, which are refused and how often, and that the reload thread is nobody else's problem."""

import logging
import os
import shutil
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.property.test_bundle import write_fake_bundle
from tests.support.memory import PixelScorer, SilentTelemetry
from worker.answering import Model
from worker.core.bundle import CURRENT, MANIFEST, REPORT, SCORER, Bundle, read_bundle
from worker.core.errors import BundleError
from worker.core.images import ImageSpec
from worker.core.verdicts import Judge
from worker.reload import Reloader, Sighting, sight


def changed(path: Path, change: Callable[[], object]) -> None:
    """Change a file at another time than the last: file systems' clocks tick every few milliseconds."""
    before = path.lstat().st_ctime_ns
    while path.lstat().st_ctime_ns == before:
        change()


def point(folder: Path, target: Path | str) -> None:
    """Replace the `current` link in one step, as training does."""
    link = folder / f".{CURRENT}.new"
    link.symlink_to(target)
    link.replace(folder / CURRENT)


def write(folder: Path, number: int, **manifest: object) -> Path:
    """A bundle of its own for each number."""
    return write_fake_bundle(folder, manifest={"created": f"2026-01-02T03:04:{number:02d}+00:00", **manifest})


class Bench:
    """A reloader on a folder with a `current` link; its scoring thread swaps at once unless `held`."""

    def __init__(self, folder: Path, interval_s: float = 0, late_after_s: float = 60) -> None:
        self.folder = folder
        self.first = write(folder, 0)
        point(folder, self.first)
        self.telemetry = SilentTelemetry()
        self.loaded: list[Path] = []
        self.announced: list[Path] = []
        self.swapping = threading.Event()
        self.held: list[Callable[[], None]] | None = None
        self.fails: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.loading = threading.Event()
        self.reloader = Reloader(
            folder / CURRENT,
            read_bundle(folder / CURRENT),
            interval_s=interval_s,
            load=self.load,
            replace=self.replace,
            announce=lambda bundle: self.announced.append(bundle.folder),
            telemetry=self.telemetry,
            late_after_s=late_after_s,
        )

    def load(self, bundle: Bundle) -> Model:
        self.loaded.append(bundle.folder)
        self.loading.set()
        self.gate.wait()
        if self.fails is not None:
            raise self.fails
        judge = Judge(bundle.model, float(bundle.threshold), np.ones(1, np.float32))
        return Model(PixelScorer(), judge, ImageSpec(8, 6, 1), lambda: None)

    def replace(self, model: Model, swapped: Callable[[], None]) -> None:
        if self.held is None:
            swapped()
        else:
            self.held.append(swapped)
        self.swapping.set()

    def look(self, *, asked: bool = False) -> None:
        self.reloader.look(asked=asked)

    def damage(self, folder: Path) -> Path:
        """Flip a bit of a bundle's scorer; its manifest still says what it said."""
        path = folder / SCORER
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return folder


@pytest.fixture
def bench_at(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes a bench whose thread looks every so many seconds; whatever the test does, the thread ends."""
    made: list[Bench] = []

    def make(interval_s: float, late_after_s: float = 60) -> Bench:
        made.append(Bench(tmp_path, interval_s, late_after_s))
        return made[-1]

    yield make
    for bench in made:
        bench.gate.set()
        bench.reloader.stop()


@pytest.fixture
def bench(bench_at: Callable[[float], Bench]) -> Bench:
    return bench_at(0)


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_new_bundle_is_swapped_in_once(bench: Bench) -> None:
    bench.look()
    assert bench.loaded == []
    second = write(bench.folder, 1)
    bench.look()
    assert bench.loaded == [], "nobody has switched to it yet"
    point(bench.folder, second)
    for _ in range(3):
        bench.look()
    assert bench.loaded == bench.announced == [second]
    assert bench.telemetry.reloads == ["swapped"]
    point(bench.folder, bench.first)
    bench.look()
    assert bench.announced == [second, bench.first]


def test_the_same_bundle_in_another_folder_is_another(bench: Bench, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / bench.first.name
    shutil.copytree(bench.first, moved)
    point(bench.folder, moved)
    bench.look()
    assert bench.announced == [moved]


def test_touching_the_files_in_use_reloads_nothing(bench: Bench) -> None:
    for name in (MANIFEST, SCORER):
        os.utime(bench.first / name)
    bench.look()
    assert bench.loaded == []


def test_a_bad_bundle_is_refused_once_and_loudly(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bad = bench.damage(write(bench.folder, 1))
    point(bench.folder, bad)
    for _ in range(3):
        bench.look()
    assert bench.loaded == bench.announced == []
    assert bench.telemetry.reloads == ["refused"]
    [error] = errors_of(caplog)
    assert all(part in error for part in ("refused", SCORER, "SHA-256", f"'{bench.first.name}' goes on"))


def test_a_request_tries_again_and_is_answered(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.look(asked=True)
    assert "in use already" in caplog.text
    point(bench.folder, write(bench.folder, 1))
    bench.fails = MemoryError("the GPU is full")
    for asked in (False, False, True):
        bench.look(asked=asked)
    assert bench.telemetry.reloads == ["refused", "refused"]
    assert len(errors_of(caplog)) == 2
    bench.fails = None
    bench.look(asked=True)
    assert bench.telemetry.reloads[2:] == ["swapped"]


def test_a_repaired_bundle_is_swapped_in(bench: Bench) -> None:
    bundle = write(bench.folder, 1)
    whole = (bundle / SCORER).read_bytes()
    point(bench.folder, bench.damage(bundle))
    bench.look()
    before = (bundle / SCORER).stat()
    (bundle / SCORER).write_bytes(whole)
    # The same size, the same inode, and a copy that keeps the date.
    changed(bundle / SCORER, lambda: os.utime(bundle / SCORER, ns=(before.st_atime_ns, before.st_mtime_ns)))
    bench.look()
    assert bench.telemetry.reloads == ["refused", "swapped"]
    assert bench.announced == [bundle]


def test_a_bundle_that_is_still_being_copied_is_logged_once_for_each_cause(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    whole = write(bench.folder, 1)
    copy = bench.folder / "copy" / whole.name
    copy.mkdir(parents=True)
    point(bench.folder, copy)
    bench.look()
    shutil.copy(whole / MANIFEST, copy)
    bench.look()
    for size in (10, 20, 30):
        (copy / SCORER).write_bytes((whole / SCORER).read_bytes()[:size])
        bench.look()
    assert len(errors_of(caplog)) == 3  # no manifest, no scorer, a report or scorer that is missing or damaged
    shutil.copytree(whole, copy, dirs_exist_ok=True)
    bench.look()
    assert bench.announced == [copy]


def test_what_the_loader_raises_unforeseen_is_logged_with_its_traceback(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    point(bench.folder, write(bench.folder, 1))
    bench.fails = RuntimeError("nobody thought of this")
    bench.look()
    assert "RuntimeError: nobody thought of this" in errors_of(caplog)[0]
    assert "Traceback" in caplog.text
    caplog.clear()
    point(bench.folder, write(bench.folder, 2))
    bench.fails = BundleError("golden images")
    bench.look()
    assert "golden images" in errors_of(caplog)[0]
    assert "Traceback" not in caplog.text


def test_a_missing_bundle_is_refused_once_and_its_return_is_no_event(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    (bench.folder / CURRENT).unlink()
    bench.look()
    bench.look()
    point(bench.folder, bench.first)
    bench.look()
    assert bench.telemetry.reloads == ["refused"]
    assert len(errors_of(caplog)) == 1
    (bench.folder / CURRENT).unlink()
    bench.look()
    assert len(errors_of(caplog)) == 2, "it went away again"


def test_another_shape_is_taken_with_a_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    point(bench.folder, write(bench.folder, 1, input_shape=[16, 16, 3]))
    bench.look()
    assert bench.telemetry.reloads == ["swapped"]
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "16x16x3" in warning
    assert "8x6x1" in warning


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff" * 10, b'{"digest": "\xff"}', b'{"digest": 7}', b'{"x": ' + b"[" * 100_000, b"x" * (3 << 20)],
    ids=["empty", "cut", "no text", "bad text", "number", "deep", "large"],
)
def test_any_manifest_can_be_looked_at(bench: Bench, content: bytes) -> None:
    folder = write(bench.folder, 1)
    (folder / MANIFEST).write_bytes(content)
    point(bench.folder, folder)
    bench.look()
    bench.look()
    assert bench.telemetry.reloads == ["refused"]


def test_a_pipe_in_place_of_the_manifest_blocks_nothing(bench: Bench) -> None:
    folder = write(bench.folder, 1)
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    point(bench.folder, folder)
    bench.look()
    assert bench.telemetry.reloads == ["refused"]


def test_a_sighting_sees_every_file(tmp_path: Path) -> None:
    folder = write(tmp_path, 0)
    whole = sight(folder)
    assert whole == sight(folder)
    assert whole.digest.startswith(folder.name.removeprefix("fake-"))
    for name in (MANIFEST, SCORER, REPORT):
        before = sight(folder)
        changed(folder / name, lambda path=folder / name: path.write_bytes(path.read_bytes()))  # type: ignore[misc]
        assert sight(folder) != before
        assert sight(folder).identity == whole.identity
    assert sight(tmp_path / "nowhere").digest == ""


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["first", "second", "third", "bad", "worse", "missing"]), max_size=12))
@example(["bad", "second", "bad"])
def test_the_last_good_one_that_was_pointed_at_is_in_use(targets: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        # A collection takes long where a model's library is loaded, and is not what this is about.
        patch.setattr("worker.reload.gc", types.SimpleNamespace(collect=lambda: None))
        bench = Bench(Path(name))
        folders = {
            "first": bench.first,
            "second": write(bench.folder, 1),
            "third": write(bench.folder, 2),
            "bad": bench.damage(write(bench.folder, 3)),
            "worse": bench.damage(write(bench.folder, 4)),
            "missing": bench.folder / "nothing",
        }
        good = {"first", "second", "third"}
        in_use, tried, expected = "first", "first", []
        for target in targets:
            point(bench.folder, folders[target])
            bench.look()
            if target not in {in_use, tried}:
                expected.append("swapped" if target in good else "refused")
            tried = target
            in_use = target if target in good else in_use
            assert bench.telemetry.reloads == expected
            assert (bench.announced or [bench.first])[-1] == folders[in_use]


def test_the_thread_looks_at_intervals(bench_at: Callable[[float], Bench]) -> None:
    bench = bench_at(0.02)
    bench.reloader.start()
    point(bench.folder, write(bench.folder, 1))
    assert bench.swapping.wait(20)
    bench.reloader.stop()


def test_without_an_interval_it_looks_when_asked(bench: Bench) -> None:
    bench.reloader.start()
    point(bench.folder, write(bench.folder, 1))
    assert not bench.swapping.wait(0.3)
    for _ in range(3):
        bench.reloader.request()
    assert bench.swapping.wait(20)
    bench.reloader.stop()
    assert bench.telemetry.reloads == ["swapped"]


def test_no_second_model_is_loaded_before_the_first_is_in(bench_at: Callable[[float], Bench]) -> None:
    bench = bench_at(0.02)
    bench.held = []
    bench.reloader.start()
    second = write(bench.folder, 1)
    point(bench.folder, second)
    assert bench.swapping.wait(20)
    bench.swapping.clear()
    third = write(bench.folder, 2)
    point(bench.folder, third)
    assert not bench.swapping.wait(0.3), "two models wait for the scoring thread"
    assert bench.loaded == [second]
    bench.held.pop()()
    assert bench.swapping.wait(20)
    assert bench.loaded == [second, third]
    bench.reloader.stop(timeout_s=60)
    assert not bench.reloader._thread.is_alive(), "it waits for a scoring thread that is gone"


def test_a_loader_that_hangs_does_not_keep_the_worker_from_stopping(bench: Bench) -> None:
    bench.gate.clear()
    bench.reloader.start()
    point(bench.folder, write(bench.folder, 1))
    bench.reloader.request()
    assert bench.loading.wait(20)
    assert not bench.reloader.stop(timeout_s=0.1), "the interpreter must not be taken down under native code"
    assert bench.reloader._thread.daemon
    bench.gate.set()
    assert bench.reloader.stop(timeout_s=60)


def test_a_loader_that_hangs_is_told_of(bench_at: Callable[..., Bench]) -> None:
    bench = bench_at(0, late_after_s=0.1)
    bench.gate.clear()
    point(bench.folder, write(bench.folder, 1))
    told: SimpleQueue[str] = SimpleQueue()

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.put(record.getMessage())

    teller = Teller(logging.ERROR)
    logging.getLogger("worker.reload").addHandler(teller)
    try:
        bench.reloader.start()
        bench.reloader.request()
        assert "is not loaded after 0 s" in told.get(timeout=20)
        bench.gate.set()
        assert bench.swapping.wait(20)
        assert bench.reloader.stop(timeout_s=60)
    finally:
        logging.getLogger("worker.reload").removeHandler(teller)
    assert told.empty()


def test_a_look_that_fails_is_logged_and_not_the_last(
    bench_at: Callable[[float], Bench], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = bench_at(0.02)
    failures = [RuntimeError("a defect")]

    def failing(path: Path) -> Sighting:
        if failures:
            raise failures.pop()
        return sight(path)

    monkeypatch.setattr("worker.reload.sight", failing)
    point(bench.folder, write(bench.folder, 1))
    bench.reloader.start()
    assert bench.swapping.wait(20)
    bench.reloader.stop()
    assert "a defect" in caplog.text


def test_a_stop_before_the_start_is_no_error(bench: Bench) -> None:
    assert bench.reloader.stop()
