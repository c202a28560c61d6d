"""The convolutional autoencoder, and the scorer around it.

Rules: the scorer holds all preprocessing and pooling, so that training and serving cannot differ; keras.ops
only, no Lambda, so that any backend loads it in Keras's safe mode. Import after select_backend().
"""

from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from training.scores import MEAN_SQUARED_ERROR, Score, restored
from worker.core.errors import ConfigurationError

FILTERS = (32, 64)
"""The tutorial's."""


def build_autoencoder(
    input_shape: tuple[int, int, int], latent_size: int = 32, filters: tuple[int, ...] = FILTERS
) -> Any:
    """An untrained autoencoder: float32 (N, H, W, C) in [0, 1] to its reconstruction, of the same shape.

    Encoder: for each of `filters` a Conv2D (3x3, stride 2, relu), Dense `latent_size`. Decoder: Dense relu to the
    last convolution's size, the same filters backwards as Conv2DTranspose (3x3, stride 2, relu), Conv2D C (3x3,
    sigmoid).

    Raises:
        ConfigurationError: height or width cannot be halved so often.
    """
    height, width, channels = input_shape
    reduction = 2 ** len(filters)
    if height % reduction or width % reduction or channels not in {1, 3}:
        raise ConfigurationError(
            f"data: the images are {height} x {width} x {channels}; expected height and width divisible by "
            f"{reduction}, and 1 or 3 channels. The settings height and width resize the files of a folder."
        )
    reduced = (height // reduction, width // reduction, filters[-1])
    image = keras.Input(input_shape, name="pixels")
    x = image
    for index, count in enumerate(filters):
        x = layers.Conv2D(count, 3, strides=2, padding="same", activation="relu", name=f"encode_{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(latent_size, name="latent")(x)
    x = layers.Dense(reduced[0] * reduced[1] * reduced[2], activation="relu", name="expand")(x)
    x = layers.Reshape(reduced, name="reshape")(x)
    for index, count in enumerate(reversed(filters)):
        x = layers.Conv2DTranspose(count, 3, strides=2, padding="same", activation="relu", name=f"decode_{index}")(x)
    x = layers.Conv2D(channels, 3, padding="same", activation="sigmoid", name="reconstruction")(x)
    return keras.Model(image, x, name="autoencoder")


def build_scorer(autoencoder: Any, score: Score = MEAN_SQUARED_ERROR) -> Any:
    """The model that a bundle holds; it shares the autoencoder's weights.

    Input `image` uint8 (N, H, W, C). Outputs `error` float32 (N,), the mean squared difference between pixels
    in [0, 1] and their reconstruction; `score`, what `score` makes of it; `reconstruction` float32 (N, H, W, C).
    """
    image = keras.Input(autoencoder.input_shape[1:], dtype="uint8", name="image")
    reconstruction, difference, error, latent = restored(autoencoder, image)
    found = score.of(difference, error, latent)
    return keras.Model(image, {"score": found, "error": error, "reconstruction": reconstruction}, name="scorer")


def to_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images uint8 (N, H, W, C) as the autoencoder takes them: the scorer's own first step, in numpy."""
    return images.astype(np.float32) / np.float32(255)


def mflop_per_image(model: Any) -> float:
    """Millions of multiplications and additions for one image, of a model's convolutions and dense layers.

    A convolution costs 2 k^2 C_in C_out at each pixel of its output, a transposed one at each of its input, a dense
    layer 2 N_in N_out (as in Howard et al., "MobileNets", 2017, section 3.1, with additions counted).
    """
    total = 0.0
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if hasattr(layer, "layers"):
            total += mflop_per_image(layer)
        elif kernel is not None:
            pixels = 1
            if isinstance(layer, layers.Conv2DTranspose):
                pixels = int(np.prod(layer.input.shape[1:3]))
            elif isinstance(layer, layers.Conv2D):
                pixels = int(np.prod(layer.output.shape[1:3]))
            total += 2 * pixels * int(np.prod(kernel.shape)) / 1e6
    return total
