import gc
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from deploy.local_kafka import KafkaCluster
from tests.conftest import Broker
from worker.adapters.kafka_admin import create_topics, inspect, partition_count, topic_limits
from worker.core.errors import KafkaRefused, KafkaUnreachable
from worker.settings_kafka import KafkaSettings

Topics = Callable[..., str]
LIMIT = 1_048_588

# kafka-python leaves a socket open after each failed connection or TLS handshake, until it is collected: such a
# test collects it at its end, or the warning would meet another test.
leaves_sockets = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def options(broker: Broker) -> dict[str, object]:
    return KafkaSettings(bootstrap_servers=broker.bootstrap).client_options()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_fitting_topics_are_no_problem(kafka: Broker, topics: Topics) -> None:
    names = topics(max_message_bytes=LIMIT), topics(partitions=4), topics(max_message_bytes=LIMIT + (64 << 10))
    assert inspect(options(kafka), names, LIMIT, 20) == []


def test_every_missing_topic_is_named_and_none_is_created(kafka: Broker, topics: Topics) -> None:
    present = topics()
    for _ in range(2):
        problems = inspect(options(kafka), (present, "no-such-output", "no-such-letters"), LIMIT, 20)
        assert [problem.kind for problem in problems] == ["refused", "refused"]
        text = " ".join(problem.message for problem in problems)
        assert "'no-such-output' does not exist" in text
        assert "'no-such-letters' does not exist" in text
        assert present not in text


def test_everything_wrong_is_in_one_list(kafka: Broker, topics: Topics) -> None:
    source = topics(max_message_bytes=5_000_000)
    output = topics(partitions=2, cleanup_policy="compact")
    letters = topics(partitions=1, max_message_bytes=5_000_000 + (64 << 10) - 1)
    maps = topics(partitions=2, max_message_bytes=1000)
    problems = inspect(options(kafka), (source, output, letters, maps), 4_999_999, 20)
    assert sorted(problem.kind for problem in problems) == ["configuration"] + 6 * ["refused"]
    text = "\n".join(problem.message for problem in problems)
    assert f"output topic '{output}' has 2 partitions, input topic '{source}' has 3" in text
    assert f"dead-letter topic '{letters}' has 1 partitions" in text
    assert f"map topic '{maps}' has 2 partitions" in text
    assert f"map topic '{maps}' accepts 1000 bytes" in text
    assert "--max-message-bytes is 4999999" in text
    assert "--max-message-bytes 5000000" in text
    assert "max.message.bytes=5065536" in text
    assert "compact" in text


def test_a_default_dead_letter_topic_is_too_small(kafka: Broker, topics: Topics) -> None:
    (problem,) = inspect(options(kafka), (topics(), topics(), topics()), 8 << 20, 20)
    assert problem.kind == "refused"
    assert f"max.message.bytes={LIMIT + (64 << 10)}" in problem.message


@leaves_sockets
def test_nobody_there_is_told_in_time_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    (problem,) = inspect(KafkaSettings(bootstrap_servers=address).client_options(), ("a", "b", "c"), LIMIT, 1.5)
    assert time.monotonic() - began < 10
    assert problem.kind == "unreachable"
    assert address in problem.message
    assert "ECONNREFUSED" in problem.message
    assert "Likely causes" in problem.message
    assert set(threading.enumerate()) <= before
    gc.collect()


def test_a_connection_that_never_answers_is_told_in_time() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(KafkaUnreachable, match="within 2 s"):
            partition_count(KafkaSettings(bootstrap_servers=address).client_options(), "a", 2)


def secure(cluster: KafkaCluster, **changes: object) -> dict[str, object]:
    settings: dict[str, object] = {
        "bootstrap_servers": cluster.bootstrap_for("SASL_SSL"),
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "app",
        "sasl_password": cluster.app_password,
        "ssl_ca_file": cluster.ca_file,
    }
    return KafkaSettings.model_validate(settings | changes).client_options()


def test_a_secure_connection_works(secure_kafka: KafkaCluster) -> None:
    problems = inspect(secure(secure_kafka), ("a", "b", "c"), LIMIT, 20)
    assert [problem.kind for problem in problems] == 3 * ["refused"]


def test_a_wrong_password_names_the_settings_and_not_the_password(secure_kafka: KafkaCluster) -> None:
    (problem,) = inspect(secure(secure_kafka, sasl_password="wrong-hunter2"), ("a", "b", "c"), LIMIT, 3)
    assert problem.kind == "unreachable"
    assert "--kafka.sasl-username" in problem.message
    assert "socket disconnected" in problem.message
    assert "hunter2" not in problem.message


def test_a_listener_that_wants_tls_is_told_from_one_that_is_down(secure_kafka: KafkaCluster) -> None:
    plain = KafkaSettings(bootstrap_servers=secure_kafka.bootstrap_for("SASL_SSL")).client_options()
    (problem,) = inspect(plain, ("a", "b", "c"), LIMIT, 2)
    assert "really take PLAINTEXT" in problem.message
    assert "ECONNREFUSED" not in problem.message
    # What the broker answers to a request that is no TLS, or that it closes: which comes first is its affair.
    assert "InvalidReceiveError" in problem.message or "socket disconnected" in problem.message


@leaves_sockets
def test_a_wrong_authority_names_the_file(secure_kafka: KafkaCluster, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    (problem,) = inspect(secure(secure_kafka, ssl_ca_file=other), ("a", "b", "c"), LIMIT, 3)
    assert problem.kind == "unreachable"
    assert "--kafka.ssl-ca-file" in problem.message
    assert "CERTIFICATE_VERIFY_FAILED" in problem.message
    other.write_text("no PEM")
    (problem,) = inspect(secure(secure_kafka, ssl_ca_file=other), ("a", "b", "c"), LIMIT, 2)
    assert "--kafka.ssl-ca-file" in problem.message
    assert "certificate" in problem.message.split("Likely")[0]
    gc.collect()


def test_missing_topics_are_created_to_fit_the_input(kafka: Broker, topics: Topics) -> None:
    source = topics(partitions=5, max_message_bytes=2_000_000)
    names = source, f"{source}-verdicts", f"{source}-letters", f"{source}-maps"
    assert create_topics(options(kafka), names, 9, None, 20) == list(names[1:])
    assert [partition_count(options(kafka), name, 20) for name in names] == [5] * 4
    limits = topic_limits(options(kafka), names, 20)
    assert limits[names[2]] == limits[names[3]] == 2_000_000 + (64 << 10), "a map may be as large as its image"
    assert inspect(options(kafka), names, 2_000_000, 20) == []
    assert create_topics(options(kafka), names, 9, None, 20) == []


def test_an_input_topic_is_created_too(kafka: Broker, topics: Topics) -> None:
    names = [f"{topics(partitions=1)}-{role}" for role in ("images", "verdicts", "letters")]
    assert create_topics(options(kafka), names, 4, 1, 20) == names
    assert [partition_count(options(kafka), name, 20) for name in names] == [4, 4, 4]
    assert inspect(options(kafka), names, 8 << 20, 20) == []


def test_what_kafka_refuses_to_create_is_refused(kafka: Broker, topics: Topics) -> None:
    source = topics()
    with pytest.raises(KafkaRefused, match="creating topic"):
        create_topics(options(kafka), (source, f"{source}-out", f"{source}-letters"), 1, 100, 20)


def test_a_missing_topic_has_no_partition_count(kafka: Broker) -> None:
    with pytest.raises(KafkaRefused, match="'no-such-topic' does not exist"):
        partition_count(options(kafka), "no-such-topic", 20)
