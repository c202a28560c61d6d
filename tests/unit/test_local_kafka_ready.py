"""Waiting for a cluster whose coordinators answer late."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from kafka.errors import KafkaError

from deploy.local_kafka import admin


@pytest.fixture(autouse=True)
def brokers_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def client(_bootstrap: str, _deadline: float) -> Iterator[None]:
        yield

    monkeypatch.setattr(admin, "admin_client", client)
    monkeypatch.setattr(admin, "_await_brokers", lambda *_: None)
    monkeypatch.setattr(admin, "POLL_S", 0.001)


def test_a_coordinator_that_is_late_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | None] = [KafkaError("late"), KafkaError("late"), None]
    asked: list[str] = []

    def use(bootstrap: str, _deadline: float) -> None:
        asked.append(bootstrap)
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(admin, "_use_coordinators", use)
    admin.wait_ready({1: "localhost:1", 2: "localhost:2"}, time.monotonic() + 60)
    assert asked == ["localhost:1,localhost:2"] * 3


def test_after_the_deadline_its_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(_bootstrap: str, _deadline: float) -> None:
        raise KafkaError("late")

    monkeypatch.setattr(admin, "_use_coordinators", use)
    with pytest.raises(KafkaError, match="late"):
        admin.wait_ready({1: "localhost:1"}, time.monotonic() + 0.05)
