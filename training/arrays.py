"""An .npz file as arrays: images uint8 (N, H, W, C), labels as text, groups as numbers.

Rules: pickles are not opened; an array of images that is more than the memory should hold is unpacked into a file.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import images as memory
from training.groups import number_groups
from training.images import Images, Stored, scratch_file, write_all
from training.roles import Numbers
from training.sample import SAMPLE
from worker.core.errors import ConfigurationError

SPLIT_KEYS = ("x_train", "y_train", "x_test", "y_test")
KNOWN = frozenset({*SPLIT_KEYS, "images", "labels", "groups"})
PIECE = 2**20
"""Bytes that are unpacked at a time."""


@dataclass(frozen=True)
class Npz:
    """An .npz file: the names of all its arrays, and those of KNOWN that it has."""

    path: Path
    names: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any] | Stored]

    def has(self, *names: str) -> bool:
        """Whether it has all of them."""
        return set(names) <= set(self.arrays)

    def images(self, name: str) -> Images:
        """An array as images, uint8 (N, H, W, C).

        Raises:
            ConfigurationError: it is none.
        """
        array = self.arrays[name]
        if not isinstance(array, Stored):
            if array.dtype != np.uint8 or array.ndim not in {3, 4} or not array.size:
                raise _no_images(name, array.dtype, array.shape)
            array = array[..., None] if array.ndim == 3 else array
        if array.shape[3] not in {1, 3}:
            raise _no_images(name, np.dtype(np.uint8), array.shape)
        return array

    def labels(self, images: str, name: str) -> NDArray[np.str_]:
        """Labels as text, one for each of the images, (N,).

        Raises:
            ConfigurationError: they are none, or of another number.
        """
        labels, count = self.arrays[name], len(self.arrays[images])
        if isinstance(labels, Stored) or labels.shape != (count,) or labels.dtype.kind not in "iubU":
            kind = "uint8" if isinstance(labels, Stored) else labels.dtype
            raise ConfigurationError(
                f"data: {name} is {kind} {labels.shape}; expected an integer or a text for each of the {count} "
                f"{images}."
            )
        return labels.astype(np.str_)

    def groups(self) -> Numbers | None:
        """The numbers of the images' groups, (N,); None: there are none."""
        return number_groups(self.labels("images", "groups")) if "groups" in self.arrays else None


def read_npz(path: Path, scratch: Path | None = None) -> Npz:
    """Read an .npz file.

    Args:
        path: the file.
        scratch: the folder for images that are more than the memory should hold; None: the system's.

    Raises:
        ConfigurationError: it is none, or its images are too many for the disk.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            known = [name for name in archive.files if name in KNOWN]
            return Npz(path, tuple(sorted(archive.files)), {name: _read(archive, name, scratch) for name in known})
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        # A lone .npy array has neither `files` nor a context: AttributeError or TypeError.
        raise ConfigurationError(f"data: '{path}' is no readable .npz file: {error}.") from error


def _read(archive: Any, name: str, scratch: Path | None) -> NDArray[Any] | Stored:
    """An array of numpy's archive; large images are unpacked a piece at a time."""
    entry = archive.zip.getinfo(f"{name}.npy")
    if entry.file_size <= memory.IN_MEMORY:
        return np.asarray(archive[name])
    with archive.zip.open(entry) as packed:
        version = np.lib.format.read_magic(packed)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, by_column, dtype = read_header(packed)
        if dtype != np.uint8 or len(shape) not in {3, 4} or by_column:
            raise _no_images(name, dtype, shape, ", stored column by column" if by_column else "")
        file = scratch_file(entry.file_size, scratch)
        while piece := packed.read(PIECE):
            write_all(file, memoryview(piece))
    return Stored(file, (*shape[1:], 1)[:3], np.arange(shape[0]))


def _no_images(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], more: str = "") -> ConfigurationError:
    return ConfigurationError(
        f"data: {name} is {dtype} {shape}{more}; expected uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), row by row, "
        "values 0 to 255. For images in [0, 1]: (images * 255).round().astype('uint8')."
    )


def normal_label(given: str | None, labels: NDArray[np.str_], source: str) -> str:
    """The label that is normal.

    Args:
        given: by the user; None: 1, where the labels are digits.
        labels: all of them, (n,).
        source: as the user named it.

    Raises:
        ConfigurationError: there is no such label.
    """
    found: Sequence[str] = np.unique(labels).tolist()
    # Only digits have a default: in other data 1 may as well mean the anomaly.
    digits = source == "sample" or found == [str(digit) for digit in range(10)]
    chosen = "1" if given is None and digits else given
    if chosen is None or chosen not in found:
        raise ConfigurationError(
            f"normal: {given!r} was given; '{source}' can be fitted on the labels {', '.join(found[:20])}."
        )
    return chosen


def labelled_splits(source: str) -> tuple[NDArray[np.uint8], NDArray[np.str_], NDArray[np.uint8], NDArray[np.str_]]:
    """Images and labels of the training and of the test split, of `sample` or an .npz file.

    Raises:
        ConfigurationError: the source has no such splits.
    """
    path = SAMPLE if source == "sample" else Path(source)
    if not path.is_file():
        raise ConfigurationError(f"data: '{source}' was given; expected `sample` or an .npz file.")
    npz = read_npz(path)
    if not npz.has(*SPLIT_KEYS):
        raise ConfigurationError(f"data: '{path}' holds {list(npz.names)}; expected {', '.join(SPLIT_KEYS)}.")
    return (
        npz.images("x_train")[:],
        npz.labels("x_train", "y_train"),
        npz.images("x_test")[:],
        npz.labels("x_test", "y_test"),
    )
