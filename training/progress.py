"""What a person sees while the model is fitted: a bar on a terminal, a line per epoch elsewhere, or nothing.

And the history of its losses, which the report draws.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


@dataclass(frozen=True)
class History:
    """How a fit went.

    Attributes:
        loss: mean of each epoch, on the images that it learned from.
        validation_loss: after each epoch, on normal images that it did not learn from.
        seconds: what the fit took.
        kept: the epoch whose network is the result, from 1.
        ended: why there was no further epoch, in words.
    """

    loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    seconds: float
    kept: int = 0
    ended: str = ""


class Progress(Protocol):
    """Is told how the fit goes."""

    def step(self, loss: float) -> None:
        """One step is done; `loss` is the epoch's mean so far."""
        ...

    def epoch(self, number: int, loss: float, validation_loss: float) -> None:
        """One epoch is done; numbers start at 1."""
        ...


class Silence:
    """Shows nothing."""

    def step(self, loss: float) -> None:
        """Nothing."""

    def epoch(self, number: int, loss: float, validation_loss: float) -> None:
        """Nothing."""


class _Lines(Silence):
    """A line per epoch, for logs."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._console = console
        self._epochs = epochs

    def epoch(self, number: int, loss: float, validation_loss: float) -> None:
        """Write the line."""
        line = f"epoch {number}/{self._epochs}  loss {loss:.6f}  validation loss {validation_loss:.6f}"
        self._console.print(line, highlight=False)


class _LiveBar:
    """A bar over all steps of all epochs."""

    def __init__(self, bar: Bar, epochs: int, steps: int, done: int) -> None:
        self._bar = bar
        self._epochs = epochs
        self._validation = "-"
        self._epoch = done + 1
        self._task = bar.add_task(
            "fit", total=epochs * steps, completed=done * steps, epoch=f"{done}/{epochs}", loss="-", validation="-"
        )

    def step(self, loss: float) -> None:
        """Advance by one."""
        epoch = f"{min(self._epoch, self._epochs)}/{self._epochs}"
        self._bar.update(self._task, advance=1, epoch=epoch, loss=f"{loss:.5f}", validation=self._validation)

    def epoch(self, number: int, loss: float, validation_loss: float) -> None:
        """Show the epoch's validation loss until the next one is known."""
        self._epoch = number + 1
        self._validation = f"{validation_loss:.5f}"
        self._bar.update(self._task, loss=f"{loss:.5f}", validation=self._validation)


@contextmanager
def show_progress(console: Console, *, epochs: int, steps: int, quiet: bool, done: int = 0) -> Iterator[Progress]:
    """The progress that suits the console, for `epochs` of `steps` each, some of which may be done."""
    if quiet:
        yield Silence()
    elif not console.is_terminal:
        yield _Lines(console, epochs)
    else:
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[validation]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=console) as bar:
            yield _LiveBar(bar, epochs, steps, done)
