"""What a preset decides."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.corruptions import Corruption
from training.scores import Score

LARGE = 32
"""Pixels of the longer side; above it a fault may be too small for a mean over the image to see."""


@dataclass(frozen=True)
class Preset:
    """A way of fitting.

    Attributes:
        name: as `--preset` takes it.
        filters: of the encoder's convolutions, by the images' (H, W, C); each halves height and width.
        corrupt: what the autoencoder learns to undo.
        score: from the fitted autoencoder, normal images uint8 (n, H, W, C) and a seed to the score.
        epochs: passes over the normal images, where they are enough steps.
        learning_rate: Adam's.
        early_stopping: whether the fit may end before its last epoch, and normal images are held out to decide that.
        decay: whether the learning rate falls to 0 along half a cosine (Loshchilov & Hutter, "SGDR", ICLR 2017).
    """

    name: str
    filters: Callable[[tuple[int, int, int]], tuple[int, ...]]
    corrupt: Corruption
    score: Callable[[Any, NDArray[np.uint8], int], Score]
    epochs: int
    learning_rate: float
    decay: bool
    early_stopping: bool = True
