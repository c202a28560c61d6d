"""Presets as contenders of training.quality. Import after select_backend()."""

from dataclasses import dataclass
from typing import Any

from training.contenders import Fitted, Images
from training.fit import compile_autoencoder, fit_autoencoder, make_repeatable, steps_per_epoch
from training.fitting import unsuspicious
from training.model import build_autoencoder, build_scorer, mflop_per_image
from training.plan import enough_epochs, patience_for
from training.presets import Preset
from training.progress import Silence
from training.roles import hold_out
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
    anomalies: float = 0.0
    robust: bool = False

    @property
    def name(self) -> str:
        """The preset's, and what is unusual."""
        given = [f"{100 * self.anomalies:g} % anomalies"] if self.anomalies else []
        return ", ".join([self.preset.name, *given, *(["robust"] if self.robust else [])])

    def fit(self, images: Images, seed: int) -> Fitted:
        """Fit to normal images, uint8 (n, H, W, C)."""
        autoencoder = fit_preset(self.preset, images, seed, self.epochs)
        known = images[unsuspicious(self.preset, autoencoder, images, seed)] if self.robust else images
        model = build_scorer(autoencoder, self.preset.score(autoencoder, known, seed))
        scorer = KerasScorer(model, capacity(*images.shape[1:3]))
        scorer.warm_up()
        return Fitted(
            lambda images: scorer.score_all(images)[0],
            mflop_per_image(model),
            lambda images: error_maps(images, scorer.reconstruct(images)),
        )


def fit_preset(preset: Preset, images: Images, seed: int, epochs: int | None = None) -> Any:
    """The preset's network, fitted to images, uint8 (n, H, W, C), as `fit` does; epochs: None: the preset's."""
    make_repeatable(seed)
    height, width, channels = images.shape[1:]
    shape = height, width, channels
    autoencoder = build_autoencoder(shape, filters=preset.filters(shape))
    learning, validating = images, images[:VALIDATED]
    early = False
    if preset.early_stopping:
        learns, validates = hold_out(len(images), seed)
        if early := bool(len(validates)):
            learning, validating = images[learns], images[validates]
    steps = steps_per_epoch(len(learning), BATCH_SIZE)
    epochs = epochs or enough_epochs(preset.epochs, steps)
    compile_autoencoder(autoencoder, preset.learning_rate, epochs * steps if preset.decay else None)
    fit_autoencoder(
        autoencoder,
        learning,
        validating,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        progress=Silence(),
        corrupt=preset.corrupt,
        patience=patience_for(epochs) if early else None,
    )
    return autoencoder


def capacity(height: int, width: int) -> int:
    """Images to score at once: 256, and fewer where they are larger than 64 x 64, to the same memory."""
    return max(8, min(256, 256 * 64 * 64 // (height * width)))
