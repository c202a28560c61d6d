"""One interface for every way to a threshold: fit(method, normal scores, groups) -> threshold, interval, method.

Rules: a threshold is a float32, as verdicts compare it; what the number of scores cannot support is refused; what is
known about the false-positive rate is said as an interval, not as a promise, and where it is not known, why.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.thresholds.best_f1 import BestF1
from training.thresholds.conformal import Conformal
from training.thresholds.cost_weighted import CostWeighted
from training.thresholds.interval import Groups, group_sizes, rate_interval
from training.thresholds.labelled import Labelled
from training.thresholds.mean_plus_k_std import MeanPlusKStd
from training.thresholds.peaks_over_threshold import PeaksOverThreshold
from training.thresholds.percentile import Percentile
from worker.core.bundle import ThresholdFit
from worker.core.errors import ConfigurationError

CLASSES = (Percentile, MeanPlusKStd, PeaksOverThreshold, Conformal, BestF1, CostWeighted)


class Method(Protocol):
    """A way to a threshold. `name` and `parameters` are the manifest's."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> dict[str, float]: ...

    def check(self, n: int, groups: int) -> None:
        """Raise ConfigurationError where `n` scores of `groups` groups cannot support it, saying what would."""
        ...

    def value(self, scores: NDArray[np.float64], groups: Groups) -> float:
        """The threshold of finite scores float64 (n,) of groups (n,)."""
        ...


def fit_threshold(
    method: Method, scores: NDArray[np.float32], groups: Groups | None = None, *, in_time: bool = False
) -> ThresholdFit:
    """The threshold, and the 95 % interval for its false-positive rate (training.thresholds.interval).

    Args:
        method: how.
        scores: float32 (n,), of normal images that the model was not fitted on.
        groups: (n,), which group each image belongs to; None: images are independent.
        in_time: the groups' numbers follow time.

    Raises:
        ConfigurationError: the scores do not support it.
    """
    if len(scores) < 2 or not np.all(np.isfinite(scores)):
        raise ConfigurationError(
            f"data: a threshold needs at least 2 finite calibration scores, there are {np.isfinite(scores).sum()} "
            f"of {len(scores)}. Where scores are not finite the fit diverged: try a smaller learning_rate."
        )
    if groups is not None and len(groups) != len(scores):
        raise ValueError(f"expected a group for each of the {len(scores)} scores, got {len(groups)}")
    n, count = len(scores), len(scores) if groups is None else len(group_sizes(groups))
    method.check(n, count)
    value = np.float32(method.value(scores.astype(np.float64), np.arange(n) if groups is None else groups))
    if not np.isfinite(value):
        raise ConfigurationError(f"data: {method.name} of {n} scores is {value}; expected a finite float32.")
    limits, reason = rate_interval(scores, value, groups, in_time=in_time)
    return ThresholdFit(
        value=float(value),
        method=method.name,
        parameters=method.parameters,
        n=n,
        interval=limits,
        fitted=datetime.now(UTC).isoformat(timespec="seconds"),
        groups=None if groups is None else count,
        no_interval=reason,
    )


def all_methods(rate: float, k: float, cost_ratio: float, labelled: Labelled) -> tuple[Method, ...]:
    """Every method, for one false-positive rate; whether the data supports it is another question."""
    return (
        Percentile(percentile_of(rate)),
        MeanPlusKStd(k),
        PeaksOverThreshold(rate),
        Conformal(rate),
        BestF1(labelled),
        CostWeighted(labelled, cost_ratio),
    )


def choose_method(name: str, rate: float, k: float, cost_ratio: float, labelled: Labelled) -> Method:
    """The method of that name, as manifests have it."""
    return next(method for method in all_methods(rate, k, cost_ratio, labelled) if method.name == name)


def percentile_of(rate: float) -> float:
    """The percentile that a false-positive rate is; rounded, or a rate from 99.9 would not lead back to it."""
    return round(100 - 100 * rate, 9)


def in_words(method: str, parameters: Mapping[str, float]) -> str:
    """A threshold's method for people: "percentile 99", "mean + 3 std"."""
    return next(kind for kind in CLASSES if kind.name == method).in_words(parameters)


def alarms_in_words(fit: ThresholdFit) -> str:
    """The interval of a threshold's false-positive rate for people: "0.3 to 2.3 %"."""
    if fit.interval is None:
        return "not known"
    low, high = (100 * limit for limit in fit.interval)
    return f"{low:.2g} to {high:.2g} %" if high < 1 else f"{low:.1f} to {high:.1f} %"
