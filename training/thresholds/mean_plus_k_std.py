"""Mean plus k standard deviations of normal scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from training.thresholds.interval import Groups


@dataclass(frozen=True)
class MeanPlusKStd:
    """mean + k std, the standard deviation being the population's (divisor n). It aims at no false-positive rate.

    Attributes:
        k: above 0.
    """

    k: float = 3.0
    name: ClassVar[str] = "mean_plus_k_std"

    @property
    def parameters(self) -> dict[str, float]:
        return {"k": float(self.k)}

    def check(self, n: int, groups: int) -> None:
        """Any two scores support it."""

    def value(self, scores: NDArray[np.float64], groups: Groups) -> float:
        """The threshold of scores float64 (n,)."""
        del groups
        return float(scores.mean() + self.k * scores.std())

    @staticmethod
    def in_words(parameters: Mapping[str, float]) -> str:
        return f"mean + {parameters['k']:g} std"
