"""Which library talks to Kafka: the one place that knows. The checks at the start are kafka-python's in any case."""

from collections.abc import Callable
from typing import NamedTuple

from worker.core.errors import ConfigurationError
from worker.ports import Publisher, Source, Transactions

KAFKA_PYTHON = "kafka-python"
CONFLUENT = "confluent"


class Client(NamedTuple):
    """What fulfils the ports; all take their options as kafka-python names them."""

    source: Callable[..., Source]
    publisher: Callable[..., Publisher]
    transactions: Callable[..., Transactions]


def client(name: str) -> Client:
    """The adapters of a library, which is imported by this alone.

    Raises:
        ConfigurationError: it is not installed.
    """
    if name == KAFKA_PYTHON:
        from worker.adapters.kafka_publisher import KafkaPublisher  # noqa: PLC0415
        from worker.adapters.kafka_source import KafkaSource  # noqa: PLC0415
        from worker.adapters.kafka_transactions import KafkaTransactions  # noqa: PLC0415

        return Client(KafkaSource, KafkaPublisher, KafkaTransactions)
    try:
        from worker.adapters.confluent_publisher import ConfluentPublisher  # noqa: PLC0415
        from worker.adapters.confluent_source import ConfluentSource  # noqa: PLC0415
        from worker.adapters.confluent_transactions import ConfluentTransactions  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"--kafka.client is {name}, but {error.name} is not installed. Install the extra: reconstream[confluent]"
        ) from error
    return Client(ConfluentSource, ConfluentPublisher, ConfluentTransactions)
