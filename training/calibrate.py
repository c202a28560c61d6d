"""The decision threshold, from the scores of normal images that the model was not fitted on.

Rules: a threshold is a float32, as verdicts compare it; a percentile that the number of scores cannot support
is refused; what is known about the false-positive rate is said as an interval, not as a promise.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from worker.core.bundle import ThresholdFit
from worker.core.errors import ConfigurationError
from worker.core.image_statistics import brightness_and_sharpness

Scores = NDArray[np.float32]

METHODS = ("percentile", "mean_plus_k_std")
CONFIDENCE = 0.95
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def fit_threshold(method: str, scores: Scores, *, percentile: float = 99.0, k: float = 3.0) -> ThresholdFit:
    """The threshold by one of METHODS; see the functions below.

    Raises:
        ConfigurationError: the scores do not support it.
    """
    return fit_percentile(scores, percentile) if method == "percentile" else fit_mean_plus_k_std(scores, k)


def fit_percentile(scores: Scores, percentile: float = 99.0) -> ThresholdFit:
    """The percentile, interpolated linearly between order statistics (Hyndman & Fan 1996, definition 7).

    Args:
        scores: float32 (n,), of normal images.
        percentile: 50 to below 100.

    Raises:
        ConfigurationError: fewer than one score would lie above it, or scores are not finite.
    """
    values = _checked(scores)
    n = len(values)
    check_percentile(n, percentile)
    value = np.float32(np.percentile(values, percentile))
    return _fit("percentile", value, {"percentile": float(percentile)}, n, false_positive_interval(n, percentile))


def check_percentile(n: int, percentile: float) -> None:
    """Whether `n` scores support the percentile.

    Raises:
        ConfigurationError: fewer than one of them would lie above it.
    """
    if n * (100 - percentile) / 100 < 1 - 1e-9:
        raise ConfigurationError(
            f"percentile: {percentile:g} was given, {n} calibration images cannot support it: fewer than one of them "
            f"lies above. At least {math.ceil(100 / (100 - percentile) - 1e-9)} images (calibration_size), or a "
            f"percentile of at most {100 * (1 - 1 / n):.5g}."
        )


def fit_mean_plus_k_std(scores: Scores, k: float = 3.0) -> ThresholdFit:
    """Mean plus `k` standard deviations (of the population, divisor n). It promises no false-positive rate.

    Args:
        scores: float32 (n,), of normal images.
        k: above 0.

    Raises:
        ConfigurationError: scores are not finite.
    """
    values = _checked(scores)
    return _fit("mean_plus_k_std", np.float32(values.mean() + k * values.std()), {"k": float(k)}, len(values), None)


def false_positive_interval(n: int, percentile: float) -> tuple[float, float]:
    """A 95 % interval for the false-positive rate of new images like the `n` that the percentile was taken of.

    For the k-th smallest of n independent scores with a continuous distribution, the share of new ones above it
    is Beta(n - k + 1, k) distributed, whatever the distribution (Wilks, *Determination of sample sizes for
    setting tolerance limits*, Annals of Mathematical Statistics 12, 1941; David & Nagaraja, *Order Statistics*,
    3rd ed. 2003, section 2.3). The interpolated percentile lies between two neighbours: the lower limit is the
    upper neighbour's, the upper limit the lower neighbour's.
    """
    position = 1 + (n - 1) * percentile / 100
    below, above = math.floor(position + 1e-9), math.ceil(position - 1e-9)
    tail = (1 - CONFIDENCE) / 2
    low = stats.beta.ppf(tail, n - above + 1, above)
    high = stats.beta.ppf(1 - tail, n - below + 1, below)
    return float(low), float(high)


def quantiles(values: Scores) -> dict[str, float]:
    """The QUANTILES of float32 (n,) values, by name ("0.5" is the median)."""
    levels = np.quantile(values.astype(np.float64), QUANTILES)
    return {f"{name:g}": float(level) for name, level in zip(QUANTILES, levels, strict=True)}


def image_quantiles(images: NDArray[np.uint8]) -> dict[str, dict[str, float]]:
    """The quantiles of `brightness` and `sharpness` of images, uint8 (n, H, W, C), as the worker measures them."""
    brightness, sharpness = brightness_and_sharpness(images)
    return {"brightness": quantiles(brightness), "sharpness": quantiles(sharpness)}


def in_words(method: str, parameters: Mapping[str, float]) -> str:
    """A threshold's method for people: "percentile 99", "mean + 3 std"."""
    if method == "percentile":
        return f"percentile {parameters['percentile']:g}"
    return f"mean + {parameters['k']:g} std"


def _checked(scores: Scores) -> NDArray[np.float64]:
    if len(scores) < 2 or not np.all(np.isfinite(scores)):
        raise ConfigurationError(
            f"data: a threshold needs at least 2 finite calibration scores, there are {np.isfinite(scores).sum()} "
            f"of {len(scores)}. Where scores are not finite the fit diverged: try a smaller learning_rate."
        )
    return scores.astype(np.float64)


def _fit(
    method: str, value: np.float32, parameters: dict[str, float], n: int, interval: tuple[float, float] | None
) -> ThresholdFit:
    fitted = datetime.now(UTC).isoformat(timespec="seconds")
    return ThresholdFit(float(value), method, parameters, n, interval, fitted)
