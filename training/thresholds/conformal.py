"""The conformal threshold: a false-positive rate with a guarantee for any number of images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from training.thresholds.interval import Groups, group_sizes
from worker.core.errors import ConfigurationError


@dataclass(frozen=True)
class Conformal:
    """The lowest score t with sum(w_i, s_i > t) + 1 / (G + 1) <= rate, w_i = 1 / ((G + 1) m_i).

    G is the number of groups, m_i that of images in image i's group. Independent images are groups of one: t is the
    ceil((1 - rate)(n + 1))-th smallest score (Vovk, Gammerman & Shafer, *Algorithmic Learning in a Random World*,
    2005). Groups: Lee, Barber & Willett, *Distribution-free inference with hierarchical data*, 2023.

    It guarantees, for exchangeable groups of any distribution: averaged over calibrations, an image of a new group is
    flagged with a probability of at most the rate. Groups weigh alike, whatever their size. One calibration may do
    worse than the average; by how much, its interval says.

    Attributes:
        rate: the false-positive rate, above 0, at most 0.5.
    """

    rate: float = 0.01
    name: ClassVar[str] = "conformal"

    @property
    def parameters(self) -> dict[str, float]:
        return {"false_positive_rate": float(self.rate)}

    def check(self, n: int, groups: int) -> None:
        """Whether so many groups can guarantee it.

        Raises:
            ConfigurationError: (groups + 1) x rate is below 1.
        """
        if (groups + 1) * self.rate < 1 - 1e-9:
            what = "calibration images" if groups == n else "groups of calibration images"
            raise ConfigurationError(
                f"false_positive_rate: {self.rate:g} was given, {groups} {what} cannot guarantee it. At least "
                f"{math.ceil(1 / self.rate - 1e-9) - 1} of them, or a rate of at least {1 / (groups + 1):.4g}."
            )

    def value(self, scores: NDArray[np.float64], groups: Groups) -> float:
        """The threshold of scores float64 (n,), groups (n,)."""
        _, members = np.unique(groups, return_inverse=True)
        sizes = group_sizes(groups)
        descending = np.argsort(-scores, kind="stable")
        ordered = scores[descending]
        weights = np.cumsum(1 / sizes[members[descending]])
        # How many of the highest scores may lie above; of equal ones none does.
        allowed = (len(sizes) + 1) * self.rate - 1 + 1e-9
        position = int(np.searchsorted(weights, allowed, side="right"))
        return float(ordered[min(position, len(ordered) - 1)])

    @staticmethod
    def in_words(parameters: Mapping[str, float]) -> str:
        return f"conformal {100 * parameters['false_positive_rate']:.4g} %"
