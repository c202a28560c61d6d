"""A test's own view of a real Kafka: feed a topic, read all of another, see what was committed."""

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as ClientPartition
from kafka.errors import KafkaError

from deploy.local_kafka import create_topics
from worker.adapters.clients import CONFLUENT, KAFKA_PYTHON, client
from worker.adapters.confluent_transactions import METADATA_BEGINS
from worker.core.records import OutRecord, Record
from worker.ports import Publisher, Source

CLIENTS = (KAFKA_PYTHON, CONFLUENT)
PARTITIONS = 3


@contextlib.contextmanager
def closing(client: Any) -> Iterator[Any]:
    try:
        yield client
    finally:
        client.close()


def produce(options: Mapping[str, object], records: Sequence[OutRecord], **more: object) -> None:
    """Publish records and wait for their acknowledgements."""
    with closing(KafkaProducer(**options, acks="all", max_request_size=64 << 20, **more)) as producer:
        futures = [
            producer.send(topic, value, key, headers, partition) for topic, partition, key, value, headers in records
        ]
        for future in futures:
            future.get(timeout=30)


def read_all(
    options: Mapping[str, object], topic: str, at_least: int = 0, timeout_s: float = 120, settle_s: float = 0
) -> list[Record]:
    """Every committed record of a topic, by partition and offset, once there are at least so many.

    `settle_s`: go on reading for so long after the last record, to see what should not come.
    """
    with closing(
        KafkaConsumer(
            **options, isolation_level="read_committed", auto_offset_reset="earliest", fetch_max_wait_ms=100
        )
    ) as consumer:
        partitions = [ClientPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        records: list[Record] = []
        empty = 0.0
        waited = 0.0
        while True:
            polled = consumer.poll(timeout_ms=100)
            for batch in polled.values():
                records += [
                    Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers) for r in batch
                ]
            if polled:
                empty = 0.0
                continue
            empty += 0.1
            waited += 0.1
            reached = all(consumer.position(partition) >= end for partition, end in ends.items())
            if len(records) >= at_least and reached and empty >= settle_s:
                return sorted(records, key=lambda record: (record.partition, record.offset))
            assert waited < timeout_s, f"{len(records)} of {at_least} records in {topic} after {timeout_s} s"


def committed(options: Mapping[str, object], group: str, topic: str) -> dict[int, int]:
    """A group's committed positions by partition; partitions without one are left out."""
    with closing(KafkaAdminClient(**options)) as admin:
        groups = admin.list_group_offsets([group])
    return {
        partition.partition: found.offset
        for partition, found in groups[group].items()
        if partition.topic == topic and found.offset >= 0
    }


def move_leaders(bootstrap: str, topics: Collection[str], by: int = 1, timeout_s: float = 30) -> None:
    """Give every partition of these topics another leader among its replicas, with all brokers up.

    The preferred replica, the first of a partition's list, becomes the one `by` places behind it, and is elected.
    """
    deadline = time.monotonic() + timeout_s
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:

        def states() -> dict[ClientPartition, dict[str, Any]]:
            return {
                ClientPartition(topic["name"], state["partition_index"]): state
                for topic in admin.describe_topics(list(topics))
                for state in topic["partitions"]
            }

        before = states()
        wanted = {}
        for partition, state in before.items():
            replicas = sorted(state["replica_nodes"])
            turn = replicas.index(state["leader_id"]) + by
            wanted[partition] = [replicas[(turn + place) % len(replicas)] for place in range(len(replicas))]
        refused = {
            partition: error for partition, error in admin.alter_partition_reassignments(wanted).items() if error
        }
        assert not refused, refused
        by_topic: dict[str, list[int]] = {}
        for partition in wanted:
            by_topic.setdefault(partition.topic, []).append(partition.partition)
        pause = threading.Event()
        while any(state["leader_id"] != wanted[partition][0] for partition, state in states().items()):
            assert time.monotonic() < deadline, f"the leaders did not move: {states()}"
            with contextlib.suppress(KafkaError):  # a replica that lags for a moment cannot be elected yet
                admin.elect_leaders(0, by_topic)
            pause.wait(0.05)


def of_next_generation(group: Any) -> object:
    """A group's metadata, as either client's Polled.group has them, of a generation that has not been."""
    if isinstance(group, bytes):
        at = len(METADATA_BEGINS)
        (generation,) = struct.unpack_from("=i", group, at)
        return group[:at] + struct.pack("=i", generation + 1) + group[at + 4 :]
    return group._replace(generation_id=group.generation_id + 1)


class KafkaWorld:
    """What tests/contract needs of a broker; see World there."""

    def __init__(
        self,
        options: Mapping[str, object],
        input: str,  # noqa: A002 - the contract's name
        output: str,
        letters: str,
        *,
        group: str,
        exactly_once: bool,
        client_name: str = KAFKA_PYTHON,
    ) -> None:
        self.options = options
        self.client = client(client_name)
        self.input, self.output, self.letters, self.group = input, output, letters, group
        self.exactly_once = exactly_once
        self._closers: list[Callable[[], None]] = []

    def feed(self, records: Sequence[OutRecord]) -> None:
        produce(self.options, records)

    def source(self) -> Source:
        source = self.client.source(
            self.options,
            topic=self.input,
            group_id=self.group,
            max_message_bytes=1 << 20,
        )
        self._closers.append(source.close)
        return source

    def publisher(self) -> Publisher:
        limits: dict[str, int] = {}
        publisher = (
            self.client.transactions(self.options, max_message_bytes=1 << 20, topic_limits=limits, id_prefix="test")
            if self.exactly_once
            else self.client.publisher(self.options, max_message_bytes=1 << 20, topic_limits=limits)
        )
        self._closers.append(publisher.close)
        return publisher

    def answers(self, count: int) -> list[Record]:
        return read_all(self.options, self.output, count)

    def dead_letters(self, count: int) -> list[Record]:
        return read_all(self.options, self.letters, count)

    def maps(self) -> str:
        topic = f"{self.input}-maps"
        create_topics(str(self.options["bootstrap_servers"]), {topic: (PARTITIONS, {})})
        return topic

    def records(self, topic: str, count: int) -> list[Record]:
        return read_all(self.options, topic, count)

    def committed(self) -> dict[int, int]:
        return committed(self.options, self.group, self.input)

    def close(self) -> None:
        for close in self._closers:
            close()
