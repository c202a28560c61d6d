"""What a publisher has given up never comes behind what its successor has sent: only the order of the wire counts."""

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from deploy.local_kafka import KafkaCluster
from deploy.local_kafka.admin import delete_topic
from tests.conftest import Broker
from tests.faults.proxy import PRODUCE, Proxy
from tests.support.kafka import read_all
from worker.adapters.clients import KAFKA_PYTHON, client
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord
from worker.ports import RecordRefused, Ticket


def wait_settled(ticket: Ticket, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not ticket.settled():
        assert time.monotonic() < deadline, "neither acknowledged nor refused"
        threading.Event().wait(0.02)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path_factory.mktemp("kafka"), proxied=True) as cluster:
        yield cluster


def test_a_publisher_that_was_given_up_sends_nothing_more(cluster: KafkaCluster, client_name: str) -> None:
    topic = f"verdicts-{client_name}"

    def send(value: bytes) -> Ticket:
        return publisher.send([OutRecord(topic, 0, None, value, [])])

    with Proxy(cluster.proxy_routes) as proxy:
        cluster.create_topics({topic: (1, {})})
        publisher = client(client_name).publisher(
            {"bootstrap_servers": cluster.bootstrap_for_proxy}, max_message_bytes=1 << 20, topic_limits={}
        )
        send(b"acknowledged")
        assert len(read_all({"bootstrap_servers": cluster.bootstrap}, topic, 1)) == 1
        proxy.hold(PRODUCE)
        send(b"on the wire")
        # Larger than a batch each: they wait for what is on the wire, of which there may be five.
        for number in range(12):
            send((b"in the buffer" if number >= 4 else b"on the wire").ljust(300_000))
        assert publisher.rebuild()
        proxy.release()
        last = send(b"after the rebuild")
        while not last.settled():
            threading.Event().wait(0.02)
        records = read_all({"bootstrap_servers": cluster.bootstrap}, topic, 2, settle_s=3)
        publisher.close()
    values = [(record.value or b"").rstrip() for record in records]
    # What was on the wire may arrive, at any place; it cannot be called back.
    assert [value for value in values if value != b"on the wire"] == [b"acknowledged", b"after the rebuild"]


def test_nothing_is_sent_behind_a_record_that_was_refused(guarded_kafka: KafkaCluster, client_name: str) -> None:
    topic = f"refused-{client_name}"
    guarded_kafka.create_topics({topic: (1, {})})
    guarded_kafka.deny_app("topic", topic)
    publisher = client(client_name).publisher(
        guarded_kafka.client_settings("SASL_PLAINTEXT"), max_message_bytes=1 << 20, topic_limits={}
    )
    records = [OutRecord(topic, 0, None, b"%d" % number, []) for number in range(3)]
    # kafka-python returns a future that has failed, and would take the next record if it were allowed by then.
    with pytest.raises(DeliveryFailed, match="does not let us write") as caught:
        wait_settled(publisher.send(records))
    publisher.close()
    assert caught.value.step == "refused"


def test_a_topic_that_is_deleted_behind_the_client_s_back_is_told_long_before_its_delivery_times_out(
    kafka: Broker, topics: Callable[..., str], client_name: str
) -> None:
    topic = topics(1)
    publisher = client(client_name).publisher(
        {"bootstrap_servers": kafka.bootstrap}, max_message_bytes=1 << 20, topic_limits={}
    )
    record = OutRecord(topic, 0, None, b"verdict", [])
    wait_settled(publisher.send([record]))
    delete_topic(kafka.bootstrap, topic)
    with pytest.raises(DeliveryFailed, match="it is gone") as caught:
        wait_settled(publisher.send([record]))
    publisher.close()
    assert caught.value.step == "refused"


def test_a_topic_that_the_client_could_not_ask_for_is_not_taken_for_a_deleted_one(cluster: KafkaCluster) -> None:
    # librdkafka's send() waits for no topic.
    with Proxy(cluster.proxy_routes) as proxy:
        cluster.create_topics({"verdicts": (1, {}), "dead-letters": (1, {})})
        publisher = client(KAFKA_PYTHON).publisher(
            {"bootstrap_servers": cluster.bootstrap_for_proxy}, max_message_bytes=1 << 20, topic_limits={}
        )
        proxy.hold(PRODUCE)
        publisher.send([OutRecord("verdicts", 0, None, b"on the wire", [])])
        assert proxy.holds.wait(30)
        # Its metadata request stands behind the held one, on the same connection.
        with pytest.raises(DeliveryFailed) as caught:
            publisher.send(
                [OutRecord("verdicts", 0, None, b"unreadable", []), OutRecord("dead-letters", 0, None, b"letter", [])]
            )
        proxy.release()
        publisher.close()
    assert caught.value.step == "publish"
    # Nothing gets through: its topic is not to blame.
    assert caught.value.topic is None


def test_a_topic_that_takes_less_from_now_on_is_written_in_smaller_batches(
    kafka: Broker, topics: Callable[..., str], client_name: str
) -> None:
    topic = topics(1, max_message_bytes=3_000)
    publisher = client(client_name).publisher(
        {"bootstrap_servers": kafka.bootstrap}, max_message_bytes=1 << 20, topic_limits={}
    )
    # Each fits, all together do not, whatever their compression.
    records = [OutRecord(topic, 0, None, random.randbytes(500), []) for _ in range(50)]
    for _ in range(10):
        try:
            wait_settled(publisher.send(records))
        except RecordRefused:
            publisher.rebuild()
        else:
            break
    publisher.close()
    assert len(read_all({"bootstrap_servers": kafka.bootstrap}, topic, 50)) == 50
