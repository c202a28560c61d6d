"""What goes out beside verdicts: a dead letter for what could not be read, an error map for what is localised.

Rules: a record of either kind is sent whole where its topic takes it, without its value where it is too large, and
never skipped; so its size stops neither its verdict nor anything else.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

from worker.answering import Answers
from worker.core.dead_letters import dead_letter
from worker.core.errors import TooManyDeadLetters, Unreadable
from worker.core.offsets import Part
from worker.core.records import OutRecord, SourceRecord, TopicPartition, record_bytes, source_of
from worker.core.regions import without_value
from worker.ports import Clock, Telemetry

log = logging.getLogger(__name__)

# One misconfigured camera among ten; said once a minute, not once a record.
WORTH_A_LINE = 0.1
LINE_INTERVAL_S = 60.0


class Companions:
    """Makes the companions of answered batches. Used by the I/O thread alone.

    Args:
        letter_topic: where dead letters go.
        map_topic: where error maps go; None where there are none.
        map_bytes: of a map, about.
        worker_version: that letters name.
        accepts: whether a companion's topic may take it, by its size.
        clock: for the interval between log lines.
        telemetry: counts maps.
        max_ratio: stop when more than this share of `window` records could not be read; None = never.
        window: number of records.
    """

    def __init__(
        self,
        letter_topic: str,
        *,
        map_topic: str | None = None,
        map_bytes: int = 0,
        worker_version: str,
        accepts: Callable[[OutRecord], bool],
        clock: Clock,
        telemetry: Telemetry,
        max_ratio: float | None = None,
        window: int = 1000,
    ) -> None:
        self._map_bytes = map_bytes
        self._letter_topic = letter_topic
        self._map_topic = map_topic
        self._worker_version = worker_version
        self._accepts = accepts
        self._clock = clock
        self._telemetry = telemetry
        self._max_ratio = max_ratio
        self._window = window
        self._refused: set[tuple[TopicPartition, int]] = set()
        self._records = 0
        self._letters = 0
        self._next_line = 0.0

    def role_of(self, topic: str | None) -> str | None:
        """What companions `topic` is for, `dead-letter` or `map`; None for any other."""
        if topic is None:
            return None
        return {self._letter_topic: "dead-letter", self._map_topic: "map"}.get(topic)

    def sizes(self, records: Sequence[SourceRecord]) -> list[int]:
        """Bytes that each of `records` is counted with while it is in flight: its own, and the map's it may cause."""
        sizes = [record_bytes(record) for record in records]
        return [size + self._map_bytes for size in sizes] if self._map_bytes else sizes

    def of(self, part: Part, first: int, answers: Answers) -> list[OutRecord]:
        """The companions of a part whose first record is number `first` of the batch."""
        found = []
        for number, record in enumerate(part.records, first):
            if (rejection := answers.rejections.get(number)) is not None:
                found.append(self._letter(part, record, rejection, answers.model_version))
            elif (error_map := answers.maps.get(number)) is not None:
                found.append(self._map(error_map))
        return found

    def _letter(self, part: Part, record: SourceRecord, rejection: Unreadable, model_version: str) -> OutRecord:
        def letter(*, with_value: bool) -> OutRecord:
            return dead_letter(
                record,
                topic=self._letter_topic,
                reason=rejection.reason,
                message=rejection.message,
                worker_version=self._worker_version,
                model_version=model_version,
                corrupt_until=part.unreadable_until,
                with_value=with_value,
            )

        whole = letter(with_value=True)
        return whole if self._fits(whole) else letter(with_value=False)

    def _map(self, whole: OutRecord) -> OutRecord:
        self._map_bytes = max(self._map_bytes, len(whole.value or b""))
        fits = self._fits(whole)
        self._telemetry.error_maps("published" if fits else "omitted", 1)
        return whole if fits else without_value(whole)

    def _fits(self, companion: OutRecord) -> bool:
        refused = bool(self._refused) and source_of(companion) in self._refused
        return not refused and self._accepts(companion)

    def refused(self, record: OutRecord) -> None:
        """Kafka refused a record for its size: if it was a companion, from now on that one goes without its value.

        Otherwise it would be read, refused and read again for ever.
        """
        if self.role_of(record.topic):
            # Its source will do: no record has both a letter and a map.
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
