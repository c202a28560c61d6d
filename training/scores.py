"""How a score comes from what the autoencoder makes of an image.

Rules: keras.ops and plain layers only, so that any backend loads it in Keras's safe mode; scores are float32, above
zero and larger for stranger images; what is fitted here is fitted on normal images. The layers' names begin with
SCORE_LAYER: they stay float32 where the network itself is computed in bfloat16. Import after select_backend().
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from worker.adapters.engines import SCORE_LAYER
from worker.core.bundle import ScoreDefinition

COMPONENTS = 8
# So many images for each component, or its covariance would be a guess.
IMAGES_PER_COMPONENT = 400
# Of the whitened features, whose variance is 1.
REGULARISATION = 1e-2
TINY = 1e-8


@dataclass(frozen=True)
class Score:
    """A score's definition, as the manifest has it, and its graph.

    Attributes:
        definition: name and pooling.
        of: squared differences (N, H, W, C), mean squared error (N,) and latent (N, L) as Keras tensors to the score
            (N,).
    """

    definition: ScoreDefinition
    of: Callable[[Any, Any, Any], Any]


MEAN_SQUARED_ERROR = Score(ScoreDefinition(name="mse", pooling="mean"), lambda _squared, error, _latent: error)
"""The tutorial's: the reconstruction error itself."""


def largest_spot(side: int = 5) -> Score:
    """The root of the largest mean over a square of `side` pixels of the squared differences.

    The mean over an image does not see a scratch that 40 of its 65,536 pixels show; the largest local mean does
    (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129, 2021: image scores as the maximum of
    the anomaly map).
    """

    def of(squared: Any, error: Any, latent: Any) -> Any:
        del error, latent
        by_pixel = ops.mean(squared, axis=3, keepdims=True)
        local = ops.average_pool(by_pixel, side, strides=1, padding="valid")
        return ops.sqrt(ops.max(local, axis=(1, 2, 3)) + TINY)

    return Score(ScoreDefinition("root_mse", f"max_of_mean_{side}x{side}"), of)


def mixture_density(latents: NDArray[np.float32], errors: NDArray[np.float32], seed: int) -> Score:
    """How thinly populated the place is that an image has among normal ones: of its latent and its log error.

    A mixture of K Gaussians (Dempster, Laird & Rubin 1977) is fitted to x = (latent, log error) of normal images.
    With weights p, means m and covariances S the density at x is sum_k p_k N(x; m_k, S_k). The score is

        -log sum_k w_k exp(-d_k^2 / 2),    d_k^2 = (x - m_k)' S_k^-1 (x - m_k),    w_k = c p_k |S_k|^(-1/2)

    with c such that the w sum to 1: the negative log density up to a constant that makes it 0 at best. With one
    component it is half the squared Mahalanobis distance (Lee et al., "A Simple Unified Framework for Detecting
    Out-of-Distribution Samples", NeurIPS 2018, equation 2).

    Args:
        latents: float32 (n, L), of normal images.
        errors: float32 (n,), their mean squared errors.
        seed: of the fit.
    """
    features = np.column_stack([latents, np.log(errors + TINY)]).astype(np.float64)
    mean, size = features.mean(axis=0), features.shape[1]
    covariance = np.atleast_2d(np.cov(features, rowvar=False))
    whitening = np.linalg.cholesky(np.linalg.inv(covariance + 1e-4 * np.trace(covariance) / size * np.eye(size)))
    components = int(np.clip(len(features) // IMAGES_PER_COMPONENT, 1, COMPONENTS))
    mixture = GaussianMixture(components, reg_covar=REGULARISATION, random_state=seed)
    mixture.fit((features - mean) @ whitening)
    # y_k = (x - mean) W P_k - m_k P_k, with P_k P_k' = S_k^-1, so that d_k^2 is the sum of its squares.
    kernels = [whitening @ factor for factor in mixture.precisions_cholesky_]
    biases = [
        -centre @ factor - mean @ kernel
        for centre, factor, kernel in zip(mixture.means_, mixture.precisions_cholesky_, kernels, strict=True)
    ]
    weights = np.log(mixture.weights_) + [np.log(np.diag(factor)).sum() for factor in mixture.precisions_cholesky_]
    weights -= np.logaddexp.reduce(weights)

    def of(squared: Any, error: Any, latent: Any) -> Any:
        del squared
        features = ops.concatenate([latent, ops.log(ops.expand_dims(error, 1) + TINY)], axis=1)
        distances = _fixed("whiten", np.hstack(kernels), np.hstack(biases))(features)
        squares = ops.sum(ops.square(ops.reshape(distances, (-1, components, size))), axis=2)
        return -ops.logsumexp(_fixed("weigh", -0.5 * np.eye(components), weights)(squares), axis=1)

    return Score(ScoreDefinition("mixture_density", "mean"), of)


def _fixed(name: str, kernel: NDArray[np.float64], bias: NDArray[np.float64]) -> Any:
    """A dense layer with these weights, which nothing trains."""
    layer = layers.Dense(len(bias), name=SCORE_LAYER + name, trainable=False, dtype="float32")
    layer.build((None, len(kernel)))
    layer.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])
    return layer


def latents_and_errors(
    autoencoder: Any, images: NDArray[np.uint8], batch_size: int = 256
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Latents (n, L) and mean squared errors (n,) of images, uint8 (n, H, W, C)."""
    image = keras.Input(autoencoder.input_shape[1:], dtype="uint8")
    pixels = ops.cast(image, "float32") / 255
    out = keras.Model(autoencoder.input, [autoencoder.output, autoencoder.get_layer("latent").output])(pixels)
    error = ops.mean(ops.square(pixels - out[0]), axis=(1, 2, 3))
    latents, errors = keras.Model(image, [out[1], error]).predict(images, batch_size=batch_size, verbose=0)
    return latents, errors
