import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import special

from training.evaluate import evaluate, judge_thresholds
from training.quantiles import image_quantiles, quantiles
from training.thresholds import (
    BestF1,
    Conformal,
    CostWeighted,
    Labelled,
    MeanPlusKStd,
    Method,
    PeaksOverThreshold,
    Percentile,
    cross_fitted,
    fit_threshold,
    in_words,
)
from training.thresholds.labelled import candidates
from training.thresholds.peaks_over_threshold import fit_pareto
from worker.core.bundle import Calibration
from worker.core.errors import ConfigurationError
from worker.core.image_statistics import brightness_and_sharpness

SCORES = hnp.arrays(np.float32, st.integers(2, 200), elements=st.floats(0, 1e4, width=32))
# Few distinct values: equal scores are where counts go wrong.
EQUAL_SCORES = hnp.arrays(np.float32, st.integers(2, 60), elements=st.integers(0, 9).map(float))


def labelled(count: int = 200, apart: float = 3.0, seed: int = 0) -> Labelled:
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.standard_normal(count), rng.standard_normal(count) + apart]).astype(np.float32)
    return Labelled(scores, np.arange(2 * count) >= count)


def test_the_percentile_of_known_scores() -> None:
    fit = fit_threshold(Percentile(90.0), np.arange(101, dtype=np.float32))
    assert (fit.value, fit.method, fit.parameters, fit.n) == (90.0, "percentile", {"percentile": 90.0}, 101)
    assert (fit.groups, fit.no_interval) == (None, None)


def test_a_threshold_between_two_scores_is_rounded_to_float32() -> None:
    scores = np.array([0.1, 0.2, 0.4], np.float32)
    for method in (Percentile(60.0), MeanPlusKStd(0.7)):
        fit = fit_threshold(method, scores)
        assert fit.value == float(np.float32(fit.value))
        assert 0.1 < fit.value < 0.4


def test_mean_plus_k_std_of_known_scores() -> None:
    fit = fit_threshold(MeanPlusKStd(2.0), np.array([1, 3], np.float32))
    assert (fit.value, fit.method, fit.parameters, fit.n) == (4.0, "mean_plus_k_std", {"k": 2.0}, 2)


@given(SCORES, st.floats(50, 99.9))
def test_a_percentile_leaves_its_share_above_and_is_a_float32(scores: NDArray[np.float32], percentile: float) -> None:
    try:
        fit = fit_threshold(Percentile(percentile), scores)
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


@pytest.mark.parametrize(
    ("method", "n"),
    [
        (Percentile(99.0), 100),
        (Percentile(99.9), 1000),
        (Percentile(50.0), 2),
        (Percentile(99.8), 500),
        (Conformal(0.01), 99),
        (Conformal(0.001), 999),
        (PeaksOverThreshold(0.01), 200),
        (PeaksOverThreshold(0.0001), 1000),
    ],
)
def test_what_the_number_of_scores_just_supports(method: Method, n: int) -> None:
    method.check(n, n)
    with pytest.raises(ConfigurationError, match=f"At least {n} "):
        method.check(n - 1, n - 1)


@given(EQUAL_SCORES, st.floats(0.02, 0.5), st.data())
def test_conformal_is_the_lowest_score_that_keeps_its_guarantee(
    scores: NDArray[np.float32], rate: float, data: st.DataObject
) -> None:
    groups = data.draw(hnp.arrays(np.intp, len(scores), elements=st.integers(0, 30)))
    names, sizes = np.unique(groups, return_counts=True)
    try:
        value = fit_threshold(Conformal(rate), scores, groups).value
    except ConfigurationError:
        assert (len(names) + 1) * rate < 1
        return

    def bound(threshold: float) -> float:
        above = sum(np.mean(scores[groups == name] > threshold) for name in names)
        return float(above + 1) / (len(names) + 1)

    assert bound(value) <= rate + 1e-8
    lower = scores[scores < value]
    assert len(lower) == 0 or bound(float(lower.max())) > rate + 1e-10
    assert sizes.sum() == len(scores)


def test_conformal_of_independent_scores_is_an_order_statistic() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, 200)).astype(np.float32)
    assert fit_threshold(Conformal(0.05), scores).value == np.ceil(0.95 * 200)


def test_conformal_keeps_its_rate_on_average_in_any_group_size() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), rng.integers(1, 12, 60))
    rates = []
    for _ in range(400):
        z = (rng.standard_normal(60)[groups] + rng.standard_normal(len(groups))) / np.sqrt(2)
        rates.append(special.ndtr(-fit_threshold(Conformal(0.05), z.astype(np.float32), groups).value))
    assert np.mean(rates) <= 0.05 + 3 * np.std(rates) / np.sqrt(400)
    assert np.mean(rates) > 0.02


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.3])
def test_the_pareto_of_known_peaks_is_found(shape: float) -> None:
    u = np.random.default_rng(2).random(20_000)
    peaks = 5 * (-np.log(u) if shape == 0 else (u**-shape - 1) / shape)
    found, scale = fit_pareto(peaks)
    assert found == pytest.approx(shape, abs=0.03)
    assert scale == pytest.approx(5, rel=0.03)


@given(st.floats(-0.4, 0.8), st.integers(0, 1000))
def test_no_other_pareto_is_likelier(shape: float, seed: int) -> None:
    u = np.random.default_rng(seed).random(60)
    peaks = (u**-shape - 1) / shape if abs(shape) > 1e-9 else -np.log(u)

    def likelihood(shape: float, scale: float) -> float:
        if abs(shape) < 1e-9:
            return float(-np.log(scale) - np.mean(peaks) / scale)
        inside = 1 + shape * peaks / scale
        return float(-np.log(scale) - (1 + 1 / shape) * np.mean(np.log(inside))) if inside.min() > 0 else -np.inf

    found, scale = fit_pareto(peaks)
    if not -0.45 < found < 0.95:
        return  # at the edge of the shapes that are searched
    best = likelihood(found, scale)
    for step in (-0.05, 0.05):
        assert likelihood(found + step, scale) <= best + 1e-4
        assert likelihood(found, scale * (1 + step)) <= best + 1e-4


def test_peaks_over_threshold_reaches_rates_that_no_score_shows() -> None:
    rng = np.random.default_rng(3)
    rates = [
        np.exp(-fit_threshold(PeaksOverThreshold(0.001), rng.exponential(size=2000).astype(np.float32)).value)
        for _ in range(200)
    ]
    assert np.median(rates) == pytest.approx(0.001, rel=0.2)


def test_equal_scores_have_no_tail_and_a_high_rate_needs_none() -> None:
    with pytest.raises(ConfigurationError, match="too many scores are equal"):
        fit_threshold(PeaksOverThreshold(0.01), np.ones(500, np.float32))
    with pytest.raises(ConfigurationError, match="take the percentile"):
        fit_threshold(PeaksOverThreshold(0.1), np.arange(500, dtype=np.float32))


@given(EQUAL_SCORES, st.data())
def test_every_candidate_counts_what_it_flags(scores: NDArray[np.float32], data: st.DataObject) -> None:
    anomalous = data.draw(hnp.arrays(np.bool_, len(scores)))
    thresholds, found, alarms = candidates(scores, anomalous)
    assert len(thresholds) == len(np.unique(scores)) + 1
    for threshold, tp, fp in zip(thresholds, found, alarms, strict=True):
        called = scores > np.float32(threshold)
        assert (tp, fp) == ((called & anomalous).sum(), (called & ~anomalous).sum())


def test_a_candidate_lies_between_scores_that_are_neighbours_in_float32() -> None:
    scores = np.array([1, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    for threshold in candidates(scores, np.array([False, True]))[0][1:2]:
        assert (scores > np.float32(threshold)).tolist() == [False, True]


@given(EQUAL_SCORES, st.floats(0.1, 50), st.data())
def test_no_threshold_has_a_better_f1_or_a_lower_cost(
    scores: NDArray[np.float32], ratio: float, data: st.DataObject
) -> None:
    anomalous = data.draw(hnp.arrays(np.bool_, len(scores)))
    truth = Labelled(scores, anomalous)

    def mistakes(threshold: float) -> tuple[int, int]:
        called = scores > np.float32(threshold)
        return int((called & ~anomalous).sum()), int((~called & anomalous).sum())

    def f1(threshold: float) -> float:
        alarms, missed = mistakes(threshold)
        found = int(anomalous.sum()) - missed
        return 2 * found / max(2 * found + alarms + missed, 1)

    def cost(threshold: float) -> float:
        alarms, missed = mistakes(threshold)
        return alarms + ratio * missed

    tried = [-1.0, *np.unique(scores).tolist()]
    assert f1(BestF1(truth).choose(scores, anomalous)) == pytest.approx(max(map(f1, tried)))
    assert cost(CostWeighted(truth, ratio).choose(scores, anomalous)) == pytest.approx(min(map(cost, tried)))


def test_what_labels_chose_is_not_judged_on_them() -> None:
    # Scores that tell nothing: chosen and judged on the same labels, the cost looks lower than chance allows.
    kept, same = [], []
    for seed in range(60):
        truth = labelled(40, apart=0.0, seed=seed)
        method = CostWeighted(truth, 1.0)
        called = cross_fitted(truth, method.choose, method.name)
        kept.append(np.mean(called != truth.anomalous))
        chosen = method.choose(truth.scores, truth.anomalous)
        same.append(np.mean((truth.scores > np.float32(chosen)) != truth.anomalous))
    assert np.mean(same) < 0.46
    assert np.mean(kept) > 0.49


def test_a_group_is_never_chosen_on_and_judged() -> None:
    groups = np.arange(400) // 8
    truth = Labelled(labelled().scores, labelled().anomalous, groups)
    folds = truth.folds("best_f1")
    assert set(folds) == {0, 1, 2, 3, 4}
    assert all(len(set(folds[groups == group])) == 1 for group in range(50))


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (Labelled(np.zeros(30, np.float32), np.arange(30) < 9), "9"),
        (Labelled(np.zeros(0, np.float32), np.zeros(0, np.bool_)), "0 and 0"),
        (Labelled(np.zeros(40, np.float32), np.arange(40) < 20, (np.arange(40) < 20).astype(np.intp)), "2 groups"),
    ],
)
def test_too_few_labels_choose_nothing(truth: Labelled, expected: str) -> None:
    for method in (BestF1(truth), CostWeighted(truth)):
        with pytest.raises(ConfigurationError, match=expected):
            fit_threshold(method, np.arange(100, dtype=np.float32))


@pytest.mark.parametrize("method", [Percentile(), MeanPlusKStd(), Conformal(), PeaksOverThreshold()])
@pytest.mark.parametrize("scores", [[], [1.0], [1.0, np.nan], [np.inf, 1.0]])
def test_scores_that_cannot_calibrate(method: Method, scores: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="finite"):
        fit_threshold(method, np.array(scores, np.float32))


def test_every_method_has_words() -> None:
    scores, truth = np.random.default_rng(0).random(500, np.float32), labelled()
    methods = (Percentile(), MeanPlusKStd(), PeaksOverThreshold(), Conformal(), BestF1(truth), CostWeighted(truth))
    fits = [fit_threshold(method, scores) for method in methods]
    words = [in_words(fit.method, fit.parameters) for fit in fits]
    assert words[:4] == ["percentile 99", "mean + 3 std", "peaks over threshold 1 %", "conformal 1 %"]
    assert words[4:] == ["best F1", "a miss costs 10"]


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


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (50, ["mean_plus_k_std"]),
        (100, ["percentile", "mean_plus_k_std", "conformal"]),
        (500, ["percentile", "mean_plus_k_std", "peaks_over_threshold", "conformal"]),
    ],
)
def test_all_thresholds_that_the_data_supports_are_judged(n: int, expected: list[str]) -> None:
    scores = np.linspace(0, 1, n, dtype=np.float32)
    none = np.empty(0, np.float32)
    calibration = Calibration(scores, scores, none, none, np.empty(0, np.bool_))
    judged = judge_thresholds(calibration, fit_threshold(MeanPlusKStd(), scores))
    assert [item.fit.method for item in judged] == expected
    assert [item.fit.method for item in judged if item.chosen] == ["mean_plus_k_std"]
    assert all(item.evaluation is None for item in judged)


def test_with_labels_the_labelled_methods_are_judged_by_folds() -> None:
    truth = labelled(40, apart=0.0)
    scores = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    calibration = Calibration(scores, scores, truth.scores, truth.scores, truth.anomalous)
    chosen = fit_threshold(CostWeighted(truth, 1.0), scores)
    judged = judge_thresholds(calibration, chosen, cost_ratio=1.0)
    assert [item.fit.method for item in judged][4:] == ["best_f1", "cost_weighted"]
    (mine,) = (item for item in judged if item.chosen)
    assert mine.evaluation is not None
    called = cross_fitted(truth, CostWeighted(truth, 1.0).choose, "cost_weighted")
    assert mine.evaluation.tp + mine.evaluation.fp == called.sum() != (truth.scores > np.float32(chosen.value)).sum()
