"""What the integration tests share: small real bundles, clients, and a cluster that has rights to withdraw."""

from collections.abc import Iterator

import pytest

from deploy.local_kafka import KafkaCluster
from tests.support.bundles import write_tiny_bundle
from worker.adapters.clients import CONFLUENT, KAFKA_PYTHON
from worker.core.bundle import Bundle


@pytest.fixture(params=[KAFKA_PYTHON, pytest.param(CONFLUENT, marks=pytest.mark.confluent)])
def client_name(request: pytest.FixtureRequest) -> str:
    """What kafka.client may be; a test that asks runs with each, with the second by `make test-confluent`."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def fragile_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("fragile"), "fragile", fragile=True)


@pytest.fixture(scope="session")
def guarded_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Three brokers that enforce access rules: use topics of your own, and give back what you withdraw."""
    with KafkaCluster(tmp_path_factory.mktemp("guarded_kafka"), nodes=3, secure=True, acls=True) as cluster:
        yield cluster
