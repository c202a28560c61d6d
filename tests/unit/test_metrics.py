import math
import re
import time

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from worker.adapters.metrics import METRICS
from worker.adapters.prometheus import Histogram, bucket_edges
from worker.adapters.system_clock import SystemClock
from worker.ports import Clock

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_names_and_units_follow_the_naming_rules() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.endswith(metric.unit)
        assert metric.help.endswith(".")
        assert not {"le", "quantile"} & set(metric.labels)


@given(
    edges=st.lists(float32s, max_size=20, unique=True).map(sorted), batches=st.lists(st.lists(float32s, max_size=20))
)
def test_a_histogram_counts_as_its_definition_says(edges: list[float], batches: list[list[float]]) -> None:
    histogram = Histogram(edges)
    for batch in batches:
        histogram.observe(np.array(batch, np.float32))
    values = [value for batch in batches for value in batch]
    buckets, total = histogram.samples()
    assert buckets == [(name, sum(value <= float(name) for value in values)) for name in [*map(str, edges), "+Inf"]]
    assert math.isclose(total, math.fsum(values), rel_tol=1e-9, abs_tol=1e-9 * math.fsum(map(abs, values)))


@given(st.lists(float32s, max_size=20), st.none() | float32s)
@example([-(2.0**127), 2.0**127], None)
def test_edges_are_ascending_float32_and_hold_every_mark(quantiles: list[float], threshold: float | None) -> None:
    edges = bucket_edges(quantiles, threshold).tolist()
    marks = {*quantiles} | ({threshold} if threshold is not None else set())
    assert edges == sorted(set(edges))
    assert set(edges) >= marks
    assert all(float(np.float32(edge)) == edge and math.isfinite(edge) for edge in edges)


def test_edges_reach_beyond_the_calibration() -> None:
    edges = bucket_edges([0.001, 0.004, 0.009])
    assert edges[0] <= 0.001 / 5  # a blur of sigma 2 cut errors to a fifth
    assert edges[-1] >= 0.1


def test_the_system_clock_tells_the_time() -> None:
    clock: Clock = SystemClock()
    before, start = time.time(), clock.monotonic()
    assert before - 1 <= clock.now_ms() / 1000 <= time.time() + 1
    assert clock.monotonic() >= start
