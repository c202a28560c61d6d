"""The loop: poll -> (decode -> batch -> score -> judge) -> publish -> commit.

Theory of operation. This is the I/O thread's program. It alone touches Kafka; what stands in parentheses is
the scoring thread's (worker.scoring). One turn of the loop, in this order:

 1. collect    answered batches come back and are published: a verdict per record, a dead letter per rejection
 2. settle     batches whose every answer was acknowledged make their positions ready
 3. commit     ready positions are committed, at intervals
 4. rewind     after a fault: seek to the committed positions; nothing is polled until that has succeeded
 5. poll       revocations first, then records: they go to the scoring thread under their partition's lease

The order of 1 to 3 is the guarantee: a position is committed only after all that its records caused was
acknowledged by all in-sync replicas. Any doubt (DeliveryFailed) ends all leases, rebuilds the publisher and
reads again from the committed positions: nothing is lost, some answers may repeat.

Backpressure: when the next poll might exceed the bound in records, or the bytes in flight have reached
theirs, fetching is paused and polling goes on, so that the group sees a living member.
"""

import logging
import random
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from worker.core.batching import Chunk
from worker.core.dead_letters import dead_letter
from worker.core.errors import DeliveryFailed, ExitCode, TooManyDeadLetters
from worker.core.offsets import Ledger, Part
from worker.core.progress import Progress
from worker.core.records import OutRecord, TopicPartition
from worker.ports import Clock, Polled, Publisher, RecordRefused, Source, Telemetry
from worker.scoring import Answers, ScoringThread

log = logging.getLogger(__name__)

# A poll shorter than 20 ms can starve: with 1 to 5 ms a first fetch was seen to bring nothing for 6 s.
SHORT_POLL_S = 0.02
IDLE_POLL_S = 0.1
STATE_INTERVAL_S = 1.0
BACKOFF_FIRST_S = 0.1
BACKOFF_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The pipeline's bounds.

    Attributes:
        max_poll_records: the most that one poll brings.
        max_in_flight_records, max_in_flight_bytes: between poll and commit; the bytes may be exceeded by one
            poll's.
        commit_interval_s: the longest that an acknowledged position waits for its commit.
        drain_timeout_s: how long a stop may take.
        max_dead_letter_ratio: of the last dead_letter_window records; None = any.
    """

    max_poll_records: int
    max_in_flight_records: int
    max_in_flight_bytes: int
    commit_interval_s: float
    drain_timeout_s: float
    max_dead_letter_ratio: float | None = None
    dead_letter_window: int = 1000


class Pipeline:
    """The I/O thread's loop. run() is called once, by the thread that owns Source and Publisher."""

    def __init__(
        self,
        *,
        source: Source,
        publisher: Publisher,
        scoring: ScoringThread,
        clock: Clock,
        telemetry: Telemetry,
        limits: Limits,
        dead_letter_topic: str,
        worker_version: str,
        progress: Progress,
    ) -> None:
        self._source = source
        self._publisher = publisher
        self._scoring = scoring
        self._clock = clock
        self._telemetry = telemetry
        self._limits = limits
        self._dead_letter_topic = dead_letter_topic
        self._worker_version = worker_version
        self._progress = progress
        self._ledger = Ledger()
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._paused = False
        self._at_scorer = 0  # records handed over and not yet answered
        self._had_records = False
        self._rewinding = False
        self._faults = 0  # since the last success
        self._retry_at = 0.0
        self._last_commit = clock.monotonic()
        self._next_state = 0.0
        self._oversize: set[tuple[TopicPartition, int]] = set()
        self._window_records = 0
        self._window_letters = 0
        self._letters_logged = 0.0

    @property
    def recovering(self) -> bool:
        """Whether something may not have been delivered, and the committed positions were not yet read again."""
        return self._rewinding

    def request_stop(self) -> None:
        """Finish what is in flight, commit, return. Safe in a signal handler; the second call aborts."""
        if self._stop.is_set():
            self._abort.set()
        self._stop.set()

    def run(self) -> ExitCode:
        """Work until asked to stop.

        Returns:
            STOPPED when everything was acknowledged and committed, else UNFINISHED: nothing is lost, it will
            be read again.

        Raises:
            ScorerBroken, TooManyDeadLetters, or what nobody foresaw.
        """
        self._scoring.start()
        while not self._stop.is_set():
            self._turn(draining=False)
        return self._drain()

    # One turn, and its steps in order.

    def _turn(self, *, draining: bool) -> None:
        self._progress.done(self._clock.monotonic())
        try:
            self._collect()
            self._settle()
            self._commit(at_once=draining)
            if not self._rewinding or self._rewind():
                self._poll(draining=draining)
        except DeliveryFailed as failure:
            self._recover(failure)
        self._report()

    def _collect(self) -> None:
        """Publish what the scoring thread has answered; wait a little if it is all that there is to do."""
        wait = SHORT_POLL_S if self._at_scorer else 0.0
        while (answers := self._scoring.get(wait)) is not None:
            wait = 0.0
            self._at_scorer -= answers.taken
            self._publish(answers)

    def _publish(self, answers: Answers) -> None:
        out: list[OutRecord] = []
        index = 0
        alive: list[Part] = []
        for part in answers.parts:
            stop = index + len(part.records)
            if part.lease.alive:
                alive.append(part)
                out += answers.verdicts[index:stop]
                if answers.rejections:
                    out += self._letters(part, index, answers)
            index = stop
        if not alive:
            return
        self._ledger.published(alive, self._publisher.send(out))
        self._count_letters(index, len(answers.rejections))

    def _letters(self, part: Part, first: int, answers: Answers) -> list[OutRecord]:
        letters = []
        for offset_in_part, record in enumerate(part.records):
            rejection = answers.rejections.get(first + offset_in_part)
            if rejection is None:
                continue
            letter = partial(
                dead_letter,
                record,
                topic=self._dead_letter_topic,
                reason=rejection.reason,
                message=rejection.message,
                worker_version=self._worker_version,
                model_version=answers.model_version,
                corrupt_until=part.unreadable_until,
            )
            whole = letter()
            refused = (part.lease.partition, record.offset) in self._oversize or not self._publisher.accepts(whole)
            letters.append(letter(with_value=False) if refused else whole)
        return letters

    def _settle(self) -> None:
        try:
            batches = self._ledger.settle()
        except RecordRefused as refusal:
            self._mark_oversize()
            raise DeliveryFailed("size", f"Kafka refuses a record for its size: {refusal}") from refusal
        for parts in batches:
            self._faults = 0
            self._observe_latency(parts)

    def _mark_oversize(self) -> None:
        """Write the refused batch's letters without their values from now on, or they would come round for ever."""
        for part in self._ledger.oldest_published or ():
            self._oversize.update((part.lease.partition, record.offset) for record in part.records)

    def _observe_latency(self, parts: Sequence[Part]) -> None:
        stamps = np.array([record.timestamp for part in parts for record in part.records], np.int64)
        stamps = stamps[stamps >= 0]
        if len(stamps):
            self._telemetry.acknowledged((self._clock.now_ms() - stamps) / 1000.0)

    def _commit(self, *, at_once: bool) -> None:
        now = self._clock.monotonic()
        ready = self._ledger.ready
        if not ready:
            return
        full = self._paused or self._ledger.ready_records * 4 >= self._limits.max_in_flight_records
        if not (at_once or full or now - self._last_commit >= self._limits.commit_interval_s):
            return
        if not self._source.commit(ready):
            return
        self._last_commit = self._clock.monotonic()
        self._telemetry.committed(self._ledger.committed(), self._last_commit - now)
        self._oversize = {
            (partition, offset)
            for partition, offset in self._oversize
            if partition not in ready or offset >= ready[partition]
        }

    def _rewind(self) -> bool:
        """Seek to the committed positions. False: wait a little and try again."""
        if self._clock.monotonic() < self._retry_at:
            self._abort.wait(SHORT_POLL_S)
            return False
        if not self._source.rewind():
            return False
        self._rewinding = False
        log.info("reading again from the committed positions")
        return True

    def _poll(self, *, draining: bool) -> None:
        self._pause_or_resume(draining=draining)
        if self._at_scorer:
            timeout = 0.0 if self._had_records else SHORT_POLL_S
        else:
            timeout = SHORT_POLL_S if draining else IDLE_POLL_S
        polled = self._source.poll(timeout)
        self._take_in(polled)

    def _pause_or_resume(self, *, draining: bool) -> None:
        limits = self._limits
        full = (
            draining
            or self._ledger.records + limits.max_poll_records > limits.max_in_flight_records
            or self._ledger.bytes >= limits.max_in_flight_bytes
        )
        if full != self._paused:
            self._paused = full
            self._source.pause(full)

    def _take_in(self, polled: Polled) -> None:
        if polled.revoked:
            dropped = self._ledger.revoke(polled.revoked)
            self._telemetry.rebalanced(len(polled.revoked))
            log.info("partitions %s were revoked; %d records in flight are dropped", _names(polled.revoked), dropped)
        self._had_records = bool(polled.records)
        now = self._clock.monotonic()
        for partition, records in polled.records.items():
            lease = self._ledger.lease(partition)
            sizes = [len(record.value) if record.value is not None else 0 for record in records]
            self._ledger.handed_over(lease, len(records), sum(sizes))
            self._at_scorer += len(records)
            self._scoring.put(Chunk(lease, records, sizes, now, polled.unreadable_until.get(partition)))

    # Faults, reports, the end.

    def _recover(self, failure: DeliveryFailed) -> None:
        """Drop what is in flight and read again from the committed positions, after a growing pause."""
        dropped = self._ledger.revoke_all()
        if self._faults == 0:
            log.warning("%s; %d records in flight are dropped and will be read again", failure, dropped)
        self._telemetry.rebuilt(failure.step)
        self._publisher.rebuild()
        pause = min(BACKOFF_LIMIT_S, BACKOFF_FIRST_S * 2**self._faults)
        # Jitter, so that many workers do not come back to a recovering broker at once.
        self._retry_at = self._clock.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._faults = min(self._faults + 1, 16)
        self._rewinding = True

    def _count_letters(self, records: int, letters: int) -> None:
        self._window_records += records
        self._window_letters += letters
        if self._window_records < self._limits.dead_letter_window:
            return
        ratio = self._window_letters / self._window_records
        self._window_records = self._window_letters = 0
        allowed = self._limits.max_dead_letter_ratio
        if allowed is not None and ratio > allowed:
            raise TooManyDeadLetters(
                f"{ratio:.1%} of the last records could not be read; max_dead_letter_ratio allows {allowed:.1%}."
            )
        now = self._clock.monotonic()
        if ratio > 0.1 and now - self._letters_logged > 60:
            self._letters_logged = now
            log.warning("%.1f %% of the last records could not be read and were dead-lettered", ratio * 100)

    def _report(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_state:
            return
        self._next_state = now + STATE_INTERVAL_S
        self._telemetry.state(
            in_flight_records=self._ledger.records,
            in_flight_bytes=self._ledger.bytes,
            paused=self._paused,
            assigned=len(self._source.assignment()),
            lag=self._source.lag(),
        )

    def _drain(self) -> ExitCode:
        """Finish what is in flight, within one deadline."""
        deadline = self._clock.monotonic() + self._limits.drain_timeout_s
        log.info("stopping: %d records are in flight", self._ledger.records)
        while not (
            self.recovering or not self._ledger.records or self._abort.is_set() or self._clock.monotonic() >= deadline
        ):
            self._turn(draining=True)
        if self.recovering or self._ledger.records:
            log.warning(
                "stopped with work unacknowledged (%d records in flight); it will be read again", self._ledger.records
            )
            return ExitCode.UNFINISHED
        return ExitCode.STOPPED


def _names(partitions: Collection[TopicPartition]) -> str:
    return ", ".join(f"{topic}-{partition}" for topic, partition in sorted(partitions))
