"""Finds where the anomalies of a batch are: reconstructs them, and searches their error maps.

Rules: anomalies alone are reconstructed, a few at a time, so that the cost is theirs and the memory bounded; whatever
goes wrong here costs a region, never a verdict.
"""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from worker.core.regions import ErrorMap, Located, error_maps, map_png, region_of
from worker.ports import Telemetry

log = logging.getLogger(__name__)

TOGETHER = 8

Reconstruct = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Images, uint8 (N, H, W, C), to their reconstructions, float32 of the same shape, in [0, 1]."""


class Localiser:
    """Locates what one model finds strange. Not thread-safe.

    Args:
        reconstruct: the model's.
        map_topic: where the error maps go; None: there are none.
        telemetry: counts images whose region could not be found.
    """

    def __init__(self, reconstruct: Reconstruct, *, map_topic: str | None, telemetry: Telemetry) -> None:
        self._reconstruct = reconstruct
        self._map_topic = map_topic
        self._telemetry = telemetry
        self._failing = False

    def locate(self, images: NDArray[np.uint8], advance: Callable[[], None]) -> list[Located | None]:
        """Locate each of `images`, uint8 (N, H, W, C); None where that failed.

        Args:
            images: the anomalies.
            advance: called after every few images.
        """
        found: list[Located | None] = []
        for start in range(0, len(images), TOGETHER):
            part = images[start : start + TOGETHER]
            try:
                found += self._locate(part)
            except Exception as error:  # noqa: BLE001 - a model raises whatever its backend raises
                found += [None] * len(part)
                self._telemetry.error_maps("failed", len(part))
                # One line per change of state.
                if not self._failing:
                    log.warning("anomalies have no region: %s: %s", type(error).__name__, error)
                self._failing = True
            else:
                self._failing = False
            advance()
        return found

    def _locate(self, images: NDArray[np.uint8]) -> list[Located]:
        maps = error_maps(images, self._reconstruct(images))
        if not np.isfinite(maps).all():
            raise ValueError("the model's reconstruction is not finite")
        regions = [region_of(each) for each in maps]
        if self._map_topic is None:
            return [Located(region, None) for region in regions]
        return [
            Located(region, ErrorMap(self._map_topic, map_png(each), region.peak))
            for region, each in zip(regions, maps, strict=True)
        ]
