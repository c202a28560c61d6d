"""The bundles that the campaign serves, the images that it sends, and what offline scoring makes of them.

Rules: untrained weights judge as definitely as trained ones; a slow model scores like the quick one of its seed.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.faults.accounting import Offline
from worker.core.bundle import Bundle

SMALL = (8, 8, 1)
TUTORIAL = (28, 28, 1)
IMAGES = 256
# Small steps one after the other: no second core makes them faster.
BURN_UNITS, BURN_SAMPLE = 256, 2000
# Below every tolerance, and yet the steps are needed: the optimiser cannot leave them out.
BURN_WEIGHT = 1e-12
DAMAGES = ("a byte of the model changed", "a file missing", "the manifest changed")


class Shelf:
    """A folder of bundles with its `current` link.

    Args:
        folder: made where it is missing.
        shape: (H, W, C) of the images.

    Attributes:
        images: uint8 (256, H, W, C), what the campaign sends.
        offline: scores of `images` by the version of each bundle.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int] = SMALL) -> None:
        self.folder = folder
        self.shape = shape
        # No pixel is zero: a raw image never looks like an empty one.
        self.images: NDArray[np.uint8] = np.random.default_rng(7).integers(1, 251, (IMAGES, *shape), dtype=np.uint8)
        self.offline: dict[str, Offline] = {}
        self._bundles: list[Bundle] = []
        self._damaged = 0
        self._current = 0

    def add(self, *, burn_s: float = 0.0, null: bool = False) -> Bundle:
        """Write another bundle and let `current` point to it.

        Args:
            burn_s: its batches take so many seconds more, on one core: however idle the machine is, no less.
            null: a model that costs nothing, in place of the tutorial's.
        """
        from worker.adapters.keras_scorer import KerasScorer, select_backend

        select_backend("tensorflow")
        import keras

        from training.data import Dataset
        from training.export import calibrate_scores, golden_images, write_bundle
        from training.model import build_autoencoder, build_scorer
        from training.thresholds import Percentile, fit_threshold

        seed = len(self._bundles)
        keras.utils.set_random_seed(seed)
        dataset = Dataset(
            source="random pixels",
            normal="all",
            suggested_name="faults",
            fit=self.images[:100],
            calibration=self.images[100:200],
            evaluation=self.images[200:],
            labels=np.arange(IMAGES - 200) % 2 == 0,
            codecs={"array": 200},
            sizes={"x".join(map(str, self.shape)): 200},
        )
        model = _null(self.shape) if null else build_scorer(build_autoencoder(self.shape))
        scorer = KerasScorer(model, 64)
        calibration = calibrate_scores(scorer, dataset)
        bundle = write_bundle(
            self.folder,
            name="faults",
            scorer_model=_burning(model, self.shape, burn_s) if burn_s else model,
            dataset=dataset,
            threshold=fit_threshold(Percentile(), calibration.scores),
            calibration=calibration,
            golden=golden_images(scorer, dataset),
            training={"seed": seed},
            report="<!doctype html><title>fault campaign</title>",
        )
        scores, _ = scorer.score_all(self.images)
        self.offline[bundle.manifest.version] = Offline(scores.tolist(), float(bundle.threshold), bundle.tolerance)
        self._bundles.append(bundle)
        self._current = len(self._bundles) - 1
        return bundle

    def switch(self, number: int) -> str:
        """Let `current` point to a bundle by its number, from 0; returns its version."""
        from training.export import switch_current

        self._current = number
        switch_current(self.folder, self._bundles[number].folder.name)
        return self._bundles[number].manifest.version

    def switch_to_damaged(self) -> str:
        """Let `current` point to a damaged copy of the bundle after the current one; returns what is damaged."""
        from training.export import switch_current

        source = self._bundles[(self._current + 1) % len(self._bundles)].folder
        damage = self._damaged % len(DAMAGES)
        self._damaged += 1
        folder = Path(f"damaged-{self._damaged}") / source.name
        copy = shutil.copytree(source, self.folder / folder)
        if damage == 0:
            path = copy / "scorer.keras"
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif damage == 1:
            (copy / "golden.npz").unlink()
        else:
            path = copy / "manifest.json"
            path.write_text(path.read_text("utf-8").replace('"percentile"', '"percentage"'), "utf-8")
        switch_current(self.folder, str(folder))
        return DAMAGES[damage]

    @property
    def current(self) -> int:
        """The number of the last good bundle that `current` pointed to."""
        return self._current

    def switch_back(self) -> None:
        """Let `current` point to the last good bundle again."""
        self.switch(self._current)


def _null(shape: tuple[int, int, int]) -> Any:
    """The interface of a scorer; it looks at one pixel of an image."""
    import keras

    image = keras.Input(shape, dtype="uint8", name="image")
    pixel = keras.layers.Rescaling(1 / 255)(image[:, 0, 0, 0])
    return keras.Model(
        image, {"score": pixel, "error": pixel, "reconstruction": keras.layers.Rescaling(1 / 255)(image)}
    )


def _burning(model: Any, shape: tuple[int, int, int], seconds: float) -> Any:
    """The model with a recurrent network behind its score that takes so long on one core of this machine.

    Each of its steps needs the one before: a worker that has several cores to itself is no faster.
    """
    import keras
    from keras import ops

    # The bias keeps the values away from zero: no denormal numbers.
    steps = keras.layers.SimpleRNN(BURN_UNITS, bias_initializer="ones")

    def burnt(score: Any, count: int) -> Any:
        return steps(ops.broadcast_to(ops.reshape(ops.mean(score), (1, 1, 1)), (1, count, 1)))

    image = keras.Input(shape, dtype="uint8", name="image")
    out = model(image)
    step_s = _cpu_seconds(keras.Model(image, burnt(out["score"], BURN_SAMPLE)), shape) / BURN_SAMPLE
    score = out["score"] + BURN_WEIGHT * ops.mean(burnt(out["score"], max(1, round(seconds / step_s))))
    return keras.Model(
        image, {"score": score, "error": out["error"], "reconstruction": out["reconstruction"]}, name="slow"
    )


def _cpu_seconds(model: Any, shape: tuple[int, int, int]) -> float:
    """What a call costs at best: a busy machine must not make the model quicker than it was asked to be."""
    import tensorflow as tf

    images = tf.constant(np.ones((1, *shape), np.uint8))
    call = tf.function(lambda image: model(image, training=False), autograph=False)
    call(images)
    spent = []
    for _ in range(5):
        began = time.process_time()
        call(images)
        spent.append(time.process_time() - began)
    return min(spent)
