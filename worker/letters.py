"""Dead letters as the pipeline sends them: made whole where their topic takes them, counted, never skipped."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

from worker.core.dead_letters import dead_letter, source_of
from worker.core.errors import TooManyDeadLetters
from worker.core.offsets import Part
from worker.core.records import OutRecord, TopicPartition
from worker.ports import Clock
from worker.scoring import Answers

log = logging.getLogger(__name__)

# One misconfigured camera among ten; said once a minute, not once a record.
WORTH_A_LINE = 0.1
LINE_INTERVAL_S = 60.0


class DeadLetters:
    """Makes the dead letters of answered batches. Used by the I/O thread alone.

    Args:
        topic: where they go.
        worker_version: that they name.
        accepts: whether their topic may take a letter, by its size.
        clock: for the interval between log lines.
        max_ratio: stop when more than this share of `window` records could not be read; None = never.
        window: number of records.
    """

    def __init__(
        self,
        topic: str,
        *,
        worker_version: str,
        accepts: Callable[[OutRecord], bool],
        clock: Clock,
        max_ratio: float | None = None,
        window: int = 1000,
    ) -> None:
        self.topic = topic
        self._worker_version = worker_version
        self._accepts = accepts
        self._clock = clock
        self._max_ratio = max_ratio
        self._window = window
        self._refused: set[tuple[TopicPartition, int]] = set()
        self._records = 0
        self._letters = 0
        self._next_line = 0.0

    def of(self, part: Part, first: int, answers: Answers) -> list[OutRecord]:
        """The letters of a part whose first record is number `first` of the batch."""
        letters = []
        for number, record in enumerate(part.records, first):
            rejection = answers.rejections.get(number)
            if rejection is None:
                continue
            letter = partial(
                dead_letter,
                record,
                topic=self.topic,
                reason=rejection.reason,
                message=rejection.message,
                worker_version=self._worker_version,
                model_version=answers.model_version,
                corrupt_until=part.unreadable_until,
            )
            whole = letter()
            takes = (part.lease.partition, record.offset) not in self._refused and self._accepts(whole)
            letters.append(whole if takes else letter(with_value=False))
        return letters

    def refused(self, record: OutRecord) -> None:
        """Kafka refused a record for its size: if it was a letter, from now on that one goes without its value.

        Otherwise it would be read, refused and read again for ever.
        """
        if record.topic == self.topic:
            self._refused.add(source_of(record))

    def committed(self, positions: Mapping[TopicPartition, int]) -> None:
        """Forget refusals that lie behind the committed positions."""
        if self._refused:
            self._refused = {
                (partition, offset) for partition, offset in self._refused if offset >= positions.get(partition, 0)
            }

    def count(self, records: int, letters: int) -> None:
        """So many records were answered, so many of them with a letter.

        Raises:
            TooManyDeadLetters: where a maximum is set.
        """
        self._records += records
        self._letters += letters
        if self._records < self._window:
            return
        ratio = self._letters / self._records
        self._records = self._letters = 0
        if self._max_ratio is not None and ratio > self._max_ratio:
            raise TooManyDeadLetters(
                f"{ratio:.1%} of the last records could not be read; "
                f"max_dead_letter_ratio allows {self._max_ratio:.1%}."
            )
        now = self._clock.monotonic()
        if ratio > WORTH_A_LINE and now >= self._next_line:
            self._next_line = now + LINE_INTERVAL_S
            log.warning("%.1f %% of the last records could not be read and were dead-lettered", ratio * 100)
