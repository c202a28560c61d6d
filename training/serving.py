"""What will serve the model, decided when it is fitted: backend and precision, which the manifest then names.

The rule. `--scorer` names the backend. `--precision float32` and `bfloat16` are obeyed. `auto` means bfloat16 where
all three hold, else float32:
1. this machine has instructions for it (AVX512-BF16, AMX-BF16, or a GPU that has it);
2. no calibration score differs from float32's by more than bfloat16's tolerance;
3. it is at least WORTH_IT times as fast as float32 here, measured in turns on full batches.
Otherwise a bundle would be refused on more machines for nothing.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from worker.adapters.engines import check_serving, native_bfloat16
from worker.adapters.keras_scorer import KerasScorer, prepare_device, select_backend
from worker.core.bundle import TOLERANCE, Serving, scores_agree
from worker.core.errors import BundleError, ConfigurationError

Asked = Literal["auto", "float32", "bfloat16"]

WORTH_IT = 1.2
ROUNDS = 7
ROUND_S = 0.1


@dataclass(frozen=True)
class Choice:
    """The scorer that calibrates and will serve, and why it is that one, in a sentence."""

    scorer: KerasScorer
    why: str


def prepare(backend: str, asked: Asked) -> None:
    """Import and set up the backend; find out before the fit that this machine cannot serve what is asked.

    Raises:
        ConfigurationError: the backend is not installed, or bfloat16 was asked for and is not native here.
    """
    try:
        select_backend(backend)
        prepare_device()
        check_serving(Serving("bfloat16" if asked == "bfloat16" else "float32", backend))
    except BundleError as error:
        raise ConfigurationError(
            f"scorer (--scorer), precision (--precision): {asked} on {backend} was given; {error}"
        ) from error


def choose(model: Any, calibration: NDArray[np.uint8], backend: str, asked: Asked) -> Choice:
    """Decide by the rule above. After prepare().

    Args:
        model: the scorer, with its weights.
        calibration: uint8 (n, H, W, C).
        backend: one of engines.BACKENDS.
        asked: `auto`, or a precision.
    """
    if asked == "float32":
        return Choice(KerasScorer(model, serving=Serving("float32", backend)), "asked for")
    if asked == "auto" and not native_bfloat16(backend):
        why = "this machine has no instructions for bfloat16"
        return Choice(KerasScorer(model, serving=Serving("float32", backend)), why)
    exact, low = (KerasScorer(model, serving=Serving(precision, backend)) for precision in ("float32", "bfloat16"))
    expected, found = exact.score_all(calibration)[0], low.score_all(calibration)[0]
    difference = relative_difference(found, expected)
    agree = scores_agree(found, expected, TOLERANCE["bfloat16"])
    if asked == "bfloat16":
        return Choice(low, f"asked for; calibration scores differ from float32's by up to {difference:.1%}")
    if not agree:
        return Choice(exact, f"in bfloat16 calibration scores differ by up to {difference:.1%}")
    ratio = times_as_fast(_scoring(low, calibration), _scoring(exact, calibration))
    why = f"bfloat16 is {ratio:.2f} times as fast here, calibration scores differ by up to {difference:.1%}"
    return Choice(low if ratio >= WORTH_IT else exact, why)


def relative_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest relative difference of two scorings, float32 (n,)."""
    return float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), np.finfo(np.float32).tiny)))


def times_as_fast(first: Callable[[], object], second: Callable[[], object]) -> float:
    """How many times as fast the first is: the median over rounds in which both take turns."""
    for warm_up in (first, second):
        warm_up()
    began = time.perf_counter()
    second()
    repeats = max(1, round(ROUND_S / max(time.perf_counter() - began, 1e-6)))

    def seconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        return time.perf_counter() - began

    return statistics.median(seconds(second) / seconds(first) for _ in range(ROUNDS))


def _scoring(scorer: KerasScorer, images: NDArray[np.uint8]) -> Callable[[], object]:
    batch = np.resize(images, (scorer.batch_capacity, *scorer.input_shape))
    return lambda: scorer.score(batch, len(batch))
