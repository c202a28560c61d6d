"""Publishes images to the input topic: from a folder, an .npz, or the MNIST sample, at a rate.

Rules: every record is acknowledged by all in-sync replicas, or the program says how many were not; what waits
for its acknowledgement is bounded.
"""

import importlib.util
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from kafka import KafkaProducer
from kafka.errors import KafkaError
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from worker.adapters.kafka_admin import partition_count
from worker.core.errors import ConfigurationError, KafkaRefused, KafkaUnreachable
from worker.core.images import encode_png
from worker.settings import ConnectionSettings

SAMPLE = "sample"
CONTENT_TYPES: Mapping[str, str] = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
# (images, labels) of our own archives, then of MNIST's.
ARRAY_NAMES = (("images", "labels"), ("x_test", "y_test"))
MAX_UNACKNOWLEDGED = 2000
# The broker decides what is too large, and says so.
MAX_REQUEST_BYTES = 1 << 30

Encoding = Literal["png", "raw"]


class Settings(ConnectionSettings):
    r"""Publish images to the input topic.

    Example:
      reconstream-worker feed sample --rate 200 --count 1000
      reconstream-worker feed sample --label 1 --loop
      reconstream-worker feed photos/ --input-topic images --key camera-1
    """

    source: CliPositionalArg[str] = Field(
        description=f"a folder of PNG and JPEG files, an .npz with images (N, H, W[, C]), or '{SAMPLE}' (MNIST)"
    )
    rate: float = Field(default=100, ge=0, le=1_000_000, description="images per second; 0: as fast as possible")
    encoding: Encoding = Field(default="png", description="how images of an .npz are sent")
    label: int | None = Field(default=None, description="of an .npz: only images with this label; default: all")
    count: int | None = Field(default=None, ge=1, description="stop after so many images; default: all there are")
    loop: bool = Field(default=False, description="begin again at the end, until --count or Ctrl-C")
    key: str | None = Field(
        default=None, min_length=1, description="key of every record (one partition); default: none, round robin"
    )


class Message(NamedTuple):
    """A record to publish; `content_type` None sends no such header."""

    id: str
    value: bytes | None
    content_type: str | None


@dataclass
class Counts:
    """How far publishing has come."""

    published: int = 0
    acknowledged: int = 0
    value_bytes: int = 0
    seconds: float = 0.0


def folder_messages(folder: Path) -> list[Path]:
    """The PNG and JPEG files in a folder and those in it, by path.

    Raises:
        ConfigurationError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in CONTENT_TYPES and path.is_file())
    if not files:
        raise ConfigurationError(f"'{folder}' holds no image: expected {', '.join(CONTENT_TYPES)} files in it.")
    return files


def read_arrays(path: Path) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
    """Images, uint8 (N, H, W, C), and labels (N,) or None, of an archive.

    Raises:
        ConfigurationError: it is no such archive.
    """
    try:
        # A file object of our own: np.load leaves the file open when the archive is bad.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for images_name, labels_name in ARRAY_NAMES:
                if images_name in archive:
                    images = archive[images_name]
                    labels = archive.get(labels_name)
                    break
            else:
                wanted = " or ".join(images_name for images_name, _ in ARRAY_NAMES)
                raise ConfigurationError(f"'{path}' has the arrays {sorted(archive)}, expected one called {wanted}.")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"'{path}' cannot be read as an .npz: {error}") from error
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in {1, 3} or len(images) == 0:
        raise ConfigurationError(
            f"'{path}': images are {images.dtype} {images.shape}, expected uint8 (N, H, W) or (N, H, W, 1 or 3)."
        )
    if labels is not None and labels.shape != (len(images),):
        raise ConfigurationError(f"'{path}': labels are {labels.shape}, expected ({len(images)},).")
    return images, labels


def array_message(
    stem: str, index: int, image: NDArray[np.uint8], label: object = None, encoding: Encoding = "png"
) -> Message:
    """An image, uint8 (H, W, C), as a message; its id is like `mnist_sample-000123-label7`."""
    identity = f"{stem}-{index:06d}" + ("" if label is None else f"-label{label}")
    if encoding == "raw":
        return Message(identity, image.tobytes(), "application/octet-stream")
    return Message(identity, encode_png(image), "image/png")


def sample_path() -> Path:
    """The MNIST sample that comes with the training program.

    Raises:
        ConfigurationError: only the worker is installed.
    """
    # Found, not imported: the worker needs nothing of training.
    spec = importlib.util.find_spec("training")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "sample", "mnist_sample.npz")
        if path.is_file():
            return path
    raise ConfigurationError(
        "the sample is part of the training program, which is not installed here. "
        "Name a folder or an .npz of your own, or run this from the project's checkout."
    )


def source_messages(
    source: str, encoding: Encoding, label: int | None = None
) -> tuple[int, Callable[[], Iterator[Message]]]:
    """What `source` holds: the number of its images, and a function that reads them from the beginning.

    Args:
        source: see Settings.
        encoding: of an archive's images.
        label: take only an archive's images that have it.

    Raises:
        ConfigurationError: there is no such source, or nothing in it.
    """
    path = sample_path() if source == SAMPLE else Path(source)
    if path.is_dir():
        if encoding != "png":
            raise ConfigurationError("--encoding is for an .npz; the files of a folder are sent as they are.")
        if label is not None:
            raise ConfigurationError(
                "--label is for an .npz with labels; name a folder that holds only what you want."
            )
        files = folder_messages(path)
        return len(files), lambda: (
            Message(str(file.relative_to(path)), file.read_bytes(), CONTENT_TYPES[file.suffix.lower()])
            for file in files
        )
    if path.suffix != ".npz":
        raise ConfigurationError(f"'{source}' is neither a folder nor an .npz file nor the word '{SAMPLE}'.")
    images, labels = read_arrays(path)
    chosen = range(len(images)) if label is None else _having(label, labels, path)
    return len(chosen), lambda: (
        array_message(path.stem, index, images[index], None if labels is None else labels[index], encoding)
        for index in chosen
    )


def _having(label: int, labels: NDArray[Any] | None, path: Path) -> list[int]:
    if labels is None:
        raise ConfigurationError(f"--label {label}: '{path}' has no labels.")
    chosen: list[int] = np.flatnonzero(labels == label).tolist()
    if not chosen:
        there = ", ".join(map(str, np.unique(labels)[:20]))
        raise ConfigurationError(f"--label {label}: no image of '{path}' has it; there are {there}.")
    return chosen


def publish(
    producer: Any,
    topic: str,
    partitions: int,
    messages: Iterable[Message],
    *,
    counts: Counts,
    rate: float = 0,
    key: bytes | None = None,
    timeout_s: float = 60,
    on_progress: Callable[[Counts], None] = lambda _: None,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Publish messages and wait until every one is acknowledged.

    Args:
        producer: a KafkaProducer.
        topic: where to.
        partitions: how many the topic has; used in turn, unless there is a key.
        messages: what to publish; taken one by one.
        counts: kept up to date, so that it is right whatever ends this.
        rate: messages per second; 0 for as fast as possible.
        key: of every record; chooses the partition.
        timeout_s: how long to wait for one acknowledgement.
        on_progress: called after every message, and at the end.
        monotonic: clock, seconds.
        sleep: waits so many seconds.

    Raises:
        KafkaRefused, KafkaUnreachable: a message was not acknowledged.
    """
    waiting: deque[Any] = deque()
    start = monotonic()

    def settle(most: int) -> None:
        while len(waiting) > most or (waiting and waiting[0].is_done):
            waiting[0].get(timeout=timeout_s)
            waiting.popleft()
            counts.acknowledged += 1

    try:
        for number, message in enumerate(messages):
            if rate > 0 and (early := start + number / rate - monotonic()) > 0:
                sleep(early)
            headers = [("message-id", message.id.encode())]
            if message.content_type is not None:
                headers.append(("content-type", message.content_type.encode()))
            partition = None if key is not None else number % partitions
            waiting.append(producer.send(topic, message.value, key=key, partition=partition, headers=headers))
            counts.published += 1
            counts.value_bytes += len(message.value or b"")
            counts.seconds = monotonic() - start
            settle(MAX_UNACKNOWLEDGED)
            on_progress(counts)
        producer.flush(timeout=timeout_s)
        settle(0)
    except KafkaError as error:
        cls = KafkaUnreachable if error.retriable else KafkaRefused
        raise cls(
            f"publishing to '{topic}' failed after {counts.published} images, {counts.acknowledged} of them "
            f"acknowledged: {type(error).__name__}: {error}"
        ) from error
    finally:
        counts.seconds = monotonic() - start
        on_progress(counts)


def make_producer(client_options: Mapping[str, object], timeout_s: float) -> Any:
    """A KafkaProducer that loses nothing."""
    timeout_ms = int(timeout_s * 1000)
    return KafkaProducer(
        **client_options,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_request_size=MAX_REQUEST_BYTES,
        allow_auto_create_topics=False,
        bootstrap_timeout_ms=timeout_ms,
        max_block_ms=timeout_ms,
        request_timeout_ms=min(timeout_ms, 30_000),
        delivery_timeout_ms=timeout_ms + 5000,
    )


def main(settings: Settings) -> int:
    """Publish what the settings say, with a progress bar on stderr and the counts on stdout."""
    size, read = source_messages(settings.source, settings.encoding, settings.label)
    options = settings.kafka.client_options()
    partitions = partition_count(options, settings.input_topic, settings.start_timeout_s)
    total = settings.count if settings.loop else min(size, settings.count or size)
    messages = islice(_again(read) if settings.loop else read(), total)
    columns = (TextColumn("publishing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    counts = Counts()
    producer = make_producer(options, settings.start_timeout_s)
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("publishing", total=total)
            publish(
                producer,
                settings.input_topic,
                partitions,
                messages,
                counts=counts,
                rate=settings.rate,
                key=settings.key.encode() if settings.key else None,
                timeout_s=settings.start_timeout_s,
                on_progress=lambda now: progress.update(bar, completed=now.published),
            )
    finally:
        producer.close(timeout=5)
        print(  # noqa: T201 - the result
            f"published {counts.published} images ({counts.value_bytes / 1e6:.1f} MB) to '{settings.input_topic}' "
            f"in {counts.seconds:.1f} s, {counts.acknowledged} acknowledged"
        )
    return 0


def _again(read: Callable[[], Iterator[Message]]) -> Iterator[Message]:
    while True:
        yield from read()
