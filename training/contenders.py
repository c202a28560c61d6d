"""What is compared: ways of fitting to normal images, and the baselines that need no network.

Rules: higher scores are more anomalous; a contender sees normal images only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

Images = NDArray[np.uint8]
Score = Callable[[Images], NDArray[np.floating]]

PCA_COMPONENTS = 32


@dataclass(frozen=True)
class Fitted:
    """What a contender makes of normal images: higher scores are more anomalous.

    Attributes:
        score: images uint8 (n, H, W, C) to scores (n,).
        mflop_per_image: see Result.
        error_map: images to their local errors (n, H, W), where it can tell them.
    """

    score: Score
    mflop_per_image: float | None = None
    error_map: Score | None = None


class Contender(Protocol):
    """A way of fitting."""

    @property
    def name(self) -> str:
        """Of the preset or baseline."""
        ...

    @property
    def epochs(self) -> int | None:
        """Of the fit, where they are not the preset's own."""
        ...

    @property
    def anomalies(self) -> float:
        """The share of anomalies among the images that it is to be given as normal ones; 0 to 1."""
        ...

    def fit(self, images: Images, seed: int) -> Fitted:
        """Fit to normal images, uint8 (n, H, W, C)."""
        ...


class PcaReconstruction:
    """The squared distance to the plane of the first PCA_COMPONENTS principal components, of pixels in [0, 1].

    It is the Q statistic of Jackson & Mudholkar, "Control Procedures for Residuals Associated With Principal
    Component Analysis", Technometrics 21, 1979.
    """

    name = "pca"
    epochs = None
    anomalies = 0.0

    def fit(self, images: Images, seed: int) -> Fitted:
        """Fit to normal images, uint8 (n, H, W, C)."""
        pca = PCA(min(PCA_COMPONENTS, len(images)), random_state=seed).fit(_flat(images))

        def score(images: Images) -> NDArray[np.floating]:
            pixels = _flat(images)
            return np.asarray(np.mean(np.square(pixels - pca.inverse_transform(pca.transform(pixels))), axis=1))

        return Fitted(score)


class NearestNeighbour:
    """The distance to the nearest normal image, pixel by pixel."""

    name = "1-nn"
    epochs = None
    anomalies = 0.0

    def fit(self, images: Images, seed: int) -> Fitted:
        """Keep the normal images, uint8 (n, H, W, C); nothing is random."""
        del seed
        neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_flat(images))
        return Fitted(lambda images: np.asarray(neighbours.kneighbors(_flat(images))[0][:, 0]))


BASELINES: Sequence[Contender] = (PcaReconstruction(), NearestNeighbour())


def _flat(images: Images) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
