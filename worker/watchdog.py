"""The watchdog: ends the process when a thread makes no progress, so that something can start it again.

A hung client or a hung GPU cannot be mended from within; what can be done is to say where every thread stands,
and to exit. Nothing that was not acknowledged is committed: it will be read again.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

from worker.core.errors import ExitCode
from worker.core.progress import Progress
from worker.ports import Clock

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
REPORT_LIMIT_S = 5.0


class Watchdog:
    """Watches threads by their progress.

    Args:
        watched: the progress of each thread.
        limit_s: the longest time without progress.
        clock: what the progress was measured with.
        end: ends the process with an exit status.
    """

    def __init__(
        self,
        watched: Sequence[Progress],
        limit_s: float,
        clock: Clock,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._watched = watched
        self._limit = limit_s
        self._clock = clock
        self._end = end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def stalled(self) -> str | None:
        """Which thread made no progress within the limit, or None."""
        now = self._clock.monotonic()
        for progress in self._watched:
            if progress.age(now) > self._limit:
                return f"the {progress.name} thread made no progress for {progress.age(now):.0f} s"
        return None

    def age_s(self) -> float:
        """Seconds since the slowest thread's last progress."""
        now = self._clock.monotonic()
        return max(0.0, *(progress.age(now) for progress in self._watched))

    def start(self) -> None:
        """Begin to watch. Until then nothing is expected of the threads."""
        self.watch(self._watched)
        self._thread.start()

    def watch(self, watched: Sequence[Progress]) -> None:
        """Watch these threads from now on, and no others."""
        now = self._clock.monotonic()
        for progress in watched:
            progress.done(now)
        self._watched = watched

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """End the process if a thread has stalled."""
        stalled = self.stalled()
        if stalled is not None:
            # On a thread of its own: if nobody reads the log any more, that is where all threads hang.
            report = threading.Thread(target=self._report, args=(stalled,), name="watchdog's report", daemon=True)
            try:
                report.start()
                report.join(REPORT_LIMIT_S)
            finally:  # also where no thread can be started any more
                self._end(ExitCode.STALLED)

    def _report(self, stalled: str) -> None:
        log.critical(
            "%s (limit %s s); the process ends. Where its threads stand:\n%s", stalled, self._limit, stacks()
        )
        for handler in logging.getLogger().handlers:
            handler.flush()

    def _run(self) -> None:
        while not self._stopped.wait(CHECK_INTERVAL_S):
            self.check()


def stacks() -> str:
    """The stack of every thread of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
