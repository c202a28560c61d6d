"""Dead letters: the original record, byte for byte, with headers that say why it could not be read.

What the letter adds stands in headers that begin with `reconstream-`; everything else is the record's own,
so that removing those headers gives back the record that can be put on the input topic again.
"""

import hashlib

from worker.core.errors import Reason
from worker.core.records import OutRecord, SourceRecord

PREFIX = "reconstream-"
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
        message: what was expected and what came; cut to 1,024 bytes.
        worker_version: of the worker that wrote the letter.
        model_version: of the bundle that was being served.
        with_value: False leaves the value out and states its SHA-256 and size instead: for a record that
            the dead-letter topic refuses.
        corrupt_until: the offset after a range that Kafka itself could not read.
    """
    added: list[tuple[str, bytes]] = [
        ("reason", reason.value.encode()),
        ("message", message.encode(errors="replace")[:MAX_MESSAGE_BYTES]),
        ("source-topic", record.topic.encode()),
        ("source-partition", b"%d" % record.partition),
        ("source-offset", b"%d" % record.offset),
        ("source-timestamp-ms", b"%d" % record.timestamp),
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
    headers: list[tuple[str, bytes]] = []
    for name, content in record.headers:
        if content is None:
            # Kafka knows a null header value, its Python client cannot write one.
            added.append(("null-header", name.encode()))
        headers.append((name, content or b""))
    headers += [(PREFIX + name, content) for name, content in added]
    # The client refuses a record with neither key nor value; the header `value` says which it was.
    return OutRecord(
        topic, record.partition, record.key, b"" if value is None and record.key is None else value, headers
    )
