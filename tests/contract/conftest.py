"""The real Kafka as a world of the contract suite."""

import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Broker
from tests.support.kafka import KafkaWorld


@pytest.fixture
def kafka_world(kafka: Broker, topics: Callable[..., str], exactly_once: bool) -> Iterator[KafkaWorld]:
    options = {"bootstrap_servers": kafka.bootstrap, "reconnect_backoff_max_ms": 1000}
    world = KafkaWorld(
        options, topics(), topics(), topics(), group=f"contract-{uuid.uuid4().hex[:12]}", exactly_once=exactly_once
    )
    yield world
    world.close()
