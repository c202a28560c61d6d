"""The bare model: the bundle's scorer on batches from memory, nothing else. Prints one Run as JSON."""

import json
import sys
import time

import numpy as np

from tests.bench.scoring import BatchScorer
from tests.bench.task import asked, cost, cpu_s


def main() -> None:
    """Score as many random images as the task has messages."""
    task = asked()
    scorer = BatchScorer(task.bundle, task.batch, task.encoding).scorer
    batch = np.random.default_rng(1).integers(0, 256, (task.batch, *scorer.input_shape), dtype=np.uint8)
    rounds = max(1, task.count // task.batch)
    before, began = cpu_s(), time.perf_counter()
    for _ in range(rounds):
        scorer.score(batch, task.batch)
    scored = rounds * task.batch
    rate = scored / (time.perf_counter() - began)
    sys.stdout.write(json.dumps({"images_per_second": rate, **cost(before, scored)}) + "\n")


if __name__ == "__main__":
    main()
