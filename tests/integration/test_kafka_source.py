"""The consumer group's membership, where kafka-python loses it."""

import uuid
from collections.abc import Callable

from tests.conftest import Broker
from worker.adapters.kafka_source import KafkaSource


def test_a_join_that_the_client_forgets_half_way_is_finished(kafka: Broker, topics: Callable[..., str]) -> None:
    source = KafkaSource(
        {"bootstrap_servers": kafka.bootstrap},
        topic=topics(3),
        group_id=f"join-{uuid.uuid4().hex[:12]}",
        max_message_bytes=1 << 20,
    )
    try:
        for _ in range(200):
            source.poll(0.1, 16)
            if len(source.assignment()) == 3 and source.missing() == []:
                break
        assert source.missing() == []
        # What a change of the topic's metadata and back again does, at the worst moment.
        coordinator = source._consumer._coordinator
        coordinator.request_rejoin()
        source._consumer.poll(timeout_ms=0)
        assert coordinator.rejoining, "the join is under way"
        coordinator.rejoin_needed = False
        for _ in range(100):
            source.poll(0.1, 16)
            if not coordinator.rejoining and source.missing() == []:
                break
        assert not coordinator.rejoining
        assert source.missing() == []
        assert len(source.assignment()) == 3
    finally:
        source.close()
