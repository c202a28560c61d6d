"""How a score comes from what the autoencoder makes of an image.

Rules: keras.ops and plain layers only, so that any backend loads it in Keras's safe mode; scores are float32, above
zero and larger for stranger images; what is fitted here is fitted on normal images. The layers' names begin with
SCORE_LAYER: they stay float32 where the network itself is computed in bfloat16. Import after select_backend().
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray
from scipy import special
from sklearn.mixture import GaussianMixture

from worker.adapters.engines import SCORE_LAYER
from worker.core.bundle import ScoreDefinition

COMPONENTS = 16
FITS = 4
# So many images for each component, or its covariance would be a guess.
IMAGES_PER_COMPONENT = 300
# Of the whitened features, whose variance is 1.
REGULARISATION = 0.1
SMOOTHINGS = 3
SPOT = 5
"""Pixels of the side of the square in which the largest local error is looked for."""
TOP_SHARE = 0.002
"""Of the pixels of an image, those that largest_share() looks at."""
TINY = 1e-8


@dataclass(frozen=True)
class Score:
    """A score's definition, as the manifest has it, and its graph.

    Attributes:
        definition: name and pooling.
        of: differences between pixels and reconstruction (N, H, W, C), mean squared error (N,) and latent (N, L) as
            Keras tensors to the score (N,).
    """

    definition: ScoreDefinition
    of: Callable[[Any, Any, Any], Any]


MEAN_SQUARED_ERROR = Score(ScoreDefinition(name="mse", pooling="mean"), lambda _difference, error, _latent: error)
"""The tutorial's: the reconstruction error itself."""


def largest_spot() -> Score:
    """The root of the largest mean over a square of SPOT pixels of the squared differences.

    The mean over an image does not see a scratch that 40 of its 65,536 pixels show; the largest local mean does
    (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129, 2021: image scores as the maximum of
    the anomaly map).
    """

    def of(difference: Any, error: Any, latent: Any) -> Any:
        del error, latent
        return ops.sqrt(_largest_local_error(difference) + TINY)

    return Score(ScoreDefinition("root_mse", f"max_of_mean_{SPOT}x{SPOT}"), of)


def largest_share() -> Score:
    """The root of the mean of the TOP_SHARE largest squared differences, means over the channels, of an image.

    As largest_spot() it sees a fault that few pixels show, also one in many places; of a single noisy pixel it sees
    more.
    """

    def of(difference: Any, error: Any, latent: Any) -> Any:
        del error, latent
        by_pixel = ops.mean(ops.square(difference), axis=3)
        pixels = by_pixel.shape[1] * by_pixel.shape[2]
        largest, _ = ops.top_k(ops.reshape(by_pixel, (-1, pixels)), max(1, round(TOP_SHARE * pixels)), sorted=False)
        return ops.sqrt(ops.mean(largest, axis=1) + TINY)

    return Score(ScoreDefinition("root_mse", f"mean_of_largest_{100 * TOP_SHARE:g}_percent"), of)


@dataclass(frozen=True)
class Mixture:
    """Gaussians over features, see mixture_density().

    Attributes:
        kernels, biases: (K, F, F) and (K, F): d_k is the length of x kernels_k + biases_k.
        log_weights: (K,), of the w.
    """

    kernels: NDArray[np.float64]
    biases: NDArray[np.float64]
    log_weights: NDArray[np.float64]


def mixture_density(autoencoder: Any, images: NDArray[np.uint8], seed: int) -> Score:
    """How thinly populated the place is that an image has among normal ones: of its latent and its errors.

    A mixture of K Gaussians is fitted to the features x of normal images, see _features(). With weights p, means m
    and covariances S the density at x is sum_k p_k N(x; m_k, S_k). The score is

        -log sum_k w_k exp(-d_k^2 / 2),    d_k^2 = (x - m_k)' S_k^-1 (x - m_k),    w_k = c p_k |S_k|^(-1/2)

    with c such that the w sum to 1: the negative log density up to a constant that makes it 0 at best. With one
    component it is half the squared Mahalanobis distance (Lee et al., "A Simple Unified Framework for Detecting
    Out-of-Distribution Samples", NeurIPS 2018, equation 2). Several errors beside the latent: as in Zong et al.,
    "Deep Autoencoding Gaussian Mixture Model", ICLR 2018, equations 1 to 3.

    Args:
        autoencoder: fitted.
        images: uint8 (n, H, W, C), normal.
        seed: of the mixture's fit.
    """
    mixture = fit_mixture(features_of(autoencoder, images), seed)
    count, size = mixture.biases.shape

    def of(difference: Any, error: Any, latent: Any) -> Any:
        whiten = _fixed("whiten", np.hstack(list(mixture.kernels)), mixture.biases.ravel())
        distances = whiten(_features(difference, error, latent))
        squares = ops.sum(ops.square(ops.reshape(distances, (-1, count, size))), axis=2)
        return -ops.logsumexp(_fixed("weigh", -0.5 * np.eye(count), mixture.log_weights)(squares), axis=1)

    return Score(ScoreDefinition("mixture_density", "mean"), of)


POOLINGS: Mapping[str, Callable[[], Score]] = MappingProxyType(
    {"mean": lambda: MEAN_SQUARED_ERROR, "largest-share": largest_share, "largest-spot": largest_spot}
)
"""By name, as `--pooling` takes it."""


def fit_mixture(features: NDArray[np.floating], seed: int, components: int = COMPONENTS) -> Mixture:
    """Fit Gaussians to features (n, F): FITS times at most `components`, fewer where there are too few rows.

    Expectation maximisation (Dempster, Laird & Rubin 1977) ends in one of many optima; the mean of some of their
    densities is better than one of them (Ormoneit & Tresp, "Improved Gaussian Mixture Density Estimates Using
    Bayesian Penalty Terms and Network Averaging", NIPS 1995).
    """
    values = features.astype(np.float64)
    mean, size = values.mean(axis=0), values.shape[1]
    covariance = np.atleast_2d(np.cov(values, rowvar=False))
    whitening = np.linalg.cholesky(np.linalg.inv(covariance + 1e-4 * np.trace(covariance) / size * np.eye(size)))
    count = int(np.clip(len(values) // IMAGES_PER_COMPONENT, 1, components))
    white = (values - mean) @ whitening
    kernels, biases, weights = [], [], []
    # Of one component there is one optimum.
    for state in np.random.SeedSequence(seed).generate_state(FITS if count > 1 else 1):
        found = GaussianMixture(count, reg_covar=REGULARISATION, tol=1e-2, max_iter=200, random_state=int(state))
        found.fit(white)
        # d_k is the length of (x - mean) W P_k - m_k P_k, with P_k P_k' = S_k^-1.
        for weight, centre, factor in zip(found.weights_, found.means_, found.precisions_cholesky_, strict=True):
            kernels.append(whitening @ factor)
            biases.append(-centre @ factor - mean @ kernels[-1])
            weights.append(np.log(weight) + np.log(np.diag(factor)).sum())
    return Mixture(np.stack(kernels), np.stack(biases), np.asarray(weights) - special.logsumexp(weights))


def features_of(autoencoder: Any, images: NDArray[np.uint8], batch_size: int = 256) -> NDArray[np.float32]:
    """What mixture_density() looks at, float32 (n, F), of images, uint8 (n, H, W, C)."""
    image = keras.Input(autoencoder.input_shape[1:], dtype="uint8")
    _, difference, error, latent = restored(autoencoder, image)
    features = _features(difference, error, latent)
    return np.asarray(keras.Model(image, features).predict(images, batch_size=batch_size, verbose=0))


def restored(autoencoder: Any, image: Any) -> tuple[Any, Any, Any, Any]:
    """What the autoencoder makes of images, a Keras tensor uint8 (N, H, W, C), of which all scores are made.

    Returns:
        reconstruction (N, H, W, C) in [0, 1], pixels less reconstruction (N, H, W, C), mean squared error (N,) and
        latent (N, L).
    """
    pixels = ops.cast(image, "float32") / 255
    outputs = [autoencoder.output, autoencoder.get_layer("latent").output]
    reconstruction, latent = keras.Model(autoencoder.input, outputs, name="autoencoder")(pixels)
    difference = pixels - reconstruction
    return reconstruction, difference, ops.mean(ops.square(difference), axis=(1, 2, 3)), latent


def _features(difference: Any, error: Any, latent: Any) -> Any:
    """The latent, and logarithms of errors that say how large the differences are and what they are like.

    Of the differences themselves and of their running means over 3, 5 and 7 pixels, which noise does not survive
    and a missing stroke does; of the largest local error; of the edges in the differences.
    """
    errors = [error]
    smooth = difference
    for _ in range(SMOOTHINGS):
        smooth = _running_mean(smooth, 3)
        errors.append(ops.mean(ops.square(smooth), axis=(1, 2, 3)))
    errors.append(_largest_local_error(difference))
    across = ops.square(difference[:, :, 1:] - difference[:, :, :-1])
    down = ops.square(difference[:, 1:] - difference[:, :-1])
    errors.append(ops.mean(across, axis=(1, 2, 3)) + ops.mean(down, axis=(1, 2, 3)))
    return ops.concatenate([latent, ops.log(ops.stack(errors, axis=1) + TINY)], axis=1)


def _largest_local_error(difference: Any) -> Any:
    """The largest mean over a square of SPOT pixels of the squared differences (N, H, W, C), as (N,)."""
    by_pixel = ops.mean(ops.square(difference), axis=3, keepdims=True)
    return ops.max(_running_mean(by_pixel, SPOT), axis=(1, 2, 3))


def _running_mean(values: Any, side: int) -> Any:
    """The mean over each square of `side` pixels that lies within the image, of (N, H, W, C).

    Sums of shifted images, by rows and then by columns: TensorFlow's average pooling is slow on a CPU where there are
    few channels.
    """
    height, width = values.shape[1:3]
    rows = sum(values[:, shift : height - side + 1 + shift] for shift in range(side))
    columns = sum(rows[:, :, shift : width - side + 1 + shift] for shift in range(side))
    return columns / side**2


def _fixed(name: str, kernel: NDArray[np.float64], bias: NDArray[np.float64]) -> Any:
    """A dense layer with these weights, which nothing trains."""
    layer = layers.Dense(len(bias), name=SCORE_LAYER + name, trainable=False, dtype="float32")
    layer.build((None, len(kernel)))
    layer.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])
    return layer
