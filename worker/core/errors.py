"""What can go wrong, and what it means to whoever started the program.

ReconstreamError
├── ConfigurationError     exit 2   a setting is wrong; nothing was started
├── BundleError            exit 3   the bundle is missing, damaged or not what it says
├── KafkaRefused           exit 4   Kafka answered, and the answer is no (authorisation, missing topic)
├── KafkaUnreachable       exit 6   nobody answered within the limit
├── TooManyDeadLetters     exit 7   only where the setting is on
├── ScorerBroken           exit 70  the model fails on images that it is known to score
├── DeliveryFailed         handled  something may not have been delivered: rebuild and read again
└── Unreadable             handled  one record's image cannot be had
"""

from enum import IntEnum, StrEnum

NAME_TAKEN = "another member of the group has this worker's group_instance_id; each needs its own"


class ExitCode(IntEnum):
    """The process's exit status."""

    STOPPED = 0
    UNFINISHED = 1
    BAD_CONFIGURATION = 2
    BAD_BUNDLE = 3
    KAFKA_REFUSED = 4
    STALLED = 5
    KAFKA_UNREACHABLE = 6
    TOO_MANY_DEAD_LETTERS = 7
    DEFECT = 70


class Reason(StrEnum):
    """Why a record has no score. A closed set: it labels a metric and stands in dead letters."""

    NULL_VALUE = "null_value"
    EMPTY_VALUE = "empty_value"
    TOO_LARGE = "too_large"
    UNKNOWN_CONTENT_TYPE = "unknown_content_type"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    WRONG_SIZE = "wrong_size"
    WRONG_CHANNELS = "wrong_channels"
    TOO_MANY_PIXELS = "too_many_pixels"
    BAD_JSON = "bad_json"
    BAD_BASE64 = "bad_base64"
    CORRUPT_RECORD = "corrupt_record"
    MODEL_REFUSED = "model_refused"
    NON_FINITE_SCORE = "non_finite_score"


class ReconstreamError(Exception):
    """Base of every error that this project raises on purpose."""

    exit_code = ExitCode.DEFECT


class ConfigurationError(ReconstreamError):
    """A setting is wrong. The message names the field, what was given and what is allowed."""

    exit_code = ExitCode.BAD_CONFIGURATION


class BundleError(ReconstreamError):
    """A bundle is missing, damaged, mixed up, or made for something else."""

    exit_code = ExitCode.BAD_BUNDLE


class KafkaRefused(ReconstreamError):  # noqa: N818 - it names Kafka's answer
    """Kafka is there and says no, and asking again will not change that."""

    exit_code = ExitCode.KAFKA_REFUSED


class KafkaUnreachable(ReconstreamError):  # noqa: N818 - it names a state
    """Kafka did not answer within the limit."""

    exit_code = ExitCode.KAFKA_UNREACHABLE


class TooManyDeadLetters(ReconstreamError):  # noqa: N818 - it names a state
    """More records than the setting allows could not be read."""

    exit_code = ExitCode.TOO_MANY_DEAD_LETTERS


class ScorerBroken(ReconstreamError):  # noqa: N818 - it names a state
    """The golden images no longer score as they did: the scorer is at fault, not the input."""


class DeliveryFailed(ReconstreamError):  # noqa: N818 - it names an event
    """Something that was sent may not have arrived, or a commit did not succeed.

    Nothing is lost: the cure is to drop what is in flight and read again from the committed positions.

    Args:
        step: where it happened (`publish`, `commit`, `fenced`, `refused`, `size`, `revoked`); labels a metric,
            so a closed set. `fenced`: the group or a successor has taken over; `refused`: Kafka said no.
        message: what happened.
        topic: the one that cannot be written, where it is known to be at fault and not Kafka as a whole.
    """

    def __init__(self, step: str, message: str, topic: str | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.topic = topic


class Unreadable(ReconstreamError):  # noqa: N818 - it names the record's status
    """One record's image cannot be had: it gets a verdict `unreadable` and a dead letter."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
