"""Bundles exchanged under a real worker: at a signal, by polling, good ones and bad ones, again and again."""

import json
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Broker
from tests.integration.test_worker_process import Lane, expected, tampered
from tests.support.bundles import tiny_images, with_false_golden, write_tiny_bundle
from tests.support.kafka import produce, read_all
from tests.support.processes import WorkerProcess
from worker.core.bundle import CURRENT, SCORER, Bundle
from worker.core.errors import ExitCode
from worker.core.records import OutRecord

# Far more than a test lasts: what happens, happens at the signal.
NEVER_S = 86_400
MIB = 1 << 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Two bundles of other weights and thresholds."""
    folder = tmp_path_factory.mktemp("pair")
    return write_tiny_bundle(folder, "one", seed=1), write_tiny_bundle(folder, "two", seed=2)


def point(folder: Path, target: Path) -> None:
    folder.mkdir(exist_ok=True)
    link = folder / f".{CURRENT}.new"
    link.symlink_to(target)
    link.replace(folder / CURRENT)


def offline(bundle: Bundle, images: Any) -> Any:
    """Scores of images uint8 (N, H, W, C), float32 (N,), by the bundle's own scorer in this process."""
    from worker.adapters.keras_scorer import KerasScorer

    return KerasScorer.load(bundle).score_all(images)[0]


def reloads(worker: WorkerProcess, outcome: str) -> float:
    found = re.search(rf'^reconstream_reloads_total{{outcome="{outcome}"}} (\S+)$', worker.get("/metrics")[1], re.M)
    assert found is not None
    return float(found[1])


def resident_bytes(worker: WorkerProcess) -> float:
    found = re.search(r"^process_resident_memory_bytes (\S+)$", worker.get("/metrics")[1], re.M)
    assert found is not None
    return float(found[1])


def wait_for(condition: Callable[[], bool], worker: WorkerProcess, timeout_s: float = 30) -> None:
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.05)):
        assert worker.process.poll() is None, worker.text
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError(f"the condition did not come true in time:\n{worker.text}")


def start(lane: Lane, log: Path, folder: Path, **changes: object) -> WorkerProcess:
    settings = {**lane.settings, "bundle": folder / CURRENT, "reload_interval_s": NEVER_S, **changes}
    return WorkerProcess(log, settings)


def test_a_signal_swaps_under_load_and_no_verdict_mixes_two_models(
    kafka: Broker, topics: Callable[..., str], pair: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    count, image_count = 12_000, 50
    lane = Lane(kafka, topics, pair[0])
    point(tmp_path / "models", pair[0].folder)
    images = tiny_images(image_count, seed=7)
    records = [OutRecord(lane.input, i % 3, None, images[i % image_count].tobytes(), []) for i in range(count)]
    scores = {bundle.manifest.version: offline(bundle, images) for bundle in pair}
    # Small batches, so that many are under way while the new model is loaded.
    with start(lane, tmp_path / "worker.log", tmp_path / "models", max_batch_size=8) as worker:
        worker.wait_ready()
        feeder = threading.Thread(target=produce, args=(lane.options, records))
        feeder.start()
        lane.positions(at_least=100)
        point(tmp_path / "models", pair[1].folder)
        worker.process.send_signal(signal.SIGHUP)
        wait_for(lambda: reloads(worker, "swapped") == 1, worker)
        feeder.join()
        produce(lane.options, records[:300])
        answers = read_all(lane.options, lane.output, count + 300, timeout_s=90)
        metrics = worker.get("/metrics")[1]
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert len(answers) == count + 300
    thresholds = {bundle.manifest.version: float(bundle.threshold) for bundle in pair}
    order = [bundle.manifest.version for bundle in pair]
    seen: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for answer in answers:
        verdict = json.loads(answer.value or b"")
        version, source = verdict["model"]["version"], verdict["source"]
        index = (source["offset"] * 3 + source["partition"]) % image_count if source["offset"] < count // 3 else None
        if index is not None:
            assert verdict["score"] == pytest.approx(float(scores[version][index]), rel=1e-4)
        assert verdict["threshold"] == thresholds[version]
        assert verdict["anomaly"] == (np.float32(verdict["score"]) > np.float32(verdict["threshold"]))
        seen[answer.partition].append(version)
    for versions in seen.values():
        assert versions == sorted(versions, key=order.index), "the old model judged after the new one"
        assert set(versions) == set(order)
    assert f'version="{order[1]}"}} 1.0' in next(
        line for line in metrics.splitlines() if line.startswith("reconstream_model_info{")
    )


def test_a_corrupt_bundle_is_refused_and_a_repaired_one_is_taken_by_polling(
    kafka: Broker, topics: Callable[..., str], pair: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    lane = Lane(kafka, topics, pair[0])
    point(tmp_path / "models", pair[0].folder)
    bad = tampered(pair[1], tmp_path)
    with start(lane, tmp_path / "worker.log", tmp_path / "models", reload_interval_s=0.1) as worker:
        worker.wait_ready()
        point(tmp_path / "models", bad)
        wait_for(lambda: reloads(worker, "refused") == 1, worker)
        lane.feed(30)
        lane.positions(at_least=30)
        assert (reloads(worker, "refused"), reloads(worker, "swapped")) == (1, 0), "it was tried again and again"
        shutil.copy(pair[1].folder / SCORER, bad / SCORER)
        wait_for(lambda: reloads(worker, "swapped") == 1, worker)
        lane.feed(60)
        answers = [json.loads(record.value or b"") for record in read_all(lane.options, lane.output, 90)]
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    versions = [answer["model"]["version"] for answer in answers if answer["source"]["offset"] < 10]
    assert set(versions) == {pair[0].manifest.version}
    versions = [answer["model"]["version"] for answer in answers if answer["source"]["offset"] >= 10]
    assert set(versions) == {pair[1].manifest.version}
    lines = [json.loads(line) for line in worker.text.splitlines() if line.startswith("{")]
    [refusal] = [line for line in lines if line.get("level") == "error"]
    assert "SHA-256" in refusal["event"]
    assert pair[0].folder.name in refusal["event"]


def test_a_bundle_that_fails_its_golden_images_is_refused_under_load_and_the_old_one_answers_everything(
    kafka: Broker, topics: Callable[..., str], pair: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    lane = Lane(kafka, topics, pair[0])
    point(tmp_path / "models", pair[0].folder)
    false = with_false_golden(pair[1], tmp_path)
    images = [image.tobytes() for image in tiny_images(100)]
    produced = [0]
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            produce(lane.options, [OutRecord(lane.input, i % 3, None, image, []) for i, image in enumerate(images)])
            produced[0] += len(images)

    feeder = threading.Thread(target=load)
    with start(lane, tmp_path / "worker.log", tmp_path / "models", reload_interval_s=0.1, max_batch_size=8) as worker:
        worker.wait_ready()
        feeder.start()
        try:
            lane.positions(at_least=100)
            point(tmp_path / "models", false)
            wait_for(lambda: reloads(worker, "refused") == 1, worker)
            after = produced[0] + 2 * len(images)
            wait_for(lambda: produced[0] >= after, worker)
        finally:
            stop.set()
            feeder.join()
        answers = read_all(lane.options, lane.output, produced[0], timeout_s=60)
        counts = {outcome: reloads(worker, outcome) for outcome in ("refused", "swapped")}
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert counts == {"refused": 1, "swapped": 0}
    verdicts = [json.loads(answer.value or b"") for answer in answers]
    assert len(verdicts) == produced[0]
    assert {verdict["model"]["version"] for verdict in verdicts} == {pair[0].manifest.version}
    assert {verdict["status"] for verdict in verdicts} == {"judged"}
    lines = [json.loads(line) for line in worker.text.splitlines() if line.startswith("{")]
    [refusal] = [line["event"] for line in lines if line.get("level") == "error"]
    assert f"golden images of '{false.name}'" in refusal
    assert f"'{pair[0].folder.name}' goes on judging" in refusal


def test_ten_swaps_keep_no_memory_and_a_stop_in_the_middle_of_one_is_clean(
    kafka: Broker, topics: Callable[..., str], pair: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    lane = Lane(kafka, topics, pair[0])
    point(tmp_path / "models", pair[0].folder)
    with start(lane, tmp_path / "worker.log", tmp_path / "models") as worker:
        worker.wait_ready()

        def swap(number: int) -> None:
            point(tmp_path / "models", pair[number % 2].folder)
            worker.process.send_signal(signal.SIGHUP)

        def swap_and_wait(number: int) -> None:
            swap(number)
            wait_for(lambda: reloads(worker, "swapped") == number, worker)

        for number in range(1, 4):  # until the allocator has what two models need
            swap_and_wait(number)
        before = resident_bytes(worker)
        for number in range(4, 14):
            swap_and_wait(number)
        grown = resident_bytes(worker) - before
        lane.feed(30)
        assert set(lane.positions(at_least=30)) == expected(30)
        swap(14)
        wait_for(lambda: worker.text.count("loading the bundle") == 14, worker)
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    print(f"10 swaps: {grown / MIB:+.1f} MiB")
    assert grown < 12 * MIB, f"ten swaps took {grown / MIB:.1f} MiB for good"


def test_old_records_expire_and_their_neighbours_are_judged(
    kafka: Broker, topics: Callable[..., str], pair: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    lane = Lane(kafka, topics, pair[0])
    point(tmp_path / "models", pair[0].folder)
    lane.feed(30)
    with start(lane, tmp_path / "worker.log", tmp_path / "models", max_age_ms=1) as worker:
        # By the time that a worker has started, what was there before is older than a millisecond.
        answers = [json.loads(record.value or b"") for record in read_all(lane.options, lane.output, 30, 90)]
        assert {(answer["status"], answer["reason"]) for answer in answers} == {("expired", "too_old")}
        metrics = worker.get("/metrics")[1]
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert 'reconstream_messages_total{status="expired",stream="none"} 30.0' in metrics
    lane.feed(30)
    with start(lane, tmp_path / "worker.log", tmp_path / "models", max_age_ms=10 * 60_000) as worker:
        answers = [json.loads(record.value or b"") for record in read_all(lane.options, lane.output, 60, 90)]
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert [answer["status"] for answer in answers].count("judged") == 30
    assert read_all(lane.options, lane.letters) == []
