"""The threshold with the lowest cost on labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from training.thresholds.interval import Groups
from training.thresholds.labelled import Labelled, candidates


@dataclass(frozen=True)
class CostWeighted:
    """The threshold that minimises FP + cost_ratio x FN; of equals the highest (Elkan, IJCAI 2001).

    FP and FN are counted in the labelled images as they are mixed. Where a line has anomalies in another share, give
    cost_ratio x (line's anomalies per normal image) / (labelled anomalies per normal image).

    Attributes:
        labelled: what chooses it; none of it may be among the scores that tell its false-positive rate.
        cost_ratio: what a missed anomaly costs, in false alarms; above 0.
    """

    labelled: Labelled
    cost_ratio: float = 10.0
    name: ClassVar[str] = "cost_weighted"

    @property
    def parameters(self) -> dict[str, float]:
        return {"labelled": float(len(self.labelled.scores)), "cost_ratio": float(self.cost_ratio)}

    def check(self, n: int, groups: int) -> None:
        """Whether the labels support it.

        Raises:
            ConfigurationError: they do not.
        """
        del n, groups
        self.labelled.check(self.name)

    def value(self, scores: NDArray[np.float64], groups: Groups) -> float:
        """The threshold; the normal scores have no part in it."""
        del scores, groups
        return self.choose(self.labelled.scores, self.labelled.anomalous)

    def choose(self, scores: NDArray[np.float32], anomalous: NDArray[np.bool_]) -> float:
        """The threshold of scores (m,) and whether each is an anomaly's (m,)."""
        thresholds, found, alarms = candidates(scores, anomalous)
        cost = alarms + self.cost_ratio * (anomalous.sum() - found)
        return float(thresholds[len(cost) - 1 - int(np.argmin(cost[::-1]))])

    @staticmethod
    def in_words(parameters: Mapping[str, float]) -> str:
        return f"a miss costs {parameters['cost_ratio']:g}"
