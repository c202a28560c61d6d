"""A real broker for the integration tests: one for the whole run, and topics of each test's own.

KAFKA_BOOTSTRAP=host:port uses a broker that is there already.  A broker that cannot be had fails the tests that
ask for it: a skipped test proves nothing.
"""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import settings

from deploy.local_kafka import KafkaCluster, create_topics

# How long an example takes says something about the machine, not about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@dataclass(frozen=True)
class Broker:
    """Where the shared broker is: bootstrap is host:port, several separated by commas."""

    bootstrap: str


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A plaintext broker that all tests share: do not stop it, and use topics and groups of your own."""
    present = os.environ.get("KAFKA_BOOTSTRAP")
    if present:
        yield Broker(present)
        return
    with KafkaCluster(tmp_path_factory.mktemp("kafka")) as cluster:
        yield Broker(cluster.bootstrap)


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A broker with SSL, SASL_PLAINTEXT and SASL_SSL listeners, started for the first test that asks."""
    with KafkaCluster(tmp_path_factory.mktemp("secure_kafka"), secure=True) as cluster:
        yield cluster


@pytest.fixture
def topics(kafka: Broker, request: pytest.FixtureRequest) -> Callable[..., str]:
    """topics(partitions=3, **config) creates a topic of a unique name on the shared broker and returns the name.

    A configuration key may be written with underscores: max_message_bytes=5_000_000.
    """
    test = re.sub(r"[^A-Za-z0-9._-]", "-", str(request.node.name))[:80]

    def create(partitions: int = 3, **config: object) -> str:
        name = f"{test}-{uuid.uuid4().hex[:12]}"
        settings = {key.replace("_", "."): value for key, value in config.items()}
        create_topics(kafka.bootstrap, {name: (partitions, settings)})
        return name

    return create
