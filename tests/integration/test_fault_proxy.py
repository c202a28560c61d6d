"""The campaign's proxy before a real broker: clients stay on it, and its faults are what they say."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaTimeoutError

from deploy.local_kafka import KafkaCluster
from tests.faults.proxy import PRODUCE, Proxy
from tests.support.kafka import closing, read_all


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path_factory.mktemp("proxied"), proxied=True) as cluster:
        cluster.create_topics({"lines": (1, {}), "late": (1, {})})
        yield cluster


@pytest.fixture
def proxy(cluster: KafkaCluster) -> Iterator[Proxy]:
    with Proxy(cluster.proxy_routes) as proxy:
        yield proxy


def make_producer(cluster: KafkaCluster, **options: object) -> KafkaProducer:
    return KafkaProducer(
        **{
            "bootstrap_servers": cluster.bootstrap_for_proxy,
            "acks": "all",
            "enable_idempotence": True,
            "reconnect_backoff_max_ms": 500,
            **options,
        }
    )


def test_the_broker_sends_the_proxys_clients_to_the_proxy_and_others_to_itself(
    cluster: KafkaCluster, proxy: Proxy
) -> None:
    [(port, _)] = cluster.proxy_routes
    for bootstrap, expected in ((cluster.bootstrap_for_proxy, port), (cluster.bootstrap, None)):
        with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
            [broker] = admin.describe_cluster()["brokers"]
        assert f"{broker['host']}:{broker['port']}" == bootstrap
        assert (broker["port"] == port) == (expected is not None)


def test_an_idempotent_producer_survives_cuts_in_the_middle_of_its_requests(
    cluster: KafkaCluster, proxy: Proxy
) -> None:
    with closing(make_producer(cluster)) as producer:
        futures = []
        for number in range(300):
            futures.append(producer.send("lines", b"%d" % number, partition=0))
            if number % 60 == 30:
                futures[-1].get(timeout=30)  # so that there is a connection to cut
                proxy.cut()
        for future in futures:
            future.get(timeout=30)
    assert proxy.connections_cut >= 5
    records = read_all({"bootstrap_servers": cluster.bootstrap}, "lines", 300)
    assert [record.value for record in records] == [b"%d" % number for number in range(300)]


def test_a_held_request_comes_late_and_others_pass(cluster: KafkaCluster, proxy: Proxy) -> None:
    direct = {"bootstrap_servers": cluster.bootstrap}
    options = {"delivery_timeout_ms": 10_000, "request_timeout_ms": 8_000, "linger_ms": 0}
    producer = make_producer(cluster, **options)
    try:
        producer.send("late", b"before", partition=0).get(timeout=30)
        proxy.hold(PRODUCE)
        with pytest.raises(KafkaTimeoutError):
            producer.send("late", b"held", partition=0).get(timeout=30)
        with closing(KafkaAdminClient(bootstrap_servers=cluster.bootstrap_for_proxy)) as admin:
            assert "late" in admin.list_topics(), "another kind of request passes"
        assert [record.value for record in read_all(direct, "late", 1)] == [b"before"]
        proxy.release()
        assert [record.value for record in read_all(direct, "late", 2)][:2] == [b"before", b"held"]
    finally:
        producer.close(timeout=1)


def test_while_everything_is_held_nothing_is_answered(cluster: KafkaCluster, proxy: Proxy) -> None:
    with closing(make_producer(cluster, linger_ms=0)) as producer:
        producer.send("lines", b"before", partition=0).get(timeout=30)
        proxy.hold()
        future = producer.send("lines", b"after", partition=0)
        answered = threading.Event()
        future.add_callback(lambda _: answered.set())
        assert not answered.wait(1.0)
        proxy.release()
        assert answered.wait(30)


def test_the_proxied_cluster_keeps_its_ports(cluster: KafkaCluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another root"):
        KafkaCluster(cluster.root, proxied=False)
