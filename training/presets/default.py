"""The tutorial's layout, narrower, fitted and judged otherwise: a quarter of its cost to score an image.

The network is fitted to undo a random distortion of each image, so that its latent has to say what the image shows
and not only how to copy it (training.corruptions). And an image is judged by how rare its latent and its
reconstruction errors are together among normal images, under a mixture of Gaussians (training.scores.mixture_density,
whose docstring has the formula): an anomaly that is reconstructed well still lies where normal images do not, as in
Zong et al., "Deep Autoencoding Gaussian Mixture Model", ICLR 2018, equation 6.

On images above 32 pixels a fault may be small: there the layout grows in depth and not in width, so that compute
follows the number of pixels, and the largest local error is the score (training.scores.largest_spot).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.corruptions import affine
from training.presets.preset import LARGE, Preset
from training.scores import Score, largest_spot, mixture_density
from worker.core.errors import ConfigurationError

SMALLEST = 8
"""Pixels that height and width have at least; to no fewer are large images halved."""
WIDEST = 32
"""Filters of a layer, where images are large."""


def filters(shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Narrow ones up to 32 pixels; above, as many halvings as lead to SMALLEST pixels, narrow ones first.

    Raises:
        ConfigurationError: the images are smaller than what the errors are taken over.
    """
    if min(shape[:2]) < SMALLEST:
        raise ConfigurationError(
            f"data: the images are {shape[0]} x {shape[1]} pixels; this preset takes at least {SMALLEST} x "
            f"{SMALLEST}. --preset tutorial takes smaller ones, --height and --width resize the files of a folder."
        )
    if max(shape[:2]) <= LARGE:
        return 12, 32
    height, width, _ = shape
    halvings = 0
    while not (height | width) % (2 << halvings) and min(height, width) >> (halvings + 1) >= SMALLEST:
        halvings += 1
    # No wider: with twice the filters and a quarter of the pixels each deeper layer costs as much as the one before
    # it, and compute would grow faster than the pixels.
    return tuple(min(WIDEST, 8 << index) for index in range(max(2, halvings)))


def score(autoencoder: Any, images: NDArray[np.uint8], seed: int) -> Score:
    """By the images' size, see above."""
    if max(images.shape[1:3]) > LARGE:
        return largest_spot()
    return mixture_density(autoencoder, images, seed)


PRESET = Preset(
    name="default",
    filters=filters,
    corrupt=affine,
    score=score,
    epochs=20,
    learning_rate=2e-3,
    decay=True,
)
