"""Cut the shipped sample from the standard MNIST file.

    python -m training.sample.cut path/to/mnist.npz

Keeps the training images of the digits 1, 2 and 8 and all test images, in their order. The archive carries
no dates: the same file and the same zlib give the same bytes.
"""

import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.sample import SAMPLE

DIGITS = (1, 2, 8)


def cut(arrays: Mapping[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
    """The sample's arrays.

    Args:
        arrays: `x_train` (n, 28, 28), `y_train` (n,), `x_test` (m, 28, 28), `y_test` (m,), all uint8.
    """
    kept = np.isin(arrays["y_train"], DIGITS)
    return {
        "x_train": arrays["x_train"][kept],
        "y_train": arrays["y_train"][kept],
        "x_test": arrays["x_test"],
        "y_test": arrays["y_test"],
    }


def write(path: Path, arrays: Mapping[str, NDArray[np.uint8]]) -> None:
    """Write an `.npz` without dates; np.savez would put the current time into it."""
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def main(argv: Sequence[str]) -> int:
    """Read the file that is named, write the sample beside this module."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m training.sample.cut path/to/mnist.npz\n")
        return 2
    with np.load(argv[0], allow_pickle=False) as archive:
        arrays = cut(archive)
    write(SAMPLE, arrays)
    sys.stdout.write(f"{SAMPLE}: {SAMPLE.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
