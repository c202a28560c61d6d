"""Reads the topics from outside the containers, and holds answers against messages, position by position.

Rule: the input topic is contiguous (nothing writes to it in transactions), so its offsets are its messages.
"""

import time
from collections import Counter
from collections.abc import Mapping

import msgspec
from kafka import KafkaConsumer, TopicPartition

from worker.core.verdicts import Verdict

POLL_MS = 200
FETCH_BYTES = 16 << 20

Ends = Mapping[int, int]
"""By partition, the offset after its last record."""


class Account:
    """Every verdict that there is, read again and again as more come.

    Args:
        bootstrap: the broker's address for this machine.
        messages, answers: names of input and output topic.

    Attributes:
        answered: by (partition, offset) of a message, the number of its answers.
        statuses, versions: how often answers have which status and name which model version.
    """

    def __init__(self, bootstrap: str, messages: str = "images", answers: str = "verdicts") -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=FETCH_BYTES,
            max_poll_records=5000,
            reconnect_backoff_max_ms=1000,
        )
        self._messages = messages
        self._answers = answers
        self._partitions: list[TopicPartition] = []
        self.answered: Counter[tuple[int, int]] = Counter()
        self.statuses: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()

    def close(self) -> None:
        """Let go of the broker."""
        self._consumer.close()

    def published(self) -> Ends:
        """How far the input topic goes now."""
        return self._ends(self._messages)

    def read(self) -> None:
        """Read all answers that are there now."""
        if not self._partitions:
            self._partitions = self._of(self._answers)
            self._consumer.assign(self._partitions)
        ends = self._consumer.end_offsets(self._partitions)
        while any(self._consumer.position(partition) < end for partition, end in ends.items()):
            for records in self._consumer.poll(timeout_ms=POLL_MS).values():
                for record in records:
                    verdict = msgspec.json.decode(record.value, type=Verdict)
                    self.answered[verdict.source.partition, verdict.source.offset] += 1
                    self.statuses[verdict.status] += 1
                    self.versions[verdict.model.version] += 1

    def missing(self, ends: Ends) -> int:
        """How many messages before `ends` have no answer among those read."""
        return sum(
            (partition, offset) not in self.answered for partition, end in ends.items() for offset in range(end)
        )

    def wait_answered(self, ends: Ends, timeout_s: float) -> int:
        """Read until no message before `ends` is without an answer; how many are, after at most timeout_s."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.read()
            missing = self.missing(ends)
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(1)

    @property
    def repeated(self) -> int:
        """How many answers are not their message's first."""
        return self.answered.total() - len(self.answered)

    def _of(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in sorted(self._consumer.partitions_for_topic(topic) or ())]

    def _ends(self, topic: str) -> dict[int, int]:
        ends = self._consumer.end_offsets(self._of(topic))
        return {partition.partition: end for partition, end in ends.items()}
