"""What a count of found anomalies and of false alarms is worth: intervals, kinds, and where anomalies are rare."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.evaluate import at_prevalence, evaluate, judge_thresholds, rare_in, weights
from training.thresholds import BestF1, Percentile, fit_threshold
from training.thresholds.interval import clopper_pearson, rate_interval
from training.thresholds.labelled import Labelled
from worker.core.bundle import Calibration


def images(found: int, missed: int, alarms: int, passed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores and labels of so many images, for a threshold of 0.5."""
    scores = np.repeat(np.array([1, 0, 1, 0], np.float32), [found, missed, alarms, passed])
    labels = np.repeat([True, True, False, False], [found, missed, alarms, passed])
    return scores, labels


def test_40_of_40_found_still_means_at_least_91_percent() -> None:
    found = evaluate(*images(40, 0, 0, 1), 0.5)
    assert found.recall_interval == pytest.approx((0.025 ** (1 / 40), 1))
    assert found.recall_interval == pytest.approx((0.9119, 1), abs=1e-4)


def test_intervals_are_those_of_clopper_and_pearson() -> None:
    found = evaluate(*images(8, 2, 1, 19), 0.5)
    assert found.recall_interval == pytest.approx((0.44390, 0.97479), abs=1e-5)  # their table, 8 of 10
    assert found.false_positive_interval == pytest.approx((0.00127, 0.24873), abs=1e-5)  # 1 of 20


def test_of_no_images_no_interval_is_stated() -> None:
    found = evaluate(*images(0, 0, 1, 5), 0.5)
    assert found.recall_interval is None
    assert found.false_positive_interval is not None
    assert at_prevalence(*images(0, 0, 1, 5), found, 0.01) is None
    assert at_prevalence(*images(1, 5, 0, 0), evaluate(*images(1, 5, 0, 0), 0.5), 0.01) is None


def test_images_of_one_part_are_not_independent() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 10)
    scores = np.repeat(rng.random(60), 10).astype(np.float32)
    labels = groups % 2 == 0
    found, independent = evaluate(scores, labels, 0.5, groups=groups), evaluate(scores, labels, 0.5)
    for name in ("recall_interval", "false_positive_interval"):
        wide, narrow = getattr(found, name), getattr(independent, name)
        assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert found.recall_interval == rate_interval(scores[labels], np.float32(0.5), groups[labels]).limits
    few = evaluate(scores[:100], labels[:100], 0.5, groups=groups[:100])
    assert few.recall_interval is None


def test_kinds_have_intervals_of_their_own_and_the_worst_comes_first() -> None:
    scores, labels = images(9, 3, 0, 5)
    kinds = ["stain"] * 4 + ["scratch"] * 8 + ["good"] * 5
    found = evaluate(scores, labels, 0.5, kinds=kinds)
    assert [(kind.name, kind.found, kind.count) for kind in found.kinds] == [("scratch", 5, 8), ("stain", 4, 4)]
    assert found.kinds[1].interval == pytest.approx((0.025 ** (1 / 4), 1))
    assert evaluate(scores, labels, 0.5).kinds == ()


def test_a_label_that_normal_images_share_counts_its_anomalies_only() -> None:
    scores, labels = images(1, 1, 0, 2)
    (kind,) = evaluate(scores, labels, 0.5, kinds=["part"] * 4).kinds
    assert (kind.found, kind.count) == (1, 2)


def test_a_threshold_that_labels_chose_has_cross_fitted_kinds_and_intervals() -> None:
    labels = np.arange(60) % 2 == 0
    scores = (labels + np.random.default_rng(0).normal(size=60)).astype(np.float32)
    calibration = Calibration(scores, scores, scores, scores, labels)
    fit = fit_threshold(BestF1(Labelled(scores, labels)), scores)
    kinds = [str(index % 4) for index in range(60)]
    (chosen,) = (item for item in judge_thresholds(calibration, fit, kinds=kinds) if item.chosen)
    found = chosen.evaluation
    assert found is not None
    assert sum(kind.found for kind in found.kinds) == found.tp != int((scores[labels] > np.float32(fit.value)).sum())
    assert found.recall_interval == clopper_pearson(found.tp, 30)
    assert found.false_positive_interval == clopper_pearson(found.fp, 30)


def test_where_anomalies_are_rare_an_alarm_is_worth_less() -> None:
    scores, labels = images(90, 10, 2, 98)
    found = evaluate(scores, labels, 0.5)
    rare = at_prevalence(scores, labels, found, 0.01)
    assert rare is not None
    assert rare.precision == pytest.approx(0.01 * 0.9 / (0.01 * 0.9 + 0.99 * 0.02))
    assert found.recall_interval is not None
    assert found.false_positive_interval is not None
    low, high = found.recall_interval[0], found.false_positive_interval[1]
    assert rare.at_least == pytest.approx(0.01 * low / (0.01 * low + 0.99 * high))
    as_evaluated = at_prevalence(scores, labels, found, 0.5)
    assert as_evaluated is not None
    assert as_evaluated.precision == pytest.approx(found.precision)
    assert as_evaluated.average_precision == pytest.approx(found.average_precision)
    assert rare.average_precision < as_evaluated.average_precision


def test_what_precision_is_at_least_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    recall, rate, prevalence = 0.8, 0.02, 0.01
    true = prevalence * recall / (prevalence * recall + (1 - prevalence) * rate)
    held = []
    for found, alarms in zip(rng.binomial(100, recall, 40), rng.binomial(300, rate, 40), strict=True):
        counted = images(found, 100 - found, alarms, 300 - alarms)
        stated = at_prevalence(*counted, evaluate(*counted, 0.5), prevalence)
        assert stated is not None
        assert stated.at_least is not None
        held.append(stated.at_least <= true)
    assert np.mean(held) >= 0.95


def test_without_alarms_there_is_no_precision() -> None:
    counted = images(0, 5, 0, 5)
    rare = at_prevalence(*counted, evaluate(*counted, 0.5), 0.01)
    assert rare is not None
    assert rare.precision is None
    assert rare.at_least == 0


def test_weights_make_anomalies_as_rare_as_asked() -> None:
    _, labels = images(3, 4, 5, 6)
    counted = weights(labels, 0.01)
    assert counted.sum() == pytest.approx(1)
    assert counted[labels].sum() == pytest.approx(0.01)


def test_without_an_evaluation_set_nothing_is_said_of_prevalence() -> None:
    normal = np.arange(200, dtype=np.float32)
    none = normal[:0]
    calibration = Calibration(normal, normal, none, none, none.astype(np.bool_))
    judged = judge_thresholds(calibration, fit_threshold(Percentile(99), normal))
    assert rare_in(calibration, judged, 0.01) is None
