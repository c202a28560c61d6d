"""A question to Kafka whose connection breaks is asked again, but not for ever."""

import itertools
from collections.abc import Iterable

import pytest
from kafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

from worker.adapters import kafka_admin
from worker.core.errors import KafkaRefused, KafkaUnreachable


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_admin, "ASK_AGAIN_S", 0.05)
    monkeypatch.setattr(kafka_admin, "ASK_PAUSE_S", 0.001)


def ask(answers: Iterable[object]) -> object:
    left = iter(answers)

    def question() -> object:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return kafka_admin._ask(question, "asking")


def test_a_connection_that_breaks_while_a_worker_starts_is_no_absent_kafka() -> None:
    assert ask([KafkaConnectionError("socket disconnected"), "an answer"]) == "an answer"


def test_one_that_goes_on_breaking_is() -> None:
    with pytest.raises(KafkaUnreachable, match=r"while asking: .*socket disconnected"):
        ask(itertools.repeat(KafkaConnectionError("socket disconnected")))


def test_a_refusal_is_not_asked_again() -> None:
    with pytest.raises(KafkaRefused):
        ask([TopicAuthorizationFailedError("no"), "an answer"])
