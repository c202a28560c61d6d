"""The worker's own program with one thing changed, as a script: `altered_worker.py ALTERATION FILE run`.

Rules: what is slow to import is imported before, so that the start itself takes moments; an alteration waits for FILE
to appear where the test has to have a say in what comes when.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# In place of this folder, whose kafka.py is not the library.
sys.path[0] = str(Path(__file__).parents[2])

from worker import app, watchdog  # noqa: E402
from worker.__main__ import main  # noqa: E402
from worker.adapters.clients import Client  # noqa: E402
from worker.adapters.keras_scorer import KerasScorer, select_backend  # noqa: E402
from worker.core.progress import Progress  # noqa: E402
from worker.ports import Clock, Source  # noqa: E402

PROGRAM = Path(__file__)
# A stall: shorter than the settings take, so that no test waits for minutes.
STALL_S = 5


def hang(*_: object) -> NoReturn:
    """What a driver does that waits for a device which will not answer."""
    while True:
        threading.Event().wait()


def waits_to_join(file: Path) -> None:
    """All is ready but the consumer, which joins its group when the file is there."""

    made = app.client  # type: ignore[attr-defined]

    def client(name: str) -> Client:
        adapters = made(name)

        def join(*arguments: Any, **more: Any) -> Source:
            await_file(file)
            return adapters.source(*arguments, **more)

        return adapters._replace(source=join)

    app.client = client  # type: ignore[attr-defined]


def watch_closely() -> None:
    """The watchdog ends the process after STALL_S."""

    def impatient(watched: Sequence[Progress], _: float, clock: Clock) -> watchdog.Watchdog:
        return watchdog.Watchdog(watched, STALL_S, clock)

    app.Watchdog = impatient  # type: ignore[attr-defined, assignment]


def hangs_while_loading(_: Path) -> None:
    """The model's load never returns."""
    watch_closely()
    KerasScorer.load = hang  # type: ignore[method-assign, assignment]


def hangs_while_scoring(file: Path) -> None:
    """The model hangs at the first batch after the start; the watchdog's report then waits for the file.

    Without the latter the process might end between two looks at /livez.
    """
    watch_closely()
    load, stacks = app._load, watchdog.stacks

    def load_and_spoil(*arguments: Any, **more: Any) -> Any:
        model = load(*arguments, **more)
        KerasScorer.score = hang  # type: ignore[method-assign, assignment]
        return model

    def stacks_when_seen() -> str:
        await_file(file)
        return stacks()

    app._load = load_and_spoil
    watchdog.stacks = stacks_when_seen


def await_file(file: Path) -> None:
    pause = threading.Event()
    while not file.exists():
        pause.wait(0.02)


ALTERATIONS: dict[str, Callable[[Path], None]] = {
    alteration.__name__: alteration for alteration in (waits_to_join, hangs_while_loading, hangs_while_scoring)
}

if __name__ == "__main__":
    select_backend("tensorflow")
    ALTERATIONS[sys.argv[1]](Path(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
