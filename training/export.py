"""Writing a bundle: whole or not at all.

The order is the guarantee:
1. every file goes into a temporary folder beside the bundle's place, and is flushed to the disk;
2. the manifest, with the hashes of all of them, is written last; its digest names the folder;
3. the folder is renamed to that name;
4. the bundle is read back, loaded and its golden images scored, as the worker would;
5. only then `current` is switched, by replacing the link in one step.
What fails before 5 leaves `current` as it was and removes what was written. Import after select_backend().
"""

import contextlib
import importlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import keras
import msgspec
import numpy as np
from numpy.typing import NDArray

from training.data import Dataset
from training.images import Images, parts
from training.quantiles import image_quantiles, quantiles
from worker.adapters.keras_scorer import KerasScorer, weights_sha256
from worker.core.bundle import (
    CALIBRATION,
    CURRENT,
    FILES,
    FORMAT_VERSION,
    GOLDEN,
    GOLDEN_IMAGES,
    MANIFEST,
    REPORT,
    SCORER,
    Bundle,
    Calibration,
    Golden,
    Manifest,
    ScoreDefinition,
    Serving,
    Threshold,
    ThresholdFit,
    digest_of,
    read_bundle,
    sha256_of,
)
from worker.core.errors import BundleError
from worker.core.images import ImageSpec, decode, encode_png

MEAN_SQUARED_ERROR = ScoreDefinition(name="mse", pooling="mean")
UNFINISHED = ".tmp"
ABANDONED_S = 3600.0


def calibrate_scores(scorer: KerasScorer, dataset: Dataset) -> Calibration:
    """Score the calibration and evaluation images with what will serve."""
    scores, errors = score_images(scorer, dataset.calibration)
    evaluation_scores, evaluation_errors = score_images(scorer, dataset.evaluation)
    return Calibration(
        scores,
        errors,
        evaluation_scores,
        evaluation_errors,
        dataset.labels,
        dataset.calibration_groups,
        dataset.evaluation_groups,
    )


def score_images(scorer: KerasScorer, images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores and errors, float32 (n,), of images that may be more than the memory should hold."""
    found = [scorer.score_all(part) for part in parts(images, 4 * scorer.batch_capacity)]
    if not found:
        return np.empty(0, np.float32), np.empty(0, np.float32)
    scores, errors = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(errors)


def golden_images(scorer: KerasScorer, dataset: Dataset) -> Golden:
    """Eight images as PNG, scored after they were decoded: half calibration images, half anomalies if there are."""
    anomalies = dataset.evaluation[np.flatnonzero(dataset.labels)[: GOLDEN_IMAGES // 2]]
    normals = dataset.calibration[: GOLDEN_IMAGES - len(anomalies)]
    encoded = tuple(encode_png(image) for image in (*normals, *anomalies))
    spec = ImageSpec(*dataset.shape)
    scores, errors = scorer.score_all(np.stack([decode(png, "image/png", spec).image for png in encoded]))
    return Golden(encoded, scores, errors)


def versions(backend: str | None = None) -> dict[str, str]:
    """Of everything that the scores depend on; `backend` as a manifest's serving names it, None: Keras's own."""
    names = dict.fromkeys((keras.backend.backend(), backend or keras.backend.backend()))
    return {
        "reconstream": metadata.version("reconstream"),
        "python": platform.python_version(),
        "keras": keras.__version__,
        **{name: str(importlib.import_module(name).__version__) for name in names},
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def machine() -> str:
    """The processor, its cores, the memory and the system, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
    return f"{name}, {cores}" if name else cores


def write_bundle(
    output: Path,
    *,
    name: str,
    scorer_model: Any,
    dataset: Dataset,
    threshold: ThresholdFit,
    calibration: Calibration,
    golden: Golden,
    training: Mapping[str, Any],
    report: str,
    serving: Serving | None = None,
    score: ScoreDefinition = MEAN_SQUARED_ERROR,
) -> Bundle:
    """Write, verify and switch to a bundle, in the order that this module's docstring gives.

    Args:
        output: the folder for bundles; made where it is missing.
        name: of the bundle.
        scorer_model: as build_scorer() makes it.
        dataset: what it was fitted on.
        threshold: the one in force.
        calibration: what calibrate_scores() returned.
        golden: what golden_images() returned.
        training: how it was fitted, for the manifest; JSON values.
        report: the report's HTML.
        score: how scorer_model makes its score.
        serving: what scored the calibration and the golden images; None: Keras's own backend, in float32.

    Returns:
        the bundle as read back.

    Raises:
        BundleError: what was written does not verify; it is removed.
        OSError: the disk refuses.
    """
    serving = serving or Serving("float32", keras.backend.backend())

    def write_files(folder: Path) -> None:
        scorer_model.save(folder / SCORER)
        write_golden(folder, golden)
        write_calibration(folder, calibration)
        (folder / REPORT).write_text(report, encoding="utf-8")

    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        input_shape=dataset.shape,
        resize=dataset.resize,
        score=score,
        serving=serving,
        threshold=Threshold(**msgspec.structs.asdict(threshold)),
        calibration_quantiles=calibration_quantiles(calibration, dataset.calibration),
        training=dict(training),
        data=dataset.description(),
        versions=versions(serving.backend),
        weights_sha256=weights_sha256(scorer_model),
        files={},
        digest="",
    )
    return publish(output, manifest, write_files)


def publish(output: Path, manifest: Manifest, write_files: Callable[[Path], None]) -> Bundle:
    """Write, verify and switch to a bundle, in the order that this module's docstring gives.

    Args:
        output: the folder for bundles; made where it is missing.
        manifest: without `files` and `digest`, which follow from what is written.
        write_files: writes every file but the manifest into a folder.

    Returns:
        the bundle as read back.

    Raises:
        BundleError: what was written does not verify; it is removed.
        OSError: the disk refuses.
    """
    output.mkdir(parents=True, exist_ok=True)
    _sweep(output)
    folder = Path(tempfile.mkdtemp(prefix=f".{manifest.name}-", suffix=UNFINISHED, dir=output))
    try:
        folder.chmod(0o755)  # mkdtemp's 0700 would keep a worker of another user out
        write_files(folder)
        files = {file: sha256_of(folder / file) for file in FILES}
        manifest = msgspec.structs.replace(manifest, files=files, digest="")
        manifest = msgspec.structs.replace(manifest, digest=digest_of(msgspec.to_builtins(manifest)))
        text = json.dumps(msgspec.to_builtins(manifest), indent=2, sort_keys=True, allow_nan=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        for path in (*folder.iterdir(), folder):
            _flush(path)
        folder = _rename(folder, output / manifest.folder_name)
        _flush(output)
        bundle = read_bundle(folder)
        KerasScorer.load(bundle)  # verifies weights, interface and golden images
    except BaseException:
        # Ctrl-C as well: nobody may find half a bundle, or one that does not verify.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    switch_current(output, folder.name)
    return bundle


def _sweep(output: Path) -> None:
    """Remove what a kill left of bundles that were being written: none takes an hour."""
    for folder in output.glob(f".*{UNFINISHED}"):
        with contextlib.suppress(FileNotFoundError):  # another fit was quicker
            if time.time() - folder.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)


def calibration_quantiles(calibration: Calibration, images: Images) -> dict[str, dict[str, float]]:
    """The manifest's, of a calibration and its images, uint8 (n, H, W, C)."""
    return {"score": quantiles(calibration.scores), "error": quantiles(calibration.errors), **image_quantiles(images)}


def switch_current(output: Path, folder_name: str) -> None:
    """Let `output/current` point to the folder beside it, in one step: readers see the old one or the new one.

    Raises:
        BundleError: `current` is there and is no link.
    """
    current = output / CURRENT
    if current.exists() and not current.is_symlink():
        raise BundleError(f"'{current}' is no link; expected a link to a bundle, or nothing. Move it away.")
    with tempfile.TemporaryDirectory(prefix=f".{CURRENT}-", dir=output) as scratch:
        link = Path(scratch) / CURRENT
        # The link must hold from where it will stand, hence relative to `output`.
        link.symlink_to(folder_name)
        link.replace(current)
    _flush(output)


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write calibration.npz."""
    arrays = {name: array for name, array in vars(calibration).items() if array is not None}
    if "groups" in arrays or "evaluation_groups" in arrays:
        # The file has both or none; images without groups are groups of one.
        for groups, scores in (("groups", "scores"), ("evaluation_groups", "evaluation_scores")):
            arrays.setdefault(groups, np.arange(len(arrays[scores]), dtype=np.int64))
    np.savez_compressed(folder / CALIBRATION, **arrays)


def write_golden(folder: Path, golden: Golden) -> None:
    """Write golden.npz."""
    arrays: dict[str, NDArray[Any]] = {
        "data": np.frombuffer(b"".join(golden.images), np.uint8),
        "lengths": np.array([len(image) for image in golden.images], np.int64),
        "scores": golden.scores,
        "errors": golden.errors,
    }
    np.savez(folder / GOLDEN, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options


def _rename(folder: Path, target: Path) -> Path:
    if target.exists():
        raise BundleError(f"'{target}' is already there, with the same digest; nothing is to be done.")
    return folder.rename(target)


def _flush(path: Path) -> None:
    """Have the file or folder on the disk before what depends on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
