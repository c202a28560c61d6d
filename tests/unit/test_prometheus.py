import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.registry import DuplicateTimeseries

from tests.support.telemetry import QUANTILES, THRESHOLD, Desk, FixedClock, Scraped, fill, grey
from worker.adapters.metrics import METRICS, PREFIX
from worker.adapters.prometheus import MAX_STEPS, MAX_STREAMS, PrometheusTelemetry
from worker.core.errors import Reason
from worker.core.records import TopicPartition
from worker.ports import Telemetry


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_it_is_a_telemetry(desk: Desk) -> None:
    telemetry: Telemetry = desk.telemetry
    assert telemetry is desk.telemetry


def test_every_metric_is_exposed_as_described(desk: Desk) -> None:
    fill(desk)
    families = {family.name: family for family in desk.scrape().families}
    for metric in METRICS:
        family = families.pop(PREFIX + metric.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert family.samples, f"{metric.name} has no value"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)
    assert not families


def test_openmetrics_is_valid_and_no_created_series_exist(desk: Desk) -> None:
    fill(desk)
    text: str = generate_openmetrics(desk.registry).decode()  # type: ignore[no-untyped-call]
    families = parse_openmetrics(text)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} >= {"reconstream_messages", "reconstream_score"}
    assert "_created" not in text
    assert "_created" not in desk.scrape().text


def test_a_second_one_in_the_same_registry_is_refused(desk: Desk) -> None:
    with pytest.raises(DuplicateTimeseries):
        PrometheusTelemetry(desk.registry, FixedClock())


def test_judged_messages_and_anomalies_are_counted_by_stream(desk: Desk) -> None:
    scores = np.array([0.001, 0.5, 0.5, 0.002, 0.9], np.float32)
    flags = [False, True, True, False, True]
    desk.telemetry.scored(["a", "a", "b", "b", "a"], scores, scores, flags, grey(1, 2, 3, 4, 5))
    desk.telemetry.unreadable("c", Reason.EMPTY_VALUE)
    scraped = desk.scrape()
    assert scraped.by("messages_total", "stream", status="judged") == {"a": 3, "b": 2, "c": 0}
    assert scraped.by("messages_total", "stream", status="unreadable") == {"a": 0, "b": 0, "c": 1}
    assert scraped.by("anomalies_total", "stream") == {"a": 2, "b": 1, "c": 0}
    assert scraped("stream_last_message_timestamp_seconds", stream="c") == 1_700_000_000.5


def test_expired_messages_are_counted_and_no_dead_letters(desk: Desk) -> None:
    desk.telemetry.expired("left")
    desk.telemetry.expired("left")
    scraped = desk.scrape()
    assert scraped("messages_total", status="expired", stream="left") == 2
    assert scraped("stream_last_message_timestamp_seconds", stream="left") == 1_700_000_000.5
    assert sum(scraped.by("dead_letters_total", "reason").values()) == 0


def test_reloads_start_at_zero_for_every_outcome(desk: Desk) -> None:
    assert desk.scrape().by("reloads_total", "outcome") == {"swapped": 0, "refused": 0}
    desk.telemetry.reloaded("refused")
    assert desk.scrape().by("reloads_total", "outcome") == {"swapped": 0, "refused": 1}


def test_streams_beyond_the_limit_become_other(desk: Desk) -> None:
    for index in range(MAX_STREAMS + 36):
        desk.score(0.001, stream=f"camera-{index}")
    desk.score(0.001, stream="camera-0")
    desk.telemetry.unreadable("camera-99", Reason.NULL_VALUE)
    judged = desk.scrape().by("messages_total", "stream", status="judged")
    assert len(judged) == MAX_STREAMS + 1
    assert (judged["camera-0"], judged["camera-63"], judged["other"]) == (2, 1, 36)
    assert desk.scrape()("messages_total", status="unreadable", stream="other") == 1


@given(st.lists(st.text() | st.just("\ud800"), max_size=20))
def test_any_stream_name_can_be_scraped(streams: list[str]) -> None:
    desk = Desk()
    values = np.full(len(streams), 0.5, np.float32)
    desk.telemetry.scored(streams, values, values, [True] * len(streams), grey(*[0] * len(streams)))
    judged = desk.scrape().by("messages_total", "stream", status="judged")
    assert sum(judged.values()) == len(streams)


def test_a_very_long_stream_name_is_cut(desk: Desk) -> None:
    desk.score(0.001, stream="x" * 1_000_000)
    assert len(desk.scrape().text) < 100_000


def test_dead_letters_start_at_zero_for_every_reason(desk: Desk) -> None:
    assert desk.scrape().by("dead_letters_total", "reason") == {reason.value: 0 for reason in Reason}
    desk.telemetry.unreadable("left", Reason.WRONG_SIZE)
    assert desk.scrape()("dead_letters_total", reason="wrong_size") == 1


def test_causes_of_rebuilds_are_bounded(desk: Desk) -> None:
    for index in range(MAX_STEPS + 5):
        desk.telemetry.rebuilt(f"step {index}")
    rebuilds = desk.scrape().by("rebuilds_total", "cause")
    assert (len(rebuilds), rebuilds["other"]) == (MAX_STEPS + 1, 5)


def test_the_bucket_up_to_the_threshold_holds_exactly_what_is_no_anomaly(desk: Desk) -> None:
    above = np.nextafter(THRESHOLD, np.float32(1))
    below = np.nextafter(THRESHOLD, np.float32(0))
    assert desk.score(below, THRESHOLD, above) == [False, False, True]
    scraped = desk.scrape()
    threshold = scraped("score_threshold", version="aaa")
    assert threshold == float(THRESHOLD)
    assert scraped("score_bucket", version="aaa", le=str(threshold)) == 2
    assert scraped("score_threshold_ratio_bucket", le="1.0") == 2


@given(
    threshold=st.floats(min_value=2**-100, max_value=2**100, width=32),
    scores=st.lists(st.floats(min_value=0, width=32, allow_infinity=False), max_size=50),
)
def test_buckets_agree_with_verdicts_for_any_scores(threshold: float, scores: list[float]) -> None:
    desk = Desk()
    desk.set_model("bbb", threshold)
    anomalies = desk.score(*scores, np.float32(threshold), threshold=np.float32(threshold))
    scraped = desk.scrape()
    total = scraped("score_count", version="bbb")
    assert total == len(anomalies) == scraped("score_threshold_ratio_count")
    assert scraped("anomalies_total", stream="left") == sum(anomalies)
    assert scraped("score_bucket", version="bbb", le=str(threshold)) == total - sum(anomalies)
    assert scraped("score_threshold_ratio_bucket", le="1.0") == total - sum(anomalies)


def test_every_histogram_is_cumulative_and_its_count_is_its_last_bucket(desk: Desk) -> None:
    fill(desk)
    histograms = [family for family in desk.scrape().families if family.type == "histogram"]
    assert len(histograms) == 12
    for family in histograms:
        buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
        counts = [sample.value for sample in buckets]
        (count,) = (sample.value for sample in family.samples if sample.name.endswith("_count"))
        edges = [float(sample.labels["le"]) for sample in buckets]
        assert edges == sorted(set(edges))
        assert edges[-1] == math.inf
        assert counts == sorted(counts)
        assert counts[-1] == count > 0


def test_only_the_newest_two_model_versions_keep_their_distributions(desk: Desk) -> None:
    desk.score(0.001)
    desk.set_model("bbb", 0.05)
    desk.score(0.001, 0.002)
    assert desk.scrape().by("score_count", "version") == {"aaa": 1, "bbb": 2}
    desk.set_model("ccc")
    scraped = desk.scrape()
    assert scraped.by("score_count", "version") == {"bbb": 2, "ccc": 0}
    assert scraped.by("reconstruction_error_count", "version") == {"bbb": 2, "ccc": 0}
    assert scraped.by("score_threshold", "version") == {"ccc": float(THRESHOLD)}
    assert scraped.by("model_info", "version", backend="tensorflow", precision="float32", name="mnist") == {"ccc": 1}
    desk.set_model("bbb", 0.05)
    desk.score(0.001)
    assert desk.scrape().by("score_count", "version") == {"ccc": 0, "bbb": 3}


def test_calibration_quantiles_are_those_of_the_bundle(desk: Desk) -> None:
    scraped = desk.scrape()
    for quantity, levels in QUANTILES.items():
        assert scraped.by("calibration_quantile", "level", quantity=quantity, version="aaa") == levels


def test_a_threshold_of_zero_has_no_ratio(desk: Desk) -> None:
    desk.set_model("zero", 0.0)
    desk.score(0.5, threshold=np.float32(0))
    assert desk.scrape()("score_threshold_ratio_count") == 0
    assert desk.scrape()("score_count", version="zero") == 1


def test_scores_before_a_model_is_set_are_counted() -> None:
    registry = CollectorRegistry()
    telemetry = PrometheusTelemetry(registry, FixedClock())
    telemetry.scored(["a"], np.ones(1, np.float32), np.ones(1, np.float32), [True], grey(9))
    assert Scraped(registry)("messages_total", status="judged", stream="a") == 1


def test_negative_latencies_count_as_zero_and_as_skew(desk: Desk) -> None:
    latencies = np.array([-5.0, 0.0, 0.2, -0.1, 7200.0])
    desk.telemetry.acknowledged(latencies)
    desk.telemetry.acknowledged(np.array([]))
    scraped = desk.scrape()
    assert scraped("clock_skew_total") == 2
    assert scraped("latency_seconds_count") == 5
    assert scraped("latency_seconds_sum") == 7200.2
    assert scraped("latency_seconds_bucket", le="0.005") == 3
    assert scraped("latency_seconds_bucket", le="3600.0") == 4
    assert latencies[0] == -5.0  # the caller's array is left alone


def report(desk: Desk, **changes: Any) -> None:
    state: dict[str, Any] = {"in_flight_records": 0, "in_flight_bytes": 0, "paused": False, "assigned": 0, "lag": {}}
    desk.telemetry.state(**{**state, "connected": True, **changes})


def test_lag_of_revoked_partitions_vanishes(desk: Desk) -> None:
    first, second = TopicPartition("images", 0), TopicPartition("images", 1)
    report(desk, in_flight_records=1, in_flight_bytes=2, paused=True, assigned=2, lag={first: 3, second: 4})
    scraped = desk.scrape()
    assert scraped.by("lag_records", "partition", topic="images") == {"0": 3, "1": 4}
    assert (scraped("assigned_partitions"), scraped("paused_partitions")) == (2, 2)
    assert (scraped("in_flight_records"), scraped("in_flight_bytes")) == (1, 2)
    desk.telemetry.rebalanced(1)
    report(desk, assigned=1, lag={second: 4})
    scraped = desk.scrape()
    assert scraped.by("lag_records", "partition", topic="images") == {"1": 4}
    assert (scraped("assigned_partitions"), scraped("paused_partitions")) == (1, 0)
    assert (scraped("rebalances_total"), scraped("revoked_partitions_total")) == (1, 1)


def test_batches_and_commits_are_counted(desk: Desk) -> None:
    desk.telemetry.batch(records=256, wait_s=0.02, decode_s=0.003, inference_s=0.04)
    desk.telemetry.committed(512, 0.006)
    scraped = desk.scrape()
    assert scraped("batch_records_sum") == 256
    assert scraped("batch_records_bucket", le="256.0") == 1
    assert scraped("batch_records_bucket", le="128.0") == 0
    sums = [scraped(f"{step}_duration_seconds_sum") for step in ("wait", "decode", "inference", "commit")]
    assert sums == [0.02, 0.003, 0.04, 0.006]
    assert scraped("committed_records_total") == 512


def test_readiness_and_progress_are_asked_at_each_scrape(desk: Desk) -> None:
    assert desk.scrape()("ready") == 0
    assert desk.scrape()("last_progress_timestamp_seconds") is None
    missing = ["warming up"]
    age = 2.0
    desk.telemetry.watch(missing=lambda: missing, progress_age_s=lambda: age, memory_limit_bytes=lambda: None)
    assert desk.scrape()("ready") == 0
    missing.clear()
    assert desk.scrape()("ready") == 1
    assert desk.scrape()("last_progress_timestamp_seconds") == 1_700_000_000.5 - 2
    age = 0.0
    assert desk.scrape()("last_progress_timestamp_seconds") == 1_700_000_000.5


def test_a_check_may_use_the_telemetry(desk: Desk) -> None:
    def age() -> float:
        desk.telemetry.rebuilt("seen")
        return 0.0

    desk.telemetry.watch(missing=list, progress_age_s=age, memory_limit_bytes=lambda: None)
    assert desk.scrape()("rebuilds_total", cause="seen") == 1


def test_the_newest_device_is_the_one_shown(desk: Desk) -> None:
    desk.telemetry.set_device("GPU", "H100")
    desk.telemetry.set_device("CPU", "x86")
    assert desk.scrape().by("device_info", "kind") == {"CPU": 1}


def test_two_threads_and_a_scraper_lose_nothing(desk: Desk) -> None:
    scores = np.linspace(0, 0.1, 64, dtype=np.float32)
    flags = (scores > THRESHOLD).tolist()
    images = grey(*range(64))
    failures: list[str] = []
    done = threading.Event()

    def scoring() -> None:
        for turn in range(300):
            desk.telemetry.scored([f"s{turn % 80}"] * 64, scores, scores, flags, images)
            desk.telemetry.batch(records=64, wait_s=0.1, decode_s=0.1, inference_s=0.1)
            if turn % 50 == 0:
                desk.set_model(f"v{turn % 100}")

    def in_and_out() -> None:
        for turn in range(300):
            desk.telemetry.acknowledged(scores.astype(np.float64))
            desk.telemetry.unreadable("s0", Reason.NULL_VALUE)
            lag = {TopicPartition("images", partition): turn for partition in range(turn % 5)}
            report(desk, in_flight_records=turn, in_flight_bytes=turn, assigned=len(lag), lag=lag)

    def scraping() -> None:
        while not done.is_set():
            scraped = desk.scrape()
            judged = sum(scraped.by("messages_total", "stream", status="judged").values())
            if judged != scraped("score_threshold_ratio_count"):
                failures.append(f"{judged} judged, {scraped('score_threshold_ratio_count')} in the ratio")

    scraper = threading.Thread(target=scraping)
    writers = [threading.Thread(target=scoring), threading.Thread(target=in_and_out)]
    for thread in (scraper, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    scraper.join()
    scraped = desk.scrape()
    assert not failures
    assert sum(scraped.by("messages_total", "stream", status="judged").values()) == 300 * 64
    assert scraped("latency_seconds_count") == 300 * 64
    assert scraped("dead_letters_total", reason="null_value") == 300


def cost_s(action: Callable[[], None], repeats: int) -> float:
    """The least processor time of this thread that one call took."""
    least = math.inf
    for _ in range(repeats):
        start = time.thread_time()
        action()
        least = min(least, time.thread_time() - start)
    return least


def test_a_batch_costs_less_than_two_microseconds_an_image(desk: Desk) -> None:
    rng = np.random.default_rng(0)
    scores: NDArray[np.float32] = rng.exponential(0.005, 256).astype(np.float32)
    streams = [f"camera-{index % 8}" for index in range(256)]
    anomalies = (scores > THRESHOLD).tolist()
    images = rng.integers(0, 256, (256, 28, 28, 1), dtype=np.uint8)
    tracer = sys.gettrace()
    sys.settrace(None)  # what coverage costs is not the worker's
    try:
        cost = cost_s(lambda: desk.telemetry.scored(streams, scores, scores, anomalies, images), 200)
    finally:
        sys.settrace(tracer)
    assert cost < 256 * 2e-6
