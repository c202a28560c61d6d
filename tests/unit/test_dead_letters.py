import hashlib
from typing import Any

import pytest

from worker.core.dead_letters import dead_letter
from worker.core.errors import Reason
from worker.core.records import OutRecord, Record, header

RECORD = Record("images", 2, 7, 1_700_000_000_000, b"camera-1", b"\x89PNG", [("content-type", b"image/png")])


def letter_of(record: Record, **changes: Any) -> OutRecord:
    values: dict[str, Any] = {
        "topic": "dead-letters",
        "reason": Reason.NOT_AN_IMAGE,
        "message": "expected a PNG",
        "worker_version": "1.2.3",
        "model_version": "0123456789ab",
    }
    return dead_letter(record, **{**values, **changes})


def test_a_letter_is_the_record_and_says_why() -> None:
    assert letter_of(RECORD) == OutRecord(
        "dead-letters",
        2,
        b"camera-1",
        b"\x89PNG",
        [
            ("content-type", b"image/png"),
            ("reconstream-reason", b"not_an_image"),
            ("reconstream-message", b"expected a PNG"),
            ("reconstream-source-topic", b"images"),
            ("reconstream-source-partition", b"2"),
            ("reconstream-source-offset", b"7"),
            ("reconstream-source-timestamp-ms", b"1700000000000"),
            ("reconstream-worker-version", b"1.2.3"),
            ("reconstream-model-version", b"0123456789ab"),
        ],
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("x" * 1024, b"x" * 1024),
        ("x" * 1025, b"x" * 1024),
        ("ü" * 600, "ü".encode() * 512),
        ("x" + "ü" * 600, b"x" + "ü".encode() * 511),
        ("x" * 1021 + "🖼", b"x" * 1021),
        ("a lone \ud800", b"a lone ?"),
        ("", b""),
    ],
    ids=["fits", "too long", "two bytes", "cut in a character", "cut in four bytes", "surrogate", "empty"],
)
def test_a_message_is_cut_between_characters(message: str, expected: bytes) -> None:
    assert header(letter_of(RECORD, message=message).headers, "reconstream-message") == expected


@pytest.mark.parametrize("value", [b"", b"\x89PNG" * 1000])
def test_an_omitted_value_is_stated(value: bytes) -> None:
    letter = letter_of(RECORD._replace(value=value), with_value=False)
    assert letter.value is None
    assert letter.key == b"camera-1"
    assert letter.headers[0] == ("content-type", b"image/png")
    assert header(letter.headers, "reconstream-value") == b"omitted"
    assert header(letter.headers, "reconstream-value-bytes") == b"%d" % len(value)
    assert header(letter.headers, "reconstream-value-sha256") == hashlib.sha256(value).hexdigest().encode()


@pytest.mark.parametrize("with_value", [True, False])
def test_a_null_value_is_told_from_an_omitted_one(with_value: bool) -> None:
    letter = letter_of(RECORD._replace(value=None), with_value=with_value)
    assert letter.value is None
    assert header(letter.headers, "reconstream-value") == b"null"
    assert header(letter.headers, "reconstream-value-bytes") is None


@pytest.mark.parametrize("value", [None, b"image"])
def test_a_letter_always_has_a_key_or_a_value(value: bytes | None) -> None:
    letter = letter_of(RECORD._replace(key=None, value=value), with_value=False)
    assert letter.key is None
    assert letter.value == b""
    assert header(letter.headers, "reconstream-value") == (b"omitted" if value else b"null")


def test_a_range_that_kafka_cannot_read_is_named() -> None:
    letter = letter_of(Record("images", 2, 7), reason=Reason.CORRUPT_RECORD, corrupt_until=12)
    assert header(letter.headers, "reconstream-reason") == b"corrupt_record"
    assert header(letter.headers, "reconstream-source-offset") == b"7"
    assert header(letter.headers, "reconstream-skipped-until-offset") == b"12"
    assert header(letter_of(RECORD).headers, "reconstream-skipped-until-offset") is None


def test_null_headers_are_told_from_empty_ones_of_the_same_name() -> None:
    letter = letter_of(RECORD._replace(headers=[("a", b""), ("a", None), ("b", None)]))
    assert letter.headers[:3] == [("a", b""), ("a", b""), ("b", b"")]
    added = letter.headers[3:]
    assert [value for name, value in added if name == "reconstream-null-header"] == [b"a", b"b"]
    assert [value for name, value in added if name == "reconstream-null-header-index"] == [b"1", b"2"]
