"""The tutorial, for comparison.

An autoencoder with a narrow middle learns to return normal images; what it cannot return is an anomaly (Hinton &
Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", Science 313, 2006; the score is the mean
over the pixels of (x - x')^2, as in Sakurada & Yairi, "Anomaly Detection Using Autoencoders with Nonlinear
Dimensionality Reduction", MLSDA 2014).
"""

from training.corruptions import unchanged
from training.model import FILTERS
from training.presets.preset import Preset
from training.scores import MEAN_SQUARED_ERROR

PRESET = Preset(
    name="tutorial",
    filters=lambda _shape: FILTERS,
    corrupt=unchanged,
    score=lambda _autoencoder, _images, _seed: MEAN_SQUARED_ERROR,
    epochs=20,
    learning_rate=1e-3,
    decay=False,
    early_stopping=False,
)
