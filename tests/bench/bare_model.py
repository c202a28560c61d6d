"""The bare model: the bundle's scorer on batches from memory, nothing else. Prints one Run as JSON."""

import resource
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from tests.bench.contenders import Run
from worker.adapters.keras_scorer import KerasScorer, select_backend
from worker.core.bundle import read_bundle


def main() -> None:
    """Arguments: the bundle, the batch size, the number of images."""
    bundle = read_bundle(Path(sys.argv[1]))
    size, count = int(sys.argv[2]), int(sys.argv[3])
    select_backend(bundle.manifest.serving.backend)
    scorer = KerasScorer.load(bundle, size)
    scorer.warm_up()
    rng = np.random.default_rng(1)
    batch = rng.integers(0, 256, (size, *bundle.manifest.input_shape), dtype=np.uint8)
    before, began = _cpu_s(), time.perf_counter()
    rounds = count // size
    for _ in range(rounds):
        scorer.score(batch, size)
    seconds, cpu = time.perf_counter() - began, _cpu_s() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        msgspec.json.encode(Run(rounds * size / seconds, cpu / (rounds * size) * 1e6, peak)).decode() + "\n"
    )


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
