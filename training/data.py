"""Where images come from, and which of them fit, calibrate and evaluate.

Rules: images are uint8 (N, H, W, C); only normal images fit and calibrate; calibration and evaluation images
are never fitted on. A source with a test split keeps the tutorial's protocol: the training split's normal
images fit, the first normal images of the test split calibrate, the rest of the test split evaluates. Any
other source is split at random by the seed; where images have groups, by whole groups.
"""

import hashlib
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.folder import Pictures, read_folder
from training.groups import group_files, number_groups
from training.sample import SAMPLE
from worker.core.bundle import TrainingData
from worker.core.errors import ConfigurationError
from worker.core.images import ImageSpec

Images = NDArray[np.uint8]
Numbers = NDArray[np.int64]

SPLIT_KEYS = ("x_train", "y_train", "x_test", "y_test")
EVALUATION_SHARE = 0.2
"""Of the normal images of a source that has anomalies but no test split: this share evaluates."""
# The tutorial's.
CALIBRATION_SIZE = 500
CALIBRATION_GROUPS = 100
"""Where images have groups: at least so many calibrate, if there are enough."""


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
        calibration_groups, evaluation_groups: int64 (n,) and (m,); None: images are independent.
        calibration_names, evaluation_names: what a person finds an image by, of each; empty: not known.
        evaluation_kinds: sub-folder or label of each evaluation image; empty: not known.
    """

    source: str
    normal: str
    suggested_name: str
    fit: Images
    calibration: Images
    evaluation: Images
    labels: NDArray[np.bool_]
    resize: bool = False
    codecs: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
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

    def description(self) -> TrainingData:
        """What the manifest says about the data."""
        digest = hashlib.sha256()
        for images in (self.fit, self.calibration):
            digest.update(np.ascontiguousarray(images).data)
        return TrainingData(
            source=self.source,
            normal=self.normal,
            fit=len(self.fit),
            calibration=len(self.calibration),
            evaluation=len(self.evaluation),
            fingerprint=digest.hexdigest(),
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
) -> Dataset:
    """Load a source; the arguments are the settings of the same name, `size` is (height, width).

    Raises:
        ConfigurationError: the source is not there, not what is expected, or too small.
    """
    path = SAMPLE if data == "sample" else Path(data)
    if path.is_dir():
        return _load_folder(path, normal, calibration_size, seed, size, channels, max_unreadable, group_by)
    _refuse_group_by(group_by, data)
    if data == "sample":
        return _load_npz(path, data, normal, calibration_size, seed)
    if not path.is_file():
        raise ConfigurationError(f"data: '{data}' was given; expected `sample`, an .npz file or a folder of images.")
    if size is not None or channels is not None:
        raise ConfigurationError(
            f"height, width, channels: they are for folders; '{data}' is an array of one size, resize it beforehand."
        )
    return _load_npz(path, data, normal, calibration_size, seed)


def _load_npz(path: Path, source: str, normal: str | None, calibration_size: int | None, seed: int) -> Dataset:
    arrays = _read_npz(path)
    stem = "mnist" if source == "sample" else path.stem
    groups: tuple[Numbers | None, Numbers | None] = (None, None)
    if set(SPLIT_KEYS) <= set(arrays):
        if "groups" in arrays:
            raise ConfigurationError(f"data: '{path}' has groups beside x_train; expected them beside images.")
        fit_labels, test_labels = _labels(arrays, "x_train", "y_train"), _labels(arrays, "x_test", "y_test")
        fit_images, test_images = _images(arrays["x_train"], "x_train"), _images(arrays["x_test"], "x_test")
        if fit_images.shape[1:] != test_images.shape[1:]:
            raise ConfigurationError(f"data: '{path}' has images of two sizes in x_train and x_test.")
        chosen = _normal_label(normal, fit_labels, source)
        calibration, evaluation = _protocol(test_labels != chosen, calibration_size)
        parts = (
            fit_images[fit_labels == chosen],
            test_images[calibration],
            test_images[evaluation],
            test_labels[evaluation] != chosen,
        )
        description, name = f"label {chosen}", f"{stem}-{chosen}"
        array, kinds = "x_test", test_labels
    elif "images" in arrays:
        images = _images(arrays["images"], "images")
        anomalous, description, name = np.zeros(len(images), np.bool_), "all", stem
        array, kinds = "images", np.full(len(images), "all")
        if "labels" in arrays:
            kinds = _labels(arrays, "images", "labels")
            chosen = _normal_label(normal, kinds, source)
            anomalous, description, name = kinds != chosen, f"label {chosen}", f"{stem}-{chosen}"
        numbers = _group_numbers(arrays)
        fit, calibration, evaluation = split(anomalous, calibration_size, seed, numbers)
        parts = images[fit], images[calibration], images[evaluation], anomalous[evaluation]
        groups = _of(numbers, calibration), _of(numbers, evaluation)
    else:
        raise ConfigurationError(
            f"data: '{path}' holds {sorted(arrays)}; expected {', '.join(SPLIT_KEYS)}, or images and, where there "
            "are anomalies, labels, and groups where images belong together."
        )
    count = len(parts[0]) + len(parts[1])
    height, width, depth = parts[0].shape[1:]
    return Dataset(
        source,
        description,
        _slug(name),
        *parts,
        codecs={"array": count},
        sizes={f"{height}x{width}x{depth}": count},
        calibration_groups=groups[0],
        evaluation_groups=groups[1],
        calibration_names=tuple(f"{array}[{index}]" for index in calibration),
        evaluation_names=tuple(f"{array}[{index}]" for index in evaluation),
        evaluation_kinds=tuple(kinds[evaluation].tolist()),
    )


def labelled_splits(source: str) -> tuple[Images, NDArray[np.str_], Images, NDArray[np.str_]]:
    """Images and labels of the training and of the test split, of `sample` or an .npz file.

    Raises:
        ConfigurationError: the source has no such splits.
    """
    path = SAMPLE if source == "sample" else Path(source)
    if not path.is_file():
        raise ConfigurationError(f"data: '{source}' was given; expected `sample` or an .npz file.")
    arrays = _read_npz(path)
    if not set(SPLIT_KEYS) <= set(arrays):
        raise ConfigurationError(f"data: '{path}' holds {sorted(arrays)}; expected {', '.join(SPLIT_KEYS)}.")
    return (
        _images(arrays["x_train"], "x_train"),
        _labels(arrays, "x_train", "y_train"),
        _images(arrays["x_test"], "x_test"),
        _labels(arrays, "x_test", "y_test"),
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
) -> Dataset:
    pictures: Pictures = read_folder(path, normal, size, channels, max_unreadable)
    numbers = number_groups(group_files(group_by, path, pictures.files)) if group_by else None
    fit, calibration, evaluation = split(pictures.anomalous, calibration_size, seed, numbers)
    origins = [pictures.origins[index] for index in (*fit, *calibration)]
    files = [file.relative_to(path) for file in pictures.files]
    return Dataset(
        str(path),
        pictures.normal,
        _slug(path.resolve().name),
        pictures.images[fit],
        pictures.images[calibration],
        pictures.images[evaluation],
        pictures.anomalous[evaluation],
        resize=size is not None,
        codecs=dict(sorted(Counter(origin.codec for origin in origins).items())),
        sizes=dict(sorted(Counter(origin.size for origin in origins).items())),
        skipped=pictures.skipped,
        calibration_groups=_of(numbers, calibration),
        evaluation_groups=_of(numbers, evaluation),
        calibration_names=tuple(files[index].as_posix() for index in calibration),
        evaluation_names=tuple(files[index].as_posix() for index in evaluation),
        evaluation_kinds=tuple(files[index].parent.as_posix() for index in evaluation),
    )


@dataclass(frozen=True)
class Normals:
    """Normal images, uint8 (n, H, W, C), to calibrate a bundle anew.

    Attributes:
        source: where they came from, as the user named it.
        groups: int64 (n,); None: images are independent.
        skipped: unreadable files, each with its reason.
        anomalies: how many images are none of them and are not used.
    """

    source: str
    images: Images
    groups: Numbers | None
    skipped: tuple[str, ...]
    anomalies: int


def load_normals(
    data: str, spec: ImageSpec, *, normal: str | None = None, max_unreadable: int = 10, group_by: str | None = None
) -> Normals:
    """The normal images of a folder, or of an .npz with images, as a bundle wants them.

    Args:
        data: the source.
        spec: the bundle's; files are decoded by it, as its fit and the worker decode them.
        normal: a sub-folder or label, as for load().
        max_unreadable: how many files may be skipped.
        group_by: for folders, as training.groups has it.

    Raises:
        ConfigurationError: the source is not there, not what is expected, or of another size.
    """
    path = Path(data)
    if path.is_dir():
        pictures = read_folder(path, normal, None, None, max_unreadable, spec)
        kept = ~pictures.anomalous
        # Anomalies need no group: they are not used.
        files = [file for file, normal_one in zip(pictures.files, kept, strict=True) if normal_one]
        groups = number_groups(group_files(group_by, path, files)) if group_by else None
        skipped, images = pictures.skipped, pictures.images
    else:
        _refuse_group_by(group_by, data)
        arrays = _read_npz(path)
        if "images" not in arrays:
            raise ConfigurationError(
                f"data (--data): '{data}' holds {sorted(arrays)}; expected images that the model was not fitted on, "
                "as the array images, and perhaps labels and groups."
            )
        images, kept, skipped = _images(arrays["images"], "images"), np.ones(len(arrays["images"]), np.bool_), ()
        if "labels" in arrays:
            labels = _labels(arrays, "images", "labels")
            kept = labels == _normal_label(normal, labels, data)
        groups = _of(_group_numbers(arrays), np.flatnonzero(kept))
        if images.shape[1:] != spec.shape:
            raise ConfigurationError(
                f"data (--data): images of {images.shape[1:]} were given, the bundle's are {spec.shape}."
            )
    return Normals(data, images[kept], groups, skipped, int((~kept).sum()))


def _protocol(
    anomalous: NDArray[np.bool_], calibration_size: int | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The tutorial's roles: indices of the test split, bool (n,), that calibrate and that evaluate."""
    normals = np.flatnonzero(~anomalous)
    if calibration_size is None:
        calibration_size = CALIBRATION_SIZE
    if calibration_size > len(normals):
        raise ConfigurationError(
            f"calibration_size (--calibration-size): {calibration_size} is wanted; the test split has {len(normals)} "
            "normal images."
        )
    rest = np.ones(len(anomalous), np.bool_)
    rest[normals[:calibration_size]] = False
    if len(normals) == calibration_size:
        rest[:] = False  # anomalies without normal images tell nothing about false positives
    return normals[:calibration_size], np.flatnonzero(rest)


def split(
    anomalous: NDArray[np.bool_], calibration_size: int | None, seed: int, groups: Numbers | None = None
) -> tuple[NDArray[np.intp], ...]:
    """Indices that fit, calibrate and evaluate, each ascending; together every image that is used, once.

    Where there are anomalies, all of them and EVALUATION_SHARE of the normal images evaluate; else nothing does. No
    group is in two roles; one that has an anomaly evaluates.

    Args:
        anomalous: bool (n,).
        calibration_size: how many normal images calibrate, at least; None: CALIBRATION_SIZE, and CALIBRATION_GROUPS
            groups, or as many as can.
        seed: of the permutation.
        groups: (n,); None: images are independent, each a group of its own.

    Raises:
        ConfigurationError: too few normal images, or groups of them.
    """
    _, members = np.unique(np.arange(len(anomalous)) if groups is None else groups, return_inverse=True)
    faulty = np.bincount(members, anomalous) > 0
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~faulty))
    reached = np.cumsum(np.bincount(members)[order])
    count = int(reached[-1]) if len(order) else 0
    evaluated = max(1, int(count * EVALUATION_SHARE)) if np.any(anomalous) else 0
    largest = (count - evaluated) // 2
    if calibration_size is None:
        wanted = CALIBRATION_SIZE
        if groups is not None and len(order):
            wanted = max(wanted, int(reached[min(CALIBRATION_GROUPS, len(order)) - 1]))
        calibration_size = max(1, min(wanted, largest))
    if calibration_size > largest:
        raise ConfigurationError(
            f"calibration_size (--calibration-size): {calibration_size} was given; of {count} normal images, "
            f"{evaluated} of them for the evaluation, at most {largest} may calibrate, so that as many are left for "
            "the fit. Give more images or a smaller number."
        )
    first = int(np.searchsorted(reached, calibration_size)) + 1
    second = int(np.searchsorted(reached, reached[first - 1] + evaluated)) + 1 if evaluated else first
    if second >= len(order):
        raise ConfigurationError(
            f"group_by (--group-by): {len(order)} groups of normal images were found; a fit, a calibration of "
            f"{calibration_size} images and an evaluation of {evaluated} need groups of their own. Give more groups, "
            "smaller ones, or a smaller calibration_size."
        )
    role = np.full(len(faulty), 2)
    role[order[:first]], role[order[second:]] = 1, 0
    fit, calibration, evaluation = (np.flatnonzero(role[members] == which) for which in range(3))
    return fit, calibration, evaluation


def _of(numbers: Numbers | None, chosen: NDArray[np.intp]) -> Numbers | None:
    return None if numbers is None else numbers[chosen]


def _refuse_group_by(group_by: str | None, data: str) -> None:
    if group_by is not None:
        raise ConfigurationError(
            f"group_by (--group-by): '{group_by}' was given; it is for folders of files. In an .npz such as '{data}' "
            "the groups are an array called groups, a number or text for each of the images."
        )


def _group_numbers(arrays: Mapping[str, NDArray[Any]]) -> Numbers | None:
    return number_groups(_labels(arrays, "images", "groups")) if "groups" in arrays else None


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        # A lone .npy array has neither `files` nor a context: AttributeError or TypeError.
        raise ConfigurationError(f"data: '{path}' is no readable .npz file: {error}.") from error


def _images(array: NDArray[Any], name: str) -> Images:
    """The array as uint8 (N, H, W, C)."""
    images = array[..., None] if array.ndim == 3 else array
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in {1, 3} or not images.size:
        raise ConfigurationError(
            f"data: {name} is {array.dtype} {array.shape}; expected uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), "
            "values 0 to 255. For images in [0, 1]: (images * 255).round().astype('uint8')."
        )
    return images


def _labels(arrays: Mapping[str, NDArray[Any]], images: str, name: str) -> NDArray[np.str_]:
    """Labels as text, (N,)."""
    labels = arrays[name]
    if labels.ndim != 1 or len(labels) != len(arrays[images]) or labels.dtype.kind not in "iubU":
        raise ConfigurationError(
            f"data: {name} is {labels.dtype} {labels.shape}; expected an integer or a text for each of the "
            f"{len(arrays[images])} {images}."
        )
    return labels.astype(np.str_)


def _normal_label(given: str | None, labels: NDArray[np.str_], source: str) -> str:
    found: Sequence[str] = np.unique(labels).tolist()
    # Only digits have a default: in other data 1 may as well mean the anomaly.
    digits = source == "sample" or found == [str(digit) for digit in range(10)]
    chosen = "1" if given is None and digits else given
    if chosen is None or chosen not in found:
        raise ConfigurationError(
            f"normal: {given!r} was given; '{source}' can be fitted on the labels {', '.join(found[:20])}."
        )
    return chosen


def _slug(text: str) -> str:
    """A bundle name made of any text."""
    kept = "".join(letter if letter in "abcdefghijklmnopqrstuvwxyz0123456789._-" else "-" for letter in text.lower())
    return kept.strip("._-")[:63] or "images"
