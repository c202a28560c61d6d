"""What tells of drift and of cameras that have failed, as Prometheus sees it."""

import numpy as np
import pytest
from numpy.typing import NDArray

import worker.adapters.prometheus
import worker.core.drift
from tests.support.telemetry import ERRORS, QUANTILES, TRAINED_S, Desk, grey
from worker.core.drift import MIN_WINDOW, WINDOW


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_images_like_the_calibrations_have_no_distance(desk: Desk) -> None:
    levels = np.interp(np.linspace(0, 1, WINDOW), [0, 0.5, 1], [0.1, 0.4, 0.6])
    desk.judged(ERRORS[::3][:WINDOW], images=grey(*np.round(levels * 255).astype(np.uint8)))
    scraped = desk.scrape()
    assert scraped("drift_window_images") == WINDOW
    assert scraped("drift_distance_ratio", quantity="error", version="aaa") == pytest.approx(0, abs=0.005)
    assert scraped("drift_distance_ratio", quantity="brightness", version="aaa") == pytest.approx(0, abs=0.01)
    # One grey level has no neighbours that differ: all at the low end of the calibration's sharpness.
    assert scraped("drift_distance_ratio", quantity="sharpness", version="aaa") == 1


def test_the_window_slides(desk: Desk) -> None:
    desk.judged(np.full(WINDOW, 0.029, np.float32))
    before = desk.scrape()("drift_distance_ratio", quantity="error", version="aaa")
    desk.judged(ERRORS[::3][:WINDOW])
    assert before == pytest.approx(0.029 / 0.03, abs=0.001)
    assert desk.scrape()("drift_distance_ratio", quantity="error", version="aaa") == pytest.approx(0, abs=0.005)


def test_a_few_images_have_no_distance_yet(desk: Desk) -> None:
    desk.judged([0.01] * (MIN_WINDOW - 1))
    assert desk.scrape().by("drift_distance_ratio", "quantity") == {}
    assert desk.scrape()("drift_window_images") == MIN_WINDOW - 1
    desk.judged([0.01])
    assert set(desk.scrape().by("drift_distance_ratio", "quantity")) == {"error", "brightness", "sharpness"}


def test_another_model_starts_the_window_anew(desk: Desk) -> None:
    desk.judged(ERRORS)
    desk.set_model("bbb")
    assert desk.scrape()("drift_window_images") == 0
    assert desk.scrape().by("drift_distance_ratio", "version") == {}
    desk.judged(ERRORS)
    assert set(desk.scrape().by("drift_distance_ratio", "version")) == {"bbb"}


def test_brightness_and_sharpness_are_counted_in_the_calibrations_buckets(desk: Desk) -> None:
    stripes = grey(0, 0).copy()
    stripes[1, :, ::2] = 51
    desk.judged([0.01] * 5, images=np.concatenate([grey(51, 102, 255), stripes]))
    scraped = desk.scrape()
    assert scraped("image_brightness_count", version="aaa") == scraped("image_sharpness_count", version="aaa") == 5
    assert scraped("image_brightness_sum", version="aaa") == pytest.approx(0.2 + 0.4 + 1 + 0.1)
    assert scraped("image_sharpness_sum", version="aaa") == pytest.approx(0.2)
    edges = sorted(map(float, scraped.by("image_brightness_bucket", "le", version="aaa")))
    assert {float(np.float32(level)) for level in QUANTILES["brightness"].values()} <= set(edges)
    assert max(edges[:-1]) <= 1


def test_a_bundle_that_is_older_than_these_quantiles_has_none_of_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {quantity: QUANTILES[quantity] for quantity in ("score", "error")}
    desk.set_model("old", quantiles=old)
    # Nor does it cost anything.
    monkeypatch.setattr(worker.adapters.prometheus, "brightness_and_sharpness", None)
    desk.judged(ERRORS)
    scraped = desk.scrape()
    assert scraped("reconstruction_error_count", version="old") == len(ERRORS)
    assert scraped("image_brightness_count", version="old") is None
    assert scraped("image_sharpness_count", version="old") is None
    assert set(scraped.by("calibration_quantile", "quantity")) == {"score", "error"}
    assert set(scraped.by("drift_distance_ratio", "quantity")) == {"error"}
    assert scraped("drift_window_images") == WINDOW


def test_the_distributions_of_the_bundle_before_stay_when_one_without_quantiles_of_images_follows(desk: Desk) -> None:
    desk.judged([0.01])
    desk.set_model("old", quantiles={quantity: QUANTILES[quantity] for quantity in ("score", "error")})
    assert desk.scrape().by("image_brightness_count", "version") == {"aaa": 1}
    desk.set_model("ccc")
    assert desk.scrape().by("image_brightness_count", "version") == {"ccc": 0}


def test_errors_below_the_calibrations_1_percent_quantile_are_counted_by_stream(desk: Desk) -> None:
    limit = float(np.float32(QUANTILES["error"]["0.01"]))
    below = float(np.nextafter(np.float32(limit), np.float32(0)))
    desk.judged([below, 0.01, below, 0.005, 0.0], streams=["a", "a", "b", "b", "b"])
    desk.judged([limit, 0.01], streams=["c", "c"])
    assert desk.scrape().by("small_errors_total", "stream") == {"a": 1, "b": 2, "c": 0}


def test_an_error_equal_to_the_streams_last_is_counted(desk: Desk) -> None:
    other = float(np.nextafter(np.float32(0.01), np.float32(1)))
    desk.judged([0.01, 0.01, 0.01, other, 0.01], streams=["a", "b", "a", "a", "b"])
    assert desk.scrape().by("repeated_errors_total", "stream") == {"a": 1, "b": 1}
    # Across batches as well: few images a second make batches of one.
    desk.judged([other], streams=["a"])
    desk.judged([0.5], streams=["b"])
    assert desk.scrape().by("repeated_errors_total", "stream") == {"a": 2, "b": 1}


def test_the_expected_ratio_has_the_limits_that_the_method_gives(desk: Desk) -> None:
    ratios = desk.scrape().by("expected_anomaly_ratio", "bound", version="aaa")
    assert ratios == {"lower": 0.002, "expected": 0.01, "upper": 0.03}
    desk.set_model("bbb", expected={"expected": 0.04})
    assert desk.scrape().by("expected_anomaly_ratio", "bound") == {"expected": 0.04}
    assert desk.scrape().by("model_trained_timestamp_seconds", "version") == {"bbb": TRAINED_S}


def test_durations_of_publishing_are_counted(desk: Desk) -> None:
    assert desk.scrape()("publish_duration_seconds_count") == 0
    desk.telemetry.published([0.25, 0.5])
    desk.telemetry.published([])
    assert desk.scrape()("publish_duration_seconds_count") == 2
    assert desk.scrape()("publish_duration_seconds_sum") == 0.75


def test_kafka_is_connected_when_the_loop_says_so(desk: Desk) -> None:
    assert desk.scrape()("kafka_connected") == 0
    for connected in (True, False):
        desk.telemetry.state(
            in_flight_records=0, in_flight_bytes=0, paused=False, assigned=0, lag={}, connected=connected
        )
        assert desk.scrape()("kafka_connected") == connected


def test_the_memory_limit_is_asked_at_each_scrape_and_absent_without_one(desk: Desk) -> None:
    assert desk.scrape()("memory_limit_bytes") is None
    limits: list[int | None] = [1 << 30]
    desk.telemetry.watch(missing=list, progress_age_s=lambda: 0.0, memory_limit_bytes=lambda: limits[-1])
    assert desk.scrape()("memory_limit_bytes") == 1 << 30
    limits.append(None)
    assert desk.scrape()("memory_limit_bytes") is None


def test_a_batch_is_measured_as_one_however_many_images_it_has(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of the metrics is that of a few calls a batch: nothing is measured image by image."""
    calls = 0

    def counting(images: object) -> tuple[object, object]:
        nonlocal calls
        calls += 1
        return np.zeros(300, np.float32), np.zeros(300, np.float32)

    monkeypatch.setattr(worker.adapters.prometheus, "brightness_and_sharpness", counting)
    desk.judged([0.01] * 300)
    assert calls == 1
    assert desk.scrape()("image_brightness_count", version="aaa") == 300


def test_distances_are_computed_when_scraped_not_when_images_come(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counting(places: NDArray[np.float64]) -> float:
        asked.append(len(places))
        return 0.5

    monkeypatch.setattr(worker.core.drift, "distance_from_uniform", counting)
    for _ in range(10):
        desk.judged(ERRORS[:200])
    assert asked == []
    assert desk.scrape()("drift_distance_ratio", quantity="error", version="aaa") == 0.5
    assert asked == [WINDOW] * 3
