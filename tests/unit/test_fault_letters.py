"""The fault campaign on dead letters: the worker's own are right, and each thing that may be missing is seen."""

import importlib.metadata

import numpy as np
import pytest

from tests.faults.accounting import Letter, Published
from tests.faults.letters import RawLetter, fits, judged
from tests.faults.load import POISON_AT, POISON_EVERY, Message, Messages
from worker.core.dead_letters import dead_letter
from worker.core.errors import Reason
from worker.core.records import Record

MESSAGES = Messages(np.full((4, 8, 8, 1), 7, np.uint8), oversize_every=2)
POISON = [MESSAGES[POISON_AT + POISON_EVERY * number] for number in range(14)]
UNFIT = next(message for message in POISON if not fits(message.value or b""))
TEXT = next(message for message in POISON if message.content_type == "application/json")
NULL = Message("m-1", 1, b"camera-1", None, None, None)
OFFSET, STAMP = 5, 1_700_000_000_123


def published(message: Message) -> Published:
    return Published(message.id, message.image, 0.0, "images", STAMP)


def letter_of(message: Message, *, with_value: bool = True) -> RawLetter:
    """As a worker writes it."""
    record = Record("images", message.partition, OFFSET, STAMP, message.key, message.value, message.headers)
    made = dead_letter(
        record,
        topic="dead-letters",
        reason=Reason.NOT_AN_IMAGE,
        message="expected an image",
        worker_version=importlib.metadata.version("reconstream"),
        model_version="v1",
        with_value=with_value,
    )
    return RawLetter(made.partition, made.key, made.value, made.headers)


def flaw(letter: RawLetter, message: Message) -> str | None:
    return judged(letter, message, published(message)).flaw


@pytest.mark.parametrize("message", [*POISON, NULL], ids=lambda message: message.id)
def test_the_workers_letters_are_right(message: Message) -> None:
    whole = fits(message.value or b"")
    letter = judged(letter_of(message, with_value=whole), message, published(message))
    assert letter == Letter((message.partition, OFFSET), "v1", None, omitted=not whole)


def test_there_is_poison_that_fits_only_compressed_and_poison_that_does_not_fit() -> None:
    large = [message for message in POISON if message.zipped]
    assert {fits(message.value or b"") for message in large} == {True, False}


def test_a_value_may_be_missing_only_where_it_would_not_fit() -> None:
    assert "would take" in (flaw(letter_of(TEXT, with_value=False), TEXT) or "")


def test_a_letter_of_nothing_published_is_flawed() -> None:
    assert judged(letter_of(TEXT), None, None).flaw == "it names no message"
    assert judged(RawLetter(0, None, b"", ()), None, None).position == (-1, -1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("message-id", b"m-9"),
        ("content-type", b"image/png"),
        ("reconstream-reason", b"because"),
        ("reconstream-message", b""),
        ("reconstream-message", b"\xff"),
        ("reconstream-message", b"x" * 1025),
        ("reconstream-source-topic", b"others"),
        ("reconstream-source-timestamp-ms", b"-1"),
        ("reconstream-worker-version", b"0"),
    ],
)
def test_a_changed_header_is_seen(name: str, content: bytes) -> None:
    good = letter_of(TEXT)
    headers = [(key, content if key == name else value) for key, value in good.headers]
    assert flaw(good, TEXT) is None
    assert flaw(RawLetter(good.partition, good.key, good.value, headers), TEXT) is not None


@pytest.mark.parametrize("which", range(10))
def test_a_missing_or_repeated_header_is_seen(which: int) -> None:
    good = letter_of(TEXT)
    missing = [*good.headers[:which], *good.headers[which + 1 :]]
    repeated = [*good.headers[: which + 1], *good.headers[which:]]
    assert len(good.headers) == 10
    for headers in (missing, repeated):
        assert flaw(RawLetter(good.partition, good.key, good.value, headers), TEXT) is not None


def test_headers_in_another_order_are_seen() -> None:
    good = letter_of(TEXT)
    headers = [good.headers[1], good.headers[0], *good.headers[2:]]
    assert "first headers" in (flaw(RawLetter(good.partition, good.key, good.value, headers), TEXT) or "")


def test_another_key_value_or_partition_is_seen() -> None:
    good = letter_of(TEXT)
    assert flaw(RawLetter(good.partition, None, good.value, good.headers), TEXT) is not None
    assert flaw(RawLetter(good.partition, good.key, None, good.headers), TEXT) is not None
    assert flaw(RawLetter(good.partition, good.key, b"other", good.headers), TEXT) is not None
    assert flaw(RawLetter(good.partition + 1, good.key, good.value, good.headers), TEXT) is not None


@pytest.mark.parametrize("name", ["value-bytes", "value-sha256"])
def test_what_stands_for_a_missing_value_is_compared(name: str) -> None:
    good = letter_of(UNFIT, with_value=False)
    headers = [(key, b"0" if key == f"reconstream-{name}" else value) for key, value in good.headers]
    assert flaw(good, UNFIT) is None
    assert flaw(RawLetter(good.partition, good.key, None, headers), UNFIT) is not None
    assert flaw(RawLetter(good.partition, good.key, b"", good.headers), UNFIT) is not None


def test_null_is_not_empty() -> None:
    good = letter_of(NULL)
    headers = [header for header in good.headers if header[0] != "reconstream-value"]
    assert flaw(good, NULL) is None
    assert flaw(RawLetter(good.partition, good.key, None, headers), NULL) is not None
    assert flaw(RawLetter(good.partition, good.key, b"", good.headers), NULL) is not None
