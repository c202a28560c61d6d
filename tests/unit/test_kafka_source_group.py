"""Which generation vouches for positions, and what a member claims when it joins again."""

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition as ClientPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaTimeoutError
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment
from kafka.structs import ConsumerGroupMetadata, MemberState

from worker.adapters import kafka_source, positions
from worker.adapters.kafka_source import KafkaSource, _Assignor, _Listener
from worker.core.errors import DeliveryFailed

IMAGES = [ClientPartition("images", number) for number in range(4)]


class Consumer:
    """Has a partition, and is of the generation and in the state that a test sets."""

    def __init__(self) -> None:
        self.generation, self.state = 4, MemberState.STABLE
        self._coordinator = SimpleNamespace(rejoining=False, rejoin_needed=False, need_rejoin=lambda: False)
        self.placed, self.readable = True, True
        self._cluster: Any = None
        self._subscription = SimpleNamespace(has_all_fetch_positions=lambda: self.placed)

    def subscribe(self, *_: object, **__: object) -> None:
        pass

    def assignment(self) -> set[ClientPartition]:
        return {IMAGES[0]}

    def committed(self, *_: object, **__: object) -> int:
        if not self.readable:
            raise KafkaTimeoutError
        return 7

    def seek(self, *_: object) -> None:
        pass

    def metrics(self) -> dict[str, dict[str, float]]:
        return {}

    def poll(self, *_: object) -> dict[ClientPartition, Any]:
        return {}

    def group_metadata(self) -> ConsumerGroupMetadata:
        return ConsumerGroupMetadata("g", self.generation, "member-1", None, self.state)


def test_a_topic_that_is_gone_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a topic is not to be read the group's leader assigns nothing, and nothing makes the client ask anew."""
    consumer = Consumer()
    monkeypatch.setattr(consumer, "assignment", set)
    partitions: list[set[int] | None] = [None, {0}]
    asked: list[None] = []
    consumer._cluster = SimpleNamespace(
        partitions_for_topic=lambda _: partitions[len(asked)], request_update=lambda: asked.append(None)
    )
    monkeypatch.setattr(kafka_source, "_connected", lambda *_: consumer)
    source = KafkaSource({}, topic="images", group_id="g", max_message_bytes=1024)
    with pytest.raises(DeliveryFailed, match="it is gone"):
        source.poll(0.0, 1)
    assert len(asked) == 1
    assert source.poll(0.0, 1).records == {}


def test_positions_that_cannot_be_read_are_told_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = Consumer()
    monkeypatch.setattr(kafka_source, "_connected", lambda *_: consumer)
    monkeypatch.setattr(positions, "POSITIONS_DUE_S", 0.0)
    source = KafkaSource({}, topic="images", group_id="g", max_message_bytes=1024)
    told = "committed positions have not been readable for 0 s"

    # Of a partition that was assigned.
    for placed in (True, False, True):
        consumer.placed = placed
        source.poll(0.0, 1)
        assert bool(source.missing()) is not placed
        assert all(told in missing for missing in source.missing())
    # Of what is to be read again.
    for readable in (True, False, True):
        consumer.readable = readable
        assert source.rewind() is readable
        assert bool(source.missing()) is not readable
        assert all(told in missing for missing in source.missing())


def test_a_generation_vouches_for_no_partition_before_its_own_assignment_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consumer = Consumer()
    monkeypatch.setattr(kafka_source, "_connected", lambda *_: consumer)
    source = KafkaSource({}, topic="images", group_id="g", max_message_bytes=1024)

    def generation() -> int:
        group = source.poll(0.0, 1).group
        assert isinstance(group, ConsumerGroupMetadata)
        return int(group.generation_id)

    assert generation() == 4
    # The answer to the join has come, that with the assignment has not.
    consumer.generation, consumer.state = 5, MemberState.REBALANCING
    assert generation() == 4
    consumer.state = MemberState.STABLE
    assert generation() == 5
    # Thrown out of the group.
    consumer.generation, consumer.state = -1, MemberState.UNJOINED
    assert generation() == 5


def claims(assignor: CooperativeStickyAssignor) -> set[int]:
    owned = assignor.metadata({"images"}).owned_partitions
    return {number for topic in owned for number in topic.partitions}


def holding(assignor: CooperativeStickyAssignor, *numbers: int) -> CooperativeStickyAssignor:
    assignor.on_assignment(ConsumerProtocolAssignment(1, [("images", list(numbers))], b""), 3)
    return assignor


def test_what_was_lost_is_not_claimed() -> None:
    assignor = holding(_Assignor(), 0, 1)
    assert claims(assignor) == {0, 1}
    listener = _Listener(assignor)
    listener.on_partitions_revoked({IMAGES[1]})
    assert claims(assignor) == {0, 1}, "of what is handed over the client's next assignment tells"
    listener.on_partitions_lost({IMAGES[0]})
    assert claims(assignor) == set()
    assert listener.revoked == {("images", 0), ("images", 1)}


@pytest.mark.parametrize(("assignor", "given_twice"), [(CooperativeStickyAssignor, True), (_Assignor, False)])
def test_why_that_is_needed_what_two_claim_is_given_to_one_while_the_other_has_it(
    assignor: type[CooperativeStickyAssignor], given_twice: bool
) -> None:
    """Once the first of these fails the client was mended."""
    cluster = SimpleNamespace(partitions_for_topic=lambda _: {0, 1}, topics=lambda: {"images"})
    back = holding(assignor(), 0, 1)  # was away: both are the other's by now
    if isinstance(back, _Assignor):
        _Listener(back).on_partitions_lost({IMAGES[0], IMAGES[1]})
    there = holding(assignor(), 0, 1)
    members = [
        SimpleNamespace(member_id=name, metadata=member.metadata({"images"}))
        for name, member in (("there", there), ("back", back))
    ]
    assert bool(there.assign(cluster, members)["back"].partitions()) is given_twice
