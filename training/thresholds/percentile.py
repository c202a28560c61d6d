"""The percentile of normal scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from training.thresholds.interval import Groups
from worker.core.errors import ConfigurationError


@dataclass(frozen=True)
class Percentile:
    """The percentile, interpolated linearly between order statistics (Hyndman & Fan 1996, definition 7).

    Attributes:
        percentile: 50 to below 100; 100 x (1 - false-positive rate).
    """

    percentile: float = 99.0
    name: ClassVar[str] = "percentile"

    @property
    def parameters(self) -> dict[str, float]:
        return {"percentile": float(self.percentile)}

    def check(self, n: int, groups: int) -> None:
        """Whether `n` scores support it.

        Raises:
            ConfigurationError: fewer than one of them would lie above it.
        """
        del groups
        if n * (100 - self.percentile) / 100 < 1 - 1e-9:
            needed = math.ceil(100 / (100 - self.percentile) - 1e-9)
            raise ConfigurationError(
                f"percentile: {self.percentile:g} was given (a false-positive rate of "
                f"{1 - self.percentile / 100:.4g}), {n} calibration images cannot support it: fewer than one of them "
                f"lies above. At least {needed} images (calibration_size), or a percentile of at most "
                f"{100 * (1 - 1 / n):.5g}."
            )

    def value(self, scores: NDArray[np.float64], groups: Groups) -> float:
        """The threshold of scores float64 (n,); groups count by their images."""
        del groups
        return float(np.percentile(scores, self.percentile))

    @staticmethod
    def in_words(parameters: Mapping[str, float]) -> str:
        return f"percentile {parameters['percentile']:g}"
