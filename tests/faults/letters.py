"""What a dead letter must be, held against the message that it stands for. Pure.

Rules: written from what users are promised (worker/core/dead_letters.py says it), without that code's help; a value
may be missing only where the dead-letter topic could not take it.
"""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

import lz4.frame

from tests.faults.accounting import Letter, Position, Published
from tests.faults.load import LETTER_BYTES, Message
from worker.core.errors import Reason

Headers = Sequence[tuple[str, bytes]]

PREFIX = "reconstream-"
OWN = (
    *("reason", "message", "source-topic", "source-partition", "source-offset", "source-timestamp-ms"),
    *("worker-version", "model-version"),
)
OMITTED = ("value", "value-bytes", "value-sha256")
MAX_MESSAGE_BYTES = 1024


@dataclass(frozen=True)
class RawLetter:
    """A record of the dead-letter topic; `partition` is the one that it stands in."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def own(self) -> dict[str, bytes]:
        """The headers that the worker added, without their prefix: of a name that stands there twice the last."""
        return {name.removeprefix(PREFIX): value for name, value in self.headers if name.startswith(PREFIX)}

    @property
    def position(self) -> Position:
        """Of the message that it names; (-1, -1) where it names none."""
        own = self.own
        return int(own.get("source-partition") or -1), int(own.get("source-offset") or -1)


def judged(letter: RawLetter, original: Message | None, published: Published | None) -> Letter:
    """The letter as the account counts it; both None where no such message was published.

    Args:
        letter: as it was read.
        original: what was published at the position that the letter names.
        published: how it stands on the topic.
    """
    own = letter.own
    flaw = "it names no message" if original is None or published is None else _flaw(letter, original, published)
    return Letter(
        letter.position, own.get("model-version", b"").decode(errors="replace"), flaw, own.get("value") == b"omitted"
    )


def fits(value: bytes) -> bool:
    """Whether the dead-letter topic takes a value as workers compress it."""
    return len(lz4.frame.compress(value)) <= LETTER_BYTES


def _flaw(letter: RawLetter, original: Message, published: Published) -> str | None:
    kept, added = letter.headers[: len(original.headers)], letter.headers[len(original.headers) :]
    own = letter.own
    omitted = own.get("value") == b"omitted"
    names = [*OWN, *(OMITTED if omitted else ["value"] if original.value is None else [])]
    value = original.value or b""
    expected = {
        "source-topic": published.topic.encode(),
        # A letter goes to the partition number of its message.
        "source-partition": b"%d" % letter.partition,
        "source-timestamp-ms": b"%d" % published.timestamp_ms,
        "worker-version": importlib.metadata.version("reconstream").encode(),
    }
    if omitted:
        expected |= {
            "value-bytes": b"%d" % len(value),
            "value-sha256": hashlib.sha256(value).hexdigest().encode(),
        }
    elif original.value is None:
        expected["value"] = b"null"
    if letter.key != original.key:
        return f"its key is {letter.key!r}, the message's {original.key!r}"
    if list(kept) != original.headers:
        return f"its first headers are {kept}, the message's {original.headers}"
    if [name for name, _ in added] != [PREFIX + name for name in names]:
        return f"it adds the headers {[name for name, _ in added]}, expected {names}"
    if wrong := {name: own[name] for name, content in expected.items() if own[name] != content}:
        return f"it says {wrong}, expected {expected}"
    if own["reason"].decode(errors="replace") not in set(Reason):
        return f"its reason {own['reason']!r} is not of the closed set"
    if not _is_text(own["message"]):
        return f"its message is no text of 1 to {MAX_MESSAGE_BYTES} bytes: {own['message'][:100]!r}"
    if omitted:
        if fits(value):
            return f"it leaves out a value of {len(value)} bytes that its topic would take"
        return None if letter.value is None else "it has a value and says that it has none"
    return None if letter.value == original.value else "its value is not the message's"


def _is_text(content: bytes) -> bool:
    try:
        return len(content.decode()) > 0 and len(content) <= MAX_MESSAGE_BYTES
    except UnicodeDecodeError:
        return False
