"""How well scores tell anomalies from normal images.

Rules: anomaly is the positive class; an image is called one when score > threshold, both float32, as the
worker does; ratios of nothing are 0, curves of one class are None.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from training.thresholds import BestF1, CostWeighted, Labelled, all_methods, cross_fitted, fit_threshold
from worker.core.bundle import Calibration, Manifest, Threshold, ThresholdFit
from worker.core.errors import ConfigurationError


class Evaluation(msgspec.Struct, frozen=True):
    """The figures of one threshold on labelled images.

    A threshold that labels chose is not judged on them: its figures are cross-fitted (training.thresholds.labelled).

    Attributes:
        threshold: float32, in force when score > threshold means anomaly.
        tp, tn, fp, fn: anomalies found, normal images passed, false alarms, anomalies missed.
        precision: tp / (tp + fp). recall: tp / (tp + fn). f1: their harmonic mean.
        auroc: area under the ROC curve: how often an anomaly scores above a normal image (Fawcett 2006).
        average_precision: the precision averaged over the steps in recall.
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
) -> Evaluation:
    """Evaluate a threshold.

    Args:
        scores: float32 (m,), m at least 1.
        labels: bool (m,), True = anomaly.
        threshold: compared as float32.
        called: bool (m,), what was called an anomaly; None: what scores above the threshold.

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
    )


def labelled(calibration: Calibration) -> Labelled:
    """The evaluation set, for the methods that need labels."""
    return Labelled(calibration.evaluation_scores, calibration.evaluation_labels, calibration.evaluation_groups)


def judge_thresholds(
    calibration: Calibration, chosen: ThresholdFit, rate: float = 0.01, k: float = 3.0, cost_ratio: float = 10.0
) -> tuple[Judged, ...]:
    """The chosen threshold and those of every other method that the data supports, for the same settings.

    Args:
        calibration: scores, groups, and the evaluation set.
        chosen: the threshold in force.
        rate: of the methods that aim at a false-positive rate.
        k: of mean + k std.
        cost_ratio: of the cost-weighted method.
    """
    judged = []
    for method in all_methods(rate, k, cost_ratio, labelled(calibration)):
        try:
            own = method.name == chosen.method
            fit = chosen if own else fit_threshold(method, calibration.scores, calibration.groups)
            called = None
            if isinstance(method, BestF1 | CostWeighted):
                called = cross_fitted(method.labelled, method.choose, method.name)
        except ConfigurationError:
            continue  # too few images for a method that nobody chose
        evaluation = None
        if len(calibration.evaluation_scores):
            evaluation = evaluate(calibration.evaluation_scores, calibration.evaluation_labels, fit.value, called)
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
    )


def without_history(threshold: Threshold) -> ThresholdFit:
    """The threshold alone, as a history keeps it."""
    fields = msgspec.structs.asdict(threshold)
    del fields["history"]
    return ThresholdFit(**fields)
