"""Fitting the autoencoder: Adam, mean squared error, every epoch a new order of the images.

Rules: images stay uint8 and become float32 a batch at a time; the same seed gives the same order and the same
initial weights; timing the machine beforehand leaves both as they were. Import after select_backend().
"""

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from training.corruptions import Corruption, unchanged
from training.model import to_pixels
from training.progress import History, Progress
from worker.core.errors import ConfigurationError

TIMED_STEPS = 5


def compile_autoencoder(autoencoder: Any, learning_rate: float = 1e-3, decay_steps: int | None = None) -> None:
    """Give the autoencoder its optimiser (Adam) and its loss (mean squared error), and build both.

    With `decay_steps` the learning rate falls to 0 within so many, along half a cosine.
    """
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, decay_steps) if decay_steps else learning_rate
    optimizer = keras.optimizers.Adam(rate)
    autoencoder.compile(optimizer=optimizer, loss="mse")
    optimizer.build(autoencoder.trainable_variables)


def seconds_per_step(autoencoder: Any, images: NDArray[np.uint8], batch_size: int) -> float:
    """How long a step takes on this machine; weights and optimiser are afterwards what they were.

    Args:
        autoencoder: compiled by compile_autoencoder().
        images: uint8 (n, H, W, C).
        batch_size: of a step.
    """
    variables = [*autoencoder.variables, *autoencoder.optimizer.variables]
    before = [keras.ops.convert_to_numpy(variable) for variable in variables]
    pixels = to_pixels(images[:batch_size])
    autoencoder.train_on_batch(pixels, pixels)  # traces the step, which takes longer than the step
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        autoencoder.train_on_batch(pixels, pixels)
    seconds = (time.perf_counter() - start) / TIMED_STEPS
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    autoencoder.reset_metrics()
    return seconds


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Steps for one pass over `count` images; the last one may be smaller."""
    return -(-count // batch_size)


def fit_autoencoder(
    autoencoder: Any,
    images: NDArray[np.uint8],
    validation: NDArray[np.uint8],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Progress,
    corrupt: Corruption = unchanged,
) -> History:
    """Fit to normal images.

    Args:
        autoencoder: compiled by compile_autoencoder().
        images: uint8 (n, H, W, C), to fit.
        validation: uint8 (m, H, W, C), to validate after each epoch.
        epochs: passes over the images.
        batch_size: images per step.
        seed: of the order.
        progress: told of every step and epoch.
        corrupt: what the autoencoder is to undo; validation images stay as they are.

    Raises:
        ConfigurationError: the loss is no longer finite.
    """
    order = np.random.default_rng(seed)
    steps = steps_per_epoch(len(images), batch_size)
    losses: list[float] = []
    validation_losses: list[float] = []
    start = time.monotonic()
    for epoch in range(1, epochs + 1):
        shuffled = order.permutation(len(images))
        mean = _Mean()
        for step in range(steps):
            pixels = to_pixels(images[shuffled[step * batch_size : (step + 1) * batch_size]])
            given = corrupt(pixels, order)
            mean.add(_batch_loss(autoencoder, autoencoder.train_on_batch, given, pixels), len(pixels))
            progress.step(mean.value)
        loss = mean.value
        if not np.isfinite(loss):
            raise ConfigurationError(
                f"learning_rate: with the given one the loss is {loss} in epoch {epoch}; try a tenth of it."
            )
        losses.append(loss)
        validation_losses.append(_validation_loss(autoencoder, validation, batch_size))
        progress.epoch(epoch, losses[-1], validation_losses[-1])
    return History(tuple(losses), tuple(validation_losses), time.monotonic() - start)


def _validation_loss(autoencoder: Any, images: NDArray[np.uint8], batch_size: int) -> float:
    """The mean loss over images, without learning from them."""
    mean = _Mean()
    for start in range(0, len(images), batch_size):
        pixels = to_pixels(images[start : start + batch_size])
        mean.add(_batch_loss(autoencoder, autoencoder.test_on_batch, pixels, pixels), len(pixels))
    return mean.value


def _batch_loss(
    autoencoder: Any, run: Callable[..., Any], given: NDArray[np.float32], wanted: NDArray[np.float32]
) -> float:
    """The loss of this batch alone; releases of Keras differ in whether they go on averaging by themselves."""
    autoencoder.reset_metrics()
    return float(run(given, wanted, return_dict=True)["loss"])


class _Mean:
    """A mean over images of batches of different sizes."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def add(self, value: float, count: int) -> None:
        self._sum += value * count
        self._count += count

    @property
    def value(self) -> float:
        return self._sum / self._count
