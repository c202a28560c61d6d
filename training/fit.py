"""Fitting the autoencoder: Adam, mean squared error, every epoch a new order of the images.

Rules: images stay uint8 and become float32 a batch at a time; the same seed gives the same order and the same
initial weights; timing the machine beforehand leaves both as they were; a fit that goes on after an interruption has
the weights of one that was not interrupted. Import after select_backend().
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow
from numpy.typing import NDArray

from training.corruptions import Corruption, unchanged
from training.images import Images, parts
from training.model import to_pixels
from training.progress import History, Progress
from training.saved_fit import Saved, Standing
from worker.core.errors import ConfigurationError

TIMED_STEPS = 5
ALL_EPOCHS = "all epochs"
OUT_OF_TIME = "the time budget"


def make_repeatable(seed: int) -> None:
    """The same seed gives the same weights on the same machine.

    On CPUs TensorFlow's kernels do that by themselves. On GPUs some add up in the order in which threads finish,
    unless they are told not to.
    """
    keras.utils.set_random_seed(seed)
    if tensorflow.config.list_physical_devices("GPU"):
        tensorflow.config.experimental.enable_op_determinism()


def compile_autoencoder(autoencoder: Any, learning_rate: float = 1e-3, decay_steps: int | None = None) -> None:
    """Give the autoencoder its optimiser (Adam) and its loss (mean squared error), and build both.

    With `decay_steps` the learning rate falls to 0 within so many, along half a cosine.
    """
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, decay_steps) if decay_steps else learning_rate
    optimizer = keras.optimizers.Adam(rate)
    autoencoder.compile(optimizer=optimizer, loss="mse")
    optimizer.build(autoencoder.trainable_variables)


def seconds_per_step(autoencoder: Any, images: Images, batch_size: int, corrupt: Corruption = unchanged) -> float:
    """How long a step takes on this machine; weights and optimiser are afterwards what they were.

    Args:
        autoencoder: compiled by compile_autoencoder().
        images: uint8 (n, H, W, C).
        batch_size: of a step.
        corrupt: what the autoencoder is to undo; it is timed as well.
    """
    variables = variables_of(autoencoder)
    before = arrays_of(variables)
    rng = np.random.default_rng(0)

    def step() -> None:
        pixels = to_pixels(images[:batch_size])
        autoencoder.train_on_batch(corrupt(pixels, rng), pixels)

    step()  # traces it, which takes longer than the step
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        step()
    seconds = (time.perf_counter() - start) / TIMED_STEPS
    assign(variables, before)
    autoencoder.reset_metrics()
    return seconds


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Steps for one pass over `count` images; the last one may be smaller."""
    return -(-count // batch_size)


def fit_autoencoder(
    autoencoder: Any,
    images: Images,
    validation: Images,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Progress,
    corrupt: Corruption = unchanged,
    patience: int | None = None,
    budget_s: float | None = None,
    saved: Saved | None = None,
    save: Callable[[Saved], None] | None = None,
) -> History:
    """Fit to normal images.

    Args:
        autoencoder: compiled by compile_autoencoder().
        images: uint8 (n, H, W, C), to fit.
        validation: uint8 (m, H, W, C), to validate after each epoch: distorted alike each time, and restored.
        epochs: passes over the images.
        batch_size: images per step.
        seed: of the order.
        progress: told of every step and epoch.
        corrupt: what the autoencoder is to undo.
        patience: after so many epochs without a lower validation loss there are no more, and the network is that of
            the epoch with the lowest one. None: all epochs, and the network is that of the last.
        budget_s: seconds; no epoch is begun that would end after them. None: no limit.
        saved: from where to go on; None: from the start.
        save: told after every epoch from where to go on.

    Raises:
        ConfigurationError: the loss is no longer finite.
    """
    order = np.random.default_rng(seed)
    standing, best = Standing(epochs), []
    if saved is not None:
        standing, best = replace(saved.standing), list(saved.best)
        assign(variables_of(autoencoder), saved.variables)
        order.bit_generator.state = standing.generator
    steps = steps_per_epoch(len(images), batch_size)
    start = time.monotonic() - standing.seconds
    while not standing.ended:
        epoch = len(standing.loss) + 1
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
        standing.loss.append(loss)
        standing.validation_loss.append(_validation_loss(autoencoder, validation, batch_size, corrupt, seed))
        standing.best = int(np.argmin(standing.validation_loss)) + 1
        standing.seconds = time.monotonic() - start
        standing.ended = _ended(standing, patience, budget_s)
        if patience is not None and standing.best == epoch:
            best = arrays_of(autoencoder.variables)
        if save is not None:
            standing.generator = dict(order.bit_generator.state)
            save(Saved(standing, arrays_of(variables_of(autoencoder)), best))
        # Now, not before: an epoch that was shown is not lost.
        progress.epoch(epoch, standing.loss[-1], standing.validation_loss[-1])
    kept = standing.best if patience is not None else len(standing.loss)
    if kept != len(standing.loss):
        assign(autoencoder.variables, best)
    return History(
        tuple(standing.loss), tuple(standing.validation_loss), standing.seconds, kept=kept, ended=standing.ended
    )


def variables_of(autoencoder: Any) -> list[Any]:
    """All that a step changes."""
    return [*autoencoder.variables, *autoencoder.optimizer.variables]


def arrays_of(variables: list[Any]) -> list[NDArray[Any]]:
    """Copies of their values."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def assign(variables: list[Any], arrays: Any) -> None:
    """Give the variables these values."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _ended(standing: Standing, patience: int | None, budget_s: float | None) -> str:
    """Why there is no further epoch, in words; empty: there is one."""
    done = len(standing.loss)
    if done >= standing.epochs:
        return ALL_EPOCHS
    if patience is not None and done - standing.best >= patience:
        return f"{patience} epochs without a lower validation loss"
    if budget_s is not None and standing.seconds * (done + 1) / done > budget_s:
        return OUT_OF_TIME
    return ""


def _validation_loss(autoencoder: Any, images: Images, batch_size: int, corrupt: Corruption, seed: int) -> float:
    """The mean loss over images, distorted alike at every call, without learning from them."""
    mean = _Mean()
    rng = np.random.default_rng((seed, 1))
    for part in parts(images, batch_size):
        pixels = to_pixels(part)
        mean.add(_batch_loss(autoencoder, autoencoder.test_on_batch, corrupt(pixels, rng), pixels), len(pixels))
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
