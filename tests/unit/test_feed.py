import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from numpy.typing import NDArray

from worker.core.errors import ConfigurationError, KafkaRefused, KafkaUnreachable
from worker.core.images import ImageSpec, decode, encode_png
from worker.tools import feed
from worker.tools.feed import Counts, Message, array_message, publish, source_messages

IMAGES: NDArray[np.uint8] = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)


def archive(folder: Path, **arrays: Any) -> Path:
    path = folder / "line.npz"
    np.savez(path, **arrays)
    return path


def messages(source: Path | str, encoding: feed.Encoding = "png") -> list[Message]:
    size, read = source_messages(str(source), encoding)
    found = list(read())
    assert len(found) == size
    assert list(read()) == found, "a source can be read again"
    return found


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x_test", "y_test")])
@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_an_archive_gives_its_images_with_labels_in_their_ids(
    images: str, labels: str, encoding: feed.Encoding, tmp_path: Path
) -> None:
    path = archive(tmp_path, **{images: IMAGES, labels: np.array([7, 1, 0, 9], np.uint8)})
    found = messages(path, encoding)
    assert [message.id for message in found] == [
        "line-000000-label7",
        "line-000001-label1",
        "line-000002-label0",
        "line-000003-label9",
    ]
    for message, image in zip(found, IMAGES, strict=True):
        decoded = decode(message.value, message.content_type, ImageSpec(6, 5, 1))
        np.testing.assert_array_equal(decoded.image[..., 0], image)


def test_a_label_chooses_an_archive_s_images(tmp_path: Path) -> None:
    path = archive(tmp_path, images=IMAGES, labels=np.array([7, 1, 0, 1], np.uint8))
    size, read = feed.source_messages(str(path), "png", 1)
    assert size == 2
    assert [message.id for message in read()] == ["line-000001-label1", "line-000003-label1"]
    assert len(list(read())) == 2


def test_a_label_that_chooses_nothing_is_refused(tmp_path: Path) -> None:
    labelled = archive(tmp_path, images=IMAGES, labels=np.array([7, 1, 0, 1], np.uint8))
    with pytest.raises(ConfigurationError, match=r"no image of .* has it; there are 0, 1, 7"):
        feed.source_messages(str(labelled), "png", 2)
    with pytest.raises(ConfigurationError, match="has no labels"):
        feed.source_messages(str(archive(tmp_path, images=IMAGES)), "png", 1)
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"--label is for an \.npz"):
        feed.source_messages(str(tmp_path), "png", 1)


def test_labels_are_optional_and_colour_is_fine(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    found = messages(archive(tmp_path, images=colour))
    assert [message.id for message in found] == ["line-000000", "line-000001"]
    np.testing.assert_array_equal(decode(found[1].value, "image/png", ImageSpec(3, 4, 3)).image, colour[1])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": IMAGES}, "pictures"),
        ({"images": IMAGES.astype(np.float32)}, "float32"),
        ({"images": IMAGES[..., np.newaxis].repeat(2, axis=-1)}, r"\(4, 6, 5, 2\)"),
        ({"images": IMAGES[:0]}, r"\(0, 6, 5\)|\(0, 6, 5, 1\)"),
        ({"images": IMAGES, "labels": np.zeros(3)}, r"labels are \(3,\), expected \(4,\)"),
        ({"images": np.array([None])}, "cannot be read"),
    ],
)
def test_another_archive_is_refused(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        messages(archive(tmp_path, **arrays))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_a_file_that_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"x\.npz"):
        messages(path)


def test_a_folder_gives_its_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.PNG").write_bytes(b"not even a png")
    (tmp_path / "a.jpeg").write_bytes(b"jpeg")
    (tmp_path / "notes.txt").write_bytes(b"text")
    assert messages(tmp_path) == [
        Message("a.jpeg", b"jpeg", "image/jpeg"),
        Message("b/2.PNG", b"not even a png", "image/png"),
    ]
    with pytest.raises(ConfigurationError, match="--encoding"):
        messages(tmp_path, "raw")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no image"):
        messages(tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "nowhere.npz", "image.png"])
def test_what_is_no_source_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.png").write_bytes(encode_png(IMAGES[0][..., np.newaxis]))
    with pytest.raises(ConfigurationError, match=source):
        messages(source)


def test_the_sample_is_found() -> None:
    size, read = source_messages("sample", "png")
    assert size == 10_000
    first = next(read())
    assert first.id.startswith("mnist_sample-000000-label")
    assert decode(first.value, first.content_type, ImageSpec(28, 28, 1)).image.any()


def test_without_the_training_program_there_is_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="not installed here"):
        source_messages("sample", "png")


class Future:
    def __init__(self, error: Exception | None, *, done: bool) -> None:
        self.error, self.is_done = error, done

    def get(self, timeout: float) -> None:
        if self.error is not None:
            raise self.error


class Producer:
    """Remembers what is sent; acknowledges at once, or only when waited for."""

    def __init__(self, error_at: int | None = None, error: Exception | None = None, *, prompt: bool = True) -> None:
        self.sent: list[dict[str, Any]] = []
        self.error_at, self.error, self.prompt = error_at, error, prompt
        self.flushed_at: int | None = None

    def send(self, topic: str, value: bytes | None, **more: Any) -> Future:
        self.sent.append({"topic": topic, "value": value, **more})
        failed = len(self.sent) - 1 == self.error_at
        return Future(self.error if failed else None, done=self.prompt)

    def flush(self, timeout: float) -> None:
        self.flushed_at = len(self.sent)


class Clock:
    """Time passes only while somebody sleeps, and a little per look."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def some(count: int) -> Iterator[Message]:
    return (Message(f"id-{number}", b"12345", "image/png" if number else None) for number in range(count))


def test_partitions_take_turns_and_headers_say_what_it_is() -> None:
    producer, counts = Producer(), Counts()
    publish(producer, "images", 3, some(7), counts=counts)
    assert [sent["partition"] for sent in producer.sent] == [0, 1, 2, 0, 1, 2, 0]
    assert {sent["key"] for sent in producer.sent} == {None}
    assert producer.sent[0]["headers"] == [("message-id", b"id-0")]
    assert producer.sent[1]["headers"] == [("message-id", b"id-1"), ("content-type", b"image/png")]
    assert (counts.published, counts.acknowledged, counts.value_bytes) == (7, 7, 35)
    assert producer.flushed_at == 7


def test_a_key_chooses_the_partition() -> None:
    producer = Producer()
    publish(producer, "images", 3, some(4), counts=Counts(), key=b"camera-1")
    assert {(sent["key"], sent["partition"]) for sent in producer.sent} == {(b"camera-1", None)}


def test_a_message_without_value_can_be_sent() -> None:
    producer, counts = Producer(), Counts()
    publish(producer, "images", 1, [Message("tombstone", None, None)], counts=counts)
    assert producer.sent[0]["value"] is None
    assert counts.acknowledged == 1


def test_the_rate_is_kept_without_drift() -> None:
    clock, counts = Clock(), Counts()
    publish(Producer(), "images", 1, some(101), counts=counts, rate=50, monotonic=clock.monotonic, sleep=clock.sleep)
    assert counts.seconds == pytest.approx(2.0, abs=0.01)
    assert len(clock.slept) == 100


def test_without_a_rate_nobody_sleeps() -> None:
    clock = Clock()
    publish(Producer(), "images", 1, some(50), counts=Counts(), monotonic=clock.monotonic, sleep=clock.sleep)
    assert clock.slept == []


def test_what_waits_for_its_acknowledgement_is_bounded() -> None:
    behind = []
    counts = Counts()
    publish(
        Producer(prompt=False),
        "images",
        1,
        some(feed.MAX_UNACKNOWLEDGED + 100),
        counts=counts,
        on_progress=lambda now: behind.append(now.published - now.acknowledged),
    )
    assert max(behind) == feed.MAX_UNACKNOWLEDGED
    assert behind[-1] == 0
    assert counts.acknowledged == feed.MAX_UNACKNOWLEDGED + 100


@pytest.mark.parametrize(
    ("error", "cls"),
    [(MessageSizeTooLargeError("too large"), KafkaRefused), (KafkaTimeoutError("nobody"), KafkaUnreachable)],
)
@pytest.mark.parametrize("prompt", [True, False])
def test_a_message_that_is_not_acknowledged_is_an_error(
    error: Exception, cls: type[Exception], *, prompt: bool
) -> None:
    counts = Counts()
    with pytest.raises(cls, match=r"2 of them acknowledged|acknowledged: "):
        publish(Producer(2, error, prompt=prompt), "images", 1, some(10), counts=counts)
    assert counts.acknowledged == 2


def test_progress_is_right_when_the_source_ends_early() -> None:
    def broken() -> Iterator[Message]:
        yield from some(3)
        raise KeyboardInterrupt

    counts, seen = Counts(), []
    with pytest.raises(KeyboardInterrupt):
        publish(Producer(), "images", 1, broken(), counts=counts, on_progress=lambda now: seen.append(now.published))
    assert counts.published == 3
    assert seen[-1] == 3


def test_ids_are_numbered() -> None:
    assert array_message("s", 123, IMAGES[0][..., np.newaxis], 7).id == "s-000123-label7"
