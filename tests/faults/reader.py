"""A read_committed reader of verdicts and dead letters, which stamps when each came.

Rules: it goes to the brokers directly; it belongs to no group; what it sees is what the line's PLC would see.
"""

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition
from kafka.errors import KafkaError

from tests.faults.accounting import Answer, Letter, Position, Published
from tests.faults.letters import RawLetter, judged
from tests.faults.load import PARTITIONS, Messages
from worker.core.records import header
from worker.core.verdicts import Verdict

POLL_MS = 50
FETCH_BYTES = 16 << 20


def make_consumer(bootstrap: str, isolation: str = "read_committed") -> Any:
    """A consumer without a group, from the beginning on."""
    return KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        enable_auto_commit=False,
        isolation_level=isolation,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=100,
        max_partition_fetch_bytes=FETCH_BYTES,
        max_poll_records=2000,
        reconnect_backoff_max_ms=1000,
    )


class Reader:
    """Reads both topics on a thread of its own until it is closed.

    Attributes:
        answers: every verdict, each partition in its order.
        answered: the positions that have one.
        failure: what ended the thread, if anything did.
    """

    def __init__(self, bootstrap: str, output: str, letters: str) -> None:
        self.answers: list[Answer] = []
        self.answered: set[Position] = set()
        self.failure: BaseException | None = None
        self._letters: list[RawLetter] = []
        self._output = output
        self._partitions = [ClientPartition(topic, n) for topic in (output, letters) for n in range(PARTITIONS)]
        self._bootstrap = bootstrap
        self._consumer = make_consumer(bootstrap)
        self._consumer.assign(self._partitions)
        self._stop = threading.Event()
        self._reached: dict[ClientPartition, int] = {}
        self._last: dict[ClientPartition, int] = {}
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 0.0) -> None:
        """Read to the end of both topics, at most for timeout_s seconds, and stop.

        The end is that of everything written: what a dead worker's transaction still hides is waited for.
        """
        deadline = time.monotonic() + timeout_s
        while timeout_s and self._thread.is_alive() and time.monotonic() < deadline and not self._at_end():
            self._stop.wait(0.2)
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    @property
    def letter_count(self) -> int:
        """How many dead letters have come."""
        return len(self._letters)

    def letters(self, messages: Messages, published: Mapping[Position, Published]) -> list[Letter]:
        """The dead letters, held against the messages that they should hold."""
        judgements = []
        for letter in self._letters:
            message = published.get(letter.position)
            original = None if message is None else messages[int(message.id[2:])]
            judgements.append(judged(letter, original, message))
        return judgements

    def _at_end(self) -> bool:
        consumer = make_consumer(self._bootstrap, "read_uncommitted")
        try:
            ends = consumer.end_offsets(self._partitions)
        finally:
            consumer.close()
        return all(self._reached.get(partition, 0) >= end for partition, end in ends.items())

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                # A client without its brokers raises now and then, and to be without them is what this is about.
                try:
                    polled = self._consumer.poll(timeout_ms=POLL_MS)
                except KafkaError:
                    self._stop.wait(0.2)
                    continue
                now = time.time()
                for partition, records in polled.items():
                    for record in records:
                        if record.offset <= self._last.get(partition, -1):
                            raise AssertionError(
                                f"{partition} came to offset {record.offset} twice: not the worker's"
                            )
                        self._last[partition] = record.offset
                        self._take(partition, record, now)
                with contextlib.suppress(KafkaError):
                    # Markers of transactions count as positions, but are no records.
                    for partition in self._partitions:
                        self._reached[partition] = self._consumer.position(partition) or 0
        except BaseException as error:  # noqa: BLE001 - a reader that died must not look like a worker that lost
            self.failure = error

    def _take(self, partition: ClientPartition, record: Any, now: float) -> None:
        if partition.topic != self._output:
            self._letters.append(RawLetter(partition.partition, record.key, record.value, list(record.headers)))
            return
        verdict = msgspec.json.decode(record.value, type=Verdict)
        position = (verdict.source.partition, verdict.source.offset)
        self.answered.add(position)
        self.answers.append(
            Answer(
                position,
                partition.partition,
                now,
                verdict.id,
                verdict.score,
                verdict.anomaly,
                verdict.model.version,
            )
        )


def read_input(
    bootstrap: str, topic: str, messages: Messages, acknowledged: Mapping[Position, float]
) -> dict[Position, Published]:
    """Everything on the input topic: the truth that answers are held against."""
    published: dict[Position, Published] = {}
    consumer = make_consumer(bootstrap)
    try:
        partitions = [ClientPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    identity = (header(record.headers, "message-id") or b"").decode()
                    position = (record.partition, record.offset)
                    at = acknowledged.get(position, record.timestamp / 1000)
                    image = messages[int(identity[2:])].image
                    published[position] = Published(identity, image, at, topic, record.timestamp)
    finally:
        consumer.close()
    return published
