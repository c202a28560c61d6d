"""The tutorial's convolutional autoencoder, and the scorer around it.

Rules: the scorer holds all preprocessing and pooling, so that training and serving cannot differ; keras.ops
only, no Lambda, so that any backend loads it in Keras's safe mode. Import after select_backend().
"""

from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from worker.core.errors import ConfigurationError

FILTERS = (32, 64)
REDUCTION = 2 ** len(FILTERS)


def build_autoencoder(input_shape: tuple[int, int, int], latent_size: int = 32) -> Any:
    """An untrained autoencoder: float32 (N, H, W, C) in [0, 1] to its reconstruction, of the same shape.

    Encoder: Conv2D 32 and 64 (3x3, stride 2, relu), Dense `latent_size`. Decoder: Dense relu to the last
    convolution's size, Conv2DTranspose 64 and 32 (3x3, stride 2, relu), Conv2D C (3x3, sigmoid).

    Raises:
        ConfigurationError: height or width is not divisible by 4, which the two strides need.
    """
    height, width, channels = input_shape
    if height % REDUCTION or width % REDUCTION or channels not in {1, 3}:
        raise ConfigurationError(
            f"data: the images are {height} x {width} x {channels}; expected height and width divisible by "
            f"{REDUCTION}, and 1 or 3 channels. The settings height and width resize the files of a folder."
        )
    reduced = (height // REDUCTION, width // REDUCTION, FILTERS[-1])
    image = keras.Input(input_shape, name="pixels")
    x = image
    for index, filters in enumerate(FILTERS):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu", name=f"encode_{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(latent_size, name="latent")(x)
    x = layers.Dense(reduced[0] * reduced[1] * reduced[2], activation="relu", name="expand")(x)
    x = layers.Reshape(reduced, name="reshape")(x)
    for index, filters in enumerate(reversed(FILTERS)):
        x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", activation="relu", name=f"decode_{index}")(
            x
        )
    x = layers.Conv2D(channels, 3, padding="same", activation="sigmoid", name="reconstruction")(x)
    return keras.Model(image, x, name="autoencoder")


def build_scorer(autoencoder: Any) -> Any:
    """The model that a bundle holds; it shares the autoencoder's weights.

    Input `image` uint8 (N, H, W, C). Outputs `error` float32 (N,), the mean squared difference between pixels
    in [0, 1] and their reconstruction; `score`, here the error itself; `reconstruction` float32 (N, H, W, C).
    """
    image = keras.Input(autoencoder.input_shape[1:], dtype="uint8", name="image")
    pixels = ops.cast(image, "float32") / 255
    reconstruction = autoencoder(pixels)
    error = ops.mean(ops.square(pixels - reconstruction), axis=(1, 2, 3))
    return keras.Model(image, {"score": error, "error": error, "reconstruction": reconstruction}, name="scorer")


def to_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images uint8 (N, H, W, C) as the autoencoder takes them: the scorer's own first step, in numpy."""
    return images.astype(np.float32) / np.float32(255)
