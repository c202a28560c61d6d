"""The threshold with the best F1 on labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from training.thresholds.interval import Groups
from training.thresholds.labelled import Labelled, candidates


@dataclass(frozen=True)
class BestF1:
    """The threshold that maximises F1 = 2 TP / (2 TP + FP + FN); of equals the highest (van Rijsbergen 1979, ch. 7).

    Attributes:
        labelled: what chooses it; none of it may be among the scores that tell its false-positive rate.
    """

    labelled: Labelled
    name: ClassVar[str] = "best_f1"

    @property
    def parameters(self) -> dict[str, float]:
        return {"labelled": float(len(self.labelled.scores))}

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
        f1 = 2 * found / np.maximum(found + alarms + anomalous.sum(), 1)
        return float(thresholds[len(f1) - 1 - int(np.argmax(f1[::-1]))])

    @staticmethod
    def in_words(parameters: Mapping[str, float]) -> str:
        del parameters
        return "best F1"
