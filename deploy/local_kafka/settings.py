"""The broker settings of a node, as a mapping that server.properties is written from.

Rules: what tests rely on as Kafka's behaviour (transaction timeouts, message limits) keeps its default; changed is
only what makes a small cluster start, fail over and forget quickly.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from deploy.local_kafka.certificates import Certificates
from deploy.local_kafka.node import Node

PLAIN_LISTENERS = ("PLAINTEXT", "CONTROLLER")
SECURE_LISTENERS = ("SSL", "SASL_PLAINTEXT", "SASL_SSL")
# PROXIED is bound by the broker and advertised at the port PROXY, where a proxy of the caller's stands.
PROXIED_LISTENERS = ("PROXIED", "PROXY")
SCRAM_MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512")
MECHANISMS = ("PLAIN", *SCRAM_MECHANISMS)
SECURITY_PACKAGE = "org.apache.kafka.common.security"

FAST_CONFIG: Mapping[str, object] = MappingProxyType(
    {
        "auto.create.topics.enable": "false",
        # Fewer threads and smaller buffers than a server's: several nodes share a laptop.
        "num.network.threads": 2,
        "num.io.threads": 2,
        "background.threads": 2,
        "num.recovery.threads.per.data.dir": 1,
        "log.cleaner.dedupe.buffer.size": 4 << 20,
        "log.index.size.max.bytes": 1 << 20,
        # Internal topics of one partition instead of 50: they are created in a moment.
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        # Groups form at once, and tests may ask for short sessions.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 500,
        # How often overdue transactions are looked for; the timeout itself is the producer's.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
        # A dead node is noticed after 3 s instead of 9.
        "broker.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 3000,
    }
)


def node_settings(
    node: Node,
    nodes: Sequence[Node],
    *,
    passwords: Mapping[str, str],
    certificates: Certificates | None,
    acls: bool,
) -> dict[str, object]:
    """Settings of one of the nodes.  passwords: by user; certificates: None for a cluster without security."""
    replicas = len(nodes)
    in_sync = max(1, replicas - 1)
    listeners = {name: f"{name}://{node.address(name)}" for name in node.ports if name != "PROXY"}
    advertised = {name: url for name, url in listeners.items() if name != "CONTROLLER"}
    if "PROXY" in node.ports:
        advertised["PROXIED"] = f"PROXIED://{node.address('PROXY')}"
    voters = ",".join(f"{other.number}@{other.address('CONTROLLER')}" for other in nodes)
    protocols = {name: "PLAINTEXT" if name in {"CONTROLLER", "PROXIED"} else name for name in listeners}
    settings: dict[str, object] = {
        "node.id": node.number,
        "process.roles": "broker,controller",
        "controller.quorum.voters": voters,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listeners": ",".join(listeners.values()),
        "advertised.listeners": ",".join(advertised.values()),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "log.dirs": node.folder / "data",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        **FAST_CONFIG,
    }
    if certificates is not None:
        settings |= _sasl_settings(passwords) | _tls_settings(certificates)
    if acls:
        settings["authorizer.class.name"] = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        # ANONYMOUS: the plaintext listeners, which the brokers themselves and the administration use.
        settings["super.users"] = "User:admin;User:ANONYMOUS"
    return settings


def scram_credentials(passwords: Mapping[str, str]) -> list[str]:
    """Every user for every SCRAM mechanism, as the storage tool's --add-scram takes them."""
    return [
        f'{mechanism}=[name="{user}",password="{password}"]'
        for mechanism in SCRAM_MECHANISMS
        for user, password in passwords.items()
    ]


def _sasl_settings(passwords: Mapping[str, str]) -> dict[str, object]:
    users = " ".join(f'user_{user}="{password}"' for user, password in passwords.items())
    settings: dict[str, object] = {}
    for listener in ("sasl_plaintext", "sasl_ssl"):
        prefix = f"listener.name.{listener}"
        settings[f"{prefix}.sasl.enabled.mechanisms"] = ",".join(MECHANISMS)
        settings[f"{prefix}.plain.sasl.jaas.config"] = f"{SECURITY_PACKAGE}.plain.PlainLoginModule required {users};"
        for mechanism in SCRAM_MECHANISMS:
            login = f"{SECURITY_PACKAGE}.scram.ScramLoginModule required;"
            settings[f"{prefix}.{mechanism.lower()}.sasl.jaas.config"] = login
    return settings


def _tls_settings(certificates: Certificates) -> dict[str, object]:
    settings: dict[str, object] = {
        # The SSL listener knows its clients by their certificates, SASL_SSL by their passwords.
        "listener.name.ssl.ssl.client.auth": "required",
        "listener.name.ssl.ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
    }
    for listener in ("ssl", "sasl_ssl"):
        prefix = f"listener.name.{listener}.ssl"
        settings[f"{prefix}.keystore.type"] = "PEM"
        settings[f"{prefix}.keystore.location"] = certificates.broker_file
        settings[f"{prefix}.truststore.type"] = "PEM"
        settings[f"{prefix}.truststore.location"] = certificates.ca_file
    return settings
