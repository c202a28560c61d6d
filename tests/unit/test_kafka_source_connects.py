"""A consumer whose broker is not ready for it tries again, but not for ever."""

from collections.abc import Iterable
from typing import Any

import pytest
from kafka.errors import KafkaConfigurationError, MetadataEmptyBrokerList

from worker.adapters import kafka_source
from worker.adapters.kafka_source import KafkaSource
from worker.core.errors import KafkaUnreachable

NOT_READY = MetadataEmptyBrokerList("no broker has registered yet")


class Consumer:
    def subscribe(self, *_: object, **__: object) -> None:
        pass


def connect(monkeypatch: pytest.MonkeyPatch, results: Iterable[object], start_timeout_s: float) -> None:
    left = iter(results)

    def connected(*_: Any) -> object:
        result = next(left)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(kafka_source, "CONNECT_PAUSE_S", 0.001)
    monkeypatch.setattr(kafka_source, "_connected", connected)
    KafkaSource({}, topic="images", group_id="g", max_message_bytes=1024, start_timeout_s=start_timeout_s)
    assert next(left, None) is None, "all results were used"


def test_a_broker_that_is_not_ready_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, [NOT_READY, NOT_READY, Consumer()], 60)


def test_one_that_never_is_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KafkaUnreachable, match="no broker has registered"):
        connect(monkeypatch, [NOT_READY, Consumer()], 0)


def test_a_mistake_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KafkaUnreachable):
        connect(monkeypatch, [KafkaConfigurationError("no"), Consumer()], 60)
