"""What a publisher has given up never comes behind what its successor has sent: only the order of the wire counts."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local_kafka import KafkaCluster
from deploy.local_kafka.admin import delete_topic
from tests.conftest import Broker
from tests.faults.proxy import PRODUCE, Proxy
from tests.support.kafka import read_all
from worker.adapters.kafka_publisher import KafkaPublisher
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord
from worker.ports import Ticket


def test_a_publisher_that_was_given_up_sends_nothing_more(tmp_path: Path) -> None:
    def send(value: bytes) -> Ticket:
        return publisher.send([OutRecord("verdicts", 0, None, value, [])])

    with KafkaCluster(tmp_path / "kafka", proxied=True) as cluster, Proxy(cluster.proxy_routes) as proxy:
        cluster.create_topics({"verdicts": (1, {})})
        publisher = KafkaPublisher(
            {"bootstrap_servers": cluster.bootstrap_for_proxy}, max_message_bytes=1 << 20, topic_limits={}
        )
        send(b"acknowledged")
        assert len(read_all({"bootstrap_servers": cluster.bootstrap}, "verdicts", 1)) == 1
        proxy.hold(PRODUCE)
        send(b"on the wire")
        # Larger than a batch each: they wait for what is on the wire.
        for number in range(5):
            send(b"in the buffer %d" % number + bytes(300_000))
        publisher.rebuild()
        proxy.release()
        last = send(b"after the rebuild")
        while not last.settled():
            threading.Event().wait(0.02)
        records = read_all({"bootstrap_servers": cluster.bootstrap}, "verdicts", 2, settle_s=3)
        publisher.close()
    values = [(record.value or b"")[:20].rstrip(b"\0") for record in records]
    # What was on the wire may arrive, at any place; it cannot be called back.
    assert [value for value in values if value != b"on the wire"] == [b"acknowledged", b"after the rebuild"]


def test_nothing_is_sent_behind_a_record_that_was_refused(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path, secure=True, acls=True) as cluster:
        cluster.create_topics({"verdicts": (1, {})})
        cluster.deny_app("topic", "verdicts")
        publisher = KafkaPublisher(
            cluster.client_settings("SASL_PLAINTEXT"), max_message_bytes=1 << 20, topic_limits={}
        )
        records = [OutRecord("verdicts", 0, None, b"%d" % number, []) for number in range(3)]
        # The client returns a future that has failed, and would take the next record if it were allowed by then.
        with pytest.raises(DeliveryFailed, match="does not let us write") as caught:
            publisher.send(records)
        publisher.close()
    assert caught.value.step == "refused"


def test_a_topic_that_is_deleted_behind_the_client_s_back_is_told_long_before_its_delivery_times_out(
    kafka: Broker, topics: Callable[..., str]
) -> None:
    topic = topics(1)
    publisher = KafkaPublisher({"bootstrap_servers": kafka.bootstrap}, max_message_bytes=1 << 20, topic_limits={})
    record = OutRecord(topic, 0, None, b"verdict", [])

    def wait_settled(timeout_s: float) -> None:
        ticket = publisher.send([record])
        deadline = time.monotonic() + timeout_s
        while not ticket.settled():
            assert time.monotonic() < deadline, "neither acknowledged nor refused"
            threading.Event().wait(0.02)

    wait_settled(30)
    delete_topic(kafka.bootstrap, topic)
    with pytest.raises(DeliveryFailed, match="it is gone") as caught:
        wait_settled(30)
    publisher.close()
    assert caught.value.step == "refused"


def test_a_topic_that_the_client_could_not_ask_for_is_not_taken_for_a_deleted_one(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path / "kafka", proxied=True) as cluster, Proxy(cluster.proxy_routes) as proxy:
        cluster.create_topics({"verdicts": (1, {}), "dead-letters": (1, {})})
        publisher = KafkaPublisher(
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
