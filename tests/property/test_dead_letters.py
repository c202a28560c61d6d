import hashlib

from hypothesis import example, given
from hypothesis import strategies as st

from worker.core.dead_letters import dead_letter
from worker.core.errors import Reason
from worker.core.records import OutRecord, Record, header

OURS = ["reason", "message", "value", "value-bytes", "null-header", "null-header-index", "source-topic", "other"]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = text | st.sampled_from(["content-type", *(f"reconstream-{name}" for name in OURS)])
values = st.none() | st.binary(max_size=40)
records = st.builds(
    Record,
    st.just("images"),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(-1, 2**63 - 1),
    values,
    values,
    st.lists(st.tuples(names, values), max_size=8),
)
reasons = st.sampled_from(Reason)


def letter_of(
    record: Record, reason: Reason = Reason.NOT_AN_IMAGE, message: str = "m", *, with_value: bool = True
) -> OutRecord:
    return dead_letter(
        record,
        topic="dead-letters",
        reason=reason,
        message=message,
        worker_version="1",
        model_version="2",
        with_value=with_value,
    )


def original(letter: Record) -> Record:
    """The dead-lettered record, by the rules that worker.core.dead_letters states."""
    last = max(index for index, (name, _) in enumerate(letter.headers) if name == "reconstream-reason")
    own, added = list(letter.headers[:last]), letter.headers[last:]
    for name, value in added:
        if name == "reconstream-null-header-index":
            own[int(value or b"")] = (own[int(value or b"")][0], None)
    topic, partition, offset, timestamp = (
        (header(added, f"reconstream-source-{name}") or b"").decode()
        for name in ("topic", "partition", "offset", "timestamp-ms")
    )
    value = None if header(added, "reconstream-value") == b"null" else letter.value
    return Record(topic, int(partition), int(offset), int(timestamp), letter.key, value, own)


def consumed(letter: OutRecord) -> Record:
    """The letter as whoever reads it gets it."""
    return Record(letter.topic, letter.partition, 3, 5, letter.key, letter.value, letter.headers)


@given(record=records, reason=reasons, message=st.text(max_size=30))
@example(Record("images", 0, 0, 0, None, None, [("reconstream-reason", b"fake"), ("a", None)]), Reason.TOO_LARGE, "")
@example(Record("images", 0, 0, 0, b"", b"", [("reconstream-value", b"null")]), Reason.EMPTY_VALUE, "")
def test_without_what_was_added_a_letter_is_the_record(record: Record, reason: Reason, message: str) -> None:
    letter = letter_of(record, reason, message)
    assert original(consumed(letter)) == record
    assert letter.partition == record.partition
    added = letter.headers[len(record.headers) :]
    assert added[0] == ("reconstream-reason", reason.value.encode())
    assert all(name.startswith("reconstream-") for name, _ in added)


@given(records)
def test_a_letter_that_is_dead_lettered_comes_back_as_it_was(record: Record) -> None:
    first = consumed(letter_of(record))
    assert original(consumed(letter_of(first))) == first
    assert original(original(consumed(letter_of(first)))) == record


@given(records)
def test_a_letter_is_what_the_client_can_write(record: Record) -> None:
    for with_value in (True, False):
        letter = letter_of(record, with_value=with_value)
        assert letter.key is not None or letter.value is not None
        assert all(isinstance(value, bytes) for _, value in letter.headers)


@given(records)
def test_without_its_value_a_letter_keeps_the_rest_and_the_digest(record: Record) -> None:
    letter = letter_of(record, with_value=False)
    assert not letter.value
    assert original(consumed(letter))._replace(value=record.value) == record
    added = letter.headers[len(record.headers) :]
    if record.value is not None:
        assert header(added, "reconstream-value") == b"omitted"
        assert int(header(added, "reconstream-value-bytes") or b"") == len(record.value)
        assert header(added, "reconstream-value-sha256") == hashlib.sha256(record.value).hexdigest().encode()


@given(st.text(max_size=1200, min_size=300))
def test_a_message_stays_text_whatever_it_is_cut_to(message: str) -> None:
    found = (
        header(letter_of(Record("images", 0, 0, key=b"k"), message=message).headers, "reconstream-message")
    ) or b""
    whole = message.encode(errors="replace")
    assert len(whole) - len(found) < 4 or 1024 - len(found) < 4
    assert len(found) <= 1024
    assert whole.decode().startswith(found.decode())
