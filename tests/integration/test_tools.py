import gc
import json
import socket
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog

from tests.conftest import Broker
from tests.support.bundles import FATAL_PIXEL, SHAPE, tiny_images
from tests.support.kafka import produce, read_all
from worker import __main__ as cli
from worker import logs
from worker.core.bundle import Bundle
from worker.core.images import encode_png
from worker.core.records import OutRecord
from worker.core.verdicts import ModelName, SourcePosition, Verdict
from worker.settings_kafka import KafkaSettings
from worker.tools.watch import read_verdicts

Topics = Callable[..., str]


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[MutableMapping[str, Any]]]:
    monkeypatch.chdir(tmp_path)
    # Logging belongs to the whole process; tests/unit/test_logs.py tests it.
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def at(kafka: Broker) -> list[str]:
    """Flags that connect to the broker."""
    return ["--kafka.bootstrap-servers", kafka.bootstrap, "--start-timeout-s", "20"]


def options(kafka: Broker) -> dict[str, object]:
    return KafkaSettings(bootstrap_servers=kafka.bootstrap).client_options()


def verdict(number: int, score: float = 0.5) -> Verdict:
    return Verdict(
        version=1,
        id=f"image-{number}",
        stream="camera",
        status="judged",
        reason=None,
        source=SourcePosition("images", 0, number, 1),
        model=ModelName("tiny", "0123456789ab"),
        score=score,
        error=score,
        threshold=1.0,
        anomaly=score > 1,
        p_value=0.5,
        region=None,
        scored_at_ms=2,
    )


def publish(kafka: Broker, topic: str, values: list[bytes | None], partition: int = 0) -> None:
    produce(options(kafka), [OutRecord(topic, partition, b"k", value, []) for value in values])


def ready(count: int) -> list[bytes | None]:
    return [msgspec.json.encode(verdict(number)) for number in range(count)]


def test_feed_publishes_an_archive_to_all_partitions(
    kafka: Broker, topics: Topics, at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = topics(partitions=3)
    np.savez(tmp_path / "parts.npz", images=tiny_images(10), labels=np.arange(10))
    assert cli.main(["feed", "parts.npz", "--rate", "0", "--input-topic", topic, *at]) == 0
    assert f"published 10 images (0.0 MB) to '{topic}'" in capsys.readouterr().out
    records = read_all(options(kafka), topic, 10)
    assert [sum(record.partition == number for record in records) for number in range(3)] == [4, 3, 3]
    by_id = {dict(record.headers)["message-id"]: record for record in records}
    for number, image in enumerate(tiny_images(10)):
        record = by_id[f"parts-{number:06d}-label{number}".encode()]
        assert record.value == encode_png(image)
        assert record.key is None
        assert dict(record.headers)["content-type"] == b"image/png"


def test_feed_loops_until_the_count_with_one_key_in_one_partition(
    kafka: Broker, topics: Topics, at: list[str], tmp_path: Path
) -> None:
    topic = topics(partitions=3)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(name.encode())
    arguments = ["feed", "photos", "--rate", "0", "--loop", "--count", "5", "--key", "camera-7"]
    assert cli.main([*arguments, "--input-topic", topic, *at]) == 0
    records = read_all(options(kafka), topic, 5)
    assert [record.value for record in records] == [b"a.png", b"b.jpg", b"a.png", b"b.jpg", b"a.png"]
    assert {(record.partition, record.key) for record in records} == {(records[0].partition, b"camera-7")}


def test_feed_says_what_kafka_does_not_take(
    topics: Topics, at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "large.png").write_bytes(bytes(100_000))
    topic = topics(max_message_bytes=50_000)
    assert cli.main(["feed", "photos", "--input-topic", topic, *at]) == 4
    out, err = capsys.readouterr()
    assert "failed after 1 images, 0 of them acknowledged" in err
    assert "0 acknowledged" in out


@pytest.mark.parametrize("command", [["feed", "sample"], ["watch", "--once"]])
def test_a_missing_topic_exits_4(command: list[str], at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--input-topic", "not-there", "--output-topic", "not-there", *at]) == 4
    assert "topic 'not-there' does not exist" in capsys.readouterr().err


def test_watch_writes_what_is_there_as_json_lines(
    kafka: Broker,
    topics: Topics,
    at: list[str],
    capfdbinary: pytest.CaptureFixture[bytes],
    logged: list[MutableMapping[str, Any]],
) -> None:
    topic = topics(partitions=2)
    publish(kafka, topic, ready(3))
    publish(kafka, topic, [b"{}", None, b"no json"], partition=1)
    assert cli.main(["watch", "--once", "--output-topic", topic, *at]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert lines == ready(3)
    assert [line["bytes"] for line in logged] == [2, 0, 7]


def test_watch_of_an_empty_topic_ends(topics: Topics, at: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", "--once", "--output-topic", topics(), *at]) == 0
    assert capfd.readouterr().out == ""


def test_watch_ends_after_a_count(
    kafka: Broker, topics: Topics, at: list[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    topic = topics(partitions=1)
    publish(kafka, topic, ready(5))
    assert cli.main(["watch", "--from-beginning", "--count", "2", "--output-topic", topic, *at]) == 0
    assert len(capfdbinary.readouterr().out.splitlines()) == 2


def test_watching_shows_only_what_is_new_and_committed(kafka: Broker, topics: Topics) -> None:
    from kafka import KafkaProducer

    topic = topics(partitions=1)
    publish(kafka, topic, ready(2))
    batches = read_verdicts(options(kafka), topic, timeout_s=20)
    assert next(batches) == []
    producer = KafkaProducer(**options(kafka), transactional_id=topic)
    try:
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, b"aborted", partition=0).get(timeout=20)
        producer.abort_transaction()
    finally:
        producer.close()
    publish(kafka, topic, ready(1))
    seen = next(batch for batch in batches if batch)
    batches.close()
    assert [(one.value, one.verdict) for one in seen] == [(ready(1)[0], verdict(0))]


def test_the_board_is_shown_on_a_terminal(
    kafka: Broker, topics: Topics, at: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = topics(partitions=1)
    publish(kafka, topic, [*ready(3), msgspec.json.encode(verdict(3, score=2.5)), b"strange"])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["watch", "--once", "--output-topic", topic, *at]) == 0
    out = capsys.readouterr().out
    assert f"verdicts on '{topic}'" in out
    assert "image-3" in out
    assert "no verdicts" in out


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, image in enumerate(tiny_images(70, seed=3)):
        (tmp_path / f"{number:02d}.png").write_bytes(encode_png(image))
    (tmp_path / "broken.png").write_bytes(encode_png(tiny_images(1)[0])[:-20])
    (tmp_path / "fatal.png").write_bytes(encode_png(np.full(SHAPE, FATAL_PIXEL, np.uint8)))
    return tmp_path


def scored(bundle: Bundle, files: list[str], capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert cli.main(["score", str(bundle.folder), *files]) == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_score_gives_one_verdict_per_file_in_order(
    tiny_bundle: Bundle, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from worker.adapters.keras_scorer import KerasScorer

    files = (
        [f"{number:02d}.png" for number in range(40)] + ["broken.png"] + [f"{number}.png" for number in range(40, 70)]
    )
    found = scored(tiny_bundle, files, capfd)
    assert [one["id"] for one in found] == files
    assert [one["source"]["offset"] for one in found] == list(range(71))
    assert {(one["source"]["topic"], one["source"]["partition"]) for one in found} == {("file", 0)}
    assert found[40]["status"] == "unreadable"
    assert found[40]["reason"] == "truncated_image"
    judged = [one for one in found if one["status"] == "judged"]
    scores, _ = KerasScorer.load(tiny_bundle).score_all(tiny_images(70, seed=3))
    np.testing.assert_allclose([one["score"] for one in judged], scores, rtol=1e-4)
    for one in judged:
        assert one["anomaly"] == (one["score"] > one["threshold"])
    assert {one["model"]["version"] for one in found} == {tiny_bundle.model.version}


def test_score_gives_no_score_that_is_not_finite(
    fragile_bundle: Bundle, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = scored(fragile_bundle, ["00.png", "fatal.png", "01.png"], capfd)
    assert [one["reason"] for one in found] == [None, "non_finite_score", None]


def test_check_finds_no_problem_where_there_is_none(
    kafka: Broker, topics: Topics, at: list[str], tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    names = topics(), topics(), topics(max_message_bytes=8 << 20)
    flags = ["--input-topic", names[0], "--output-topic", names[1], "--dead-letter-topic", names[2]]
    assert cli.main(["check", "--bundle", str(tiny_bundle.folder), *flags, *at]) == 0
    assert capsys.readouterr().out.startswith("ok")


def test_check_lists_bundle_and_topics_together(
    kafka: Broker, topics: Topics, at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--input-topic", topics(), "--output-topic", topics(partitions=1), "--dead-letter-topic", "not-there"]
    assert cli.main(["check", "--bundle", "nowhere", *flags, *at]) == 3
    out = capsys.readouterr().out
    for words in ("no bundle at 'nowhere'", "has 1 partitions", "'not-there' does not exist"):
        assert words in out


def test_check_compares_the_settings_with_the_bundle(
    kafka: Broker, topics: Topics, at: list[str], tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    names = topics(), topics(), topics(max_message_bytes=8 << 20)
    flags = ["--input-topic", names[0], "--output-topic", names[1], "--dead-letter-topic", names[2]]
    arguments = ["check", "--bundle", str(tiny_bundle.folder), "--max-image-pixels", "63", *flags, *at]
    assert cli.main(arguments) == 2
    assert "--max-image-pixels is 63, the bundle's images have 64" in capsys.readouterr().out


# kafka-python leaves a socket open after each failed connection, until it is collected.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("command", [["feed", "sample"], ["watch"], ["check"]])
def test_an_unreachable_broker_exits_6(
    command: list[str], tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == ["check"]:
        command = ["check", "--bundle", str(tiny_bundle.folder)]
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        address = f"127.0.0.1:{held.getsockname()[1]}"
        assert cli.main([*command, "--kafka.bootstrap-servers", address, "--start-timeout-s", "1"]) == 6
    out, err = capsys.readouterr()
    assert f"no Kafka at {address}" in out + err
    gc.collect()
