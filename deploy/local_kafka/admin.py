"""What the cluster's owner asks of its brokers: topics, access rights, readiness.

Rules: every call is bounded in time and closes its client; clients are bootstrapped only where something listens,
because a kafka-python client that fails to bootstrap leaves its thread behind.
"""

import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ACL, ACLFilter, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from kafka.errors import KafkaError
from kafka.protocol.admin import DescribeAclsRequest
from kafka.protocol.admin.client_quotas import AlterClientQuotasRequest

Resource = Literal["topic", "group", "transactional_id", "cluster"]
REQUEST_TIMEOUT_S = 15.0
POLL_S = 0.05
PROBE_NAME = "local-kafka-ready"
# A client waits this long for a coordinator that has just died before it asks for the new one.
PROBE_TIMEOUT_MS = 2000


def create_topics(bootstrap: str, topics: Mapping[str, tuple[int, Mapping[str, object]]]) -> None:
    """Create topics, {name: (partitions, configuration)}, and wait until every partition has a leader.

    The replication factor is the brokers' default.  Raises kafka.errors.TopicAlreadyExistsError, and other
    KafkaErrors for a bad name or setting.
    """
    wanted = {
        name: {"num_partitions": partitions, "configs": {key: str(value) for key, value in config.items()}}
        for name, (partitions, config) in topics.items()
    }
    with admin_client(bootstrap) as admin:
        admin.create_topics(wanted, wait_for_metadata=True)


def delete_topic(bootstrap: str, topic: str) -> None:
    """Delete a topic with all that is in it, and wait until it is gone."""
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    with admin_client(bootstrap) as admin:
        admin.delete_topics([topic])
        while topic in admin.list_topics():
            if time.monotonic() > deadline:
                raise TimeoutError(f"topic {topic} is still there {REQUEST_TIMEOUT_S:.0f} s after its deletion")
            time.sleep(POLL_S)


def list_topics(bootstrap: str) -> set[str]:
    """Names of all topics."""
    with admin_client(bootstrap) as admin:
        return set(admin.list_topics())


def allow_all(bootstrap: str, user: str) -> None:
    """Let a user do everything with every topic, group, transactional id and the cluster."""
    kinds: tuple[Resource, ...] = ("topic", "group", "transactional_id", "cluster")
    with admin_client(bootstrap) as admin:
        rules = [_rule(user, kind, "*" if kind != "cluster" else "kafka-cluster", allow=True) for kind in kinds]
        _require(admin.create_acls(rules))
        for rule in rules:
            _await_rule(admin, rule, there=True)


def deny(bootstrap: str, user: str, kind: Resource, name: str) -> None:
    """Deny a user everything on one resource, by now on every broker; it wins over what is allowed."""
    rule = _rule(user, kind, name, allow=False)
    with admin_client(bootstrap) as admin:
        _require(admin.create_acls([rule]))
        _await_rule(admin, rule, there=True)


def undo_deny(bootstrap: str, user: str, kind: Resource, name: str) -> None:
    """Take a denial back, by now on every broker.  Raises KafkaError where there is none."""
    rule = _rule(user, kind, name, allow=False)
    with admin_client(bootstrap) as admin:
        [(_, removed, error)] = admin.delete_acls([_exactly(rule)])
        if removed:
            _await_rule(admin, rule, there=False)
    if not removed:
        raise KafkaError(f"nothing denies {user} the {kind} {name!r} ({error.__name__})")


def set_producer_quota(bootstrap: str, client_id: str, bytes_per_s: int | None) -> None:
    """Bound what the producers of a client id may write to each broker, bytes a second; None: no bound.

    kafka-python has the request and no method for it.
    """
    entry = AlterClientQuotasRequest.EntryData
    request = AlterClientQuotasRequest(
        entries=[
            entry(
                entity=[entry.EntityData(entity_type="client-id", entity_name=client_id)],
                ops=[
                    entry.OpData(key="producer_byte_rate", value=float(bytes_per_s or 0), remove=bytes_per_s is None)
                ],
            )
        ],
        validate_only=False,
    )
    with admin_client(bootstrap) as admin:
        response = admin._manager.run(admin._manager.send, request)
    for result in response.entries:
        if result.error_code:
            raise KafkaError(f"the quota of {client_id} was refused: {result.error_message}")


def topic_bytes(bootstrap: str, topics: Collection[str]) -> int:
    """What these topics take on all brokers' disks, replicas included."""
    with admin_client(bootstrap) as admin:
        dirs = admin.describe_log_dirs()
    return sum(
        partition["partition_size"]
        for broker in dirs
        for folder in broker["log_dirs"]
        for topic in folder["topics"]
        if topic["name"] in topics
        for partition in topic["partitions"]
    )


def wait_ready(addresses: Mapping[int, str], deadline: float) -> None:
    """Wait until these brokers, {node id: address}, and no others make the cluster, and groups and transactions work.

    deadline: on time.monotonic().  Raises TimeoutError, KafkaError or OSError when it passes.
    """
    for address in addresses.values():
        with admin_client(address, deadline) as admin:
            _await_brokers(admin, set(addresses), deadline)
    while True:
        try:
            _use_coordinators(",".join(addresses.values()), deadline)
        except KafkaError:
            # To kafka-python a coordinator that is slow to write is the end of a producer; another may succeed.
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return


def _use_coordinators(bootstrap: str, deadline: float) -> None:
    """Each call makes an internal topic exist and finds its coordinator.

    Not send_offsets_to_transaction, in which kafka-python waits without a bound.
    """
    client = {
        "bootstrap_servers": bootstrap,
        "bootstrap_timeout_ms": _left_ms(deadline),
        "request_timeout_ms": PROBE_TIMEOUT_MS,
        "reconnect_backoff_max_ms": 1000,
    }
    producer = KafkaProducer(**client, transactional_id=PROBE_NAME, max_block_ms=_left_ms(deadline))
    try:
        producer.init_transactions()
    finally:
        producer.close(timeout=1)
    consumer = KafkaConsumer(**client, group_id=PROBE_NAME, enable_auto_commit=False)
    try:
        consumer.committed(TopicPartition(PROBE_NAME, 0), timeout_ms=_left_ms(deadline))
    finally:
        consumer.close()


def listens(address: str) -> bool:
    """Whether something accepts connections there."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, int(port))) == 0


@contextmanager
def admin_client(bootstrap: str, deadline: float | None = None) -> Iterator[Any]:
    """An administration client that is closed afterwards.  deadline: of bootstrapping, on time.monotonic()."""
    bound_ms = _left_ms(time.monotonic() + REQUEST_TIMEOUT_S if deadline is None else deadline)
    client = KafkaAdminClient(
        bootstrap_servers=bootstrap,
        bootstrap_timeout_ms=bound_ms,
        request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
        reconnect_backoff_max_ms=1000,
    )
    try:
        yield client
    finally:
        client.close()


def _await_brokers(admin: Any, expected: set[int], deadline: float) -> None:
    """Ask until exactly these brokers serve.  Questions fail meanwhile: the client may pick a node that has died."""
    found: object
    while True:
        try:
            found = _brokers(admin)
        except KafkaError as error:
            found = error
        if found == expected:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected nodes {sorted(expected)} to serve, got {found!r}")
        time.sleep(POLL_S)


def _brokers(admin: Any) -> set[int]:
    """Ids of the brokers that serve; a fenced one is known but does not."""
    return {b["broker_id"] for b in admin.describe_cluster()["brokers"] if not b.get("is_fenced", False)}


def _rule(user: str, kind: Resource, name: str, *, allow: bool) -> Any:
    permission = ACLPermissionType.ALLOW if allow else ACLPermissionType.DENY
    pattern = ResourcePattern(ResourceType[kind.upper()], name)
    return ACL(f"User:{user}", "*", ACLOperation.ALL, permission, pattern)


def _exactly(rule: Any) -> Any:
    return ACLFilter(rule.principal, rule.host, rule.operation, rule.permission_type, rule.resource_pattern)


def _await_rule(admin: Any, rule: Any, *, there: bool) -> None:
    """Ask each broker until all that serve have the rule, or have it no longer.

    The controller answers when the rule is in the metadata log; every broker's authorizer takes it from there in its
    own time. A broker answers this question from the very list that its authorizer decides by.
    """
    request = DescribeAclsRequest(
        resource_type_filter=rule.resource_pattern.resource_type,
        resource_name_filter=rule.resource_pattern.resource_name,
        pattern_type_filter=rule.resource_pattern.pattern_type,
        principal_filter=rule.principal,
        host_filter=rule.host,
        operation=rule.operation,
        permission_type=rule.permission_type,
    )
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        try:
            # kafka-python's own describe_acls() asks any one of them.
            answers = [admin._manager.run(admin._manager.send, request, node) for node in _brokers(admin)]
            if all(not answer.error_code and bool(answer.resources) == there for answer in answers):
                return
            last: object = answers
        except KafkaError as error:  # a node has died, and counts as gone in a moment
            last = error
        if time.monotonic() > deadline:
            change = "enforce" if there else "forget"
            raise TimeoutError(f"not all brokers {change} {rule} after {REQUEST_TIMEOUT_S:.0f} s: {last!r}")
        time.sleep(POLL_S)


def _require(result: Mapping[str, Sequence[Any]]) -> None:
    if result["failed"]:
        raise KafkaError(f"access rules were refused: {result['failed']}")


def _left_ms(deadline: float) -> int:
    return max(1000, int((deadline - time.monotonic()) * 1000))
