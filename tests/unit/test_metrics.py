import math
import re
import time
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.telemetry import Desk, fill
from worker.adapters.histograms import Histogram, bucket_edges
from worker.adapters.metrics import METRICS, PREFIX, table
from worker.adapters.system_clock import SystemClock
from worker.ports import Clock

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


# The contract with dashboards and alerts: name, type, labels, unit. A change here breaks them.
CONTRACT = """
messages_total                        counter    status,stream
anomalies_total                       counter    stream
small_errors_total                    counter    stream
repeated_errors_total                 counter    stream
stream_last_message_timestamp_seconds gauge      stream                          seconds
dead_letters_total                    counter    reason
error_maps_total                      counter    outcome
score                                 histogram  version
reconstruction_error                  histogram  version
score_threshold_ratio                 histogram  -                               ratio
image_brightness                      histogram  version
image_sharpness                       histogram  version
drift_distance_ratio                  gauge      quantity,version                ratio
drift_window_images                   gauge      -                               images
score_threshold                       gauge      version
expected_anomaly_ratio                gauge      bound,version                   ratio
calibration_quantile                  gauge      quantity,level,version
model_info                            gauge      name,version,backend,precision
model_trained_timestamp_seconds       gauge      version                         seconds
device_info                           gauge      kind,name
batch_records                         histogram  -                               records
wait_duration_seconds                 histogram  -                               seconds
decode_duration_seconds               histogram  -                               seconds
inference_duration_seconds            histogram  -                               seconds
publish_duration_seconds              histogram  -                               seconds
commit_duration_seconds               histogram  -                               seconds
committed_records_total               counter    -
latency_seconds                       histogram  -                               seconds
clock_skew_total                      counter    -
lag_records                           gauge      topic,partition                 records
assigned_partitions                   gauge      -
paused_partitions                     gauge      -
in_flight_records                     gauge      -                               records
in_flight_bytes                       gauge      -                               bytes
rebalances_total                      counter    -
revoked_partitions_total              counter    -
rebuilds_total                        counter    cause
reloads_total                         counter    outcome
kafka_connected                       gauge      -
ready                                 gauge      -
last_progress_timestamp_seconds       gauge      -                               seconds
memory_limit_bytes                    gauge      -                               bytes
"""
README = Path(__file__).parents[2] / "worker" / "README.md"


def test_names_types_labels_and_units_are_those_that_dashboards_know() -> None:
    ours = [(metric.name, metric.kind, ",".join(metric.labels) or "-", metric.unit) for metric in METRICS]
    assert ours == [_fields(line) for line in CONTRACT.strip().splitlines()]


def _fields(line: str) -> tuple[str, str, str, str]:
    name, kind, labels, *unit = line.split()
    return name, kind, labels, unit[0] if unit else ""


def test_names_and_units_follow_the_naming_rules() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.endswith(metric.unit)
        assert metric.help.endswith(".")
        assert not {"le", "quantile"} & set(metric.labels)


def test_every_help_says_what_to_do() -> None:
    """At least what it is, and then what follows from it."""
    for metric in METRICS:
        assert len(re.findall(r"[.:;](?: |$)", metric.help)) >= 2, metric.name
        assert len(metric.help) < 320, metric.name
        assert "|" not in metric.help, "it would end a cell of the table"


def test_the_table_in_the_readme_is_that_of_the_code() -> None:
    begin, end = "<!-- metrics: worker.adapters.metrics.table() -->\n", "\n<!-- end -->"
    text = README.read_text("utf-8")
    assert text.count(begin) == text.count(end) == 1
    assert text.split(begin)[1].split(end)[0] == table(), (
        "put this between the two comments: "
        ".venv/bin/python -c 'from worker.adapters.metrics import table; print(table())'"
    )


def test_the_table_has_every_metric_that_is_exposed() -> None:
    desk = Desk()
    fill(desk)
    listed = re.findall(r"^\| `(\w+)` \|", table(), re.MULTILINE)
    exposed = [re.sub("_total$", "", name) for name in listed]
    assert sorted(exposed) == sorted(family.name for family in desk.scrape().families)
    assert all(name.startswith(PREFIX) for name in listed)


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
