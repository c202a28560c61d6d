"""The bundle's model behind the Scorer port, on TensorFlow (the default), JAX or OpenVINO: see engines.

Rules: batches are padded to a few fixed sizes, each traced and run once by warm_up(), so that no batch of a
running worker ever traces; the reconstruction is not among the outputs that leave the device unless asked
for; what the manifest says of weights, backend and golden images is checked before anything is scored.

Import this module lazily: it takes seconds, because it imports Keras. Call select_backend() before.
"""

import contextlib
import hashlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.adapters.engines import (
    Compiled,
    check_serving,
    compile_model,
    device,
    import_openvino,
    keras_backend,
    prepare_device,
)
from worker.core.bundle import Bundle, Serving, scores_agree
from worker.core.errors import BundleError, ScorerBroken, Unreadable
from worker.core.images import decode

log = logging.getLogger(__name__)

SMALLEST_BATCH = 8
IDLE = ("sklearn", "matplotlib", "pydot", "jax")
"""Where they are installed, Keras and TensorFlow import them, for functions that nobody here calls: as long again."""

__all__ = ["KerasScorer", "batch_sizes", "golden_check", "prepare_device", "select_backend", "verify_golden"]


def select_backend(backend: str) -> None:
    """Import Keras for a backend of engines.BACKENDS. Before anything else in this process imports it.

    Raises:
        BundleError: the backend is unknown or not installed, or Keras runs on another one already.
    """
    name = keras_backend(backend)
    if backend == "openvino":
        import_openvino()  # first: where it is missing, that is known before TensorFlow was imported
    os.environ.setdefault("KERAS_BACKEND", name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Or JAX takes most of a GPU's memory when it first sees it; TensorFlow's counterpart is in prepare_device().
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        # Only for the import itself: a reload must not divert what other threads log meanwhile.
        with _first_import(backend) if "keras" not in sys.modules else contextlib.nullcontext():
            import keras  # noqa: PLC0415 - takes seconds, and only after the environment was set
    except ImportError as error:
        raise BundleError(f"the bundle wants the Keras backend '{name}'; it is not installed: {error}") from error
    if keras.backend.backend() != name:
        raise BundleError(
            f"Keras runs on '{keras.backend.backend()}' in this process, the bundle wants '{name}'; "
            "unset KERAS_BACKEND, or start another process."
        )


@contextlib.contextmanager
def _first_import(backend: str) -> Iterator[None]:
    """Keep IDLE out, log what libraries write to file descriptor 2, and let Ctrl-C wait until they are imported.

    TensorFlow writes notices there before any setting of its own can stop it; among JSON lines they would break
    whatever reads the log. An import that is interrupted half-way was seen to end in a segmentation fault.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _notices_to_log(), _hidden(*(name for name in IDLE if name != backend)):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Let the import of these fail, unless they are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import of it fails
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextlib.contextmanager
def _notices_to_log() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            notices.seek(0)
            for line in notices.read().decode(errors="replace").splitlines():
                log.debug("while importing: %s", line)


def batch_sizes(capacity: int) -> tuple[int, ...]:
    """The padded sizes, ascending: halves of `capacity` down to 8, so that padding at most doubles a batch."""
    sizes = [capacity]
    while sizes[-1] // 2 >= SMALLEST_BATCH:
        sizes.append(sizes[-1] // 2)
    return tuple(reversed(sizes))


def weights_sha256(model: Any) -> str:
    """SHA-256 over dtype, shape and bytes of every weight array, in the model's order.

    Saving the same model twice gives different files; this hash is the same.
    """
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class KerasScorer:
    """Scores batches with a Keras model whose interface is that of a bundle's scorer.

    Args:
        model: input uint8 (N, H, W, C); outputs `score`, `error` float32 (N,), `reconstruction` (N, H, W, C).
        batch_capacity: the largest batch that score() takes.
        serving: what runs it, and in which precision; None: Keras's own backend, in float32.
    """

    def __init__(self, model: Any, batch_capacity: int = 256, serving: Serving | None = None) -> None:
        import keras  # noqa: PLC0415 - takes seconds, and only after select_backend

        self._serving = serving or Serving("float32", keras.backend.backend())
        self._model = model
        self._capacity = batch_capacity
        self._sizes = batch_sizes(batch_capacity)
        self._shape: tuple[int, int, int] = tuple(model.inputs[0].shape[1:])
        self._compiled = compile_model(model, self._shape, ("score", "error"), self._sizes, self._serving)
        self._reconstruct: Compiled | None = None

    @classmethod
    def load(cls, bundle: Bundle, batch_capacity: int = 256) -> "KerasScorer":
        """Load a verified bundle's model, and verify what can only be seen now.

        Raises:
            BundleError: interface or weights are not what the manifest says, this machine does not have what it
                was calibrated with, or a golden image scores differently.
        """
        manifest = bundle.manifest
        select_backend(manifest.serving.backend)
        check_serving(manifest.serving)
        import keras  # noqa: PLC0415 - takes seconds, and only after select_backend

        try:
            model = keras.models.load_model(bundle.scorer_path, compile=False, safe_mode=True)
            interface = _interface(model)
        except Exception as error:  # Keras raises whatever a broken archive leads to
            raise BundleError(f"{bundle.scorer_path} cannot be loaded by Keras: {error}") from error
        images, one_each = (None, *manifest.input_shape), ("float32", (None,))
        expected = {"score": one_each, "error": one_each, "reconstruction": ("float32", images)}
        if interface != ([("uint8", images)], expected):
            raise BundleError(
                f"{bundle.scorer_path} maps {interface[0]} to {interface[1]}; expected uint8 {images} to {expected}."
            )
        if weights_sha256(model) != manifest.weights_sha256:
            raise BundleError(f"{bundle.scorer_path}: its weights are not those that the manifest names.")
        scorer = cls(model, batch_capacity, manifest.serving)
        verify_golden(scorer, bundle)
        return scorer

    @property
    def batch_capacity(self) -> int:
        """The largest batch that score() takes."""
        return self._capacity

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self._shape

    @property
    def device(self) -> tuple[str, str]:
        """Kind (`CPU`, `GPU`) and name of the device that scores."""
        return device(self._serving.backend)

    @property
    def serving(self) -> Serving:
        """What runs the model, and in which precision."""
        return self._serving

    def warm_up(self, step: Callable[[], None] = lambda: None, *, reconstructions: bool = False) -> None:
        """Trace and run every padded size once, so that the first real batch is as fast as the last.

        Args:
            step: called after each.
            reconstructions: warm reconstruct() up too.
        """
        images = np.zeros((self._capacity, *self._shape), np.uint8)
        for size in self._sizes:
            self.score(images, size)
            step()
        if reconstructions:
            self.reconstruct(images[:1])
            step()

    def score(self, images: NDArray[np.uint8], count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score the first `count` of `images`, uint8 (batch_capacity, H, W, C); see worker.ports.Scorer."""
        return self.start(images, count)()

    def start(
        self, images: NDArray[np.uint8], count: int
    ) -> Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Start scoring as score() does; the function that is returned waits for the result.

        On a GPU this returns while the device still works, and the images may hold others at once; on a CPU it is
        score() in two steps.
        """
        size = next(size for size in self._sizes if size >= count)
        finish = self._compiled(images[:size])

        def result() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            score, error = finish()
            return score[:count], error[:count]

        return result

    def score_all(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score any number of images, uint8 (N, H, W, C). Returns scores and errors, float32 (N,)."""
        scores = np.empty(len(images), np.float32)
        errors = np.empty(len(images), np.float32)
        buffer = np.zeros((self._capacity, *self._shape), np.uint8)
        for start in range(0, len(images), self._capacity):
            part = images[start : start + self._capacity]
            buffer[: len(part)] = part
            scores[start : start + len(part)], errors[start : start + len(part)] = self.score(buffer, len(part))
        return scores, errors

    def reconstruct(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Reconstruct images, uint8 (N, H, W, C). Returns float32 (N, H, W, C) in [0, 1]."""
        if self._reconstruct is None:
            self._reconstruct = compile_model(
                self._model, self._shape, ("reconstruction",), (SMALLEST_BATCH,), self._serving
            )
        result = np.empty(images.shape, np.float32)
        buffer = np.zeros((SMALLEST_BATCH, *self._shape), np.uint8)
        for start in range(0, len(images), SMALLEST_BATCH):
            part = images[start : start + SMALLEST_BATCH]
            buffer[: len(part)] = part
            result[start : start + len(part)] = self._reconstruct(buffer)()[0][: len(part)]
        return result


Tensor = tuple[str, tuple[int | None, ...]]
"""Type and shape; None is the batch's size."""


def _interface(model: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What a model takes, and what it gives by name."""
    inputs = [(tensor.dtype, tuple(tensor.shape)) for tensor in model.inputs]
    return inputs, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in dict(model.output).items()}


def verify_golden(scorer: KerasScorer, bundle: Bundle) -> None:
    """Score the bundle's golden images and compare, within the bundle's tolerance.

    Raises:
        BundleError: they do not score as they did when the bundle was written.
    """
    spec = bundle.image_spec()
    try:
        images = np.stack([decode(image, None, spec).image for image in bundle.golden.images])
    except Unreadable as error:
        raise BundleError(f"a golden image of '{bundle.folder.name}' cannot be read: {error}") from error
    scores, errors = scorer.score_all(images)
    if not scores_agree(scores, bundle.golden.scores, bundle.tolerance) or not scores_agree(
        errors, bundle.golden.errors, bundle.tolerance
    ):
        raise BundleError(
            f"the golden images of '{bundle.folder.name}' score {scores.tolist()}, when it was written they scored "
            f"{bundle.golden.scores.tolist()} (relative tolerance {bundle.tolerance})."
        )


def golden_check(scorer: KerasScorer, bundle: Bundle) -> Callable[[], None]:
    """A check for the running worker: is it the scorer that is at fault?

    Returns:
        a function that raises ScorerBroken when the golden images no longer score as they did, or cannot
        be scored at all.
    """

    def check() -> None:
        try:
            verify_golden(scorer, bundle)
        except Exception as error:  # whatever the model raises, the images are known to be good
            raise ScorerBroken(f"the golden images can no longer be scored correctly: {error}") from error

    return check
