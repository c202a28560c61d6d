"""The worker as a process, against a real Kafka: killed, stopped, misled."""

import json
import shutil
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploy.local_kafka import KafkaCluster
from tests.conftest import Broker
from tests.support.bundles import FATAL_PIXEL, SHAPE, tiny_images
from tests.support.kafka import committed, produce, read_all
from tests.support.processes import WorkerProcess
from worker.adapters.clients import KAFKA_PYTHON
from worker.core.bundle import Bundle
from worker.core.errors import ExitCode
from worker.core.images import encode_png
from worker.core.records import OutRecord

# More than are answered before the kill comes.
WAITING = 6_000


class Lane:
    """Three topics of a test's own, and the settings of a worker on them."""

    def __init__(
        self, kafka: Broker, topics: Callable[..., str], bundle: Bundle, client_name: str = KAFKA_PYTHON
    ) -> None:
        self.options = {"bootstrap_servers": kafka.bootstrap}
        self.input, self.output, self.letters = topics(), topics(), topics(max_message_bytes=1_200_000)
        self.group = f"lane-{uuid.uuid4().hex[:12]}"
        self.settings: dict[str, object] = {
            "bundle": bundle.folder,
            "kafka__bootstrap_servers": kafka.bootstrap,
            "kafka__client": client_name,
            "input_topic": self.input,
            "output_topic": self.output,
            "dead_letter_topic": self.letters,
            "group_id": self.group,
            "http_port": 0,
            "log_format": "json",
        }

    def feed(self, count: int) -> None:
        images = tiny_images(count, seed=count)
        produce(self.options, [OutRecord(self.input, i % 3, None, images[i].tobytes(), []) for i in range(count)])

    def positions(self, at_least: int) -> Counter[tuple[int, int]]:
        answers = [json.loads(record.value or b"") for record in read_all(self.options, self.output, at_least)]
        return Counter((answer["source"]["partition"], answer["source"]["offset"]) for answer in answers)

    def wait_answered(self, count: int, worker: WorkerProcess, timeout_s: float = 60) -> None:
        """Until so many messages have an answer; one that was answered twice counts once."""
        pause = threading.Event()
        deadline = time.monotonic() + timeout_s
        while len(self.positions(at_least=0)) < count:
            assert time.monotonic() < deadline, f"not {count} messages have an answer:\n{worker.text}"
            pause.wait(0.2)


@pytest.fixture
def lane(kafka: Broker, topics: Callable[..., str], tiny_bundle: Bundle) -> Lane:
    return Lane(kafka, topics, tiny_bundle)


def expected(count: int) -> set[tuple[int, int]]:
    return {(i % 3, i // 3) for i in range(count)}


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_kill_loses_nothing_and_a_stop_repeats_nothing(lane: Lane, tmp_path: Path, delivery: str) -> None:
    # The model is made slow by small batches, so that the kill comes in the middle.
    small: dict[str, object] = {"max_batch_size": 8, "max_in_flight_records": 64, "commit_interval_ms": 50}
    settings = {**lane.settings, **small, "delivery": delivery}
    lane.feed(WAITING)
    with WorkerProcess(tmp_path / "first.log", settings) as worker:
        pause = threading.Event()
        while worker.url is None or worker.metric("reconstream_messages_total") < 500:
            assert worker.process.poll() is None, worker.text
            pause.wait(0.02)
        worker.process.kill()
        worker.wait()
    answered_by_first = sum(lane.positions(at_least=0).values())
    assert 300 <= answered_by_first < WAITING, "the kill did not come in the middle"
    with WorkerProcess(tmp_path / "second.log", settings) as worker:
        worker.wait_ready()
        lane.wait_answered(WAITING, worker)
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    answers = lane.positions(at_least=WAITING)
    assert set(answers) == expected(WAITING)
    repeated = sum(answers.values()) - WAITING
    assert repeated <= (64 if delivery == "at_least_once" else 0), "more repeated than may be in flight"
    assert committed(lane.options, lane.group, lane.input) == dict.fromkeys(range(3), WAITING // 3)

    # And after the clean stop: a third worker has nothing left to do but what is new.
    before = sum(answers.values())
    lane.feed(300)
    with WorkerProcess(tmp_path / "third.log", settings) as worker:
        again = lane.positions(at_least=before + 300)
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert sum(again.values()) == before + 300
    assert set(again) == expected(WAITING + 300)


def test_metrics_and_health_while_it_runs(lane: Lane, tmp_path: Path) -> None:
    lane.feed(30)
    with WorkerProcess(tmp_path / "worker.log", lane.settings) as worker:
        worker.wait_ready()
        lane.positions(at_least=30)
        assert worker.get("/livez")[0] == 200
        status, metrics = worker.get("/metrics")
        assert worker.get("/nothing")[0] == 404
        assert worker.terminate() == ExitCode.STOPPED
    assert status == 200
    assert 'reconstream_messages_total{status="judged",stream="none"} 30.0' in metrics
    lines = [json.loads(line) for line in worker.text.splitlines() if line.startswith("{")]
    assert any("settings" in line["event"] for line in lines)
    assert any("CPU" in line["event"] for line in lines)


def bad_inputs() -> list[tuple[str, bytes | None, list[tuple[str, bytes]]]]:
    good = tiny_images(1)[0]
    png = encode_png(good)
    ok, jpeg = cv2.imencode(".jpg", good)
    assert ok
    huge = bytearray(png)
    huge[16:24] = (30_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    fatal = good.copy()
    fatal[0, 0, 0] = FATAL_PIXEL
    return [
        ("null_value", None, []),
        ("empty_value", b"", []),
        ("not_an_image", b"this is no image", []),
        ("truncated_image", png[: len(png) // 2], []),
        ("truncated_image", jpeg.tobytes()[: len(jpeg) // 2], []),
        ("wrong_size", encode_png(np.zeros((9, 8, 1), np.uint8)), []),
        ("too_many_pixels", bytes(huge), []),
        ("bad_base64", b'{"image": "@@@@"}', []),
        ("bad_json", b"[1, 2]", [("content-type", b"application/json")]),
        ("unknown_content_type", png, [("content-type", b"image/webp")]),
        ("non_finite_score", fatal.tobytes(), []),
    ]


def test_every_bad_input_is_answered_and_lettered_and_its_neighbours_are_judged(
    kafka: Broker, topics: Callable[..., str], fragile_bundle: Bundle, tmp_path: Path
) -> None:
    lane = Lane(kafka, topics, fragile_bundle)
    bad = bad_inputs()
    good = tiny_images(len(bad))
    records = []
    for image, (_, value, headers) in zip(good, bad, strict=True):
        records += [
            OutRecord(lane.input, 0, b"k", value, headers),
            OutRecord(lane.input, 0, b"k", image.tobytes(), []),
        ]
    # Converted by documented rules, hence good: 16 bit, three channels.
    deep = cv2.imencode(".png", np.full((8, 8), 65535, np.uint16))[1].tobytes()
    colour = cv2.imencode(".png", np.full((8, 8, 3), 100, np.uint8))[1].tobytes()
    records += [OutRecord(lane.input, 0, b"k", value, []) for value in (deep, colour)]
    produce(lane.options, records)
    with WorkerProcess(tmp_path / "worker.log", lane.settings) as worker:
        answers = [json.loads(r.value or b"") for r in read_all(lane.options, lane.output, len(records))]
        letters = read_all(lane.options, lane.letters, len(bad))
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert [answer["source"]["offset"] for answer in answers] == list(range(len(records)))
    assert [answer["reason"] for answer in answers[: 2 * len(bad) : 2]] == [reason for reason, _, _ in bad]
    assert {answer["status"] for answer in answers[1 : 2 * len(bad) : 2]} == {"judged"}
    assert [answer["status"] for answer in answers[2 * len(bad) :]] == ["judged", "judged"]
    assert [(letter.key, letter.value) for letter in letters] == [(b"k", value) for _, value, _ in bad]


def test_twenty_megabytes_are_answered_too(
    kafka: Broker, topics: Callable[..., str], tiny_bundle: Bundle, tmp_path: Path, client_name: str
) -> None:
    lane = Lane(kafka, topics, tiny_bundle, client_name)
    lane.input, lane.letters = topics(max_message_bytes=25 << 20), topics(max_message_bytes=26 << 20)
    settings = {
        **lane.settings,
        "input_topic": lane.input,
        "dead_letter_topic": lane.letters,
        "max_message_bytes": 25 << 20,
    }
    value = np.random.default_rng(1).bytes(20 << 20)
    produce(
        lane.options,
        [
            OutRecord(lane.input, 0, b"before", tiny_images(1)[0].tobytes(), []),
            OutRecord(lane.input, 0, b"big", value, []),
            OutRecord(lane.input, 0, b"after", tiny_images(1)[0].tobytes(), []),
        ],
    )
    with WorkerProcess(tmp_path / "worker.log", settings) as worker:
        answers = [json.loads(r.value or b"") for r in read_all(lane.options, lane.output, 3, timeout_s=90)]
        [letter] = read_all({**lane.options, "max_partition_fetch_bytes": 32 << 20}, lane.letters, 1)
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert [answer["status"] for answer in answers] == ["judged", "unreadable", "judged"]
    assert letter.value == value


def test_over_sasl_ssl_with_scram(
    secure_kafka: KafkaCluster, tiny_bundle: Bundle, tmp_path: Path, client_name: str
) -> None:
    names = [f"secure-{part}-{uuid.uuid4().hex[:8]}" for part in ("in", "out", "dead")]
    secure_kafka.create_topics(
        {names[0]: (1, {}), names[1]: (1, {}), names[2]: (1, {"max.message.bytes": 1_200_000})}
    )
    settings = {
        "bundle": tiny_bundle.folder,
        "kafka__client": client_name,
        "input_topic": names[0],
        "output_topic": names[1],
        "dead_letter_topic": names[2],
        "kafka__bootstrap_servers": secure_kafka.bootstrap_for("SASL_SSL"),
        "kafka__security_protocol": "SASL_SSL",
        "kafka__sasl_mechanism": "SCRAM-SHA-512",
        "kafka__sasl_username": "app",
        "kafka__sasl_password": secure_kafka.app_password,
        "kafka__ssl_ca_file": secure_kafka.ca_file,
        "http_port": 0,
    }
    plain = {"bootstrap_servers": secure_kafka.bootstrap}
    produce(plain, [OutRecord(names[0], 0, None, image.tobytes(), []) for image in tiny_images(20)])
    with WorkerProcess(tmp_path / "worker.log", settings) as worker:
        assert len(read_all(plain, names[1], 20, timeout_s=90)) == 20
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert secure_kafka.app_password not in worker.text

    wrong = {**settings, "kafka__sasl_password": "not-the-password", "start_timeout_s": 5}
    with WorkerProcess(tmp_path / "wrong.log", wrong) as worker:
        assert worker.wait() == ExitCode.KAFKA_UNREACHABLE, worker.text
    assert "sasl" in worker.text.lower(), "the message names the security settings as a likely cause"
    assert "not-the-password" not in worker.text


def tampered(bundle: Bundle, folder: Path) -> Path:
    copy = folder / bundle.folder.name
    shutil.copytree(bundle.folder, copy)
    scorer = copy / "scorer.keras"
    content = bytearray(scorer.read_bytes())
    content[len(content) // 2] ^= 1
    scorer.write_bytes(content)
    return copy


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"max_batch_size": "many"}, ExitCode.BAD_CONFIGURATION, ["max-batch-size", "many"]),
        ({"bundle": "/nowhere/at/all"}, ExitCode.BAD_BUNDLE, ["/nowhere/at/all"]),
        ({"bundle": "tampered"}, ExitCode.BAD_BUNDLE, ["scorer.keras", "SHA-256"]),
        (
            {"kafka__bootstrap_servers": "127.0.0.1:1", "start_timeout_s": 3},
            ExitCode.KAFKA_UNREACHABLE,
            ["127.0.0.1:1"],
        ),
        ({"input_topic": "no-such-topic"}, ExitCode.KAFKA_REFUSED, ["no-such-topic"]),
    ],
    ids=["setting", "missing-bundle", "tampered-bundle", "unreachable", "missing-topic"],
)
def test_what_is_wrong_at_the_start_has_its_exit_code_and_one_helpful_message(
    lane: Lane, tiny_bundle: Bundle, tmp_path: Path, change: dict[str, Any], code: ExitCode, says: list[str]
) -> None:
    if change == {"bundle": "tampered"}:
        change = {"bundle": tampered(tiny_bundle, tmp_path)}
    with WorkerProcess(tmp_path / "worker.log", {**lane.settings, **change}) as worker:
        assert worker.wait() == code, worker.text
    assert all(word in worker.text for word in says), worker.text
    assert "Traceback" not in worker.text
    message = [line for line in worker.text.splitlines() if not line.startswith("{")]
    assert 1 <= len(message) <= 5, worker.text


def test_a_stop_while_it_starts(lane: Lane, tmp_path: Path) -> None:
    with WorkerProcess(tmp_path / "worker.log", lane.settings) as worker:
        for _ in range(600):
            if worker.url is not None or worker.process.poll() is not None:
                break
            threading.Event().wait(0.05)
        assert worker.terminate() == ExitCode.STOPPED, worker.text


def test_a_stop_while_it_waits_for_kafka(lane: Lane, tmp_path: Path) -> None:
    settings = {**lane.settings, "kafka__bootstrap_servers": "127.0.0.1:1", "start_timeout_s": 300}
    with WorkerProcess(tmp_path / "worker.log", settings) as worker:
        for _ in range(600):
            if "asking Kafka" in worker.text:
                break
            threading.Event().wait(0.05)
        assert worker.terminate(timeout=20) == ExitCode.STOPPED, worker.text


def test_the_bundle_path_may_be_the_folder_above(lane: Lane, tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert (tiny_bundle.folder.parent / "current").resolve() == tiny_bundle.folder
    lane.feed(3)
    with WorkerProcess(tmp_path / "worker.log", {**lane.settings, "bundle": tiny_bundle.folder.parent}) as worker:
        answers = [json.loads(record.value or b"") for record in read_all(lane.options, lane.output, 3, 90)]
        assert worker.terminate() == ExitCode.STOPPED
    assert {answer["model"]["version"] for answer in answers} == {tiny_bundle.manifest.version}
    assert tiny_bundle.manifest.input_shape == SHAPE
