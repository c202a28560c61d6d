"""What an accelerator makes of the model, and what two batches in flight would gain. No Kafka.

    python -m tests.gpu.bench [--backend tensorflow|jax] [--rounds 7] [--cpu]

By workload (raw 28 x 28, JPEG 256 x 256) and precision, in turns: `device`, full batches that wait in memory; `one`,
each batch decoded, then scored, as the worker does it; `two`, a batch decoded while the one before is on the device.
Read `two_vs_one`: while it is near 1 the worker has no use for a second batch in flight. Writes build/gpu.json.
Without an accelerator it says so and measures nothing; --cpu measures all the same.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tests.bench.scorers import untrained
from tests.bench.workloads import WORKLOADS, messages
from tests.gpu.accelerator import NONE_HERE, present
from worker.core.bundle import Serving
from worker.core.images import ImageSpec, decode_into

OUTPUT = Path("build/gpu.json")
BATCHES = {"raw": 40, "jpeg": 10}
PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")

Scorer = Any  # KerasScorer, whose import takes seconds


class Spread(msgspec.Struct, frozen=True):
    """Of one figure over all rounds."""

    min: float
    median: float
    max: float


class Figures(msgspec.Struct, frozen=True):
    """Of one workload in one precision. Rates are images a second; `two_vs_one` is of the same round."""

    workload: str
    precision: str
    batch: int
    device: Spread
    one: Spread
    two: Spread
    two_vs_one: Spread


class Result(msgspec.Struct, frozen=True):
    """build/gpu.json."""

    backend: str
    kind: str
    device: str
    rounds: int
    figures: list[Figures]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write build/gpu.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.bench", description=__doc__)
    parser.add_argument("--backend", choices=("tensorflow", "jax"), default="tensorflow")
    parser.add_argument("--rounds", type=int, default=7, help="of each measurement (default 7)")
    parser.add_argument("--batches", type=int, help="in a round (default: 40 raw, 10 JPEG)")
    parser.add_argument("--cpu", action="store_true", help="measure on a CPU where there is nothing else")
    given = parser.parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    if not present() and not given.cpu:
        console.print(f"{NONE_HERE}; nothing was measured")
        return 0
    from worker.adapters.engines import device, native_bfloat16
    from worker.adapters.keras_scorer import KerasScorer, prepare_device, select_backend

    select_backend(given.backend)
    prepare_device()
    kind, name = device(given.backend)
    if kind == "CPU" and not given.cpu:
        console.print(f"{given.backend} as installed here cannot use the accelerator; nothing was measured")
        return 0
    figures = []
    for workload in ("raw", "jpeg"):
        model = untrained(WORKLOADS[workload].shape)
        for precision in PRECISIONS:
            if precision == "bfloat16" and not native_bfloat16(given.backend):
                continue
            batch = WORKLOADS[workload].batch
            scorer = KerasScorer(model, batch, Serving(precision, given.backend))
            scorer.warm_up()
            figures.append(_measure(scorer, workload, precision, given.rounds, given.batches or BATCHES[workload]))
    result = Result(given.backend, kind, name, given.rounds, figures)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(msgspec.to_builtins(result), indent=2) + "\n", encoding="utf-8")
    _show(console, result)
    return 0


def _measure(scorer: Scorer, workload: str, precision: str, rounds: int, batches: int) -> Figures:
    values = messages(workload)[: scorer.batch_capacity]
    content_type = WORKLOADS[workload].content_type
    spec = ImageSpec(*scorer.input_shape)
    count = len(values)
    buffers = [np.zeros((scorer.batch_capacity, *scorer.input_shape), np.uint8) for _ in range(2)]

    def decoded(buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
        for value, slot in zip(values, buffer, strict=False):
            decode_into(value, content_type, spec, slot)
        return buffer

    def on_device() -> None:
        for _ in range(batches):
            scorer.score(buffers[0], count)

    def one() -> None:
        for _ in range(batches):
            scorer.score(decoded(buffers[0]), count)

    def two() -> None:
        before: Callable[[], object] | None = None
        for number in range(batches):
            started = scorer.start(decoded(buffers[number % 2]), count)
            if before is not None:
                before()
            before = started
        if before is not None:
            before()

    ways = {"device": on_device, "one": one, "two": two}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            began = time.perf_counter()
            ways[name]()
            rates[name].append(batches * count / (time.perf_counter() - began))
    return Figures(
        workload=workload,
        precision=precision,
        batch=count,
        device=_spread(rates["device"]),
        one=_spread(rates["one"]),
        two=_spread(rates["two"]),
        two_vs_one=_spread([two / one for one, two in zip(rates["one"], rates["two"], strict=True)]),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), statistics.median(values), max(values))


def _show(console: Console, result: Result) -> None:
    console.print(f"{result.backend} on {result.kind} ({result.device})")
    table = Table("workload", "precision", caption="median (min to max) over the rounds; images a second")
    for heading in ("two vs one", "device", "one", "two"):
        table.add_column(heading, justify="right")
    for item in result.figures:
        table.add_row(
            item.workload,
            item.precision,
            f"{item.two_vs_one.median:.2f} ({item.two_vs_one.min:.2f} to {item.two_vs_one.max:.2f})",
            *(f"{s.median:,.0f} ({s.min:,.0f} to {s.max:,.0f})" for s in (item.device, item.one, item.two)),
        )
    console.print(table)
    console.print(f"written: {OUTPUT}")


if __name__ == "__main__":
    sys.exit(main())
