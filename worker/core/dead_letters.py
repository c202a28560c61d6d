"""Dead letters: the original record, byte for byte, with headers that say why it could not be read.

What the letter adds stands in headers behind the record's own; the first of them is `reconstream-reason`, once.
So the record's own headers are those before the *last* `reconstream-reason`, even where the record was a dead
letter itself. What a record can have and a letter cannot is said in headers too: `reconstream-value` is `null`
or `omitted` where the letter's value is not the record's, `reconstream-null-header-index` counts from 0 the
headers that were null and are empty here. With these the record can be put on the input topic again.
"""

import hashlib

from worker.core.errors import Reason
from worker.core.records import (
    MAX_CARRIED_BYTES,
    PREFIX,
    OutRecord,
    SourceRecord,
    headers_bytes,
    source_headers,
)

MAX_MESSAGE_BYTES = 1024


def dead_letter(
    record: SourceRecord,
    *,
    topic: str,
    reason: Reason,
    message: str,
    worker_version: str,
    model_version: str,
    with_value: bool = True,
    corrupt_until: int | None = None,
) -> OutRecord:
    """The dead letter of `record`.

    Args:
        record: the record that cannot be read.
        topic: the dead-letter topic; the letter goes to the input's partition number.
        reason: why, from the closed set.
        message: what was expected and what came; cut to at most 1,024 bytes of UTF-8.
        worker_version: of the worker that wrote the letter.
        model_version: of the bundle that was being served.
        with_value: False leaves the value out and states its SHA-256 and size instead: for a record that
            the dead-letter topic refuses. Key and headers go with it where they exceed MAX_CARRIED_BYTES.
        corrupt_until: the offset after a range that Kafka itself could not read.
    """
    added: list[tuple[str, bytes]] = [
        ("reason", reason.value.encode()),
        # Not cut within a character: the header stays text.
        ("message", message.encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode()),
        *source_headers(record),
        ("worker-version", worker_version.encode()),
        ("model-version", model_version.encode()),
    ]
    value = record.value
    if corrupt_until is not None:
        added.append(("skipped-until-offset", b"%d" % corrupt_until))
    if value is None:
        added.append(("value", b"null"))
    elif not with_value:
        added += [
            ("value", b"omitted"),
            ("value-bytes", b"%d" % len(value)),
            ("value-sha256", hashlib.sha256(value).hexdigest().encode()),
        ]
        value = None
    key, kept = record.key, record.headers
    if not with_value and len(key or b"") + headers_bytes(kept) > MAX_CARRIED_BYTES:
        added += [("key-and-headers", b"omitted"), ("key-sha256", hashlib.sha256(key or b"").hexdigest().encode())]
        key, kept = None, ()
    headers: list[tuple[str, bytes]] = []
    for index, (name, content) in enumerate(kept):
        if content is None:
            # Kafka knows a null header value, its Python client cannot write one. The name is for people: it may
            # stand there twice.
            added += [("null-header", name.encode()), ("null-header-index", b"%d" % index)]
        headers.append((name, content or b""))
    headers += [(PREFIX + name, content) for name, content in added]
    # The client refuses a record with neither key nor value; the header `value` says which it was.
    return OutRecord(topic, record.partition, key, b"" if value is None and key is None else value, headers)
