"""Positions: never beyond a record whose answers were not acknowledged, and everything is accounted for."""

from hypothesis import given
from hypothesis import strategies as st

from worker.core.offsets import Ledger, Part
from worker.core.records import Record, TopicPartition

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 2), st.integers(1, 4), st.integers(0, 3)),
        st.tuples(st.just("acknowledge"), st.integers(0, 20), st.just(0), st.just(0)),
        st.tuples(st.just("commit"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("revoke"), st.integers(0, 2), st.just(0), st.just(0)),
        st.tuples(st.just("everything again"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=60,
)


class _Fate:
    def __init__(self) -> None:
        self.acknowledged = False

    def settled(self) -> bool:
        return self.acknowledged


@given(steps=STEPS)
def test_a_position_never_passes_an_unfinished_record(steps: list[tuple[str, int, int, int]]) -> None:
    ledger = Ledger()
    committed = dict.fromkeys((TopicPartition("t", number) for number in range(3)), 0)
    position = dict(committed)  # what is read next
    acknowledged: set[tuple[TopicPartition, int]] = set()
    under_way: list[tuple[_Fate, list[tuple[TopicPartition, int]]]] = []
    sizes: dict[TopicPartition, int] = dict.fromkeys(committed, 0)

    for kind, a, b, c in steps:
        if kind == "publish":
            # A batch of records of one or two partitions, with gaps between offsets as transactions leave them.
            fate, parts, covered = _Fate(), [], []
            for number in {a, (a + c) % 3}:
                partition = TopicPartition("t", number)
                lease = ledger.lease(partition)
                records = [Record("t", number, position[partition] + i * (c or 1)) for i in range(b)]
                position[partition] = records[-1].offset + 1
                ledger.handed_over(lease, b, 10 * b)
                sizes[partition] += b
                parts.append(Part(lease, records, 10 * b, records[-1].offset + 1, None))
                covered += [(partition, record.offset) for record in records]
            ledger.published(parts, fate)
            under_way.append((fate, covered))
        elif kind == "acknowledge" and under_way:
            fate, covered = under_way[a % len(under_way)]
            fate.acknowledged = True
            acknowledged |= set(covered)
        elif kind == "commit":
            ledger.settle()
            before = ledger.records
            ready = ledger.ready
            count = ledger.ready_records
            assert ledger.committed() == count
            assert ledger.records == before - count
            for partition, offset in ready.items():
                assert offset >= committed[partition]
                for fate, covered in under_way:
                    for of, unfinished in covered:
                        if of == partition and committed[partition] <= unfinished < offset:
                            assert fate.acknowledged, f"{partition} committed {offset}, {unfinished} is unfinished"
                committed[partition] = offset
        elif kind == "revoke":
            partition = TopicPartition("t", a)
            ledger.revoke([partition])
            position[partition] = committed[partition]
            under_way = [(f, [entry for entry in covered if entry[0] != partition]) for f, covered in under_way]
        elif kind == "everything again":
            ledger.revoke_all()
            assert (ledger.records, ledger.bytes) == (0, 0)
            position.update(committed)
            under_way = []
        assert ledger.records >= 0
        assert ledger.bytes == 10 * ledger.records
    for fate, _ in under_way:
        fate.acknowledged = True
    ledger.settle()
    ledger.committed()
    assert (ledger.records, ledger.bytes) == (0, 0)
