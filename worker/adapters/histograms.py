"""Distributions as Prometheus' histograms, fed a batch at a time, and where their buckets lie."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

RATIO_EDGES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
BATCH_EDGES = tuple(float(1 << power) for power in range(13))
DURATION_EDGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Up to an hour: after an outage the backlog's latency is the length of the outage.
LATENCY_EDGES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Histogram:
    """Counts of values by bucket; a value equal to an edge belongs below it. Not thread-safe.

    Args:
        edges: (E,), ascending, finite; the bucket above the last is added.
    """

    def __init__(self, edges: ArrayLike) -> None:
        self._edges = np.asarray(edges, np.float64)
        self._names = [*map(repr, self._edges.tolist()), "+Inf"]
        self._counts = np.zeros(len(self._names), np.int64)
        self._sum = 0.0

    def observe(self, values: ArrayLike) -> None:
        """Count values, (N,) or a single one."""
        array = np.atleast_1d(np.asarray(values))
        self._counts += np.bincount(np.searchsorted(self._edges, array, side="left"), minlength=len(self._names))
        self._sum += float(array.sum(dtype=np.float64))

    def samples(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper edge, and the sum of all values."""
        return list(zip(self._names, self._counts.cumsum().tolist(), strict=True)), self._sum


def bucket_edges(quantiles: Iterable[float], threshold: float | None = None) -> NDArray[np.float64]:
    """Edges that resolve the calibration's range, and reach beyond it on both sides.

    Below: the smallest divided by 2, 4 and 8, where it is positive (a defocused camera makes every error a
    fraction of itself). Above: up to 16 times the calibration's width past its largest.

    Returns:
        float64 (E,), ascending, each exactly a float32, so that they compare with scores as the threshold does.
    """
    marks = sorted(
        {float(np.float32(mark)) for mark in quantiles} | ({threshold} if threshold is not None else set())
    )
    if not marks:
        return np.empty(0)
    low, high = marks[0], marks[-1]
    below = [low / divisor for divisor in (8, 4, 2)] if low > 0 else []
    above = [high + (high - low) * factor for factor in (0.5, 1, 2, 4, 8, 16)]
    limit = float(np.finfo(np.float32).max)
    edges = [edge for edge in (*below, *marks, *above) if abs(edge) <= limit]
    return np.unique(np.array(edges, np.float32)).astype(np.float64)
