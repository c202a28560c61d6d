"""Which images fit, calibrate, validate and evaluate.

Rules: only normal images fit and calibrate; no image, and no group of images, is in two of the roles.
"""

import numpy as np
from numpy.typing import NDArray

from worker.core.errors import ConfigurationError

Numbers = NDArray[np.int64]

EVALUATION_SHARE = 0.2
"""Of the normal images of a source that has anomalies but no test split: this share evaluates."""
VALIDATION_SHARE = 0.1
VALIDATION_SIZE = 500
FEWEST_VALIDATING = 20
"""Of the fit images, so many validate; fewer tell nothing of a loss."""
# The tutorial's.
CALIBRATION_SIZE = 500
CALIBRATION_GROUPS = 100
"""Where images have groups: at least so many calibrate, if there are enough."""


def tutorial_split(
    anomalous: NDArray[np.bool_], calibration_size: int | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The tutorial's roles: indices of the test split, bool (n,), that calibrate and that evaluate."""
    normals = np.flatnonzero(~anomalous)
    if calibration_size is None:
        calibration_size = CALIBRATION_SIZE
    if calibration_size > len(normals):
        raise ConfigurationError(
            f"calibration_size (--calibration-size): {calibration_size} is wanted; the test split has {len(normals)} "
            "normal images."
        )
    rest = np.ones(len(anomalous), np.bool_)
    rest[normals[:calibration_size]] = False
    if len(normals) == calibration_size:
        rest[:] = False  # anomalies without normal images tell nothing about false positives
    return normals[:calibration_size], np.flatnonzero(rest)


def split(
    anomalous: NDArray[np.bool_],
    calibration_size: int | None,
    seed: int,
    groups: Numbers | None = None,
    test: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.intp], ...]:
    """Indices that fit, calibrate and evaluate, each ascending; together every image that is used, once.

    Where there are anomalies, all of them and EVALUATION_SHARE of the normal images evaluate; else nothing does. No
    group is in two roles; one that has an anomaly, or an image that is there to evaluate alone, evaluates.

    Args:
        anomalous: bool (n,).
        calibration_size: how many normal images calibrate, at least; None: CALIBRATION_SIZE, and CALIBRATION_GROUPS
            groups, or as many as can.
        seed: of the permutation.
        groups: (n,); None: images are independent, each a group of its own.
        test: bool (n,), which images are there to evaluate alone: then no other normal image does. None: that is not
            laid down.

    Raises:
        ConfigurationError: too few normal images, or groups of them.
    """
    _, members = np.unique(np.arange(len(anomalous)) if groups is None else groups, return_inverse=True)
    faulty = np.bincount(members, anomalous if test is None else anomalous | test) > 0
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~faulty))
    reached = np.cumsum(np.bincount(members)[order])
    count = int(reached[-1]) if len(order) else 0
    evaluated = max(1, int(count * EVALUATION_SHARE)) if test is None and np.any(anomalous) else 0
    largest = (count - evaluated) // 2
    if calibration_size is None:
        wanted = CALIBRATION_SIZE
        if groups is not None and len(order):
            wanted = max(wanted, int(reached[min(CALIBRATION_GROUPS, len(order)) - 1]))
        calibration_size = max(1, min(wanted, largest))
    if calibration_size > largest:
        raise ConfigurationError(
            f"calibration_size (--calibration-size): {calibration_size} was given; of {count} normal images, "
            f"{evaluated} of them for the evaluation, at most {largest} may calibrate, so that as many are left for "
            "the fit. Give more images or a smaller number."
        )
    first = int(np.searchsorted(reached, calibration_size)) + 1
    second = int(np.searchsorted(reached, reached[first - 1] + evaluated)) + 1 if evaluated else first
    if second >= len(order):
        raise ConfigurationError(
            f"group_by (--group-by): {len(order)} groups of normal images were found; a fit, a calibration of "
            f"{calibration_size} images and an evaluation of {evaluated} need groups of their own. Give more groups, "
            "smaller ones, or a smaller calibration_size."
        )
    role = np.full(len(faulty), 2)
    role[order[:first]], role[order[second:]] = 1, 0
    fit, calibration, evaluation = (np.flatnonzero(role[members] == which) for which in range(3))
    return fit, calibration, evaluation


def hold_out(count: int, seed: int, groups: Numbers | None = None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the fit images that are learned from, and of those that validate each epoch, each ascending.

    Calibration images must not choose the epoch, or the threshold would be of images that the network was chosen for.
    Few images all learn: then none validate.

    Args:
        count: of the fit images, n.
        seed: of the choice.
        groups: (n,); None: images are independent. No group is on both sides.
    """
    wanted = min(int(count * VALIDATION_SHARE), VALIDATION_SIZE)
    members = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(int(members.max()) + 1 if count else 0)
    reached = np.cumsum(np.bincount(members)[order])
    chosen = int(np.searchsorted(reached, wanted, side="right"))
    validating = np.isin(members, order[:chosen])
    if validating.sum() < FEWEST_VALIDATING:
        validating[:] = False
    return np.flatnonzero(~validating), np.flatnonzero(validating)


def of_those(numbers: Numbers | None, chosen: NDArray[np.intp]) -> Numbers | None:
    """The groups of chosen images; None: images are independent."""
    return None if numbers is None else numbers[chosen]
