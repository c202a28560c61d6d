"""What a new producer seals of the transactions before it, against a producer that answers as it is told."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import CommitFailedError
from kafka.producer.transaction_manager import TransactionManager

from worker.adapters.kafka_publisher import KafkaPublisher
from worker.adapters.kafka_transactions import REQUEST_IN_TRANSACTION_MS, KafkaTransactions
from worker.core.errors import DeliveryFailed
from worker.core.records import OutRecord, TopicPartition

TAKEN, SILENT = "taken", "silent"
GROUP = SimpleNamespace(member_id="member-1", generation_id=3)
VERDICT = OutRecord("verdicts", 0, None, b"verdict", [])
LETTER = OutRecord("letters", 0, None, b"letter", [])


class Producer:
    """Notes the steps of its transactions.

    Args:
        steps: where they are noted.
        offsets: what becomes of positions: TAKEN, SILENT, or an exception, which is the group's answer.
    """

    def __init__(self, steps: list[str], offsets: object) -> None:
        self._steps = steps
        self._offsets = offsets
        self.config = {"delivery_timeout_ms": 1_000}
        self._sender = SimpleNamespace(wakeup=lambda: None, force_close=lambda: None, join=lambda _: None)
        self._transaction_manager = SimpleNamespace(
            send_offsets_to_transaction=lambda _offsets, _group: self._result("offsets", self._offsets),
            begin_commit=lambda: self._result("commit", TAKEN),
            begin_abort=lambda: self._result("abort", TAKEN),
            _pending_txn_offset_commits=[],
        )

    def _result(self, step: str, answer: object) -> Any:
        self._steps.append(step)

        def wait(_timeout_ms: int) -> bool:
            if isinstance(answer, Exception):
                raise answer
            return answer == TAKEN

        return SimpleNamespace(wait=wait)

    def init_transactions(self) -> None:
        self._steps.append("init")

    def begin_transaction(self) -> None:
        self._steps.append("begin")

    def partitions_for(self, _topic: str) -> set[int]:
        return {0}

    def send(self, *_: object) -> Any:
        self._steps.append("send")
        return SimpleNamespace(exception=None, is_done=True, get=lambda timeout: None)

    def flush(self, timeout: float) -> None:
        pass

    def close(self, timeout: float) -> None:
        pass


@pytest.fixture
def steps() -> list[str]:
    return []


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, steps: list[str]) -> Callable[..., KafkaTransactions]:
    """Transactions whose producers, one after the other, treat positions as given."""

    def connect(*offsets: object) -> KafkaTransactions:
        left = iter(offsets)
        monkeypatch.setattr(KafkaPublisher, "_connect", lambda *_, **__: Producer(steps, next(left)))
        return KafkaTransactions({}, max_message_bytes=1024, topic_limits={}, id_prefix="test")

    return connect


def commit(transactions: KafkaTransactions, record: OutRecord) -> None:
    transactions.send([record])
    transactions.commit({TopicPartition("images", 0): 10}, GROUP)


def fail_to_commit(transactions: KafkaTransactions) -> None:
    transactions.send([VERDICT])
    with pytest.raises(DeliveryFailed):
        transactions.commit({TopicPartition("images", 0): 10}, GROUP)


SEAL = ["init", "begin", "send", "offsets"]


def test_a_seal_without_the_groups_answer_is_none(
    connect: Callable[..., KafkaTransactions], steps: list[str]
) -> None:
    transactions = connect(SILENT, SILENT, CommitFailedError("another generation"))
    fail_to_commit(transactions)
    steps.clear()
    assert not transactions.rebuild()
    assert steps == ["abort", *SEAL], "the old one aborts what is open, the seal has no answer"
    steps.clear()
    assert transactions.rebuild()
    assert steps == [*SEAL, "abort"], "what the group refuses it has answered"


def test_what_was_sealed_is_sealed_again_until_a_commit(
    connect: Callable[..., KafkaTransactions], steps: list[str]
) -> None:
    transactions = connect(SILENT, TAKEN, TAKEN, TAKEN)
    fail_to_commit(transactions)
    for _ in range(2):
        steps.clear()
        assert transactions.rebuild()
        assert steps[-5:] == [*SEAL, "abort"]
    commit(transactions, VERDICT)
    commit(transactions, LETTER)
    steps.clear()
    assert transactions.rebuild()
    assert steps == [*SEAL, "abort"], "one record: only what the last commit wrote to"


def test_what_was_committed_is_sealed_too(connect: Callable[..., KafkaTransactions], steps: list[str]) -> None:
    """Kafka may have acknowledged it and, restarted, never ended it."""
    transactions = connect(TAKEN, TAKEN)
    commit(transactions, VERDICT)
    transactions.send([LETTER])
    steps.clear()
    assert transactions.rebuild()
    assert steps == ["abort", "init", "begin", "send", "send", "offsets", "abort"]


def test_a_commit_that_was_asked_for_twice_is_a_doubt(
    connect: Callable[..., KafkaTransactions], steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, REQUEST_IN_TRANSACTION_MS / 1000 + 0.1])
    transactions = connect(TAKEN, TAKEN)
    transactions.send([VERDICT])
    with monkeypatch.context() as patch:
        # The module's own clock: other threads ask the time as well.
        patch.setattr("worker.adapters.kafka_transactions.time", SimpleNamespace(monotonic=lambda: next(now)))
        with pytest.raises(DeliveryFailed, match="acknowledged after 3100 ms"):
            transactions.commit({TopicPartition("images", 0): 10}, GROUP)
    steps.clear()
    assert transactions.rebuild()
    assert steps == [*SEAL, "abort"]


def test_positions_without_answers_are_sealed_too(
    connect: Callable[..., KafkaTransactions], steps: list[str]
) -> None:
    transactions = connect(SILENT, TAKEN)
    with pytest.raises(DeliveryFailed):
        transactions.commit({TopicPartition("images", 0): 10}, GROUP)
    steps.clear()
    assert transactions.rebuild()
    assert steps == ["abort", "init", "begin", "offsets", "abort"]


def test_all_are_steps_of_the_client() -> None:
    """What this test's producer has is what the client has."""
    for step in ("send_offsets_to_transaction", "begin_commit", "begin_abort"):
        assert callable(getattr(TransactionManager, step))
