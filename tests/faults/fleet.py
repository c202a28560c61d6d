"""N workers as processes, and an orchestrator that starts each again when it has ended.

Rules: every incarnation keeps a log of its own; every exit is recorded with whether it was asked for; only
processes started here get signals.
"""

import signal
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.processes import WorkerProcess

RESTART_DELAY_S = 0.5
LOOK_S = 0.1
STOP_TIMEOUT_S = 60
# The slowest start is that of slow_model: two batches of a minute or more before a worker is ready.
READY_TIMEOUT_S = 420.0


class FleetError(Exception):
    """The fleet is not as the campaign needs it."""


@dataclass(frozen=True)
class Exit:
    """An end of a worker: `asked` says whether the campaign had killed or stopped it.

    A worker may be asked at any time, also while it starts; the next incarnation has not been asked.
    """

    worker: int
    incarnation: int
    code: int
    asked: bool
    began: float  # monotonic clock, in seconds
    ended: float
    said: tuple[str, ...]  # the lines of its log


@dataclass
class _Member:
    number: int
    incarnation: int
    process: WorkerProcess
    began: float
    asked: bool = False
    url: str | None = None
    gone_since: float | None = None


class Fleet:
    """Workers numbered from 0.

    Args:
        folder: for the logs `worker-<number>-<incarnation>.log`.
        size: how many workers.
        settings: of each, as WorkerProcess takes them.

    Attributes:
        exits: of all incarnations that have ended.
    """

    def __init__(self, folder: Path, size: int, settings: Mapping[str, object]) -> None:
        self.exits: list[Exit] = []
        self._folder = folder
        self._settings = settings
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._members = [self._start(number, 0) for number in range(size)]
        self._thread = threading.Thread(target=self._orchestrate, name="orchestrator", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._members)

    def kill(self, number: int) -> None:
        """SIGKILL: nothing is said to anybody. Numbers go round in a small fleet."""
        self._signal(number, signal.SIGKILL, asked=True)

    def terminate(self, number: int) -> None:
        """SIGTERM: finish and leave."""
        self._signal(number, signal.SIGTERM, asked=True)

    def pause(self, number: int) -> None:
        """SIGSTOP: alive to the kernel, silent to the group."""
        self._signal(number, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """SIGCONT."""
        self._signal(number, signal.SIGCONT)

    def reload(self) -> None:
        """SIGHUP to every worker: look at the bundle again."""
        for number in range(len(self)):
            self._signal(number, signal.SIGHUP)

    def wait_ready(self, numbers: Collection[int] | None = None, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until these workers, or all, say that they are ready.  Raises FleetError when one does not."""
        deadline = time.monotonic() + timeout_s
        waiting = set(range(len(self)) if numbers is None else numbers)
        while waiting:
            waiting = {number for number in waiting if not self._ready(number)}
            if waiting and time.monotonic() > deadline:
                number = min(waiting)
                text = self._members[number].process.text
                raise FleetError(
                    f"worker {number} was not ready within {timeout_s:.0f} s; its log ends:\n{text[-2000:]}"
                )
            self._stopping.wait(LOOK_S)

    def settled(self) -> bool:
        """Whether every worker is ready, and none was asked to end."""
        return all(not member.asked for member in self._members) and all(map(self._ready, range(len(self))))

    def wait_assigned(self, number: int, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until a worker holds partitions: a ready one may get its first with the next heartbeat only.

        Raises FleetError when it gets none.
        """
        deadline = time.monotonic() + timeout_s
        while not self._assigned(self._members[number % len(self)]):
            if time.monotonic() > deadline:
                raise FleetError(f"worker {number} got no partition within {timeout_s:.0f} s")
            self._stopping.wait(LOOK_S)

    def wait_whole(self, partitions: int, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the group has come to rest: each worker holds some partitions, together all of them.

        Raises FleetError when it does not.
        """
        self.wait_ready(timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            held = [self._assigned(member) for member in self._members]
            if all(held) and sum(held) == partitions:
                return
            if time.monotonic() > deadline:
                raise FleetError(f"the workers hold {held} of {partitions} partitions after {timeout_s:.0f} s")
            self._stopping.wait(LOOK_S)

    @staticmethod
    def _assigned(member: "_Member") -> int:
        try:
            return int(member.process.metric("reconstream_assigned_partitions"))
        except OSError:
            return 0

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over all workers that answer."""
        return sum(member.process.metric(name) for member in self._members if member.url is not None)

    def held_beside(self, number: int) -> int:
        """How many partitions the workers other than this one hold."""
        return sum(self._assigned(member) for member in self._members if member.number != number % len(self))

    def said(self, words: str) -> int:
        """How often all logs together say this."""
        return self.logs().count(words)

    def resident_bytes(self) -> list[int]:
        """The resident memory of each worker."""
        return [int(psutil.Process(member.process.process.pid).memory_info().rss) for member in self._members]

    def logs(self) -> str:
        """What all incarnations have logged so far."""
        files = sorted(self._folder.glob("worker-*.log"))
        return "\n".join(file.read_text("utf-8", errors="replace") for file in files)

    def log_of(self, number: int) -> str:
        """What a worker's present incarnation has logged so far."""
        return self._members[number % len(self)].process.text

    def stop(self) -> None:
        """SIGTERM to all, wait, and kill what has not ended in time; its exit is then recorded as not asked for."""
        self._stopping.set()
        self._thread.join()
        for member in self._members:
            if member.process.process.poll() is None:
                member.asked = True
                member.process.process.send_signal(signal.SIGTERM)
                member.process.process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for member in self._members:
            if member.gone_since is None:
                while member.process.process.poll() is None and time.monotonic() < deadline:
                    threading.Event().wait(LOOK_S)
                if member.process.process.poll() is None:
                    member.asked = False
                    member.process.process.kill()
                self._record(member, member.process.process.wait())

    def close(self) -> None:
        """Kill whatever still runs."""
        self._stopping.set()
        self._thread.join()
        for member in self._members:
            member.process.__exit__()

    def _start(self, number: int, incarnation: int) -> _Member:
        log = self._folder / f"worker-{number}-{incarnation:03}.log"
        return _Member(number, incarnation, WorkerProcess(log, self._settings), time.monotonic())

    def _signal(self, number: int, which: signal.Signals, *, asked: bool = False) -> None:
        with self._lock:
            member = self._members[number % len(self)]
            if member.process.process.poll() is None:
                member.asked = member.asked or asked
                member.process.process.send_signal(which)

    def _ready(self, number: int) -> bool:
        with self._lock:
            member = self._members[number]
        if member.process.process.poll() is not None:
            return False
        member.url = member.url or member.process.url
        try:
            return member.url is not None and member.process.get("/readyz")[0] == 200
        except OSError:
            return False

    def _orchestrate(self) -> None:
        while not self._stopping.wait(LOOK_S):
            now = time.monotonic()
            for index, member in enumerate(self._members):
                code = member.process.process.poll()
                if code is None:
                    continue
                if member.gone_since is None:
                    self._record(member, code)
                    member.gone_since = now
                elif now - member.gone_since >= RESTART_DELAY_S:
                    with self._lock:
                        self._members[index] = self._start(member.number, member.incarnation + 1)

    def _record(self, member: _Member, code: int) -> None:
        said = tuple(member.process.text.splitlines())
        self.exits.append(
            Exit(member.number, member.incarnation, code, member.asked, member.began, time.monotonic(), said)
        )
