"""Quantiles of what was calibrated: buckets of the worker's histograms, and what drift is measured against."""

import numpy as np
from numpy.typing import NDArray

from training.images import Images, parts
from worker.core.image_statistics import brightness_and_sharpness

MEASURED_AT_ONCE = 256
"""Images."""
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def quantiles(values: NDArray[np.float32]) -> dict[str, float]:
    """The QUANTILES of float32 (n,) values, by name ("0.5" is the median)."""
    levels = np.quantile(values.astype(np.float64), QUANTILES)
    return {f"{name:g}": float(level) for name, level in zip(QUANTILES, levels, strict=True)}


def image_quantiles(images: Images) -> dict[str, dict[str, float]]:
    """The quantiles of `brightness` and `sharpness` of images, uint8 (n, H, W, C), as the worker measures them."""
    measured = [brightness_and_sharpness(part) for part in parts(images, MEASURED_AT_ONCE)]
    brightness, sharpness = (np.concatenate(values) for values in zip(*measured, strict=True))
    return {"brightness": quantiles(brightness), "sharpness": quantiles(sharpness)}
