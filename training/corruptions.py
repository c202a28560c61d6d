"""What is done to an image before the autoencoder is to restore it.

An autoencoder that is to return what it was given learns to copy, faults included. One that is to undo a distortion
has to know what normal images look like (Vincent et al., "Extracting and Composing Robust Features with Denoising
Autoencoders", ICML 2008; restoring geometry: Ye et al., "Attribute Restoration Framework for Anomaly Detection", IEEE
Transactions on Multimedia 24, 2022).

Rules: float32 (N, H, W, C) in [0, 1] comes and goes, what is given stays as it was; everything random comes from the
generator; nothing is known of anomalies.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
Corruption = Callable[[Pixels, np.random.Generator], Pixels]

ROTATION = 35.0
"""Degrees, to either side."""
SHEAR = 0.3
SCALE = 0.2
SHIFT = 2 / 28
"""Of the image's height and width."""
ERASED = (1 / 7, 3 / 7)
"""The least and the most of the image's height, and of its width, that is erased."""


def unchanged(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Nothing is done."""
    del rng
    return pixels


def affine(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Turn, shear, scale and shift each image at random; what comes in from outside is its border, repeated.

    Each of them is uniform between -1 and 1 times ROTATION, SHEAR, SCALE and SHIFT.
    """
    count, height, width, _ = pixels.shape
    angle, shear, wide, high, right, down = rng.uniform(-1, 1, (count, 6)).T
    angle = np.deg2rad(ROTATION) * angle
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(count, 2, 2)
    zero, one = np.zeros(count), np.ones(count)
    slant = np.stack([one, SHEAR * shear, zero, one], axis=1).reshape(count, 2, 2)
    stretch = np.stack([1 + SCALE * wide, zero, zero, 1 + SCALE * high], axis=1).reshape(count, 2, 2)
    linear = turn @ slant @ stretch
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = centre + SHIFT * np.stack([width * right, height * down], axis=1) - linear @ centre
    matrices = np.concatenate([linear, offset[:, :, None]], axis=2)
    found = np.empty_like(pixels)
    for image, matrix, out in zip(pixels, matrices, found, strict=True):
        moved = cv2.warpAffine(
            image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        out[...] = moved.reshape(out.shape)
    return found


def quarter_turns(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Turn each image by 0, 90, 180 or 270 degrees; one that is not square by 0 or 180.

    For what has an up and a down: of what looks the same when it is turned, nothing is to be learned (the rotation of
    Ye et al., see above).
    """
    count, height, width, _ = pixels.shape
    step = 1 if height == width else 2
    turns = (step * rng.integers(0, 4 // step, count)).astype(int)
    return np.stack([np.rot90(image, int(turn)) for image, turn in zip(pixels, turns, strict=True)])


def erased(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Set a rectangle of each image to a random grey, or colour (Zhong et al., "Random Erasing", AAAI 2020).

    For what must be whole: the network has to know what belongs there.
    """
    found = pixels.copy()
    count, height, width, channels = pixels.shape
    sizes = np.rint(rng.uniform(*ERASED, (count, 2)) * (height, width)).astype(int)
    corners = (rng.random((count, 2)) * ((height, width) - sizes + 1)).astype(int)
    greys = rng.random((count, channels), np.float32)
    for image, (tall, wide), (top, left), grey in zip(found, sizes, corners, greys, strict=True):
        image[top : top + tall, left : left + wide] = grey
    return found


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {"none": unchanged, "affine": affine, "quarter-turns": quarter_turns, "erased": erased}
)
"""By name, as `--corruption` takes it."""
