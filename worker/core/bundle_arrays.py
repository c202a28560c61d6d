"""A bundle's archives: what they may hold and unpack to is checked before anything is unpacked."""

import zipfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.core.errors import BundleError

# A .keras archive of 584 KB can unpack to 600 MB. Weights hardly compress, so a real one stays below 4 times
# its own size plus its text; the headroom is for models with many zero weights.
MAX_UNPACK_RATIO = 20
MAX_UNPACKED_BYTES = 4 << 30


def check_archive(path: Path, members: Set[str], optional: Set[str] = frozenset()) -> Set[str]:
    """Refuse an archive whose directory is not as expected, or that unpacks to far more than it weighs.

    Returns:
        what it holds: the members, and of the optional ones all or none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BundleError(f"{path} is not the archive that it should be: {error}") from error
    names = {entry.filename for entry in entries}
    if names not in (members, members | optional) or len(entries) != len(names):
        raise BundleError(f"{path} holds {sorted(names)}, expected {sorted(members)}.")
    # Other methods unpack a block at once, whatever the size that the directory states.
    if not {entry.compress_type for entry in entries} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise BundleError(f"{path} is compressed in an unexpected way; expected members stored or deflated.")
    unpacked = sum(entry.file_size for entry in entries)
    limit = min(MAX_UNPACKED_BYTES, path.stat().st_size * MAX_UNPACK_RATIO + (1 << 20))
    if unpacked > limit:
        raise BundleError(f"{path} unpacks to {unpacked} bytes, at most {limit} are allowed for its size.")
    return names


def read_arrays(
    path: Path, expected: Mapping[str, type[np.generic]], optional: Mapping[str, type[np.generic]] | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays (n,) of an archive; of the optional ones all or none."""
    more = optional or {}
    files = {f"{name}.npy": name for name in (*expected, *more)}
    held = check_archive(path, {f"{name}.npy" for name in expected}, {f"{name}.npy" for name in more})
    kinds = {**expected, **more}
    with zipfile.ZipFile(path) as archive:
        arrays = {
            name: _read_array(archive, name, np.dtype(kinds[name])) for file, name in files.items() if file in held
        }
    for name, array in arrays.items():
        if array.dtype == np.float32 and not np.all(np.isfinite(array)):
            raise BundleError(f"{path}: {name} holds values that are not finite.")
    return arrays


def _read_array(archive: zipfile.ZipFile, name: str, kind: np.dtype[Any]) -> NDArray[Any]:
    """An array (n,) from an archive; numpy's own reader would allocate whatever shape the header claims."""
    try:
        with archive.open(f"{name}.npy") as member:
            if np.lib.format.read_magic(member) != (1, 0):
                raise ValueError("expected version 1.0 of the .npy format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            content = member.read()
    except Exception as error:  # the header is a Python literal: parsing it raises whatever it leads to
        raise BundleError(f"{archive.filename}: {name} cannot be read: {type(error).__name__}: {error}") from error
    if len(shape) != 1 or dtype != kind:
        raise BundleError(f"{archive.filename}: {name} is {dtype} {shape}, expected {kind} (n,).")
    if shape[0] * kind.itemsize != len(content):
        raise BundleError(f"{archive.filename}: {name} has {len(content)} bytes, its header says {kind} {shape}.")
    return np.frombuffer(content, kind)
