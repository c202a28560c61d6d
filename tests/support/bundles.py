"""Small real bundles: a Keras model of a few weights, written by the code that writes the real ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.core.bundle import GOLDEN, MANIFEST, Bundle, Serving, digest_of, sha256_of

SHAPE = (8, 8, 1)
# An image that begins with this pixel has no finite score in the bundle that write_fragile_bundle makes.
FATAL_PIXEL = 251


def tiny_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images, uint8 (count, 8, 8, 1), without a pixel above 250."""
    return np.random.default_rng(seed).integers(0, 251, (count, *SHAPE), dtype=np.uint8)


def write_tiny_bundle(
    output: Path, name: str = "tiny", seed: int = 0, *, fragile: bool = False, serving: Serving | None = None
) -> Bundle:
    """An untrained bundle for 8x8 grey images. `fragile`: FATAL_PIXEL makes the score NaN."""
    from worker.adapters.keras_scorer import KerasScorer, select_backend

    select_backend("tensorflow")
    import keras

    from training.data import Dataset
    from training.export import calibrate_scores, golden_images, write_bundle
    from training.model import build_autoencoder, build_scorer
    from training.thresholds import Percentile, fit_threshold

    keras.utils.set_random_seed(seed)
    images = tiny_images(260, seed)
    dataset = Dataset(
        source="random pixels",
        normal="all",
        suggested_name=name,
        fit=images[:100],
        calibration=images[100:200],
        evaluation=images[200:],
        labels=np.arange(60) % 2 == 0,
        codecs={"array": 200},
        sizes={"8x8x1": 200},
    )
    model = build_scorer(build_autoencoder(SHAPE, latent_size=4))
    if fragile:
        model = _fragile(model)
    scorer = KerasScorer(model, 64, serving)
    calibration = calibrate_scores(scorer, dataset)
    return write_bundle(
        output,
        name=name,
        scorer_model=model,
        dataset=dataset,
        threshold=fit_threshold(Percentile(), calibration.scores),
        calibration=calibration,
        golden=golden_images(scorer, dataset),
        training={"seed": seed},
        report="<!doctype html><title>tiny</title>",
        serving=serving,
    )


def with_false_golden(bundle: Bundle, output: Path) -> Path:
    """A copy whose golden images score otherwise than it says, and whose hashes are all right: its folder."""
    folder = shutil.copytree(bundle.folder, output / "copy")
    with np.load(folder / GOLDEN) as archive:
        arrays = dict(archive)
    arrays["scores"] = arrays["scores"] * np.float32(1.5)
    np.savez(folder / GOLDEN, **arrays)
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest["files"][GOLDEN] = sha256_of(folder / GOLDEN)
    manifest["digest"] = digest_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return folder.rename(output / f"{manifest['name']}-{manifest['digest'][:12]}")


def _fragile(model: Any) -> Any:
    import keras
    from keras import ops

    image = keras.Input(SHAPE, dtype="uint8", name="image")
    out = model(image)
    first = ops.cast(image[:, 0, 0, 0], "float32")
    poison = ops.where(ops.equal(first, FATAL_PIXEL), np.float32("nan"), np.float32(0))
    return keras.Model(
        image,
        {
            "score": out["score"] + poison,
            "error": out["error"] + poison,
            "reconstruction": out["reconstruction"],
        },
        name="fragile",
    )
