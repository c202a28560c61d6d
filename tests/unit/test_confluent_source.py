"""librdkafka's consumer as a source: what its callbacks do to what was fetched, commits, rests, ranges."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ClientPartition

from worker.adapters import confluent_source, positions
from worker.adapters.confluent_membership import Membership
from worker.adapters.confluent_source import ConfluentSource
from worker.core.errors import DeliveryFailed, KafkaRefused
from worker.core.records import TopicPartition

P0, P1 = TopicPartition("images", 0), TopicPartition("images", 1)


class Message:
    def __init__(self, partition: int, offset: int, code: int | None = None) -> None:
        self._partition, self._offset, self._code = partition, offset, code

    def error(self) -> Any:
        return None if self._code is None else KafkaError(self._code)

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000

    def key(self) -> bytes | None:
        return b"k"

    def value(self) -> bytes | None:
        return b"v"

    def headers(self) -> None:
        return None


Step = list[Message] | Callable[[], list[Message]]


class Consumer:
    """Plays librdkafka's; each consume() takes the next step, whose callbacks run within it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.steps: list[Step] = []
        self.asked: list[tuple[int, float]] = []
        self.sought: list[tuple[int, int]] = []
        self.paused: list[int] = []
        self.end = 100
        self.answer: Any = None
        self.topic_error: Any = None
        self.unreadable: Any = None

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on_assign, self.on_revoke = on_assign, on_revoke

    def consume(self, most: int, timeout_s: float) -> list[Message]:
        self.asked.append((most, timeout_s))
        step = self.steps.pop(0) if self.steps else []
        return step() if callable(step) else step

    def assign(self, *numbers: int) -> None:
        self.on_assign(self, [ClientPartition("images", number) for number in numbers])

    def revoke(self, *numbers: int) -> None:
        self.on_revoke(self, [ClientPartition("images", number) for number in numbers])

    def commit(self, offsets: list[Any], asynchronous: bool) -> None:
        if self.answer is not None:
            error = None if self.answer == KafkaError.NO_ERROR else KafkaError(self.answer)
            self.steps.append(lambda: self.config["on_commit"](error, offsets) or [])

    def consumer_group_metadata(self) -> bytes:
        return b"group"

    def get_watermark_offsets(self, partition: Any, cached: bool) -> tuple[int, int]:
        return 0, self.end

    def committed(self, partitions: list[Any], timeout: float) -> list[Any]:
        if self.unreadable is not None:
            raise KafkaException(self.unreadable)
        return partitions

    def position(self, partitions: list[Any]) -> list[Any]:
        return [ClientPartition(found.topic, found.partition, -1001) for found in partitions]

    def seek(self, partition: Any) -> None:
        self.sought.append((partition.partition, partition.offset))

    def list_topics(self, topic: str, timeout_s: float) -> Any:
        return SimpleNamespace(topics={topic: SimpleNamespace(error=self.topic_error)})

    def pause(self, partitions: list[Any]) -> None:
        self.paused += [found.partition for found in partitions]

    def resume(self, partitions: list[Any]) -> None:
        self.paused = []


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> ConfluentSource:
    monkeypatch.setattr(confluent_source, "Consumer", Consumer)
    return ConfluentSource({"bootstrap_servers": "nowhere:1"}, topic="images", group_id="g", max_message_bytes=1000)


@pytest.fixture
def consumer(source: ConfluentSource) -> Consumer:
    played: Any = source._consumer
    played.assign(0, 1)
    assert isinstance(played, Consumer)
    return played


def offsets(polled: Any) -> dict[TopicPartition, list[int]]:
    return {partition: [record.offset for record in records] for partition, records in polled.records.items()}


def test_it_waits_for_the_first_record_only(source: ConfluentSource, consumer: Consumer) -> None:
    consumer.steps = [[], [Message(0, 5)], [Message(1, 7), Message(0, 6)]]
    polled = source.poll(0.1, 10)
    assert offsets(polled) == {P0: [5, 6], P1: [7]}
    assert polled.group == b"group"
    assert consumer.asked == [(10, 0.0), (1, 0.1), (9, 0.0)]


def test_what_was_fetched_of_a_revoked_partition_is_dropped_wherever_the_revocation_came(
    source: ConfluentSource, consumer: Consumer
) -> None:
    def taken() -> list[Message]:
        consumer.revoke(0)
        return [Message(0, 6), Message(1, 8)]

    consumer.steps = [[], [Message(0, 5)], taken]
    polled = source.poll(0.1, 10)
    assert offsets(polled) == {P1: [8]}
    assert polled.revoked == {P0}
    assert source.assignment() == {P1}
    assert source.poll(0.0, 10).revoked == frozenset()


def test_partitions_that_were_taken_and_given_back_at_once_are_read_anew(
    source: ConfluentSource, consumer: Consumer
) -> None:
    def taken_and_given_back() -> list[Message]:
        consumer.revoke(0)
        consumer.assign(0)
        return [Message(0, 6)]

    consumer.steps = [taken_and_given_back]
    with pytest.raises(DeliveryFailed) as caught:
        source.poll(0.1, 10)
    assert caught.value.step == "revoked"
    assert source.poll(0.0, 10).revoked == {P0}


def test_a_partition_given_back_later_brings_its_records(source: ConfluentSource, consumer: Consumer) -> None:
    def taken() -> list[Message]:
        consumer.revoke(0)
        return []

    def given_back() -> list[Message]:
        consumer.assign(0)
        return [Message(0, 3)]

    consumer.answer = KafkaError.NO_ERROR
    consumer.steps = [taken]
    assert source.commit({P1: 4})
    consumer.steps = [given_back]
    polled = source.poll(0.1, 10)
    assert offsets(polled) == {P0: [3]}
    assert polled.revoked == {P0}


def test_what_comes_while_a_commit_is_waited_for_is_in_the_next_poll(
    source: ConfluentSource, consumer: Consumer
) -> None:
    consumer.answer = KafkaError.NO_ERROR
    consumer.steps = [[Message(0, 1)], [Message(1, 1)]]
    assert source.commit({P0: 1})
    consumer.steps = [[Message(0, 2)]]
    assert offsets(source.poll(0.1, 10)) == {P0: [1, 2], P1: [1]}


@pytest.mark.parametrize(
    ("code", "step"),
    [
        (KafkaError.ILLEGAL_GENERATION, "fenced"),
        (KafkaError.UNKNOWN_MEMBER_ID, "fenced"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, "refused"),
        (KafkaError._TRANSPORT, "commit"),
        (None, "commit"),
    ],
)
def test_a_commit_that_fails(
    source: ConfluentSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch, code: int | None, step: str
) -> None:
    monkeypatch.setattr(confluent_source, "CALL_TIMEOUT_MS", 50)
    consumer.answer = code
    with pytest.raises(DeliveryFailed) as caught:
        source.commit({P0: 1})
    assert caught.value.step == step


def test_a_commit_amid_a_rebalance_is_tried_again(source: ConfluentSource, consumer: Consumer) -> None:
    consumer.answer = KafkaError.REBALANCE_IN_PROGRESS
    assert source.commit({P0: 1}) is False


def test_the_answer_to_a_commit_that_was_given_up_is_no_other_s(
    source: ConfluentSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confluent_source, "CALL_TIMEOUT_MS", 20)
    with pytest.raises(DeliveryFailed):
        source.commit({P0: 1})
    late = [ClientPartition("images", 0, 1)]
    consumer.steps = [lambda: consumer.config["on_commit"](None, late) or []]
    with pytest.raises(DeliveryFailed):
        source.commit({P0: 2})


def test_a_short_rest_leaves_what_was_fetched_where_it_is_and_a_long_one_pauses(
    source: ConfluentSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.pause(paused=True)
    assert source.poll(0.0, 10).records == {}
    assert (consumer.asked, consumer.paused) == ([], [])
    monkeypatch.setattr(confluent_source, "REST_S", 0.0)
    consumer.steps = [[Message(0, 1)]]
    assert source.poll(0.0, 10).records == {}
    assert sorted(consumer.paused) == [0, 1]
    source.pause(paused=False)
    assert consumer.paused == []
    assert offsets(source.poll(0.0, 10)) == {P0: [1]}


def test_what_cannot_be_read_is_stepped_past_and_reported_alone(source: ConfluentSource, consumer: Consumer) -> None:
    bad = KafkaError._BAD_MSG
    # Behind the wrong CRC there may be anything.
    consumer.steps = [[Message(0, 2), Message(0, 3, bad), Message(0, 999, bad), Message(1, 4)]]
    assert offsets(source.poll(0.0, 10)) == {P0: [2], P1: [4]}
    for at in (4, 5):
        assert consumer.sought[-1] == (0, at)
        consumer.steps = [[Message(0, 3, bad)]]
        assert source.poll(0.0, 10).records == {}
    consumer.steps = [[Message(0, 6), Message(0, 7)]]
    polled = source.poll(0.0, 10)
    assert offsets(polled) == {P0: [3]}
    assert polled.unreadable_until == {P0: 6}
    polled = source.poll(0.0, 10)
    assert (offsets(polled), polled.unreadable_until) == ({P0: [6, 7]}, {})


def test_what_cannot_be_read_at_a_partition_s_end_is_reported_too(
    source: ConfluentSource, consumer: Consumer
) -> None:
    consumer.end = 4
    consumer.steps = [[Message(0, 3, KafkaError._BAD_MSG)]]
    polled = source.poll(0.0, 10)
    assert (offsets(polled), polled.unreadable_until) == ({P0: [3]}, {P0: 4})


def test_a_refusal_is_told_as_long_as_it_lasts(source: ConfluentSource, consumer: Consumer) -> None:
    consumer.end = -1
    consumer.steps = [[Message(0, 3, KafkaError.TOPIC_AUTHORIZATION_FAILED)]]
    for _ in range(3):
        with pytest.raises(DeliveryFailed, match="does not let us read") as caught:
            source.poll(0.0, 10)
        assert caught.value.step == "refused"
    consumer.end = 3
    assert source.poll(0.0, 10).records == {}


@pytest.mark.parametrize("number", [-1, 0])
def test_a_deleted_topic_is_told_once_the_group_has_taken_its_partitions(
    source: ConfluentSource, consumer: Consumer, number: int
) -> None:
    def deleted() -> list[Message]:
        consumer.revoke(0, 1)
        return [Message(number, -1, KafkaError.UNKNOWN_TOPIC_OR_PART)]

    consumer.steps = [deleted]
    for _ in range(2):
        with pytest.raises(DeliveryFailed, match="it is gone"):
            source.poll(0.0, 10)
    consumer.assign(0)
    assert source.poll(0.0, 10).records == {}


def test_a_deleted_topic_that_librdkafka_does_not_tell_of_is_asked_for(
    source: ConfluentSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer.revoke(0, 1)
    consumer.topic_error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
    assert source.poll(0.0, 10).records == {}  # a member without partitions, whose heartbeats are answered
    monkeypatch.setattr(source._membership, "missing", lambda: ["no heartbeat"])
    with pytest.raises(DeliveryFailed, match="it is gone"):
        source.poll(0.0, 10)


def test_positions_that_cannot_be_read_are_told_while_it_lasts(
    source: ConfluentSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "POSITIONS_DUE_S", 0.0)
    monkeypatch.setattr(source._membership, "missing", list)
    consumer.unreadable = KafkaError(KafkaError._TIMED_OUT)
    assert source.missing() == []
    assert not source.rewind()
    assert "committed positions have not been readable for 0 s" in source.missing()[0]
    consumer.unreadable = None
    assert source.rewind()
    assert source.missing() == []


def test_a_member_whose_name_another_has_taken_ends(source: ConfluentSource, consumer: Consumer) -> None:
    consumer.steps = [[Message(-1, -1, KafkaError._FATAL)]]
    with pytest.raises(KafkaRefused, match="group_instance_id"):
        source.poll(0.0, 10)


def test_statistics_tell_of_the_group_and_its_heartbeats() -> None:
    def statistics(state: str, join_state: str, idle: int) -> str:
        return (
            f'{{"brokers": {{"GroupCoordinator": {{"state": "{state}", "rxidle": {idle}}}}}, '
            f'"cgrp": {{"state": "up", "join_state": "{join_state}"}}, "topics": {{}}}}'
        )

    member = Membership(session_timeout_s=6)
    assert member.missing() == ["the consumer group has not answered yet (member state not asked)"]
    member.on_statistics(statistics("UP", "wait-join", 5))
    assert member.missing() == ["the consumer group has not answered yet (member state up, wait-join)"]
    member.on_statistics(statistics("UP", "steady", 1_000_000))
    assert member.missing() == []
    member.on_statistics(statistics("UP", "steady", 9_000_000))
    assert member.missing() == ["Kafka has not answered a heartbeat for 9 s"]
    member.on_statistics('{"brokers": {}}')
