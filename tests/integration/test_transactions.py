"""What a transaction that was given up leaves behind: nothing."""

import threading
import uuid
from collections.abc import Callable

import pytest

from deploy.local_kafka import KafkaCluster
from tests.conftest import Broker
from tests.support.kafka import closing, committed, of_next_generation, read_all
from worker.adapters.clients import client
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord, TopicPartition


def test_positions_that_the_group_refused_are_in_no_later_transaction(
    kafka: Broker, topics: Callable[..., str], client_name: str
) -> None:
    options = {"bootstrap_servers": kafka.bootstrap}
    source, output = topics(2), topics(1)
    verdict = OutRecord(output, 0, None, b"verdict", [])
    adapters = client(client_name)
    transactions = adapters.transactions(options, max_message_bytes=1 << 20, topic_limits={}, id_prefix="test")
    member = adapters.source(options, topic=source, group_id=source, max_message_bytes=1 << 20)
    with closing(member):
        while not member.assignment():
            member.poll(0.1, 16)
        group = member.poll(0.1, 16).group
        transactions.send([verdict])
        transactions.flush()
        with pytest.raises(DeliveryFailed):
            transactions.commit({TopicPartition(source, 0): 10}, of_next_generation(group))
        assert transactions.rebuild()
        transactions.send([verdict])
        transactions.flush()
        transactions.commit({TopicPartition(source, 1): 5}, group)
        transactions.close()
        assert committed(options, source, source) == {1: 5}
        assert len(read_all(options, output, 1)) == 1


@pytest.mark.parametrize("denied", [0, 1], ids=["verdicts", "dead-letters"])
def test_rights_withdrawn_are_told_as_such_by_the_transaction_and_by_what_follows_it(
    denied: int, guarded_kafka: KafkaCluster, client_name: str
) -> None:
    names = [f"{name}-{uuid.uuid4().hex[:8]}" for name in ("verdicts", "dead-letters")]
    guarded_kafka.create_topics({name: (1, {}) for name in names})
    transactions = client(client_name).transactions(
        guarded_kafka.client_settings("SASL_PLAINTEXT"), max_message_bytes=1 << 20, topic_limits={}, id_prefix="test"
    )
    records = [OutRecord(topic, 0, None, b"answer", []) for topic in names]
    ticket = transactions.send(records)
    transactions.flush()
    assert ticket.settled()
    assert transactions.rebuild()
    guarded_kafka.deny_app("topic", names[denied])

    def deliver() -> None:
        ticket = transactions.send(records)
        while not ticket.settled():
            threading.Event().wait(0.02)

    for attempt in (deliver, transactions.rebuild):
        with pytest.raises(DeliveryFailed, match="does not let us write") as caught:
            attempt()
        assert (caught.value.step, caught.value.topic) == ("refused", names[denied])
    transactions.close()
    guarded_kafka.permit_app("topic", names[denied])
