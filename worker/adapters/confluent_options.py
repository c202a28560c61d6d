"""The connection's settings in librdkafka's names, what all of its clients share, and what its errors are.

Rules: the settings come as kafka-python's keyword arguments, so that one place (worker.settings_kafka) knows them;
what librdkafka has to say goes to the logger `kafka.librdkafka`, which worker.logs shows only at the level debug: it
writes a line for every attempt.
"""

import logging
import re
from collections.abc import Iterable, Mapping

from confluent_kafka import KafkaError

log = logging.getLogger("kafka.librdkafka")

# A broker that takes a connection and says nothing.
CONNECTION_SETUP_TIMEOUT_MS = 10_000
# librdkafka's own bound for a record.
LARGEST_RECORD_BYTES = 1_000_000_000

NOT_ADDED = re.compile(r'Failed to add partition "(.+)" \[\d+\] to transaction: (.+)')

_NAMES = {
    "client_id": "client.id",
    "security_protocol": "security.protocol",
    "reconnect_backoff_max_ms": "reconnect.backoff.max.ms",
    "sasl_mechanism": "sasl.mechanism",
    "sasl_plain_username": "sasl.username",
    "sasl_plain_password": "sasl.password",
    "ssl_cafile": "ssl.ca.location",
    "ssl_certfile": "ssl.certificate.location",
    "ssl_keyfile": "ssl.key.location",
    "ssl_password": "ssl.key.password",
}


class Log:
    """Where a client's log goes; keeps which topic a transaction may not have, which is told nowhere else."""

    def __init__(self) -> None:
        self.not_added: tuple[str, str] | None = None  # topic, and why

    def log(self, level: int, form: str, *arguments: object) -> None:
        """Called by librdkafka, as it would call a logger."""
        log.log(level, form, *arguments)
        found = NOT_ADDED.search(str(arguments[-1]))
        if found and found[2] != KafkaError(KafkaError.OPERATION_NOT_ATTEMPTED).str():
            self.not_added = found[1], found[2]


def librdkafka_options(options: Mapping[str, object], library_log: Log) -> dict[str, object]:
    """What any of librdkafka's clients is to be made with.

    Args:
        options: how to reach Kafka, as kafka-python names it.
        library_log: of the client.

    Raises:
        KeyError: one that this module does not know.
    """
    given = dict(options)
    servers = given.pop("bootstrap_servers")
    translated: dict[str, object] = {
        "bootstrap.servers": servers if isinstance(servers, str) else ",".join(map(str, _listed(servers))),
        "socket.connection.setup.timeout.ms": CONNECTION_SETUP_TIMEOUT_MS,
        "socket.keepalive.enable": True,
        "log.connection.close": False,
        "allow.auto.create.topics": False,
        "error_cb": _on_error,
        "logger": library_log,
    }
    if "ssl_check_hostname" in given:
        checked = given.pop("ssl_check_hostname")
        translated["ssl.endpoint.identification.algorithm"] = "https" if checked else "none"
    translated |= {_NAMES[name]: value for name, value in given.items()}
    # kafka-python takes the key out of the certificate's file where it has no file of its own.
    if "ssl.certificate.location" in translated:
        translated.setdefault("ssl.key.location", translated["ssl.certificate.location"])
    return translated


def _listed(servers: object) -> Iterable[object]:
    return servers if isinstance(servers, (list, tuple)) else [servers]


def _on_error(error: KafkaError) -> None:
    log.debug("%s", error)


def error_of(exception: BaseException) -> KafkaError:
    """The error that a KafkaException carries."""
    error = exception.args[0]
    return error if isinstance(error, KafkaError) else KafkaError(KafkaError._FAIL, str(exception))


AUTHORIZATION = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
NO_SUCH_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})
# The group, or a producer of the same name, has moved on.
FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError._ASSIGNMENT_LOST,
    }
)
TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
