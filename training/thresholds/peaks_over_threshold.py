"""Peaks over threshold: the tail of normal scores as a generalised Pareto distribution."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from training.thresholds.interval import Groups
from worker.core.errors import ConfigurationError

Floats = NDArray[np.float64]

LEVEL = 0.9
"""The peaks are the scores above this quantile."""
MIN_PEAKS = 20
BEYOND = 10
"""A rate of one in BEYOND times as many images as there are is as far as the tail is drawn out."""
# Maximum likelihood is regular above the lower one (Smith 1985); above the upper one the tail has no mean.
SHAPES = (-0.5, 1.0)


@dataclass(frozen=True)
class PeaksOverThreshold:
    """t = u + sigma / gamma ((rate n / N)^-gamma - 1), with N of n scores above u, their 90th percentile.

    Siffer et al., *Anomaly Detection in Streams with Extreme Value Theory*, KDD 2017, eq. 1; gamma = 0: t = u - sigma
    log(rate n / N). gamma and sigma: maximum likelihood by Grimshaw's reduction to one parameter (*Technometrics* 35,
    1993). It reaches rates that the percentile cannot; the interval does not trust the model, so it stays that of n.

    Attributes:
        rate: the false-positive rate, above 0, below 0.1.
    """

    rate: float = 0.01
    name: ClassVar[str] = "peaks_over_threshold"

    @property
    def parameters(self) -> dict[str, float]:
        return {"false_positive_rate": float(self.rate)}

    def check(self, n: int, groups: int) -> None:
        """Whether `n` scores support it.

        Raises:
            ConfigurationError: too few peaks, a rate too far beyond the scores, or one that is no tail.
        """
        del groups
        needed = max(math.ceil(MIN_PEAKS / (1 - LEVEL) - 1e-9), math.ceil(1 / (self.rate * BEYOND) - 1e-9))
        if n < needed:
            raise ConfigurationError(
                f"false_positive_rate: {self.rate:g} by peaks over threshold was given, {n} calibration images "
                f"cannot support it: it needs {MIN_PEAKS} scores above the {100 * LEVEL:g}th percentile, and reaches "
                f"one in {BEYOND} times the images. At least {needed} images (calibration_size)."
            )
        if self.rate >= 1 - LEVEL - 1e-9:
            raise ConfigurationError(
                f"false_positive_rate: {self.rate:g} by peaks over threshold was given; expected below "
                f"{1 - LEVEL:g}: above it there is no tail to fit, take the percentile."
            )

    def value(self, scores: Floats, groups: Groups) -> float:
        """The threshold of scores float64 (n,).

        Raises:
            ConfigurationError: too few distinct scores.
        """
        del groups
        start = float(np.quantile(scores, LEVEL))
        peaks = scores[scores > start] - start
        if len(peaks) < MIN_PEAKS:
            raise ConfigurationError(
                f"data: peaks over threshold needs {MIN_PEAKS} scores above the {100 * LEVEL:g}th percentile, there "
                f"are {len(peaks)}: too many scores are equal. Take the percentile."
            )
        shape, scale = fit_pareto(peaks)
        ratio = self.rate * len(scores) / len(peaks)
        if abs(shape) < 1e-6:
            return start - scale * math.log(ratio)
        return start + scale / shape * math.expm1(-shape * math.log(ratio))

    @staticmethod
    def in_words(parameters: Mapping[str, float]) -> str:
        return f"peaks over threshold {100 * parameters['false_positive_rate']:.4g} %"


def fit_pareto(peaks: Floats) -> tuple[float, float]:
    """Shape gamma and scale sigma of a generalised Pareto distribution, by maximum likelihood.

    For a given x = gamma / sigma the best gamma is mean(log(1 + x y)), and the mean log-likelihood is
    -log(gamma / x) - gamma - 1 (Grimshaw 1993, eq. 2.2): one dimension, searched on ever finer grids.

    Args:
        peaks: float64 (N,), above 0.
    """
    mean = float(peaks.mean())
    y = peaks / mean
    edge = -1 / float(y.max())
    grid = np.concatenate([edge * (1 - np.geomspace(1e-4, 1, 24)), np.geomspace(1e-4, 50, 32)])
    best, likelihood = _likelihoods(y, grid)
    for _ in range(3):
        i = int(np.argmax(likelihood))
        grid = np.linspace(grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)], 17)
        best, likelihood = _likelihoods(y, grid)
    i = int(np.argmax(likelihood))
    x, shape = float(grid[i]), float(best[i])
    return (shape, shape / x * mean) if abs(x) > 1e-6 else (0.0, mean)


def _likelihoods(y: Floats, grid: Floats) -> tuple[Floats, Floats]:
    """The best shape and its mean log-likelihood for each x; y has mean 1."""
    shapes = np.log1p(grid[:, None] * y).mean(axis=1)
    tiny = np.abs(grid) < 1e-6
    scales = np.where(tiny, 1.0, shapes / np.where(tiny, 1.0, grid))
    likelihoods = -np.log(scales) - shapes - 1
    return shapes, np.where((shapes >= SHAPES[0]) & (shapes < SHAPES[1]), likelihoods, -np.inf)
