"""Drift: how far the newest images lie from the calibration's, on a scale that is the same for every bundle.

A live value's place in the calibration's distribution (its p-value, 0 to 1) is uniform over many images while nothing
has changed. The Kolmogorov-Smirnov distance of the places from uniform is 0 then, up to chance, and grows to 1
with any change, towards large and towards small values alike. By chance alone, with n images in the window and m in
the calibration, it exceeds 1.63 * sqrt(1/n + 1/m) once in 100 windows (Smirnov, *Table for estimating the goodness of
fit of empirical distributions*, Annals of Mathematical Statistics 19, 1948): 0.09 with 1000 and 500.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

WINDOW = 1000
# With fewer images in the window chance alone makes a distance of 0.2: none is given.
MIN_WINDOW = 100

Values = NDArray[np.float32]
Places = NDArray[np.float64]


def rank_places(calibration: NDArray[np.floating]) -> Callable[[Values], Places]:
    """Places among the calibration's values: the share below, and half of the share that is equal (mid-rank).

    Args:
        calibration: (n,), in any order, n > 0.
    """
    ordered = np.sort(calibration)

    def places(values: Values) -> Places:
        below = np.searchsorted(ordered, values, side="left")
        return (below + np.searchsorted(ordered, values, side="right")) / (2 * len(ordered))

    return places


def level_places(quantiles: Mapping[str, float]) -> Callable[[Values], Places]:
    """Places between the calibration's quantiles, by linear interpolation; 0 below the lowest, 1 above the highest.

    Args:
        quantiles: values by level ("0.5" is the median), as valid_quantiles() accepts them.
    """
    levels, marks = np.array(sorted((float(level), value) for level, value in quantiles.items())).T

    def places(values: Values) -> Places:
        # Where several levels have one value, the middle of what is reached from either side, as a mid-rank is.
        from_right = np.interp(values, marks, levels, left=0, right=1)
        from_left = np.interp(-values, -marks[::-1], levels[::-1], left=1, right=0)
        return np.asarray((from_left + from_right) / 2)

    return places


def valid_quantiles(quantiles: Mapping[str, float]) -> bool:
    """Whether there is at least one, by levels from 0 to 1, and all are finite float32."""
    try:
        levels = all(0 <= float(level) <= 1 for level in quantiles)
    except ValueError:
        return False
    limit = float(np.finfo(np.float32).max)
    return bool(quantiles) and levels and all(abs(value) <= limit for value in quantiles.values())


def distance_from_uniform(places: Places) -> float:
    """The Kolmogorov-Smirnov distance of (n,) places, n > 0, from the uniform distribution on 0 to 1.

    The greatest of i/n - p(i) and p(i) - (i-1)/n over the ordered places p(1) to p(n) (Knuth, *The Art of Computer
    Programming*, vol. 2, 3rd ed. 1997, section 3.3.1, equation 13, without its factor sqrt(n)).
    """
    ordered = np.sort(places)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


class Ring:
    """The newest values, at most `size` of them. Not thread-safe."""

    def __init__(self, size: int) -> None:
        self._values = np.empty(size, np.float32)
        self._next = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, values: Values) -> None:
        """Take in (N,) values, which replace the oldest."""
        size = len(self._values)
        values = values[-size:]
        first = values[: size - self._next]
        rest = values[len(first) :]
        self._values[self._next : self._next + len(first)] = first
        self._values[: len(rest)] = rest
        self._next = (self._next + len(values)) % size
        self._count = min(size, self._count + len(values))

    @property
    def values(self) -> Values:
        """The values, (n,), in no particular order."""
        return self._values[: self._count]


class Drift:
    """The distance of each quantity over a sliding window of images. Not thread-safe.

    Args:
        places: by quantity, what finds the places of its values in the calibration's distribution.
        window: how many images.
    """

    def __init__(self, places: Mapping[str, Callable[[Values], Places]], window: int = WINDOW) -> None:
        self._places = places
        self._rings = {quantity: Ring(window) for quantity in places}

    def add(self, quantity: str, values: Values) -> None:
        """Take in a batch's values, (N,); a quantity that the calibration does not have is passed over."""
        if (ring := self._rings.get(quantity)) is not None:
            ring.add(values)

    @property
    def images(self) -> int:
        """How many images the window holds."""
        return max(map(len, self._rings.values()), default=0)

    def distances(self) -> dict[str, float]:
        """The distance of each quantity, 0 to 1; none of one with fewer than MIN_WINDOW values. Some 0.1 ms."""
        return {
            quantity: distance_from_uniform(self._places[quantity](ring.values))
            for quantity, ring in self._rings.items()
            if len(ring) >= MIN_WINDOW
        }
