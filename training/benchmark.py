"""Presets as contenders of training.quality. Import after select_backend()."""

from dataclasses import dataclass

import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from training.contenders import Fitted, Images
from training.fit import compile_autoencoder, fit_autoencoder, steps_per_epoch
from training.model import build_autoencoder, build_scorer, mflop_per_image, to_pixels
from training.presets import Preset
from training.progress import Silence
from training.scores import SPOT
from worker.adapters.keras_scorer import KerasScorer

BATCH_SIZE = 128
# Enough to draw a validation loss; it decides nothing.
VALIDATED = 256


@dataclass(frozen=True)
class PresetContender:
    """A preset as `fit` uses it, with other `epochs` where given."""

    preset: Preset
    epochs: int | None = None

    @property
    def name(self) -> str:
        """The preset's, with the epochs where they are not its own: such results are of another fit."""
        return self.preset.name if self.epochs is None else f"{self.preset.name}, {self.epochs} epochs"

    def fit(self, images: Images, seed: int) -> Fitted:
        """Fit to normal images, uint8 (n, H, W, C)."""
        keras.utils.set_random_seed(seed)
        height, width, channels = images.shape[1:]
        shape = height, width, channels
        autoencoder = build_autoencoder(shape, filters=self.preset.filters(shape))
        epochs = self.epochs or self.preset.epochs
        steps = epochs * steps_per_epoch(len(images), BATCH_SIZE)
        compile_autoencoder(autoencoder, self.preset.learning_rate, steps if self.preset.decay else None)
        fit_autoencoder(
            autoencoder,
            images,
            images[:VALIDATED],
            epochs=epochs,
            batch_size=BATCH_SIZE,
            seed=seed,
            progress=Silence(),
            corrupt=self.preset.corrupt,
        )
        model = build_scorer(autoencoder, self.preset.score(autoencoder, images, seed))
        scorer = KerasScorer(model, capacity(shape))
        scorer.warm_up()

        def error_map(images: Images) -> NDArray[np.floating]:
            squared = np.square(to_pixels(images) - scorer.reconstruct(images)).mean(axis=3)
            return np.stack([cv2.blur(one, (SPOT, SPOT)) for one in squared])

        return Fitted(lambda images: scorer.score_all(images)[0], mflop_per_image(model), error_map)


def capacity(shape: tuple[int, int, int]) -> int:
    """Images to score at once: 256, and fewer where they are larger than 64 x 64, to the same memory."""
    return max(8, min(256, 256 * 64 * 64 // (shape[0] * shape[1])))
