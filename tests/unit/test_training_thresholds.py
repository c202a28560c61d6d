import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from training.calibrate import (
    check_percentile,
    false_positive_interval,
    fit_mean_plus_k_std,
    fit_percentile,
    fit_threshold,
    image_quantiles,
    quantiles,
)
from training.evaluate import evaluate, judge_thresholds
from worker.core.bundle import Calibration
from worker.core.errors import ConfigurationError
from worker.core.image_statistics import brightness_and_sharpness

SCORES = hnp.arrays(np.float32, st.integers(2, 200), elements=st.floats(0, 1e4, width=32))


def test_the_percentile_of_known_scores() -> None:
    fit = fit_percentile(np.arange(101, dtype=np.float32), 90.0)
    assert (fit.value, fit.method, fit.parameters, fit.n) == (90.0, "percentile", {"percentile": 90.0}, 101)


def test_a_threshold_between_two_scores_is_rounded_to_float32() -> None:
    scores = np.array([0.1, 0.2, 0.4], np.float32)
    for fit in (fit_percentile(scores, 60.0), fit_mean_plus_k_std(scores, 0.7)):
        assert fit.value == float(np.float32(fit.value))
        assert 0.1 < fit.value < 0.4


def test_mean_plus_k_std_of_known_scores() -> None:
    fit = fit_mean_plus_k_std(np.array([1, 3], np.float32), 2.0)
    assert (fit.value, fit.method, fit.parameters, fit.n) == (4.0, "mean_plus_k_std", {"k": 2.0}, 2)
    assert fit.interval is None


@given(SCORES, st.floats(50, 99.9))
def test_a_percentile_leaves_its_share_above_and_is_a_float32(scores: NDArray[np.float32], percentile: float) -> None:
    try:
        fit = fit_percentile(scores, percentile)
    except ConfigurationError:
        assert len(scores) * (100 - percentile) < 100
        return
    assert np.float32(fit.value) == fit.value
    assert np.min(scores) <= fit.value <= np.max(scores)
    # Rounding to float32 may move the threshold across a neighbour, never across more than equal scores.
    assert int((scores > fit.value).sum()) <= len(scores) * (100 - percentile) / 100 + 1
    assert fit.interval is not None
    low, high = fit.interval
    assert 0 <= low < high <= 1


@pytest.mark.parametrize(("n", "percentile"), [(100, 99.0), (1000, 99.9), (2, 50.0), (500, 99.8)])
def test_what_the_number_of_scores_just_supports(n: int, percentile: float) -> None:
    check_percentile(n, percentile)
    with pytest.raises(ConfigurationError, match=f"At least {n} images"):
        check_percentile(n - 1, percentile)


def test_the_interval_holds_for_95_percent_of_calibrations() -> None:
    # Uniform scores: the false-positive rate of a threshold t is 1 - t, and no rule depends on the distribution.
    rng = np.random.default_rng(0)
    rates = np.array([1 - fit_percentile(rng.random(500, np.float32), 99.0).value for _ in range(2000)])
    low, high = false_positive_interval(500, 99.0)
    inside = float(((rates >= low) & (rates <= high)).mean())
    assert 0.945 <= inside <= 0.99
    assert (low, high) == pytest.approx((0.0033, 0.0232), abs=2e-4)


def test_more_scores_narrow_the_interval() -> None:
    widths = [np.diff(false_positive_interval(n, 99.0))[0] for n in (100, 500, 5000)]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("method", ["percentile", "mean_plus_k_std"])
@pytest.mark.parametrize("scores", [[], [1.0], [1.0, np.nan], [np.inf, 1.0]])
def test_scores_that_cannot_calibrate(method: str, scores: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="finite"):
        fit_threshold(method, np.array(scores, np.float32))


def test_quantiles_have_names_and_ascend() -> None:
    named = quantiles(np.arange(101, dtype=np.float32))
    assert named["0.5"] == 50
    assert (named["0"], named["1"]) == (0, 100)
    assert list(named.values()) == sorted(named.values())


def test_quantiles_of_images_are_those_of_what_the_worker_measures() -> None:
    images = np.random.default_rng(3).integers(0, 256, (101, 5, 7, 3), np.uint8)
    named = image_quantiles(images)
    for quantity, values in zip(("brightness", "sharpness"), brightness_and_sharpness(images), strict=True):
        assert named[quantity] == quantiles(values)
        assert 0 < named[quantity]["0"] < named[quantity]["0.5"] < named[quantity]["1"] < 1


def test_an_evaluation_by_hand() -> None:
    scores = np.array([0.1, 0.2, 0.6, 0.5, 0.7, 0.9], np.float32)
    labels = np.array([False, False, False, True, True, True])
    found = evaluate(scores, labels, 0.5)
    assert (found.tp, found.tn, found.fp, found.fn) == (2, 2, 1, 1)
    assert (found.precision, found.recall, found.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert found.auroc == pytest.approx(8 / 9)
    assert found.average_precision == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_a_score_equal_to_the_threshold_is_no_anomaly_in_float32() -> None:
    threshold = 0.1  # float32(0.1) is above it: compared as float64 the image would be an anomaly
    assert evaluate(np.array([0.1], np.float32), np.array([True]), threshold).fn == 1


@given(SCORES, st.data())
def test_an_evaluation_counts_every_image_once(scores: NDArray[np.float32], data: st.DataObject) -> None:
    labels = data.draw(hnp.arrays(np.bool_, len(scores)))
    threshold = data.draw(st.floats(0, 1e4, width=32))
    found = evaluate(scores, labels, threshold)
    assert found.tp + found.fn == labels.sum()
    assert found.tn + found.fp == (~labels).sum()
    assert found.tp + found.fp == (scores > np.float32(threshold)).sum()
    assert (found.auroc is None) == (labels.all() or not labels.any())


def test_no_images_no_evaluation() -> None:
    with pytest.raises(ValueError, match="at least one"):
        evaluate(np.empty(0, np.float32), np.empty(0, np.bool_), 0.5)


@pytest.mark.parametrize("n", [50, 500])
def test_both_thresholds_are_judged_where_both_are_supported(n: int) -> None:
    scores = np.linspace(0, 1, n, dtype=np.float32)
    none = np.empty(0, np.float32)
    calibration = Calibration(scores, scores, none, none, np.empty(0, np.bool_))
    chosen = fit_mean_plus_k_std(scores, 3.0)
    judged = judge_thresholds(calibration, chosen, percentile=99.0, k=3.0)
    methods = ["percentile", "mean_plus_k_std"] if n >= 100 else ["mean_plus_k_std"]
    assert [item.fit.method for item in judged] == methods
    assert [item.fit.method for item in judged if item.chosen] == ["mean_plus_k_std"]
    assert all(item.evaluation is None for item in judged)
