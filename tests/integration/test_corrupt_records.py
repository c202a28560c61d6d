"""Records that the client cannot read: it tells it, and then returns nothing of that partition for ever.

The bytes are damaged where disks damage them: in the broker's log segment.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer

from deploy.local_kafka import KafkaCluster
from tests.support.kafka import closing, read_all
from tests.support.memory import PixelScorer
from tests.support.pipelines import running
from worker.adapters.clients import client
from worker.core.errors import ExitCode
from worker.core.records import Record, header

GOOD = bytes(6)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path_factory.mktemp("corrupt")) as cluster:
        yield cluster


def produce_batches(cluster: KafkaCluster, topic: str, batches: list[list[bytes]]) -> None:
    """Each list becomes one batch on partition 0."""
    with closing(KafkaProducer(bootstrap_servers=cluster.bootstrap, acks="all", linger_ms=60_000)) as producer:
        for values in batches:
            futures = [producer.send(topic, value, partition=0) for value in values]
            producer.flush()
            offsets = [future.get(timeout=10).offset for future in futures]
            assert offsets == list(range(offsets[0], offsets[0] + len(values)))


def damage(cluster: KafkaCluster, topic: str, marker: bytes, replacement: bytes) -> None:
    """Replace bytes in the partition's log while the broker is down."""
    assert len(marker) == len(replacement)
    cluster.stop()
    [log] = Path(cluster.root).rglob(f"{topic}-0/*.log")
    content = log.read_bytes()
    assert content.count(marker) == 1, "the marker must stand once"
    log.write_bytes(content.replace(marker, replacement))
    cluster.start()


def answer_all(cluster: KafkaCluster, topic: str, count: int, client_name: str) -> tuple[list[Record], list[Record]]:
    options, adapters = {"bootstrap_servers": cluster.bootstrap}, client(client_name)
    source = adapters.source(options, topic=topic, group_id=topic, max_message_bytes=1 << 20)
    publisher = adapters.publisher(options, max_message_bytes=1 << 20, topic_limits={})
    try:
        with running(
            source,
            publisher,
            output_topic=f"{topic}-out",
            dead_letter_topic=f"{topic}-dead",
            scorer=PixelScorer(capacity=4),
        ) as worker:
            answers = read_all(options, f"{topic}-out", count)
            letters = read_all(options, f"{topic}-dead", 1)
            assert worker.stop() is ExitCode.STOPPED
    finally:
        source.close()
        publisher.close()
    return answers, letters


def create(cluster: KafkaCluster, topic: str) -> None:
    cluster.create_topics({name: (1, {}) for name in (topic, f"{topic}-out", f"{topic}-dead")})


@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "at the end"])
def test_a_batch_with_a_wrong_crc_becomes_one_letter_with_its_range(
    cluster: KafkaCluster, last: bool, client_name: str
) -> None:
    topic = f"crc-{client_name}-{'last' if last else 'middle'}"
    create(cluster, topic)
    bad = [GOOD, b"MARKER", GOOD, GOOD]
    after: list[list[bytes]] = [] if last else [[GOOD] * 2, [GOOD]]
    produce_batches(cluster, topic, [[GOOD] * 3, bad, *after])
    damage(cluster, topic, b"MARKER", b"marker")
    count = 3 + 1 + sum(map(len, after))
    answers, letters = answer_all(cluster, topic, count, client_name)
    verdicts = [json.loads(answer.value or b"") for answer in answers]
    assert [verdict["source"]["offset"] for verdict in verdicts] == [0, 1, 2, 3, *range(7, 7 + count - 4)]
    assert [verdict["reason"] for verdict in verdicts] == [None] * 3 + ["corrupt_record"] + [None] * (count - 4)
    [letter] = letters
    assert header(letter.headers, "reconstream-source-offset") == b"3"
    assert header(letter.headers, "reconstream-skipped-until-offset") == b"7"
    assert header(letter.headers, "reconstream-value") == b"null"


def test_a_header_whose_name_is_not_utf_8_stops_nothing(cluster: KafkaCluster, client_name: str) -> None:
    topic = f"header-name-{client_name}"
    create(cluster, topic)
    produce_batches(cluster, topic, [[GOOD]])
    # kafka-python cannot write such a name; other producers can. No CRC is broken: it is computed anew.
    with closing(KafkaProducer(bootstrap_servers=cluster.bootstrap, acks="all")) as producer:
        producer.send(topic, GOOD, headers=[(_Bytes("name"), b"x")], partition=0).get(timeout=10)
    produce_batches(cluster, topic, [[GOOD]])
    answers, letters = answer_all(cluster, topic, 3, client_name)
    assert len(answers) == 3
    [letter] = letters
    assert header(letter.headers, "reconstream-source-offset") == b"1"


class _Bytes(str):
    """A header's name that encodes to bytes which are not UTF-8."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"\xff\xfe\xfd"
