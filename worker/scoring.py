"""The scoring thread: batches in, answers out (worker.answering). It never touches Kafka.

    inbox ──▶ Batcher ──▶ Answerer ──▶ outbox

The model is exchanged by this thread, between two batches: one model answers all of a batch. An exception ends the
thread and travels to the I/O thread through the outbox: a dead thread is never survived in silence.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from worker.answering import Answerer, Answers, Model
from worker.core.batching import Batcher, Chunk
from worker.core.progress import Progress
from worker.ports import Clock

# How long the thread waits for work before it reports that it is alive.
IDLE_S = 1.0


class _Replacement(NamedTuple):
    model: Model
    swapped: Callable[[], None]


class ScoringThread:
    """Runs an Answerer on a thread of its own, between two queues.

    The queues are not bounded themselves: the I/O thread stops handing over when too much is in flight.
    """

    def __init__(self, answerer: Answerer, batcher: Batcher, clock: Clock, progress: Progress) -> None:
        self._answerer = answerer
        self._batcher = batcher
        self._clock = clock
        self._progress = progress
        self._inbox: SimpleQueue[Chunk | _Replacement | None] = SimpleQueue()
        self._outbox: SimpleQueue[Answers | BaseException] = SimpleQueue()
        # A daemon: a model call that never returns must not keep a stopped process alive.
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, chunk: Chunk) -> None:
        """Hand over a chunk."""
        self._inbox.put(chunk)

    def replace(self, model: Model, swapped: Callable[[], None]) -> None:
        """Have the thread answer with `model`, between two batches, and release the one before. From any thread.

        Args:
            model: ready to score: whatever loading and warming up it needs is done.
            swapped: called by the scoring thread at that moment; returns quickly and never raises.
        """
        self._inbox.put(_Replacement(model, swapped))

    def get(self, timeout_s: float) -> Answers | None:
        """The next answered batch, waiting up to `timeout_s` seconds.

        Raises:
            BaseException: whatever ended the thread.
        """
        try:
            answers = self._outbox.get(timeout=timeout_s) if timeout_s > 0 else self._outbox.get_nowait()
        except Empty:
            return None
        if isinstance(answers, BaseException):
            raise answers
        return answers

    def stop(self, timeout_s: float) -> bool:
        """Ask the thread to end after the batch in work, and wait up to `timeout_s` seconds: whether it ended."""
        self._inbox.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while True:
                now = self._clock.monotonic()
                self._progress.done(now)
                due = self._batcher.due_in(now)
                try:
                    item = (
                        self._inbox.get(timeout=IDLE_S if due is None else due)
                        if due != 0
                        else self._inbox.get_nowait()
                    )
                except Empty:
                    pass
                else:
                    if item is None:
                        return
                    if isinstance(item, _Replacement):
                        self._answerer.use(item.model)
                        item.swapped()
                    else:
                        self._batcher.add(item)
                    continue
                batch = self._batcher.take(self._clock.monotonic())
                if batch is not None:
                    self._outbox.put(self._answerer.answer(batch))
        except BaseException as error:  # noqa: BLE001 - the I/O thread raises it again
            self._outbox.put(error)
