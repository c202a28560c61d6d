"""Presets as contenders of training.quality. Import after select_backend()."""

from dataclasses import dataclass
from typing import Any

import keras

from training.contenders import Fitted, Images
from training.fit import compile_autoencoder, fit_autoencoder, steps_per_epoch
from training.model import build_autoencoder, build_scorer, mflop_per_image
from training.presets import Preset
from training.progress import Silence
from worker.adapters.keras_scorer import KerasScorer
from worker.core.regions import error_maps

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
        autoencoder = fit_preset(self.preset, images, seed, self.epochs)
        model = build_scorer(autoencoder, self.preset.score(autoencoder, images, seed))
        scorer = KerasScorer(model, capacity(*images.shape[1:3]))
        scorer.warm_up()
        return Fitted(
            lambda images: scorer.score_all(images)[0],
            mflop_per_image(model),
            lambda images: error_maps(images, scorer.reconstruct(images)),
        )


def fit_preset(preset: Preset, images: Images, seed: int, epochs: int | None = None) -> Any:
    """The preset's network, fitted to all of the images, uint8 (n, H, W, C); epochs: None: the preset's."""
    keras.utils.set_random_seed(seed)
    height, width, channels = images.shape[1:]
    shape = height, width, channels
    autoencoder = build_autoencoder(shape, filters=preset.filters(shape))
    epochs = epochs or preset.epochs
    steps = epochs * steps_per_epoch(len(images), BATCH_SIZE)
    compile_autoencoder(autoencoder, preset.learning_rate, steps if preset.decay else None)
    fit_autoencoder(
        autoencoder,
        images,
        images[:VALIDATED],
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        progress=Silence(),
        corrupt=preset.corrupt,
    )
    return autoencoder


def capacity(height: int, width: int) -> int:
    """Images to score at once: 256, and fewer where they are larger than 64 x 64, to the same memory."""
    return max(8, min(256, 256 * 64 * 64 // (height * width)))
