"""The loop: poll -> (decode -> batch -> score -> judge) -> publish -> commit.

Theory of operation. This is the I/O thread's program. It alone touches Kafka; what stands in parentheses is
the scoring thread's (worker.scoring). One turn of the loop, in this order:

 1. collect    answered batches come back and are published: a verdict per record, and what goes beside it
               (worker.companions): a dead letter per rejection, an error map per anomaly where that is set
 2. settle     batches whose every answer was acknowledged make their positions ready
 3. commit     ready positions are committed, at intervals, as the guarantee (worker.delivery) has it
 4. rewind     after a fault: a new publisher, then seek to the committed positions; nothing is polled before
 5. poll       revocations first, then records: they go to the scoring thread under their partition's lease

The order of 1 to 3 is the guarantee: a position is committed only after all that its records caused was
acknowledged by all in-sync replicas. Any doubt (DeliveryFailed) ends all leases, rebuilds the publisher and
reads again from the committed positions: nothing is lost; what was published and not committed repeats in
at_least_once, and was never visible in exactly_once.

Backpressure: a poll brings no more than what the bounds in records and bytes leave room for, each record counted with
the error map that it may cause; where that is nothing, and while a rewind is due, fetching is paused and polling goes
on, so that the group sees a living member.
"""

import logging
import random
import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from worker.answering import Answers
from worker.companions import Companions
from worker.core.batching import Chunk
from worker.core.errors import DeliveryFailed, ExitCode, KafkaRefused, KafkaUnreachable
from worker.core.failures import Failures
from worker.core.offsets import Ledger, Part
from worker.core.progress import Progress
from worker.core.records import OutRecord, TopicPartition
from worker.delivery import Guarantee
from worker.ports import Clock, Polled, Publisher, RecordRefused, Source, Telemetry
from worker.scoring import ScoringThread

log = logging.getLogger(__name__)

# Between two looks at Kafka while images are being scored: longer, and what has come meanwhile waits; shorter, and
# the looks, at up to a millisecond of processor time each, take it from the model.
TURN_S = 0.01
SHORT_POLL_S = 0.02
IDLE_POLL_S = 0.1
STATE_INTERVAL_S = 1.0
BACKOFF_FIRST_S = 0.1
BACKOFF_LIMIT_S = 5.0
BESIDE = "beside"  # the topic of a companion fails alone, a way of failing beside the steps of DeliveryFailed


@dataclass(frozen=True, slots=True)
class Limits:
    """The pipeline's bounds.

    Attributes:
        max_poll_records: the most that one poll brings.
        max_in_flight_records, max_in_flight_bytes: between poll and commit. The bytes of a poll are not known
            before: they are taken for as many as the largest record lately had, so images that grow all at once
            may exceed the bound, by one poll's.
        max_message_bytes: of a record, as far as is known before the first poll.
        commit_interval_s: the longest that an acknowledged position waits for its commit, and a transaction
            stays open.
        drain_timeout_s: how long a stop may take.
        refusal_timeout_s: how long Kafka may refuse, or only a companion's topic fail, before the end.
    """

    max_poll_records: int
    max_in_flight_records: int
    max_in_flight_bytes: int
    max_message_bytes: int
    commit_interval_s: float
    drain_timeout_s: float
    refusal_timeout_s: float


class Pipeline:
    """The I/O thread's loop. run() is called once, by the thread that owns Source and Publisher."""

    def __init__(
        self,
        *,
        source: Source,
        publisher: Publisher,
        guarantee: Guarantee,
        scoring: ScoringThread,
        companions: Companions,
        clock: Clock,
        telemetry: Telemetry,
        limits: Limits,
        progress: Progress,
    ) -> None:
        self._source = source
        self._publisher = publisher
        self._guarantee = guarantee
        self._scoring = scoring
        self._companions = companions
        self._clock = clock
        self._telemetry = telemetry
        self._limits = limits
        self._progress = progress
        self._ledger = Ledger()
        self._group: object = None  # as of the last poll
        # Plain flags: a signal handler that touches a lock which its own thread holds waits for ever.
        self._stopping = False
        self._aborting = False
        self._nap = threading.Event()  # never set: waiting for it is a bounded pause
        self._paused = False
        self._largest = limits.max_message_bytes  # record, in bytes, of late
        self._at_scorer = 0  # records handed over and not yet answered
        self._published_at: deque[float] = deque()  # of each batch that the ledger has not settled, oldest first
        self._unsent: Sequence[Part] = ()  # what could not even be sent: the ledger does not know it
        self._unseen: list[Sequence[Part]] = []  # acknowledged, and invisible to readers until the commit
        self._rewinding = False
        self._faults = 0  # since the last success
        self._retry_at = 0.0
        self._failures = Failures()  # some end the worker if they last
        self._last_commit = clock.monotonic()
        self._next_state = 0.0
        self._missing = True  # until the group has us as a member

    @property
    def recovering(self) -> bool:
        """Whether something may not have been delivered, and the committed positions were not yet read again."""
        return self._rewinding

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping

    def request_stop(self) -> None:
        """Finish what is in flight, commit, return. Safe in a signal handler; the second call aborts."""
        if self._stopping:
            self._aborting = True
        self._stopping = True

    def run(self) -> ExitCode:
        """Work until asked to stop.

        Returns:
            STOPPED when everything was acknowledged and committed, else UNFINISHED: nothing is lost, it will
            be read again.

        Raises:
            ScorerBroken, TooManyDeadLetters, or what nobody foresaw.
        """
        self._scoring.start()
        while not self._stopping:
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
        wait = 0.0
        if self._at_scorer:
            wait = SHORT_POLL_S if self._paused else TURN_S
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
                if answers.rejections or answers.maps:
                    out += self._companions.of(part, index, answers)
            index = stop
        if not alive:
            return
        handed_over = self._clock.monotonic()
        try:
            fate = self._publisher.send(out)
        except DeliveryFailed:
            self._settle()  # what failed before says more than that nothing can be sent now
            self._unsent = alive
            raise
        self._ledger.published(alive, fate)
        self._published_at.append(handed_over)
        self._companions.count(index, len(answers.rejections))

    def _settle(self) -> None:
        try:
            batches = self._ledger.settle()
        except RecordRefused as refusal:
            self._companions.refused(refusal.record)
            raise DeliveryFailed("size", f"Kafka refuses a record for its size: {refusal}") from refusal
        if batches:
            now = self._clock.monotonic()
            self._telemetry.published([now - self._published_at.popleft() for _ in batches])
            self._unseen += batches
            if not self._guarantee.rolls_back:
                self._seen()

    def _seen(self) -> None:
        """What was acknowledged can be seen by readers."""
        stamps = [record.timestamp for parts in self._unseen for part in parts for record in part.records]
        self._unseen.clear()
        known = np.array([stamp for stamp in stamps if stamp is not None and stamp >= 0], np.int64)
        if len(known):
            self._telemetry.acknowledged((self._clock.now_ms() - known) / 1000.0)

    def _commit(self, *, at_once: bool) -> None:
        now = self._clock.monotonic()
        full = self._ledger.ready_records * 4 >= self._limits.max_in_flight_records
        if not (at_once or full or now - self._last_commit >= self._limits.commit_interval_s):
            return
        if self._guarantee.rolls_back and not self._ledger.all_settled:
            try:
                self._guarantee.flush()
            finally:
                self._settle()  # a failure among the answers says more than that flush() failed
        ready = self._ledger.ready
        if not ready or not self._guarantee.commit(ready, self._group):
            return
        self._last_commit = self._clock.monotonic()
        self._telemetry.committed(self._ledger.committed(), self._last_commit - now)
        self._companions.committed(ready)
        if self._guarantee.rolls_back:
            self._seen()
        self._failures.succeeded(ready)
        if self._faults and not self._failures:
            log.info("answers are delivered again")
            self._faults = 0

    def _rewind(self) -> bool:
        """A new publisher, then seek to the committed positions. False: wait a little and try again."""
        self._stay_member()
        if self._clock.monotonic() < self._retry_at:
            self._nap.wait(SHORT_POLL_S)
            return False
        # In this order: what the old publisher left open decides which positions are the committed ones.
        if not self._publisher.rebuild():
            self._failures.forget(BESIDE)  # Kafka as a whole does not answer
            self._pause_before_retry()
            return False
        self._progress.done(self._clock.monotonic())  # that may have taken three quarters of a minute
        if not self._source.rewind():
            self._pause_before_retry()
            return False
        self._rewinding = False
        log.debug("reading again from the committed positions")
        return True

    def _stay_member(self) -> None:
        """Poll, with fetching paused: a member that does not poll for half a minute is thrown out of the group."""
        self._pause(paused=True)
        polled = self._source.poll(0.0, 1)
        # What came all the same is read again: the rewind seeks every partition that is ours by then.
        self._group = polled.group
        self._revoke(polled)

    def _poll(self, *, draining: bool) -> None:
        room = 0 if draining else self._room()
        self._pause(paused=room == 0)
        idle = SHORT_POLL_S if self._ledger.records else IDLE_POLL_S
        # From the scorer answers come any moment; the wait for them is in _collect.
        self._take_in(self._source.poll(0.0 if self._at_scorer else idle, max(1, room)))

    def _room(self) -> int:
        """How many records the next poll may bring."""
        limits, ledger = self._limits, self._ledger
        if ledger.records + limits.max_poll_records > limits.max_in_flight_records:
            return 0
        by_bytes = max(0, limits.max_in_flight_bytes - ledger.bytes) // self._largest
        # Nothing is too large to be taken alone.
        return min(limits.max_poll_records, by_bytes) or int(not ledger.records)

    def _pause(self, *, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            self._source.pause(paused)

    def _take_in(self, polled: Polled) -> None:
        self._group = polled.group
        undo = self._guarantee.rolls_back and self._ledger.holds_uncommitted(polled.revoked)
        self._revoke(polled)
        if undo:
            # These records are read again, so nothing of this poll may be handed over.
            raise DeliveryFailed("revoked", "the open transaction held answers of revoked partitions")
        now = self._clock.monotonic()
        for partition, records in polled.records.items():
            lease = self._ledger.lease(partition)
            sizes = self._companions.sizes(records)
            self._largest = max(self._largest // 2, *sizes, 1)
            self._ledger.handed_over(lease, len(records), sum(sizes))
            self._at_scorer += len(records)
            self._scoring.put(Chunk(lease, records, sizes, now, polled.unreadable_until.get(partition)))

    def _revoke(self, polled: Polled) -> None:
        if polled.revoked:
            dropped = self._ledger.revoke(polled.revoked)
            self._failures.revoked(polled.revoked)
            self._telemetry.rebalanced(len(polled.revoked))
            log.info("partitions %s were revoked; %d records in flight are dropped", _names(polled.revoked), dropped)

    # Faults, reports, the end.

    def _recover(self, failure: DeliveryFailed) -> None:
        """Drop what is in flight and read again from the committed positions, after a growing pause."""
        failed = self._unsent or self._ledger.oldest_published or ()
        until = {part.lease.partition: part.next_offset for part in failed}
        dropped = self._ledger.revoke_all()
        self._unsent = ()
        self._unseen.clear()
        self._published_at.clear()
        self._rewinding = True
        self._telemetry.rebuilt(failure.step)
        now = self._clock.monotonic()
        if failure.step == "revoked":
            log.info("%s; %d records in flight will be read again", failure, dropped)
            self._retry_at = now
            return
        beside = self._companions.role_of(failure.topic)
        way = BESIDE if beside else failure.step
        if way in {"publish", "commit"}:
            # Whether their topics would take companions cannot be told while nothing gets through.
            self._failures.forget(BESIDE)
        # One line for each way in which it fails, not for each attempt.
        if way not in self._failures:
            log.warning("%s; %d records in flight are dropped and will be read again", failure, dropped)
        self._pause_before_retry()
        self._end_if_it_lasts(failure, self._failures.failed(way, now, until), beside)

    def _pause_before_retry(self) -> None:
        pause = min(BACKOFF_LIMIT_S, BACKOFF_FIRST_S * 2**self._faults)
        # Jitter, so that many workers do not come back to a recovering broker at once.
        self._retry_at = self._clock.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._faults = min(self._faults + 1, 16)

    def _end_if_it_lasts(self, failure: DeliveryFailed, seconds: float, beside: str | None) -> None:
        """An absent Kafka is waited for; one that refuses, or a companion's topic that fails, only so long."""
        if seconds < self._limits.refusal_timeout_s:
            return
        lasted = f"for {seconds:.0f} s (limit {self._limits.refusal_timeout_s:.0f} s)"
        if beside:
            raise KafkaUnreachable(f"the {beside} topic '{failure.topic}' could not be written {lasted}: {failure}")
        if failure.step in {"refused", "size"}:
            raise KafkaRefused(f"Kafka refuses {lasted}: {failure}")

    def _report(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_state:
            return
        self._next_state = now + STATE_INTERVAL_S
        missing = "; ".join(self._source.missing())
        # One line per change of state; the seconds within it do not count.
        if bool(missing) != self._missing:
            self._missing = bool(missing)
            log.warning("%s", missing) if missing else log.info("Kafka answers, and the group has us as a member")
        self._telemetry.state(
            in_flight_records=self._ledger.records,
            in_flight_bytes=self._ledger.bytes,
            paused=self._paused,
            assigned=len(self._source.assignment()),
            lag=self._source.lag(),
            connected=not missing,
        )

    def _drain(self) -> ExitCode:
        """Finish what is in flight, within one deadline."""
        deadline = self._clock.monotonic() + self._limits.drain_timeout_s
        log.info("stopping: %d records are in flight", self._ledger.records)
        while not (
            self.recovering or not self._ledger.records or self._aborting or self._clock.monotonic() >= deadline
        ):
            self._turn(draining=True)
        if self.recovering or self._ledger.records:
            log.warning(
                "stopped with work unacknowledged (%d records in flight); it will be read again", self._ledger.records
            )
            return ExitCode.UNFINISHED
        log.info("stopped: everything is acknowledged and committed")
        return ExitCode.STOPPED


def _names(partitions: Collection[TopicPartition]) -> str:
    return ", ".join(f"{topic}-{partition}" for topic, partition in sorted(partitions))
