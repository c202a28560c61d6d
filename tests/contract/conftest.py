"""The real Kafka as a world of the contract suite."""

import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Broker
from tests.support.kafka import KafkaWorld
from worker.adapters import kafka_source


@pytest.fixture
def kafka_world(
    kafka: Broker, topics: Callable[..., str], exactly_once: bool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KafkaWorld]:
    # A machine that stands still for seconds is a fault, which at_least_once may answer by repeating: none is wanted.
    monkeypatch.setattr(kafka_source, "SESSION_TIMEOUT_MS", 60_000)
    monkeypatch.setattr(kafka_source, "CALL_TIMEOUT_MS", 60_000)
    options = {"bootstrap_servers": kafka.bootstrap, "reconnect_backoff_max_ms": 1000}
    world = KafkaWorld(
        options, topics(), topics(), topics(), group=f"contract-{uuid.uuid4().hex[:12]}", exactly_once=exactly_once
    )
    yield world
    world.close()
