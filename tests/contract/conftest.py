"""The real Kafka as a world of the contract suite."""

import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Broker
from tests.support.kafka import KafkaWorld
from worker.adapters import confluent_source, kafka_source


@pytest.fixture
def make_kafka_world(
    kafka: Broker, topics: Callable[..., str], exactly_once: bool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], KafkaWorld]]:
    """make_kafka_world(client): the shared broker through one of the clients."""
    # A machine that stands still for seconds is a fault, which at_least_once may answer by repeating: none is wanted.
    for source in (kafka_source, confluent_source):
        monkeypatch.setattr(source, "SESSION_TIMEOUT_MS", 60_000)
        monkeypatch.setattr(source, "CALL_TIMEOUT_MS", 60_000)
    options = {"bootstrap_servers": kafka.bootstrap, "reconnect_backoff_max_ms": 1000}
    worlds = []

    def make(client_name: str) -> KafkaWorld:
        group = f"contract-{uuid.uuid4().hex[:12]}"
        world = KafkaWorld(
            options, topics(), topics(), topics(), group=group, exactly_once=exactly_once, client_name=client_name
        )
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.close()
