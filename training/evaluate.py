"""How well scores tell anomalies from normal images.

Rules: anomaly is the positive class; an image is called one when score > threshold, both float32, as the
worker does; ratios of nothing are 0, curves of one class are None; a share comes with its 95 % interval.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from training.groups import follows_time
from training.thresholds import (
    BestF1,
    CostWeighted,
    Groups,
    Labelled,
    all_methods,
    cross_fitted,
    fit_threshold,
    rate_interval,
)
from worker.core.bundle import Calibration, Manifest, Threshold, ThresholdFit
from worker.core.errors import ConfigurationError


class Kind(msgspec.Struct, frozen=True):
    """Anomalies of one kind, a sub-folder or a label: how many of `count` were found; the interval as for recall."""

    name: str
    found: int
    count: int
    interval: tuple[float, float] | None


class Evaluation(msgspec.Struct, frozen=True):
    """The figures of one threshold on labelled images.

    A threshold that labels chose is not judged on them: its figures are cross-fitted (training.thresholds.labelled).

    Attributes:
        threshold: float32, in force when score > threshold means anomaly.
        tp, tn, fp, fn: anomalies found, normal images passed, false alarms, anomalies missed.
        precision: tp / (tp + fp). recall: tp / (tp + fn). f1: their harmonic mean.
        auroc: area under the ROC curve: how often an anomaly scores above a normal image (Fawcett 2006).
        average_precision: the precision averaged over the steps in recall.
        recall_interval, false_positive_interval: 95 % of recall and of fp / (fp + tn), for independent images
            exact (Clopper & Pearson 1934), else by groups (training.thresholds.interval); None: there are no such
            images, or too few groups.
        kinds: the worst found first; empty where it is not known which image is of which kind.
    """

    threshold: float
    tp: int
    tn: int
    fp: int
    fn: int
    precision: float
    recall: float
    f1: float
    auroc: float | None
    average_precision: float | None
    recall_interval: tuple[float, float] | None = None
    false_positive_interval: tuple[float, float] | None = None
    kinds: tuple[Kind, ...] = ()


class AtPrevalence(msgspec.Struct, frozen=True):
    """What an alarm is worth where anomalies are as rare as on the line, and not as in the evaluation set.

    Attributes:
        prevalence: the share of images that are anomalies.
        precision: the share of alarms that are anomalies; None: nothing raises an alarm.
        at_least: what it is at least, with 95 % confidence; None: not known.
        average_precision: the area under the precision-recall curve.
    """

    prevalence: float
    precision: float | None
    at_least: float | None
    average_precision: float


class Judged(msgspec.Struct, frozen=True):
    """A threshold, whether it is the bundle's, and its evaluation where there are labelled images."""

    fit: ThresholdFit
    chosen: bool
    evaluation: Evaluation | None


def evaluate(
    scores: NDArray[np.float32],
    labels: NDArray[np.bool_],
    threshold: float,
    called: NDArray[np.bool_] | None = None,
    groups: Groups | None = None,
    kinds: Sequence[str] | None = None,
) -> Evaluation:
    """Evaluate a threshold.

    Args:
        scores: float32 (m,), m at least 1.
        labels: bool (m,), True = anomaly.
        threshold: compared as float32.
        called: bool (m,), what was called an anomaly; None: what scores above the threshold.
        groups: (m,), which images are of one part or one day; None: images are independent.
        kinds: the kind of each image; those of normal images do not count. None: not known.

    Raises:
        ValueError: there are no images.
    """
    if len(scores) == 0:
        raise ValueError("expected at least one labelled image, got none")
    if called is None:
        called = scores > np.float32(threshold)
    (tn, fp), (fn, tp) = metrics.confusion_matrix(labels, called, labels=[False, True]).tolist()
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, called, labels=[True], average=None, zero_division=0.0
    )
    both = bool(labels.any() and not labels.all())
    # Ranks order the images as the scores do and, where folds were judged by thresholds of their own, as called.
    ranks = np.empty(len(scores), np.float32)
    ranks[np.lexsort((scores, called))] = np.arange(len(scores))
    lowest = np.float32(len(scores) - called.sum() - 0.5)

    def interval(chosen: NDArray[np.bool_]) -> tuple[float, float] | None:
        if not chosen.any():
            return None
        return rate_interval(ranks[chosen], lowest, None if groups is None else groups[chosen]).limits

    def kind(name: str) -> Kind:
        of_it = labels & (named == name)
        return Kind(name, int((called & of_it).sum()), int(of_it.sum()), interval(of_it))

    named = np.asarray([] if kinds is None else kinds, np.str_)
    of_kinds = [kind(str(name)) for name in np.unique(named[labels])] if kinds is not None else []
    return Evaluation(
        threshold=float(np.float32(threshold)),
        tp=tp,
        tn=tn,
        fp=fp,
        fn=fn,
        precision=float(precision[0]),
        recall=float(recall[0]),
        f1=float(f1[0]),
        auroc=float(metrics.roc_auc_score(labels, scores)) if both else None,
        average_precision=float(metrics.average_precision_score(labels, scores)) if both else None,
        recall_interval=interval(labels),
        false_positive_interval=interval(~labels),
        kinds=tuple(sorted(of_kinds, key=lambda of_kind: of_kind.found / of_kind.count)),
    )


def at_prevalence(
    scores: NDArray[np.float32], labels: NDArray[np.bool_], evaluation: Evaluation, prevalence: float
) -> AtPrevalence | None:
    """The precision that an evaluation's threshold has where a share of all images are anomalies, by Bayes' rule.

    precision = p R / (p R + (1 - p) F) with the prevalence p, the recall R and the false-positive rate F. It rises
    with R and falls with F: at the lower end of R's 95 % interval and the upper one of F's, each of which is beyond
    with 2.5 %, it is what the precision is at least, with 95 % confidence.

    Args:
        scores: float32 (m,).
        labels: bool (m,), True = anomaly.
        evaluation: of them.
        prevalence: above 0, below 1.

    Returns:
        None where the images are of one class.
    """
    if not labels.any() or labels.all():
        return None

    def precision(recall: float, rate: float) -> float | None:
        found, alarms = prevalence * recall, (1 - prevalence) * rate
        return found / (found + alarms) if found + alarms > 0 else None

    at_least = None
    if evaluation.recall_interval is not None and evaluation.false_positive_interval is not None:
        at_least = precision(evaluation.recall_interval[0], evaluation.false_positive_interval[1])
    return AtPrevalence(
        prevalence,
        precision(evaluation.recall, evaluation.fp / (evaluation.fp + evaluation.tn)),
        at_least,
        float(metrics.average_precision_score(labels, scores, sample_weight=weights(labels, prevalence))),
    )


def rare_in(calibration: Calibration, judged: Sequence[Judged], prevalence: float) -> AtPrevalence | None:
    """What the threshold in force is worth at a prevalence; None: the evaluation set is empty or of one class."""
    evaluation = next(item.evaluation for item in judged if item.chosen)
    if evaluation is None:
        return None
    return at_prevalence(calibration.evaluation_scores, calibration.evaluation_labels, evaluation, prevalence)


def weights(labels: NDArray[np.bool_], prevalence: float) -> NDArray[np.float64]:
    """What each image counts, float64 (m,), for anomalies to be that share of all."""
    anomalies = int(labels.sum())
    counted: NDArray[np.float64] = np.where(
        labels, prevalence / anomalies, (1 - prevalence) / (len(labels) - anomalies)
    )
    return counted


def labelled(calibration: Calibration) -> Labelled:
    """The evaluation set, for the methods that need labels."""
    return Labelled(calibration.evaluation_scores, calibration.evaluation_labels, calibration.evaluation_groups)


def judge_thresholds(
    calibration: Calibration,
    chosen: ThresholdFit,
    rate: float = 0.01,
    k: float = 3.0,
    cost_ratio: float = 10.0,
    kinds: Sequence[str] | None = None,
    *,
    in_time: bool = False,
) -> tuple[Judged, ...]:
    """The chosen threshold and those of every other method that the data supports, for the same settings.

    Args:
        calibration: scores, groups, and the evaluation set.
        chosen: the threshold in force.
        rate: of the methods that aim at a false-positive rate.
        k: of mean + k std.
        cost_ratio: of the cost-weighted method.
        kinds: the kind of each image of the evaluation set; None: not known.
        in_time: the groups' numbers follow time.
    """
    judged = []
    for method in all_methods(rate, k, cost_ratio, labelled(calibration)):
        try:
            own = method.name == chosen.method
            fit = chosen if own else fit_threshold(method, calibration.scores, calibration.groups, in_time=in_time)
            called = None
            if isinstance(method, BestF1 | CostWeighted):
                called = cross_fitted(method.labelled, method.choose, method.name)
        except ConfigurationError:
            continue  # too few images for a method that nobody chose
        evaluation = None
        if len(calibration.evaluation_scores):
            evaluation = evaluate(
                calibration.evaluation_scores,
                calibration.evaluation_labels,
                fit.value,
                called,
                calibration.evaluation_groups,
                kinds,
            )
        judged.append(Judged(fit, fit is chosen, evaluation))
    return tuple(judged)


def judge_bundle(manifest: Manifest, calibration: Calibration) -> tuple[Judged, ...]:
    """The thresholds of a bundle's report, from the bundle alone."""
    settings = manifest.training
    return judge_thresholds(
        calibration,
        without_history(manifest.threshold),
        rate=float(settings.get("false_positive_rate", (100 - settings.get("percentile", 99.0)) / 100)),
        k=float(settings.get("k", 3.0)),
        cost_ratio=float(settings.get("cost_ratio", 10.0)),
        in_time=follows_time(settings.get("group_by")),
    )


def without_history(threshold: Threshold) -> ThresholdFit:
    """The threshold alone, as a history keeps it."""
    fields = msgspec.structs.asdict(threshold)
    del fields["history"]
    return ThresholdFit(**fields)
