"""Images that may be more than the memory holds.

Rules: up to IN_MEMORY bytes they are an array; more are in a file that has no name, so that nothing is left of it
however the process ends. They are read from it and not mapped: mapped pages would count as this process's memory.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from worker.core.errors import ConfigurationError

IN_MEMORY = 2**28
"""Bytes; images that take more of them are kept in a file."""


class Images(Protocol):
    """Images, uint8 (n, H, W, C): an array, or Stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W, C)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any:
        """Those of a slice or of integers (m,), as an array uint8 (m, H, W, C)."""
        ...


class Stored:
    """Images in a file, one after the other.

    Args:
        file: open, without a buffer.
        shape: (H, W, C).
        rows: int (n,), which of the file's images these are, counted from 0.
    """

    def __init__(self, file: FileIO, shape: tuple[int, ...], rows: NDArray[np.intp]) -> None:
        self._file = file
        self._shape = shape
        self._rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W, C)."""
        return len(self._rows), *self._shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any, /) -> NDArray[np.uint8]:
        """Read those of a slice or of integers (m,)."""
        rows = self._rows[index]
        found = np.empty((len(rows), *self._shape), np.uint8)
        for row, image in zip(rows.tolist(), found, strict=True):
            self._file.seek(row * image.nbytes)
            if self._file.readinto(image.data) != image.nbytes:
                raise OSError(f"the file of images ends within image {row}")
        return found

    def __setitem__(self, index: int, image: NDArray[np.uint8]) -> None:
        """Write one, (H, W, C)."""
        self._file.seek(int(self._rows[index]) * image.nbytes)
        write_all(self._file, np.ascontiguousarray(image).data.cast("B"))

    def subset(self, index: Any) -> "Stored":
        """Those of a slice, of integers or of a mask, without reading them."""
        return Stored(self._file, self._shape, self._rows[index])


def room_for(count: int, shape: tuple[int, ...], scratch: Path | None) -> NDArray[np.uint8] | Stored:
    """Room for so many images (H, W, C), each to be set by its number.

    Args:
        count: how many.
        shape: (H, W, C).
        scratch: the folder for the file, where it needs one; None: the system's.

    Raises:
        ConfigurationError: the disk has no room.
    """
    size = count * int(np.prod(shape))
    if size <= IN_MEMORY:
        return np.empty((count, *shape), np.uint8)
    return Stored(scratch_file(size, scratch), shape, np.arange(count))


class ScratchFile(FileIO):
    """A file that is closed when the last of its images are forgotten."""

    def __del__(self) -> None:
        self.close()


def scratch_file(size: int, scratch: Path | None) -> ScratchFile:
    """A file without a name, for so many bytes of images.

    Raises:
        ConfigurationError: the disk has no room.
    """
    folder = scratch or Path(tempfile.gettempdir())
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(buffering=0, dir=folder) as unnamed:
            file = ScratchFile(os.dup(unnamed.fileno()), "r+b")
    except OSError as error:
        raise ConfigurationError(
            f"data: decoded, the images take {size / 1e9:.1f} GB, and no file for them can be made in '{folder}': "
            f"{error}."
        ) from error
    if free < size:
        raise ConfigurationError(
            f"data: decoded, the images take {size / 1e9:.1f} GB, and the disk of '{folder}' has {free / 1e9:.1f} GB "
            "left. Make room there, or give fewer or smaller images (the settings height and width)."
        )
    return file


def write_all(file: FileIO, content: memoryview) -> None:
    """Write it to the end; a file without a buffer may take it in pieces."""
    while content:
        content = content[file.write(content) :]


def subset(images: Images, index: Any) -> Images:
    """Those of integers (m,) or of a mask (n,); from a file they are not read yet."""
    return images.subset(index) if isinstance(images, Stored) else images[index]


def sample(images: Images) -> NDArray[np.uint8]:
    """All of them or, where they are in a file, as many as the memory should hold, from the first to the last."""
    if not isinstance(images, Stored):
        return np.asarray(images[:])
    most = max(1, IN_MEMORY // int(np.prod(images.shape[1:])))
    return images[np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).astype(np.intp))]


def parts(images: Images, count: int) -> Iterator[NDArray[np.uint8]]:
    """All of them in order, up to `count` at a time, in memory."""
    for start in range(0, len(images), count):
        yield images[start : start + count]
