"""What must be true of Kafka before the worker starts, found out with the admin client.

Rules: everything that is wrong is found in one go; nothing is changed here but by create_topics(). Answers
that say no for good (missing topic, no permission) are told apart from no answer at all.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import (
    AuthorizationError,
    InvalidTopicError,
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from kafka.net.compat import KafkaNetClient

from worker.adapters.topic_rules import (
    CLEANUP_POLICY,
    DEAD_LETTER_ROOM_BYTES,
    MAX_MESSAGE_BYTES,
    ROLES,
    Problem,
    TopicState,
    error_of,
    judge_topics,
)
from worker.core.errors import KafkaRefused, KafkaUnreachable

# A broker that restarts while the worker starts is not an absent one.
ASK_AGAIN_S = 15.0
ASK_PAUSE_S = 0.2
# How the client's log begins to tell why it could not connect.
FAILED = re.compile(r"Bootstrap connection to \S+ failed: (.*) \(backoff .*\)", re.DOTALL)


def inspect(
    client_options: Mapping[str, object],
    topics: Sequence[str],
    max_message_bytes: int,
    timeout_s: float,
) -> list[Problem]:
    """Look for everything in Kafka that would keep the worker from running.

    Args:
        client_options: kafka-python's keyword arguments for the connection.
        topics: their names, by topic_rules.ROLES.
        max_message_bytes: the worker's limit for one record.
        timeout_s: how long to wait for Kafka to answer at all.

    Returns:
        the problems; none if the worker can start.
    """
    try:
        with _admin(client_options, timeout_s) as admin:
            states, problems = _describe(admin, topics)
    except KafkaUnreachable as error:
        return [Problem("unreachable", str(error))]
    except KafkaRefused as error:
        return [Problem("refused", str(error))]
    return problems + judge_topics([states.get(name) for name in topics], max_message_bytes)


def partition_count(client_options: Mapping[str, object], topic: str, timeout_s: float) -> int:
    """How many partitions a topic has.

    Raises:
        KafkaUnreachable: nobody answered within `timeout_s` seconds.
        KafkaRefused: the topic does not exist or may not be seen.
    """
    with _admin(client_options, timeout_s) as admin:
        states, problems = _describe(admin, (topic,))
    if problems:
        raise error_of(problems)
    return states[topic].partitions


def topic_limits(client_options: Mapping[str, object], topics: Sequence[str], timeout_s: float) -> dict[str, int]:
    """Per topic its `max.message.bytes`; topics whose configuration may not be seen are left out.

    Raises:
        KafkaUnreachable: nobody answered within `timeout_s` seconds.
    """
    with _admin(client_options, timeout_s) as admin:
        states, _ = _describe(admin, topics)
    return {name: state.max_message_bytes for name, state in states.items() if state.max_message_bytes is not None}


def create_topics(
    client_options: Mapping[str, object],
    topics: Sequence[str],
    partitions: int,
    replication_factor: int | None,
    timeout_s: float,
) -> list[str]:
    """Create those of the topics that are missing, and wait until they have leaders.

    Args:
        client_options: kafka-python's keyword arguments for the connection.
        topics: their names, by topic_rules.ROLES.
        partitions: of the input topic, if it is missing; the others get as many as the input topic has.
        replication_factor: None for the broker's default.
        timeout_s: how long to wait for Kafka to answer at all, and for the leaders.

    Returns:
        names of the topics that were created.

    Raises:
        KafkaUnreachable: nobody answered.
        KafkaRefused: a topic may not be created.
    """
    factor = -1 if replication_factor is None else replication_factor
    created = []
    input_topic = topics[0]
    with _admin(client_options, timeout_s) as admin:
        for name, role in zip(topics, ROLES, strict=False):
            states, _ = _describe(admin, (input_topic, name))
            if name in states:
                continue
            source = states.get(input_topic)
            configs = {}
            if role in {"dead-letter", "map"} and source is not None and source.max_message_bytes is not None:
                configs[MAX_MESSAGE_BYTES] = str(source.max_message_bytes + DEAD_LETTER_ROOM_BYTES)
            topic = {
                "num_partitions": partitions if source is None else source.partitions,
                "replication_factor": factor,
                "configs": configs,
            }
            if _create(admin, name, topic, int(timeout_s * 1000)):
                created.append(name)
    return created


def _create(admin: KafkaAdminClient, name: str, topic: Mapping[str, object], timeout_ms: int) -> bool:
    """Create a topic and wait for its leaders. False: another worker was quicker."""
    try:
        _ask(lambda: admin.create_topics({name: topic}), f"creating topic '{name}'")
    except TopicAlreadyExistsError:
        created = False
    else:
        created = True
    _ask(lambda: admin.wait_for_topics([name], timeout_ms=timeout_ms), f"waiting for the leaders of topic '{name}'")
    return created


@contextmanager
def _admin(client_options: Mapping[str, object], timeout_s: float) -> Iterator[KafkaAdminClient]:
    """A connected admin client.

    Raises:
        KafkaUnreachable: it cannot connect.
    """
    timeout_ms = int(timeout_s * 1000)
    clients: list[KafkaNetClient] = []

    def network_client(**options: object) -> KafkaNetClient:
        clients.append(KafkaNetClient(**options))
        return clients[0]

    try:
        with _collected_log() as said:
            admin = KafkaAdminClient(
                **client_options,
                bootstrap_timeout_ms=timeout_ms,
                request_timeout_ms=max(timeout_ms, 1000),
                kafka_client=network_client,
            )
    except (KafkaError, OSError) as error:
        # The admin client starts its network thread before it connects, and leaves it running when it fails.
        for client in clients:
            client.close()
            client._manager._net.stop()
        raise KafkaUnreachable(_unreachable(client_options, timeout_s, said)) from error
    try:
        yield admin
    finally:
        admin.close()


@contextmanager
def _collected_log() -> Iterator[list[str]]:
    """Collects what the client logs instead of writing it: the causes, which its exception does not tell."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, collector = logging.getLogger("kafka"), Collector(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.propagate = propagate
        logger.removeHandler(collector)


def _unreachable(client_options: Mapping[str, object], timeout_s: float, said: Sequence[str]) -> str:
    servers = client_options["bootstrap_servers"]
    names = ", ".join(servers) if isinstance(servers, list) else str(servers)
    protocol = client_options.get("security_protocol", "PLAINTEXT")
    failures = dict.fromkeys(found[1] for line in said if (found := FAILED.match(line)))
    detail = f" ({'; '.join(failures)})" if failures else ""
    # The client often says no more than "closed" for a wrong password, a wrong CA, and a broker that is down.
    causes = {
        "PLAINTEXT": "is the broker running, is the address right, does its listener really take PLAINTEXT?",
        "SSL": "is the broker running, is the address right, is --kafka.ssl-ca-file the authority that signed its "
        "certificate, does the certificate bear its host name?",
        "SASL_PLAINTEXT": "is the broker running, is the address right, are --kafka.sasl-mechanism, "
        "--kafka.sasl-username and the password?",
        "SASL_SSL": "is the broker running, is the address right, are --kafka.sasl-mechanism, --kafka.sasl-username "
        "and the password, is --kafka.ssl-ca-file the authority that signed its certificate?",
    }
    return (
        f"no Kafka at {names} with security protocol {protocol} within {timeout_s:g} s{detail}. "
        f"Likely causes: {causes.get(str(protocol), causes['SASL_SSL'])}"
    )


def _ask(question: Callable[[], Any], doing: str) -> Any:
    """Ask Kafka something, again if a connection breaks meanwhile, and sort its refusals.

    Raises:
        KafkaRefused, KafkaUnreachable, TopicAlreadyExistsError
    """
    deadline = time.monotonic() + ASK_AGAIN_S
    while True:
        try:
            return question()
        except TopicAlreadyExistsError:
            raise
        except KafkaError as error:
            if not error.retriable:
                raise KafkaRefused(f"Kafka refused {doing}: {error}") from error
            if time.monotonic() >= deadline:
                raise KafkaUnreachable(f"Kafka stopped answering while {doing}: {error}") from error
        time.sleep(ASK_PAUSE_S)


def _describe(admin: KafkaAdminClient, names: Sequence[str]) -> tuple[dict[str, TopicState], list[Problem]]:
    """The topics that exist, by name, and what is wrong with the others."""
    existing: dict[str, int] = {}
    problems = []
    for topic in _ask(lambda: admin.describe_topics(list(names)), "describing topics"):
        name, kind = topic["name"], for_code(topic["error_code"])
        if kind is NoError:
            existing[name] = len(topic["partitions"])
        elif kind in {UnknownTopicOrPartitionError, InvalidTopicError}:
            problems.append(
                Problem(
                    "refused",
                    f"topic '{name}' does not exist. Create it, or let the worker: run --create-topics.",
                    creatable=True,
                )
            )
        elif issubclass(kind, AuthorizationError):
            problems.append(
                Problem("refused", f"topic '{name}' may not be described by this user. Allow it (ACL DESCRIBE).")
            )
        else:
            problems.append(Problem("unreachable", f"topic '{name}' is not available now: {kind.__name__}."))
    configs: dict[str, dict[str, dict[str, Any]]] = {}
    if existing:
        resources = [
            ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys((MAX_MESSAGE_BYTES, CLEANUP_POLICY)))
            for name in existing
        ]
        answer = _ask(lambda: admin.describe_configs(resources, config_filter="all"), "reading topic settings")
        configs = answer.get("topic", {})
    states = {}
    for name, partitions in existing.items():
        # Without the permission to read a topic's settings the client gives none, and no error.
        config = configs.get(name, {})
        limit = config.get(MAX_MESSAGE_BYTES, {}).get("value")
        policy = config.get(CLEANUP_POLICY, {}).get("value")
        states[name] = TopicState(name, partitions, None if limit is None else int(limit), policy)
    return states, problems
