"""How well scores tell anomalies from normal images.

Rules: anomaly is the positive class; an image is called one when score > threshold, both float32, as the
worker does; ratios of nothing are 0, curves of one class are None.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from training.calibrate import METHODS, fit_threshold
from worker.core.bundle import Calibration, Manifest, ThresholdFit
from worker.core.errors import ConfigurationError


class Evaluation(msgspec.Struct, frozen=True):
    """The figures of one threshold on labelled images.

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


def evaluate(scores: NDArray[np.float32], labels: NDArray[np.bool_], threshold: float) -> Evaluation:
    """Evaluate a threshold.

    Args:
        scores: float32 (m,), m at least 1.
        labels: bool (m,), True = anomaly.
        threshold: compared as float32.

    Raises:
        ValueError: there are no images.
    """
    if len(scores) == 0:
        raise ValueError("expected at least one labelled image, got none")
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


def judge_thresholds(
    calibration: Calibration, chosen: ThresholdFit, *, percentile: float, k: float
) -> tuple[Judged, ...]:
    """The chosen threshold and, where the calibration supports it, the other method's, in the order of METHODS."""
    judged = []
    for method in METHODS:
        if method == chosen.method:
            fit = chosen
        else:
            try:
                fit = fit_threshold(method, calibration.scores, percentile=percentile, k=k)
            except ConfigurationError:
                continue  # too few images for a percentile that nobody chose
        judged.append(Judged(fit, fit is chosen, _evaluate_calibration(calibration, fit)))
    return tuple(judged)


def judge_bundle(manifest: Manifest, calibration: Calibration) -> tuple[Judged, ...]:
    """The thresholds of a bundle's report, from the bundle alone."""
    inforce = manifest.threshold
    chosen = ThresholdFit(
        inforce.value, inforce.method, inforce.parameters, inforce.n, inforce.interval, inforce.fitted
    )
    return judge_thresholds(
        calibration,
        chosen,
        percentile=float(manifest.training.get("percentile", 99.0)),
        k=float(manifest.training.get("k", 3.0)),
    )


def _evaluate_calibration(calibration: Calibration, fit: ThresholdFit) -> Evaluation | None:
    if len(calibration.evaluation_scores) == 0:
        return None
    return evaluate(calibration.evaluation_scores, calibration.evaluation_labels, fit.value)
