"""What topics must be like for the worker to run, and what is wrong with those that are not. Asks nobody.

Rule: a problem says what was expected, what is there, and how to mend it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from worker.core.errors import BundleError, ConfigurationError, KafkaRefused, KafkaUnreachable, ReconstreamError

# A record with what it repeats of its source: a verdict, or a map that is left out for its size.
OUTPUT_BYTES = 64 << 10
# A dead letter is its record and headers that say what was wrong.
DEAD_LETTER_ROOM_BYTES = 64 << 10
MAX_MESSAGE_BYTES = "max.message.bytes"
CLEANUP_POLICY = "cleanup.policy"
# In the order in which the settings list the topics; the last one may not be wanted.
ROLES = ("input", "output", "dead-letter", "map")

ProblemKind = Literal["configuration", "bundle", "unreachable", "refused"]

# In the order in which the first one decides the exit status.
_ERRORS: Mapping[ProblemKind, type[ReconstreamError]] = {
    "configuration": ConfigurationError,
    "bundle": BundleError,
    "unreachable": KafkaUnreachable,
    "refused": KafkaRefused,
}


@dataclass(frozen=True)
class Problem:
    """Something that must be mended before the worker can run: whose fault, and what to do."""

    kind: ProblemKind
    message: str
    creatable: bool = False  # a missing topic, which create_topics() mends


@dataclass(frozen=True)
class TopicState:
    """A topic as it is; `max_message_bytes` and `cleanup_policy` are None where we may not see them."""

    name: str
    partitions: int
    max_message_bytes: int | None
    cleanup_policy: str | None


def error_of(problems: Sequence[Problem]) -> ReconstreamError:
    """One error for all of `problems` (at least one): of the kind that decides the exit status."""
    kinds = {problem.kind for problem in problems}
    cls = next(error for kind, error in _ERRORS.items() if kind in kinds)
    return cls("\n".join(problem.message for problem in in_order(problems)))


def in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Problems sorted by kind, in the order in which they decide the exit status."""
    order = list(_ERRORS)
    return sorted(problems, key=lambda problem: order.index(problem.kind))


def judge_topics(topics: Sequence[TopicState | None], max_message_bytes: int) -> list[Problem]:
    """What is wrong with topics that exist.

    Args:
        topics: by ROLES; None for one that is missing or not to be seen.
        max_message_bytes: the worker's limit for one record.
    """
    states = {role: topic for role, topic in zip(ROLES, topics, strict=False) if topic is not None}
    source = states.pop("input", None)
    if source is None:
        return []
    problems: list[Problem] = []
    for role, topic in states.items():
        if topic.partitions < source.partitions:
            problems.append(
                Problem(
                    "refused",
                    f"{role} topic '{topic.name}' has {topic.partitions} partitions, input topic '{source.name}' has "
                    f"{source.partitions}; expected at least as many, because an answer goes to its record's "
                    f"partition number. Add partitions to '{topic.name}'.",
                )
            )
        if topic.cleanup_policy is not None and "compact" in topic.cleanup_policy:
            problems.append(
                Problem(
                    "refused",
                    f"{role} topic '{topic.name}' has {CLEANUP_POLICY}={topic.cleanup_policy}: compaction removes "
                    "all records of a key but the last, and takes none without a key. Expected delete.",
                )
            )
        if role != "dead-letter" and (topic.max_message_bytes or OUTPUT_BYTES) < OUTPUT_BYTES:
            problems.append(
                Problem(
                    "refused",
                    f"{role} topic '{topic.name}' accepts {topic.max_message_bytes} bytes, expected at least "
                    f"{OUTPUT_BYTES}: what an answer repeats of its record. "
                    f"Set {MAX_MESSAGE_BYTES}={OUTPUT_BYTES} or more.",
                )
            )
    limit = source.max_message_bytes
    if limit is None:
        return problems
    if max_message_bytes < limit:
        problems.append(
            Problem(
                "configuration",
                f"--max-message-bytes is {max_message_bytes}, input topic '{source.name}' accepts records of {limit} "
                f"bytes ({MAX_MESSAGE_BYTES}); expected at least as much. Set --max-message-bytes {limit} or more.",
            )
        )
    letters, needed = states.get("dead-letter"), limit + DEAD_LETTER_ROOM_BYTES
    if letters is not None and letters.max_message_bytes is not None and letters.max_message_bytes < needed:
        problems.append(
            Problem(
                "refused",
                f"dead-letter topic '{letters.name}' accepts {letters.max_message_bytes} bytes, expected at least "
                f"{needed}: those of input topic '{source.name}' and 64 KiB for the headers. "
                f"Set {MAX_MESSAGE_BYTES}={needed} on '{letters.name}'.",
            )
        )
    return problems
