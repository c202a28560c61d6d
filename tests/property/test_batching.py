"""Batching: nothing lost, nothing twice, order kept, delay honoured."""

from hypothesis import given
from hypothesis import strategies as st

from worker.core.batching import Batcher, Chunk
from worker.core.offsets import Ledger
from worker.core.records import Record, TopicPartition

# Each step: a chunk of so many records of a partition arrives, or so much time passes.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("chunk"), st.integers(0, 2), st.integers(0, 12)),
        st.tuples(st.just("wait"), st.just(0), st.integers(0, 30)),
        st.tuples(st.just("revoke"), st.integers(0, 2), st.just(0)),
    ),
    max_size=40,
)


@given(steps=STEPS, max_size=st.integers(1, 9), delay=st.integers(0, 20))
def test_every_record_leaves_once_in_order_and_in_time(
    steps: list[tuple[str, int, int]], max_size: int, delay: int
) -> None:
    batcher, ledger, now = Batcher(max_size, delay / 1000), Ledger(), 0.0
    offsets = dict.fromkeys(range(3), 0)
    arrived: list[tuple[int, int, int]] = []  # partition, offset, id of the lease
    received: dict[tuple[int, int], float] = {}
    revoked: set[tuple[int, int, int]] = set()
    left: list[tuple[int, int, int]] = []
    leases = []

    def take_all() -> None:
        while (batch := batcher.take(now)) is not None:
            out = [(r.partition, r.offset, id(part.lease)) for part in batch.parts for r in part.records]
            assert len(out) <= max_size
            for part in batch.parts:
                assert part.bytes == sum(len(record.value or b"") for record in part.records)
                assert part.next_offset == part.records[-1].offset + 1
            if out:
                oldest = min(received[partition, offset] for partition, offset, _ in out)
                assert len(out) == max_size or now - oldest >= delay / 1000 - 1e-9 or batch.taken > len(out)
            left.extend(out)

    for kind, partition, number in steps:
        if kind == "chunk":
            topic_partition = TopicPartition("t", partition)
            lease = ledger.lease(topic_partition)
            leases.append(lease)
            first = offsets[partition]
            records = [Record("t", partition, first + i, value=bytes(i)) for i in range(number)]
            offsets[partition] += number
            for record in records:
                arrived.append((partition, record.offset, id(lease)))
                received[partition, record.offset] = now
            batcher.add(Chunk(lease, records, [len(r.value or b"") for r in records], now))
        elif kind == "revoke":
            lease = ledger.lease(TopicPartition("t", partition))
            leases.append(lease)
            revoked |= {entry for entry in arrived if entry[2] == id(lease)} - set(left)
            ledger.revoke([TopicPartition("t", partition)])
        else:
            due = batcher.due_in(now)
            now += number / 1000
            assert due is None or due <= delay / 1000 + 1e-9
        take_all()
        waiting = [entry for entry in arrived if entry not in left and entry not in revoked]
        assert all(now - received[partition, offset] < delay / 1000 + 1e-9 for partition, offset, _ in waiting)
    now += 1
    take_all()
    assert left == [entry for entry in arrived if entry not in revoked]
    assert batcher.due_in(now) is None
