"""What the methods that need labels share: labelled scores, candidate thresholds, and cross-fitting.

Figures of a threshold are never counted on the labels that chose it: labelled images are dealt into folds by whole
groups, and each fold is judged by the threshold that the other folds choose (Stone, *JRSS B* 36, 1974). The threshold
in force is chosen on all of them; its false-positive rate is told from the calibration images, which had no part.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.thresholds.interval import Groups
from worker.core.errors import ConfigurationError

FOLDS = 5
MIN_OF_EACH = 10


@dataclass(frozen=True)
class Labelled:
    """Scores float32 (m,), whether each is an anomaly's, bool (m,), and groups (m,); None: independent images."""

    scores: NDArray[np.float32]
    anomalous: NDArray[np.bool_]
    groups: Groups | None = None

    def check(self, method: str) -> None:
        """Whether a threshold can be chosen and judged.

        Raises:
            ConfigurationError: too few images of a kind, or of groups.
        """
        anomalies = int(self.anomalous.sum())
        normals = len(self.anomalous) - anomalies
        if min(anomalies, normals) < MIN_OF_EACH:
            raise ConfigurationError(
                f"threshold_method: {method} was given; it needs at least {MIN_OF_EACH} normal images and "
                f"{MIN_OF_EACH} anomalies to evaluate with, there are {normals} and {anomalies}. Give sub-folders "
                "(or labels) of anomalies, or take another method."
            )
        self.folds(method)

    def folds(self, method: str) -> NDArray[np.intp]:
        """The fold of each image, (m,), 0 to FOLDS - 1 at most: by whole groups, those with anomalies dealt first.

        Raises:
            ConfigurationError: without a fold one kind of image is missing.
        """
        groups = np.arange(len(self.scores)) if self.groups is None else self.groups
        _, members = np.unique(groups, return_inverse=True)
        faulty = np.bincount(members, self.anomalous) > 0
        mixed = np.random.default_rng(0).permutation(len(faulty))
        rank = np.empty(len(faulty), np.intp)
        rank[mixed[np.argsort(~faulty[mixed], kind="stable")]] = np.arange(len(faulty))
        folds: NDArray[np.intp] = (rank % FOLDS)[members]
        for fold in np.unique(folds):
            kept = self.anomalous[folds != fold]
            if not kept.any() or kept.all():
                raise ConfigurationError(
                    f"threshold_method: {method} was given; normal images and anomalies must each be of at least 2 "
                    "groups, so that some choose the threshold and others judge it. Take another method or group_by."
                )
        return folds


Choose = Callable[[NDArray[np.float32], NDArray[np.bool_]], float]
"""A threshold from scores (m,) and whether each is an anomaly's (m,)."""


def candidates(scores: NDArray[np.float32], anomalous: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """Thresholds between neighbouring distinct scores and outside them, ascending; their true and false positives.

    Args:
        scores: float32 (m,).
        anomalous: bool (m,).
    """
    order = np.argsort(scores, kind="stable")
    ordered, truth = scores[order].astype(np.float64), anomalous[order]
    last = np.append(np.flatnonzero(np.diff(ordered) > 0), len(ordered) - 1)
    found = truth.sum() - np.cumsum(truth)[last]
    alarms = (~truth).sum() - np.cumsum(~truth)[last]
    following = ordered[np.minimum(last + 1, len(ordered) - 1)]
    # float32 may round a middle up to the following score, and that image would pass.
    middles = np.minimum(((ordered[last] + following) / 2).astype(np.float32), _below(following, ordered[last]))
    everything = np.nextafter(ordered[:1].astype(np.float32), np.float32(-np.inf))
    return (
        np.append(everything, middles).astype(np.float64),
        np.append(truth.sum(), found).astype(np.float64),
        np.append((~truth).sum(), alarms).astype(np.float64),
    )


def cross_fitted(labelled: Labelled, choose: Choose, method: str) -> NDArray[np.bool_]:
    """Which images are called anomalies, bool (m,), each by a threshold that its fold had no part in."""
    folds = labelled.folds(method)
    called = np.zeros(len(folds), np.bool_)
    for fold in np.unique(folds):
        judged = folds == fold
        threshold = np.float32(choose(labelled.scores[~judged], labelled.anomalous[~judged]))
        called[judged] = labelled.scores[judged] > threshold
    return called


def _below(following: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float32]:
    """The float32 just below the following score, or the score itself where nothing follows."""
    below = np.nextafter(following.astype(np.float32), np.float32(-np.inf))
    return np.maximum(below, own.astype(np.float32))
