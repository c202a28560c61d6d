"""What the campaign publishes: images at a pace, with a fixed share of poison, and bursts before the faults.

Rules: message i is the same in every run; the producer is idempotent and goes to the brokers directly, so that
the faults are the worker's and every acknowledged position is known.
"""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kafka import KafkaProducer
from kafka.errors import KafkaError
from numpy.typing import NDArray

from worker.core.images import encode_png

PARTITIONS = 9
POISON_EVERY = 100  # 1 %
POISON_AT = 37
OVERSIZE_BYTES = 5 << 20
# The dead-letter topic must take what the input topic took, and headers: 128 KiB more than Kafka's default.
LETTER_BYTES = (1 << 20) + (128 << 10)
STEP_S = 0.05
FLUSH_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Message:
    """image: its number in the images that were given, None for poison; zipped: only gzip lets it in."""

    id: str
    partition: int
    key: bytes | None
    value: bytes | None
    content_type: str | None
    image: int | None
    zipped: bool = False

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """As they stand on the topic."""
        headers = [("message-id", self.id.encode())]
        return headers if self.content_type is None else [*headers, ("content-type", self.content_type.encode())]


class Messages:
    """The campaign's messages by number.

    Args:
        images: uint8 (N, H, W, C).
        oversize_every: every so many-th poison message is 5 MB that only compression lets into the topic; 0: none.
    """

    def __init__(self, images: NDArray[np.uint8], oversize_every: int = 0) -> None:
        self._raw = [image.tobytes() for image in images]
        self._png = [encode_png(image) for image in images]
        self._oversize_every = oversize_every
        # Of the second gzip makes a seventh, which the input topic takes; lz4 a quarter, which no letter can hold.
        # Nothing that gzip is slow with (random bits: 16 s): what is published late would be taken for a backlog.
        runs = np.random.default_rng(5).integers(0, 256, OVERSIZE_BYTES // 12 + 1, dtype=np.uint8)
        self._oversize = (bytes(OVERSIZE_BYTES), np.repeat(runs, 12)[:OVERSIZE_BYTES].tobytes())
        self._poison: Sequence[tuple[bytes | None, str | None]] = (
            (None, None),
            (b"", None),
            (b"this is no image", None),
            (self._png[0][: len(self._png[0]) // 2], "image/png"),
            (self._raw[0] + b"more", "application/octet-stream"),
            (b'{"image": "@@@@"}', "application/json"),
            (self._png[0], "image/webp"),
        )

    def __getitem__(self, number: int) -> Message:
        identity, partition, key = f"m-{number}", number % PARTITIONS, b"camera-%d" % (number % PARTITIONS)
        if number % POISON_EVERY == POISON_AT:
            which = number // POISON_EVERY
            if self._oversize_every and which % self._oversize_every == 0:
                value = self._oversize[which // self._oversize_every % len(self._oversize)]
                return Message(identity, partition, key, value, "application/octet-stream", None, zipped=True)
            poison, content_type = self._poison[which % len(self._poison)]
            return Message(identity, partition, key, poison, content_type, None)
        image = number % len(self._raw)
        if number % 3 == 0:
            return Message(identity, partition, key, self._raw[image], "application/octet-stream", image)
        if number % 3 == 1:
            return Message(identity, partition, key, self._png[image], None, image)
        text = json.dumps({"image": base64.b64encode(self._raw[image]).decode()}).encode()
        return Message(identity, partition, key, text, "application/json", image)

    def zipped(self, identity: str) -> bool:
        """Whether a message, by its id, is one of those of 5 MB."""
        return self[int(identity.removeprefix("m-"))].zipped


class Load:
    """Publishes messages on a thread of its own.

    Args:
        bootstrap: host:port of the brokers.
        topic: of PARTITIONS partitions.
        messages: what to publish.
        total: how many.
        rate: of messages a second, beside bursts.

    Attributes:
        rate: as given.
        acknowledged: Unix time by position, of every message that Kafka has acknowledged.
        failures: what was not acknowledged, in words.
    """

    def __init__(self, bootstrap: str, topic: str, messages: Messages, total: int, rate: float) -> None:
        self.acknowledged: dict[tuple[int, int], float] = {}
        self.failures: list[str] = []
        self._topic = topic
        self._messages = messages
        self._total = total
        self.rate = rate
        self._next = 0
        self._wanted = 0.0
        self._lock = threading.Lock()
        self._finish = threading.Event()
        common: dict[str, Any] = {
            "bootstrap_servers": bootstrap,
            "acks": "all",
            "enable_idempotence": True,
            "delivery_timeout_ms": 300_000,
            "max_block_ms": 120_000,
            "max_request_size": 2 * OVERSIZE_BYTES,
            "reconnect_backoff_max_ms": 1000,
        }
        self._producer = KafkaProducer(**common, linger_ms=5)
        self._zipping = KafkaProducer(**common, compression_type="gzip")
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def burst(self, count: int) -> None:
        """Publish so many more at once."""
        with self._lock:
            self._wanted += count

    def more(self, count: int) -> None:
        """Publish so many beyond the total: for whoever waits for what only a new message shows."""
        with self._lock:
            self._total += count
            self._wanted += count

    def finish(self) -> None:
        """Publish what is left at once, and wait for every acknowledgement; nothing the second time."""
        if self._finish.is_set():
            return
        self._finish.set()
        self._thread.join()
        for producer in (self._producer, self._zipping):
            try:
                producer.flush(timeout=FLUSH_TIMEOUT_S)
            except KafkaError as error:
                self.failures.append(f"not all messages were acknowledged: {error!r}")
            producer.close(timeout=5)

    def stop(self) -> None:
        """Publish nothing more, and wait for every acknowledgement."""
        with self._lock:
            self._total = 0
        self.finish()

    def close(self) -> None:
        """End without publishing the rest; nothing after finish()."""
        self._total = self._next
        self._finish.set()
        if self._thread.is_alive():
            self._thread.join()
        for producer in (self._producer, self._zipping):
            with contextlib.suppress(KafkaError):
                producer.close(timeout=0)

    def _run(self) -> None:
        last = time.monotonic()
        finishing = False
        while not finishing or self._next < self._total:
            finishing = self._finish.wait(STEP_S)
            now = time.monotonic()
            with self._lock:
                self._wanted += (now - last) * self.rate
                count = self._total - self._next if finishing else int(self._wanted)
                self._wanted -= min(count, self._wanted)
            last = now
            try:
                for _ in range(min(count, self._total - self._next)):
                    self._send(self._messages[self._next])
                    self._next += 1
            except KafkaError as error:
                self.failures.append(f"message {self._next} could not be handed over: {error!r}")
                return

    def _send(self, message: Message) -> None:
        producer = self._zipping if message.zipped else self._producer
        future = producer.send(self._topic, message.value, message.key, message.headers, message.partition)
        future.add_callback(self._acknowledge)
        future.add_errback(lambda error: self.failures.append(f"{message.id} was not acknowledged: {error!r}"))

    def _acknowledge(self, metadata: Any) -> None:
        self.acknowledged[metadata.partition, metadata.offset] = time.time()
