"""Where images come from, and which of them fit, calibrate and evaluate.

Rules: images are uint8 (N, H, W, C); only normal images fit and calibrate; calibration and evaluation images
are never fitted on. A source with a test split keeps the tutorial's protocol: the training split's normal
images fit, the first normal images of the test split calibrate, the rest of the test split evaluates. Any
other source is split at random by the seed (training.roles); where images have groups, by whole groups.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.arrays import SPLIT_KEYS, normal_label, read_npz
from training.folder import read_folder
from training.groups import group_files, number_groups, refuse_group_by
from training.images import Images, parts, subset
from training.roles import Numbers, of_those, split, tutorial_split
from training.sample import SAMPLE
from worker.core.bundle import TrainingData
from worker.core.errors import ConfigurationError

HASHED_AT_ONCE = 256
"""Images."""


@dataclass(frozen=True)
class Dataset:
    """Images in their roles.

    Attributes:
        source: where they came from, as the user named it.
        normal: what counted as normal.
        suggested_name: a name for the bundle.
        fit, calibration: normal images, uint8 (n, H, W, C).
        evaluation: uint8 (m, H, W, C); m is 0 where the source has no anomalies.
        labels: bool (m,), True = anomaly.
        resize: whether files of another size were brought to this one.
        codecs, sizes: of the fit and calibration images, as TrainingData has them.
        skipped: unreadable files, each with its reason.
        fit_groups, calibration_groups, evaluation_groups: int64, of each image; None: images are independent.
        calibration_names, evaluation_names: what a person finds an image by, of each; empty: not known.
        evaluation_kinds: sub-folder or label of each evaluation image; empty: not known.
    """

    source: str
    normal: str
    suggested_name: str
    fit: Images
    calibration: NDArray[np.uint8]
    evaluation: Images
    labels: NDArray[np.bool_]
    resize: bool = False
    codecs: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    fit_groups: Numbers | None = None
    calibration_groups: Numbers | None = None
    evaluation_groups: Numbers | None = None
    calibration_names: tuple[str, ...] = ()
    evaluation_names: tuple[str, ...] = ()
    evaluation_kinds: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.fit.shape[1:]
        return height, width, channels

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the pixels of the fit and calibration images, in their order."""
        digest = hashlib.sha256()
        for images in (self.fit, self.calibration):
            for part in parts(images, HASHED_AT_ONCE):
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def description(self) -> TrainingData:
        """What the manifest says about the data."""
        return TrainingData(
            source=self.source,
            normal=self.normal,
            fit=len(self.fit),
            calibration=len(self.calibration),
            evaluation=len(self.evaluation),
            fingerprint=self.fingerprint,
            codecs=dict(self.codecs),
            sizes=dict(self.sizes),
        )


def load(
    data: str = "sample",
    *,
    normal: str | None = None,
    calibration_size: int | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    max_unreadable: int = 10,
    group_by: str | None = None,
    scratch: Path | None = None,
) -> Dataset:
    """Load a source; the arguments are the settings of the same name, `size` is (height, width).

    Images that are more than the memory should hold go into a file in the folder `scratch`, None: the system's.

    Raises:
        ConfigurationError: the source is not there, not what is expected, too small, or too large for the disk.
    """
    path = SAMPLE if data == "sample" else Path(data)
    if path.is_dir():
        return _load_folder(path, normal, calibration_size, seed, size, channels, max_unreadable, group_by, scratch)
    refuse_group_by(group_by, data)
    if data == "sample":
        return _load_npz(path, data, normal, calibration_size, seed, scratch)
    if not path.is_file():
        raise ConfigurationError(f"data: '{data}' was given; expected `sample`, an .npz file or a folder of images.")
    if size is not None or channels is not None:
        raise ConfigurationError(
            f"height, width, channels: they are for folders; '{data}' is an array of one size, resize it beforehand."
        )
    return _load_npz(path, data, normal, calibration_size, seed, scratch)


def _load_npz(
    path: Path, source: str, normal: str | None, calibration_size: int | None, seed: int, scratch: Path | None
) -> Dataset:
    npz = read_npz(path, scratch)
    stem = "mnist" if source == "sample" else path.stem
    numbers: Numbers | None = None
    if npz.has(*SPLIT_KEYS):
        if npz.has("groups"):
            raise ConfigurationError(f"data: '{path}' has groups beside x_train; expected them beside images.")
        fit_labels, kinds = npz.labels("x_train", "y_train"), npz.labels("x_test", "y_test")
        fit_images, held_out = npz.images("x_train"), npz.images("x_test")
        if fit_images.shape[1:] != held_out.shape[1:]:
            raise ConfigurationError(f"data: '{path}' has images of two sizes in x_train and x_test.")
        chosen = normal_label(normal, fit_labels, source)
        anomalous = kinds != chosen
        calibration, evaluation = tutorial_split(anomalous, calibration_size)
        fit, array = np.flatnonzero(fit_labels == chosen), "x_test"
        description, name = f"label {chosen}", f"{stem}-{chosen}"
    elif npz.has("images"):
        fit_images = held_out = npz.images("images")
        count = len(held_out)
        anomalous, description, name = np.zeros(count, np.bool_), "all", stem
        array, kinds = "images", np.full(count, "all")
        if npz.has("labels"):
            kinds = npz.labels("images", "labels")
            chosen = normal_label(normal, kinds, source)
            anomalous, description, name = kinds != chosen, f"label {chosen}", f"{stem}-{chosen}"
        numbers = npz.groups()
        fit, calibration, evaluation = split(anomalous, calibration_size, seed, numbers)
    else:
        raise ConfigurationError(
            f"data: '{path}' holds {list(npz.names)}; expected {', '.join(SPLIT_KEYS)}, or images and, where there "
            "are anomalies, labels, and groups where images belong together."
        )
    used = len(fit) + len(calibration)
    height, width, depth = fit_images.shape[1:]
    return Dataset(
        source,
        description,
        _slug(name),
        subset(fit_images, fit),
        held_out[calibration],
        subset(held_out, evaluation),
        anomalous[evaluation],
        codecs={"array": used},
        sizes={f"{height}x{width}x{depth}": used},
        fit_groups=of_those(numbers, fit),
        calibration_groups=of_those(numbers, calibration),
        evaluation_groups=of_those(numbers, evaluation),
        calibration_names=tuple(f"{array}[{index}]" for index in calibration),
        evaluation_names=tuple(f"{array}[{index}]" for index in evaluation),
        evaluation_kinds=tuple(kinds[evaluation].tolist()),
    )


def _load_folder(
    path: Path,
    normal: str | None,
    calibration_size: int | None,
    seed: int,
    size: tuple[int, int] | None,
    channels: int | None,
    max_unreadable: int,
    group_by: str | None,
    scratch: Path | None,
) -> Dataset:
    pictures = read_folder(path, normal, size, channels, max_unreadable, scratch=scratch)
    numbers = number_groups(group_files(group_by, path, pictures.files)) if group_by else None
    fit, calibration, evaluation = split(pictures.anomalous, calibration_size, seed, numbers, pictures.test)
    origins = [pictures.origins[index] for index in (*fit, *calibration)]
    names = [file.relative_to(path).as_posix() for file in pictures.files]
    return Dataset(
        str(path),
        pictures.normal,
        _slug(path.resolve().name),
        subset(pictures.images, fit),
        pictures.images[calibration],
        subset(pictures.images, evaluation),
        pictures.anomalous[evaluation],
        resize=size is not None,
        codecs=dict(sorted(Counter(origin.codec for origin in origins).items())),
        sizes=dict(sorted(Counter(origin.size for origin in origins).items())),
        skipped=pictures.skipped,
        fit_groups=of_those(numbers, fit),
        calibration_groups=of_those(numbers, calibration),
        evaluation_groups=of_those(numbers, evaluation),
        calibration_names=tuple(names[index] for index in calibration),
        evaluation_names=tuple(names[index] for index in evaluation),
        evaluation_kinds=tuple(pictures.entries[index].kind for index in evaluation),
    )


def _slug(text: str) -> str:
    """A bundle name made of any text."""
    kept = "".join(letter if letter in "abcdefghijklmnopqrstuvwxyz0123456789._-" else "-" for letter in text.lower())
    return kept.strip("._-")[:63] or "images"
