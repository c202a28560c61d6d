"""The bundle: one folder that holds the model, its threshold and the proof that they belong together.

    <name>-<digest12>/          current -> <name>-<digest12>   (a symlink, replaced atomically)
        manifest.json           everything the other files are for; `digest` = SHA-256 of its canonical JSON
        scorer.keras            image uint8 (N, H, W, C) -> score, error float32 (N,), reconstruction (N, H, W, C)
        calibration.npz         scores, errors of the held-out normal images; of the evaluation set with labels
        golden.npz              encoded images with their scores: a scorer that disagrees is not this bundle's
        report.html             for people

Rules: everything is verified before anything is opened by a library that could be misled (sizes first, then
hashes, then formats); its files are plain files, no links; the digest detects damage and mix-ups, it is no
signature. This module reads and verifies; training.export writes.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.core.bundle_arrays import check_archive, read_arrays
from worker.core.drift import valid_quantiles
from worker.core.errors import BundleError
from worker.core.images import ImageSpec
from worker.core.verdicts import ModelName

FORMAT_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
SCORER = "scorer.keras"
CALIBRATION = "calibration.npz"
GOLDEN = "golden.npz"
REPORT = "report.html"
FILES = (SCORER, CALIBRATION, GOLDEN, REPORT)
CURRENT = "current"
GOLDEN_IMAGES = 8

# Relative difference that two correct scorings of one image may have. Measured: 2.5e-6 between batch sizes
# in float32 with TF32 off, 1.5 % in bfloat16.
TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 3e-2}

MAX_MANIFEST_BYTES = 1 << 20
KERAS_MEMBERS = frozenset({"metadata.json", "config.json", "model.weights.h5"})
_EXPECTED = f"Expected a folder that reconstream-train wrote, or its '{CURRENT}' link."
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class ThresholdFit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decision threshold and what is known about it.

    Attributes:
        value: the threshold; float32 as stored.
        method: `percentile`, `mean_plus_k_std`, `peaks_over_threshold`, `conformal`, `best_f1`, `cost_weighted`.
        parameters: the method's, by name.
        n: how many normal images it was calibrated on.
        interval: 95 % interval for the false-positive rate on images like those, or None where none is known to hold.
        fitted: ISO 8601, UTC.
        groups: how many groups those images are of (parts, days); None: they count as independent.
        no_interval: why there is no interval. Bundles written before these two have neither.
    """

    value: float
    method: str
    parameters: dict[str, float]
    n: int
    interval: tuple[float, float] | None
    fitted: str
    groups: int | None = None
    no_interval: str | None = None


class Threshold(ThresholdFit, frozen=True, forbid_unknown_fields=True):
    """The threshold in force, and those that it replaced, oldest first."""

    history: list[ThresholdFit] = []


class ScoreDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the score comes from the image: its formula's name and how pixels are pooled."""

    name: str
    pooling: str


class Serving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Precision and backend that the threshold was calibrated with; serving uses these and no others.

    The backends are engines.BACKENDS: `tensorflow`, `jax`, `openvino`.
    """

    precision: Literal["float32", "bfloat16"]
    backend: str


class TrainingData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model was fitted on.

    Attributes:
        source: where the images came from, as its user named it.
        normal: what counted as normal.
        fit, calibration, evaluation: numbers of images.
        fingerprint: SHA-256 over the decoded pixels of all fit and calibration images, in order.
        codecs: number of images per encoding (`array`, `png`, `jpeg`).
        sizes: number of images per original `HxWxC`.
    """

    source: str
    normal: str
    fit: int
    calibration: int
    evaluation: int
    fingerprint: str
    codecs: dict[str, int]
    sizes: dict[str, int]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """manifest.json, format version 1."""

    format_version: Literal[1]
    name: str
    created: str
    input_shape: tuple[int, int, int]
    resize: bool
    score: ScoreDefinition
    serving: Serving
    threshold: Threshold
    calibration_quantiles: dict[str, dict[str, float]]
    training: dict[str, Any]
    data: TrainingData
    versions: dict[str, str]
    weights_sha256: str
    files: dict[str, str]
    digest: str

    @property
    def version(self) -> str:
        """The first 12 hex digits of the digest: the model version that verdicts and metrics carry."""
        return self.digest[:12]

    @property
    def folder_name(self) -> str:
        """The name of the folder that this manifest may stand in."""
        return f"{self.name}-{self.version}"


@dataclass(frozen=True)
class Golden:
    """Images as encoded bytes with the scores and errors, float32 (n,), that this bundle's scorer gave them."""

    images: tuple[bytes, ...]
    scores: NDArray[np.float32]
    errors: NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """Scores and errors, float32: of the calibration images (n,), and of the evaluation set (m,), m may be 0.

    `evaluation_labels` is bool (m,), True = anomaly. `groups`, int64 (n,), and `evaluation_groups`, int64 (m,), say
    which images are of one part or one day; None: images are independent.
    """

    scores: NDArray[np.float32]
    errors: NDArray[np.float32]
    evaluation_scores: NDArray[np.float32]
    evaluation_errors: NDArray[np.float32]
    evaluation_labels: NDArray[np.bool_]
    groups: NDArray[np.int64] | None = None
    evaluation_groups: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `folder` is the real folder, with every symlink resolved."""

    folder: Path
    manifest: Manifest
    calibration: Calibration
    golden: Golden

    @property
    def scorer_path(self) -> Path:
        """The Keras archive."""
        return self.folder / SCORER

    @property
    def model(self) -> ModelName:
        """Name and version, as verdicts carry them."""
        return ModelName(self.manifest.name, self.manifest.version)

    @property
    def threshold(self) -> np.float32:
        """The threshold in force."""
        return np.float32(self.manifest.threshold.value)

    @property
    def tolerance(self) -> float:
        """Relative difference allowed between two correct scorings of one image."""
        return TOLERANCE[self.manifest.serving.precision]

    def image_spec(self, **limits: int) -> ImageSpec:
        """What an image must be to be scored; `limits` as ImageSpec names them."""
        height, width, channels = self.manifest.input_shape
        return ImageSpec(height, width, channels, resize=self.manifest.resize, **limits)


def valid_name(name: str) -> bool:
    """Whether a bundle may be called so: a short, lower-case file name."""
    return _NAME.fullmatch(name) is not None


def canonical_json(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's canonical form: keys sorted, no white space, ASCII, no NaN; `digest` is left out.

    Raises:
        ValueError: a number is not finite.
    """
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's canonical form, in hex."""
    return hashlib.sha256(canonical_json(manifest)).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve(path: Path) -> Path:
    """The bundle folder that `path` means: the folder itself, a symlink to it, or a folder with `current`.

    Raises:
        BundleError: there is nothing of the kind.
    """
    try:
        # The link is followed once, here: a swap during loading must not mix two bundles.
        real = path.resolve(strict=True)
        if not os.path.lexists(real / MANIFEST) and os.path.lexists(real / CURRENT):
            real = (real / CURRENT).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise BundleError(f"no bundle at '{path}': {error}. {_EXPECTED}") from error
    if not os.path.lexists(real / MANIFEST):
        raise BundleError(f"no bundle at '{path}': it has no {MANIFEST}. {_EXPECTED}")
    return real


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle without opening its model.

    Args:
        path: the folder, a link to it, or the folder above with its `current` link.

    Raises:
        BundleError: anything at all is missing, damaged, or not what the manifest says.
    """
    folder = resolve(path)
    try:
        for name in (MANIFEST, *FILES):
            # lstat: a link could lead elsewhere by the time Keras follows it, and a pipe would never end.
            if not stat.S_ISREG((folder / name).lstat().st_mode):
                raise BundleError(f"{folder / name} is a link or no file; expected a plain file (cp -L copies one).")
        manifest = _read_manifest(folder)
        for name in FILES:
            if sha256_of(folder / name) != manifest.files[name]:
                raise BundleError(f"{folder / name} is damaged or was exchanged: its SHA-256 is not the manifest's.")
        check_archive(folder / SCORER, KERAS_MEMBERS)
        calibration = _read_calibration(folder / CALIBRATION)
        golden = _read_golden(folder / GOLDEN)
    except OSError as error:
        raise BundleError(f"the bundle in '{folder}' cannot be read: {error}") from error
    if len(calibration.scores) != manifest.threshold.n and not manifest.threshold.history:
        raise BundleError(
            f"{CALIBRATION} has {len(calibration.scores)} scores, the threshold was fitted on {manifest.threshold.n}."
        )
    return Bundle(folder, manifest, calibration, golden)


def scores_agree(ours: NDArray[np.float32], stored: NDArray[np.float32], tolerance: float) -> bool:
    """Whether two scorings of the same images agree: finite, and within the relative tolerance."""
    return bool(np.all(np.isfinite(ours)) and np.allclose(ours, stored, rtol=tolerance, atol=tolerance * 1e-4))


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    size = path.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has {size} bytes, at most {MAX_MANIFEST_BYTES} are allowed.")
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        manifest = msgspec.convert(content, Manifest)
        digest = digest_of(content)
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise BundleError(f"{path} is not a manifest of format version {FORMAT_VERSION}: {error}") from error
    if manifest.digest != digest:
        raise BundleError(f"{path} was changed after it was written: its digest is not that of its content.")
    if not valid_name(manifest.name):
        raise BundleError(f"{path}: '{manifest.name}' is no bundle name; expected {_NAME.pattern}.")
    if folder.name != manifest.folder_name:
        raise BundleError(f"the folder is called '{folder.name}', its manifest says '{manifest.folder_name}'.")
    if set(manifest.files) != set(FILES):
        raise BundleError(f"{path} lists {sorted(manifest.files)}, expected {sorted(FILES)}.")
    height, width, channels = manifest.input_shape
    if min(height, width) < 1 or max(height, width) > 1 << 14 or channels not in {1, 3}:
        raise BundleError(f"{path}: input shape {manifest.input_shape} is not (H, W, 1 or 3).")
    if not _is_float32(manifest.threshold.value):
        raise BundleError(f"{path}: the threshold {manifest.threshold.value} is not a finite float32.")
    quantiles = manifest.calibration_quantiles
    expected = {"score", "error"} <= set(quantiles) <= {"score", "error", "brightness", "sharpness"}
    if not expected or not all(map(valid_quantiles, quantiles.values())):
        raise BundleError(
            f"{path}: expected calibration_quantiles of score and error, finite float32 by level 0 to 1."
        )
    return manifest


def _is_float32(value: float) -> bool:
    return abs(value) <= float(np.finfo(np.float32).max)


def _read_calibration(path: Path) -> Calibration:
    arrays = read_arrays(
        path,
        {
            "scores": np.float32,
            "errors": np.float32,
            "evaluation_scores": np.float32,
            "evaluation_errors": np.float32,
            "evaluation_labels": np.bool_,
        },
        {"groups": np.int64, "evaluation_groups": np.int64},
    )
    if len(arrays["scores"]) == 0 or len(arrays["scores"]) != len(arrays["errors"]):
        raise BundleError(f"{path}: expected as many errors as scores, and at least one.")
    if len({len(arrays[f"evaluation_{part}"]) for part in ("scores", "errors", "labels")}) != 1:
        raise BundleError(f"{path}: the evaluation's arrays differ in length.")
    for groups, scores in (("groups", "scores"), ("evaluation_groups", "evaluation_scores")):
        if groups in arrays and len(arrays[groups]) != len(arrays[scores]):
            raise BundleError(f"{path}: expected as many {groups} as {scores}.")
    return Calibration(**arrays)


def _read_golden(path: Path) -> Golden:
    arrays = read_arrays(path, {"data": np.uint8, "lengths": np.int64, "scores": np.float32, "errors": np.float32})
    lengths, data = arrays["lengths"], arrays["data"]
    if not 0 < len(lengths) == len(arrays["scores"]) == len(arrays["errors"]):
        raise BundleError(f"{path}: expected as many images as scores and errors, and at least one.")
    # Added up as Python's integers: int64 would wrap around.
    if np.any(lengths < 0) or sum(lengths.tolist()) != len(data):
        raise BundleError(f"{path}: the images' lengths do not add up to its data.")
    ends = np.cumsum(lengths)
    images = tuple(data[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True))
    return Golden(images, arrays["scores"], arrays["errors"])
