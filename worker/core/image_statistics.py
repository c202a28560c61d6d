"""Brightness and sharpness of images: whether the light or the focus has changed, whatever the model makes of it.

Rules: training and worker use this code, so that what was calibrated and what is live are the same figure; sums are
of integers, so that every machine computes the same.
"""

import math

import numpy as np
from numpy.typing import NDArray

# Of a large image so many values are read, and never fewer than so many rows.
MAX_VALUES = 1 << 11
MIN_ROWS = 8


def brightness_and_sharpness(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean of the values, and mean absolute difference of horizontal neighbours of one channel, both divided by 255.

    Of large images only every r-th row is read, from the first on, so that the cost stays small beside that of
    decoding: r is the smallest with which H / r is no more than MAX_VALUES / (W * C) rounded down, or MIN_ROWS where
    that is more. Up to 45 x 45 in grey the whole image is read.

    Args:
        images: uint8 (N, H, W, C).

    Returns:
        brightness and sharpness, float32 (N,), 0 to 1. The sharpness of images of one column is 0.
    """
    _, height, width, channels = images.shape
    rows = np.ascontiguousarray(images[:, :: math.ceil(height / max(MIN_ROWS, MAX_VALUES // (width * channels)))])
    # All values as one run, since short rows would cost three times as much; then a row's last has no neighbour.
    values = rows.reshape(-1)
    differences = np.zeros_like(rows)
    between = differences.reshape(-1)[:-channels]
    np.maximum(values[channels:], values[:-channels], out=between)
    between -= np.minimum(values[channels:], values[:-channels])
    differences[:, :, -1] = 0
    per_row = 255 * channels * rows.shape[1]
    return _sum(rows) / np.float32(per_row * width), _sum(differences) / np.float32(per_row * max(1, width - 1))


def _sum(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The sum over each image, (N,), rounded to float32 after it was added up."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    return np.asarray(flat.sum(axis=1, dtype=np.uint32), np.float32)
