"""The local Kafka itself: it keeps data over kill -9, lets the right clients in, and never outlives its starter."""

import json
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, TopicAuthorizationFailedError
from kafka.protocol.metadata import MetadataRequest

from deploy.local_kafka import ClusterError, KafkaCluster
from deploy.local_kafka.__main__ import main
from deploy.local_kafka.node import HOST, PORTS, free_ports, render_properties

BOUND_S = 20.0


class Broker(Protocol):
    bootstrap: str


def produce(client: Mapping[str, Any], topic: str, value: bytes) -> int:
    """Offset at which the value was acknowledged."""
    with closing(KafkaProducer(**client, acks="all", bootstrap_timeout_ms=10_000)) as producer:
        return int(producer.send(topic, value, partition=0).get(timeout=BOUND_S).offset)


def read(client: Mapping[str, Any], topic: str, count: int) -> list[bytes]:
    """The first values of partition 0."""
    with closing(KafkaConsumer(**client)) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek(partition, 0)
        values: list[bytes] = []
        deadline = time.monotonic() + BOUND_S
        while len(values) < count and time.monotonic() < deadline:
            values += [record.value for record in consumer.poll(timeout_ms=500).get(partition, [])]
        return values


def shut_down_cleanly(cluster: KafkaCluster) -> bool:
    """Kafka leaves this file when it closed its logs in order, and removes it when it starts."""
    return (cluster.nodes[0].folder / "data" / ".kafka_cleanshutdown").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A broker of this module's own, to be broken."""
    with KafkaCluster(tmp_path_factory.mktemp("own"), config={"message.max.bytes": 2_000_000}) as cluster:
        yield cluster


def test_what_was_acknowledged_survives_kill_9_at_the_same_address(cluster: KafkaCluster) -> None:
    address = cluster.bootstrap
    client = {"bootstrap_servers": address}
    cluster.create_topics({"kept": (1, {})})
    produce(client, "kept", b"before")
    first = cluster.pid(1)
    assert first is not None
    cluster.kill_node(1)
    assert not psutil.pid_exists(first)
    assert cluster.pid(1) is None
    assert not shut_down_cleanly(cluster)

    cluster.start_node(1)
    cluster.wait_ready()
    assert cluster.bootstrap == address
    assert produce(client, "kept", b"after") == 1
    assert read(client, "kept", 2) == [b"before", b"after"]


def test_a_stopped_cluster_is_continued_by_another_object_on_the_same_root(cluster: KafkaCluster) -> None:
    cluster.create_topics({"continued": (1, {})})
    produce({"bootstrap_servers": cluster.bootstrap}, "continued", b"x")
    cluster.stop()
    with KafkaCluster(cluster.root) as again:
        assert again.bootstrap == cluster.bootstrap
        assert read({"bootstrap_servers": again.bootstrap}, "continued", 1) == [b"x"]
    with pytest.raises(ValueError, match="use another root"):
        KafkaCluster(cluster.root, nodes=3)
    cluster.start()


def test_a_paused_broker_answers_nothing_until_it_is_resumed(cluster: KafkaCluster) -> None:
    cluster.create_topics({"paused": (1, {})})
    with closing(KafkaProducer(bootstrap_servers=cluster.bootstrap, acks="all")) as producer:
        producer.send("paused", b"first", partition=0).get(timeout=BOUND_S)
        cluster.pause_node(1)
        pending = producer.send("paused", b"held", partition=0)
        with pytest.raises(KafkaError):
            pending.get(timeout=1)
        cluster.resume_node(1)
        assert pending.get(timeout=BOUND_S).offset == 1


def test_a_paused_broker_can_be_stopped(cluster: KafkaCluster) -> None:
    cluster.pause_node(1)
    cluster.stop_node(1)
    assert cluster.pid(1) is None
    assert shut_down_cleanly(cluster)
    with pytest.raises(ClusterError, match=r"not running.*start_node\(1\)"):
        cluster.resume_node(1)
    cluster.start()


def test_settings_and_topics_arrive_at_the_broker(kafka: Broker, topics: Callable[..., str]) -> None:
    name = topics(partitions=5, max_message_bytes=12345)
    other = topics()
    assert name != other
    with closing(KafkaAdminClient(bootstrap_servers=kafka.bootstrap)) as admin:
        by_name = {topic["name"]: topic for topic in admin.describe_topics([name, other])}
    assert len(by_name[name]["partitions"]) == 5
    assert len(by_name[other]["partitions"]) == 3
    with pytest.raises(KafkaError, match="MessageSizeTooLarge"):
        produce({"bootstrap_servers": kafka.bootstrap}, name, bytes(20_000))


@pytest.mark.parametrize(
    ("protocol", "mechanism", "user"),
    [
        ("SASL_SSL", "SCRAM-SHA-512", "app"),
        ("SASL_SSL", "SCRAM-SHA-256", "admin"),
        ("SASL_PLAINTEXT", "PLAIN", "app"),
        ("SSL", "PLAIN", "app"),
        ("PLAINTEXT", "PLAIN", "app"),
    ],
)
def test_round_trip_through_every_listener(
    secure_kafka: KafkaCluster, protocol: Any, mechanism: str, user: str
) -> None:
    client = secure_kafka.client_settings(protocol, mechanism=mechanism, user=user)
    topic = f"round-{protocol}-{mechanism}-{user}"
    secure_kafka.create_topics({topic: (1, {})})
    produce(client, topic, b"secret")
    assert read(client, topic, 1) == [b"secret"]


@pytest.mark.parametrize(
    ("protocol", "broken"),
    [
        ("SASL_SSL", {"sasl_plain_password": "wrong"}),
        ("SASL_SSL", {"ssl_cafile": None}),
        ("SSL", {"ssl_certfile": None, "ssl_keyfile": None}),
    ],
    ids=["password", "authority", "client-certificate"],
)
def test_nobody_gets_in_without(secure_kafka: KafkaCluster, protocol: Any, broken: dict[str, object]) -> None:
    # In a process of its own: a client that cannot bootstrap leaves its thread and sockets behind.
    script = textwrap.dedent("""
        import json, sys
        from kafka import KafkaAdminClient
        from kafka.errors import KafkaError
        try:
            KafkaAdminClient(**json.loads(sys.argv[1]), bootstrap_timeout_ms=int(sys.argv[2]))
        except KafkaError:
            print("refused")
        else:
            print("let in")
    """)
    allowed = secure_kafka.client_settings(protocol)
    for client, timeout_ms, answer in ((allowed, 20_000, "let in"), (allowed | broken, 1500, "refused")):
        command = [sys.executable, "-c", script, json.dumps(client), str(timeout_ms)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S * 2, check=False)
        assert result.stdout.strip() == answer, result.stderr


def test_rights_of_the_user_can_be_withdrawn_and_given_back(guarded_kafka: KafkaCluster) -> None:
    cluster, guarded, public = guarded_kafka, "guarded", "public"
    cluster.create_topics({guarded: (1, {}), public: (1, {})})
    app = cluster.client_settings("SASL_PLAINTEXT")
    certified = cluster.client_settings("SSL")
    produce(app, guarded, b"1")
    cluster.deny_app("topic", guarded)
    for client in (app, certified):
        with pytest.raises(TopicAuthorizationFailedError):
            produce(client, guarded, b"2")
        produce(client, public, b"2")
    produce(cluster.client_settings("SASL_PLAINTEXT", user="admin"), guarded, b"3")
    cluster.permit_app("topic", guarded)
    produce(certified, guarded, b"4")
    assert read(app, guarded, 3) == [b"1", b"3", b"4"]
    with pytest.raises(KafkaError, match="nothing denies app the topic 'guarded'"):
        cluster.permit_app("topic", guarded)


def test_every_broker_enforces_a_denial_and_its_end_when_the_call_returns(guarded_kafka: KafkaCluster) -> None:
    topic = "denied-again-and-again"
    guarded_kafka.create_topics({topic: (1, {})})
    question = MetadataRequest(topics=[MetadataRequest.MetadataRequestTopic(name=topic)])
    with closing(KafkaAdminClient(**guarded_kafka.client_settings("SASL_PLAINTEXT"))) as app:

        def answers() -> list[int]:
            manager = app._manager
            return [
                manager.run(manager.send, question, node.number).topics[0].error_code for node in guarded_kafka.nodes
            ]

        assert answers() == [0, 0, 0]
        # Without the wait about every fifth change is seen late by one of three brokers.
        for _ in range(20):
            guarded_kafka.deny_app("topic", topic)
            assert answers() == [TopicAuthorizationFailedError.errno] * 3
            guarded_kafka.permit_app("topic", topic)
            assert answers() == [0, 0, 0]


def test_three_nodes_go_on_without_one(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path, nodes=3) as cluster:
        client = {"bootstrap_servers": cluster.bootstrap}
        assert cluster.bootstrap.count(",") == 2
        cluster.create_topics({"replicated": (1, {})})
        with closing(KafkaAdminClient(**client)) as admin:
            [topic] = admin.describe_topics(["replicated"])
        assert sorted(topic["partitions"][0]["replica_nodes"]) == [1, 2, 3]
        produce(client, "replicated", b"all")
        cluster.kill_node(1)
        cluster.wait_ready()
        produce(client, "replicated", b"two of three")
        cluster.start_node(1)
        cluster.wait_ready()
        assert read({"bootstrap_servers": cluster.nodes[0].address("PLAINTEXT")}, "replicated", 2) == [
            b"all",
            b"two of three",
        ]


def test_no_broker_outlives_a_starter_that_was_killed(tmp_path: Path) -> None:
    # Started from a thread that has ended: neither must that end the broker.
    script = textwrap.dedent(f"""
        import threading, time
        from pathlib import Path
        from deploy.local_kafka import KafkaCluster
        cluster = KafkaCluster(Path({str(tmp_path)!r}))
        thread = threading.Thread(target=cluster.start)
        thread.start()
        thread.join()
        cluster.list_topics()
        print(cluster.pid(1), flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        broker = psutil.Process(int(starter.stdout.readline()))
        watchers = broker.children()
        assert "kafka.Kafka" in broker.cmdline()
        assert len(watchers) == 1
        starter.kill()
    left = wait_gone([broker, *watchers], bound_s=5.0)
    assert left == []


def wait_gone(processes: list[psutil.Process], bound_s: float) -> list[psutil.Process]:
    """Those that still run after the bound.  One that nobody has collected yet (a zombie) is gone."""

    def alive(process: psutil.Process) -> bool:
        try:
            return bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + bound_s
    while (left := [process for process in processes if alive(process)]) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.1)
    return left


def test_watchers_end_with_their_cluster(tmp_path: Path) -> None:
    with KafkaCluster(tmp_path) as cluster:
        pid = cluster.pid(1)
        assert pid is not None
        watchers = psutil.Process(pid).children()
        assert len(watchers) == 1
    assert wait_gone(watchers, bound_s=5.0) == []


def test_settings_that_kafka_refuses_are_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"could not be formatted(?s:.*)num\.network\.threads"):
        KafkaCluster(tmp_path, config={"num.network.threads": 0})


def test_a_broker_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    cluster = KafkaCluster(tmp_path)
    with socket.socket() as taken:
        taken.bind((HOST, cluster.nodes[0].ports["PLAINTEXT"]))
        with pytest.raises(ClusterError, match=r"ended by itself(?s:.*)Address already in use"):
            cluster.start()
    assert cluster.pid(1) is None


def test_contradicting_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 or 3, got 2"):
        KafkaCluster(tmp_path, nodes=2)
    with pytest.raises(ValueError, match="secure=True"):
        KafkaCluster(tmp_path, acls=True)
    assert list(tmp_path.iterdir()) == []


def test_an_address_or_node_that_is_not_there_is_refused(cluster: KafkaCluster) -> None:
    with pytest.raises(ValueError, match="secure=True"):
        cluster.bootstrap_for("SASL_SSL")
    with pytest.raises(ValueError, match="from 1 to 1, got 2"):
        cluster.kill_node(2)
    with pytest.raises(ValueError, match="SCRAM-SHA-512"):
        cluster.client_settings("PLAINTEXT", mechanism="GSSAPI")


def test_run_serves_its_topics_until_it_is_asked_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.local_kafka", "run", "--root", str(tmp_path)]
    addresses = []
    for _ in range(2):  # the second run finds the topic of the first
        with subprocess.Popen(
            [*command, "--topic", "images:2"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            addresses.append(process.stdout.readline().strip())
            with closing(KafkaAdminClient(bootstrap_servers=addresses[-1])) as admin:
                [images] = admin.describe_topics(["images"])
            assert len(images["partitions"]) == 2
            process.terminate()
            assert process.wait(BOUND_S) == 0
    assert addresses[0] == addresses[1]


@pytest.mark.parametrize("topic", [":3", "images:none", "images:0", "images:-1"])
def test_a_topic_that_cannot_be_read_is_refused(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--topic", topic])
    assert "images:4" in capsys.readouterr().err


def test_ports_are_different_and_below_the_ephemeral_range() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(port in PORTS for port in ports)
    assert PORTS.stop <= 32_768


def test_properties_are_escaped_as_java_reads_them() -> None:
    assert render_properties({"a": "C:\\x", "b": "größe 📷", "c": 1}) == (
        "a=C:\\\\x\nb=gr\\u00f6\\u00dfe \\ud83d\\udcf7\nc=1\n"
    )
