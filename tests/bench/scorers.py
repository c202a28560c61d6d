"""What an image costs by scorer: backends, precisions, compilers, thread settings. No Kafka.

    python -m tests.bench.scorers [--only tensorflow openvino_float32] [--rounds 7] [--batch 256]

Each scorer is a process of its own, so that its CPU time, threads and environment are its own; they take turns, a few
batches of the tutorial's autoencoder each, in an order that is turned round every other time. Read the ratios first:
float32 on TensorFlow, the default, over the scorer, of the same round. Writes build/scorers.json. What this machine
cannot run is listed with the reason. bfloat16 without instructions for it is measured where it can be emulated: it
shows what it would cost to serve it there, which the worker refuses to do.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tests.bench.task import cpu_s
from worker.core.bundle import Serving

OUTPUT = Path("build/scorers.json")
SHAPE = (28, 28, 1)
BASELINE = "tensorflow"
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
# Long enough that the clock's resolution and a wake-up of threads do not matter.
BATCHES = 6


@dataclass(frozen=True)
class Variant:
    """A way to score: what the manifest would name, and what else is set."""

    serving: Serving
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    xla: bool = False


FLOAT32, BFLOAT16 = (Serving(precision, "tensorflow") for precision in ("float32", "bfloat16"))
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        BASELINE: Variant(FLOAT32),
        "tensorflow_bfloat16": Variant(BFLOAT16),
        "tensorflow_xla": Variant(FLOAT32, xla=True),
        "tensorflow_1_thread": Variant(FLOAT32, {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}),
        "tensorflow_1_interop": Variant(FLOAT32, {"TF_NUM_INTEROP_THREADS": "1"}),
        "tensorflow_no_onednn": Variant(FLOAT32, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
        "openvino": Variant(Serving("float32", "openvino")),
        "openvino_bfloat16": Variant(Serving("bfloat16", "openvino")),
        "jax": Variant(Serving("float32", "jax")),
        "jax_bfloat16": Variant(Serving("bfloat16", "jax")),
    }
)


class Spread(msgspec.Struct, frozen=True):
    """Of one figure over all rounds."""

    min: float
    median: float
    max: float


class Measured(msgspec.Struct, frozen=True):
    """One scorer.

    Attributes:
        ratio_cpu, ratio_wall: the default's cost over this one's, in the same round: above 1 is cheaper.
        cpu_us, wall_us: an image.
        difference: the largest relative one of a score from the default's.
        native: whether the machine has instructions for its precision.
    """

    name: str
    ratio_cpu: Spread
    ratio_wall: Spread
    cpu_us: Spread
    wall_us: Spread
    difference: float
    native: bool


class Result(msgspec.Struct, frozen=True):
    """build/scorers.json."""

    machine: dict[str, Any]
    versions: dict[str, str]
    batch: int
    rounds: int
    measured: list[Measured]
    left_out: dict[str, str]


class Ready(msgspec.Struct, frozen=True):
    """A child's first line: its scores of the batch, or why there are none."""

    scores: list[float] = []
    native: bool = True
    refusal: str | None = None


class Turn(msgspec.Struct, frozen=True):
    """A child's answer to each line: what an image cost."""

    cpu_us: float
    wall_us: float


class Child:
    """A scorer in a process of its own."""

    def __init__(self, name: str, batch: int) -> None:
        self.name = name
        variant = VARIANTS[name]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variant.environment}
        environment.pop("KERAS_BACKEND", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.scorers", "--child", name, "--batch", str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.ready = msgspec.json.decode(self._line(), type=Ready)

    def turn(self) -> Turn:
        """Let it score for a while."""
        stdin = cast("IO[bytes]", self._process.stdin)
        stdin.write(b"\n")
        stdin.flush()
        return msgspec.json.decode(self._line(), type=Turn)

    def close(self) -> None:
        """End it."""
        cast("IO[bytes]", self._process.stdin).close()
        self._process.wait(60)
        cast("IO[bytes]", self._process.stdout).close()

    def _line(self) -> bytes:
        line = cast("IO[bytes]", self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"the process of '{self.name}' ended with status {self._process.wait(60)}")
        return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write build/scorers.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scorers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="scorers (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="of all scorers (default 7)")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch (default 256)")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        _child(VARIANTS[given.child], given.batch)
        return 0
    left_out: dict[str, str] = {}
    children: list[Child] = []
    with ExitStack() as stack:
        for name in dict.fromkeys([BASELINE, *given.only]):
            child = Child(name, given.batch)
            stack.callback(child.close)
            if child.ready.refusal is None:
                children.append(child)
            else:
                left_out[name] = child.ready.refusal
        rounds: list[dict[str, Turn]] = []
        for number in range(given.rounds):
            order = children if number % 2 == 0 else children[::-1]
            rounds.append({child.name: child.turn() for child in order})
    baseline = np.asarray(children[0].ready.scores)
    result = Result(
        machine=machine(),
        versions=_versions("tensorflow-cpu", "tensorflow", "keras", "jax", "openvino", "numpy"),
        batch=given.batch,
        rounds=given.rounds,
        measured=[
            Measured(
                name=child.name,
                ratio_cpu=_spread([turns[BASELINE].cpu_us / turns[child.name].cpu_us for turns in rounds]),
                ratio_wall=_spread([turns[BASELINE].wall_us / turns[child.name].wall_us for turns in rounds]),
                cpu_us=_spread([turns[child.name].cpu_us for turns in rounds]),
                wall_us=_spread([turns[child.name].wall_us for turns in rounds]),
                difference=float(np.max(np.abs(np.asarray(child.ready.scores) / baseline - 1))),
                native=child.ready.native,
            )
            for child in children
        ],
        left_out=left_out,
    )
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(msgspec.to_builtins(result), indent=2) + "\n", encoding="utf-8")
    _show(result)
    return 0


def machine() -> dict[str, Any]:
    """The processor: its name, number of cores, and those of its features that decide."""
    from worker.adapters.engines import cpu_flags

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "name": name or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "features": [feature for feature in FEATURES if feature in cpu_flags()],
    }


def images(count: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """Random images, uint8 (count, H, W, C); the same in every process."""
    return np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8)


def untrained(shape: tuple[int, int, int] = SHAPE) -> Any:
    """The tutorial's scorer with untrained weights, which cost what trained ones cost. After select_backend()."""
    import keras

    from training.model import build_autoencoder, build_scorer

    keras.utils.set_random_seed(0)
    model = build_scorer(build_autoencoder(shape))
    # Seeds give other weights on other backends.
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.05, weights.shape).astype(np.float32) for weights in model.get_weights()])
    return model


def _child(variant: Variant, batch: int) -> None:
    try:
        score, native = _scorer(variant, batch)
    except Exception as error:  # noqa: BLE001 - whatever a backend raises is its reason
        _say(Ready(refusal=f"{type(error).__name__}: {error}"))
        return
    values = images(batch)
    _say(Ready(score(values).tolist(), native))
    for _ in sys.stdin:
        before, began = cpu_s(), time.perf_counter()
        for _ in range(BATCHES):
            score(values)
        count = BATCHES * batch
        _say(Turn((cpu_s() - before) / count * 1e6, (time.perf_counter() - began) / count * 1e6))


def _scorer(variant: Variant, batch: int) -> tuple[Any, bool]:
    """A function from a full batch to its scores, warmed up; and whether its precision is native."""
    from worker.adapters.engines import native_bfloat16, prepare_device
    from worker.adapters.keras_scorer import KerasScorer, select_backend

    select_backend(variant.serving.backend)
    prepare_device()
    model = untrained()
    native = variant.serving.precision == "float32" or native_bfloat16(variant.serving.backend)
    if variant.xla:
        score = _xla(model, batch)
    else:
        scorer = KerasScorer(model, batch, variant.serving)
        score = lambda values: scorer.score(values, batch)[0]  # noqa: E731
    for _ in range(3):
        score(images(batch))
    return score, native


def _xla(model: Any, batch: int) -> Any:
    """What serves, but for the compiler."""
    import tensorflow as tf

    function = tf.function(
        lambda image: model(image, training=False)["score"], autograph=False, jit_compile=True
    ).get_concrete_function(tf.TensorSpec((batch, *SHAPE), tf.uint8))
    return lambda values: function(tf.constant(values)).numpy()


def _say(message: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), statistics.median(values), max(values))


def _versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _show(result: Result) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    about = result.machine
    console.print(
        f"{about['name']}, {about['cores']} cores, {' '.join(about['features'])}; batches of {result.batch}"
    )
    table = Table("scorer", caption="median (min to max) over the rounds; ratios: the default's cost over this one's")
    for heading in ("CPU ratio", "wall ratio", "CPU us an image", "wall us an image", "difference"):
        table.add_column(heading, justify="right")
    for item in result.measured:
        table.add_row(
            item.name + ("" if item.native else " (emulated)"),
            *(f"{s.median:.2f} ({s.min:.2f} to {s.max:.2f})" for s in (item.ratio_cpu, item.ratio_wall)),
            *(f"{s.median:.0f} ({s.min:.0f} to {s.max:.0f})" for s in (item.cpu_us, item.wall_us)),
            f"{item.difference:.1e}",
        )
    console.print(table)
    for name, reason in result.left_out.items():
        console.print(f"left out: {name}: {reason}", markup=False)
    console.print(f"written: {OUTPUT}")


if __name__ == "__main__":
    sys.exit(main())
