"""A folder of PNG and JPEG files as arrays.

Rules: files are decoded by worker.core.images, as the worker will decode them; what cannot be decoded is
listed and skipped up to a limit, beyond it nothing is fitted. Layouts: a folder with `good/` (or the
sub-folder that the setting `normal` names), whose other sub-folders are anomalies; or normal files in the
folder itself, with anomalies in sub-folders or none.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.core.errors import ConfigurationError, Reason, Unreadable
from worker.core.image_headers import JPEG_SIGNATURE, PNG_SIGNATURE, Header, read_jpeg, read_png
from worker.core.images import ImageSpec, decode_into

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
GOOD = "good"
NAMED_IN_ERRORS = 10


class Origin(NamedTuple):
    """What a picture was as a file: `png` or `jpeg`, and `HxWxC` as it is to be seen."""

    codec: str
    size: str


@dataclass(frozen=True)
class Pictures:
    """A folder's images uint8 (n, H, W, C), whether each is an anomaly, bool (n,), its file and what that was."""

    normal: str
    images: NDArray[np.uint8]
    anomalous: NDArray[np.bool_]
    files: tuple[Path, ...]
    origins: tuple[Origin, ...]
    skipped: tuple[str, ...]


def read_folder(
    path: Path,
    normal: str | None,
    size: tuple[int, int] | None,
    channels: int | None,
    max_unreadable: int,
    spec: ImageSpec | None = None,
) -> Pictures:
    """Read a folder.

    Args:
        path: the folder.
        normal: the sub-folder of normal images; None: `good`, or the folder itself where there is none.
        size: (height, width) to bring all files to; None: the most common one, which all must have.
        channels: 1 or 3; None: as most files.
        max_unreadable: how many files may be skipped.
        spec: what every file must be or is brought to; None: as size and channels say.

    Raises:
        ConfigurationError: the folder has another layout, no images, or too many that cannot be decoded.
    """
    kind, files = _list(path, normal)
    spec = spec or _spec([file for file, _ in files], size, channels)
    images = np.empty((len(files), *spec.shape), np.uint8)
    origins: list[Origin] = []
    anomalous: list[bool] = []
    read: list[Path] = []
    skipped: list[str] = []
    for file, is_anomalous in files:
        try:
            value = file.read_bytes()
            header, codec = _header(value)
            decode_into(value, f"image/{codec}", spec, images[len(origins)])
        except (Unreadable, OSError) as error:
            skipped.append(f"{file.relative_to(path)}: {error}")
            continue
        height, width = _seen(header)
        origins.append(Origin(codec, f"{height}x{width}x{header.channels}"))
        anomalous.append(is_anomalous)
        read.append(file)
    if len(skipped) > max_unreadable or not origins:
        named = "\n  ".join(skipped[:NAMED_IN_ERRORS])
        more = f"\n  and {len(skipped) - NAMED_IN_ERRORS} more" if len(skipped) > NAMED_IN_ERRORS else ""
        raise ConfigurationError(
            f"data: {len(skipped)} of {len(files)} files in '{path}' cannot be used as images of {spec.height} x "
            f"{spec.width} x {spec.channels}, max_unreadable allows {max_unreadable}. Where sizes differ, height "
            f"and width bring all files to one size.\n  {named}{more}"
        )
    count = len(origins)
    return Pictures(kind, images[:count], np.array(anomalous, np.bool_), tuple(read), tuple(origins), tuple(skipped))


def _list(path: Path, normal: str | None) -> tuple[str, list[tuple[Path, bool]]]:
    """What is normal in words, and every image file, sorted, with whether it is an anomaly."""
    own = _pictures(path.iterdir())
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    chosen = path / (normal or GOOD)
    if chosen in folders:
        if own:
            raise ConfigurationError(
                f"data: '{path}' has images both in itself and in '{chosen.name}'; leave them in one place."
            )
        kind, good = f"folder {chosen.name}", _pictures(chosen.rglob("*"))
        folders.remove(chosen)
    elif normal is None and own:
        kind, good = "the folder's own files", own
    else:
        raise ConfigurationError(
            f"data: '{path}' has no normal images; expected them in '{chosen}' or, where the setting normal names "
            f"no sub-folder, in '{path}' itself. Sub-folders found: {', '.join(f.name for f in folders) or 'none'}."
        )
    if not good:
        raise ConfigurationError(f"data: there are no normal images ({', '.join(sorted(SUFFIXES))}) in '{chosen}'.")
    files = [(file, False) for file in good]
    files += [(file, True) for folder in folders for file in _pictures(folder.rglob("*"))]
    return kind, files


def _pictures(entries: Iterable[Path]) -> list[Path]:
    """The image files among them, sorted."""
    return sorted(
        entry
        for entry in entries
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )


def _header(value: bytes) -> tuple[Header, str]:
    """The file's header and its codec, by its signature: suffixes lie."""
    if value.startswith(PNG_SIGNATURE):
        return read_png(value), "png"
    if value.startswith(JPEG_SIGNATURE):
        return read_jpeg(value), "jpeg"
    raise Unreadable(Reason.NOT_AN_IMAGE, f"expected a PNG or a JPEG, got {len(value)} bytes that are neither")


def _seen(header: Header) -> tuple[int, int]:
    """(height, width) after EXIF orientation; 5 to 8 lie on their side."""
    return (header.height, header.width) if header.orientation < 5 else (header.width, header.height)


def _spec(files: Sequence[Path], size: tuple[int, int] | None, channels: int | None) -> ImageSpec:
    """What is asked for; where nothing is, what most files are, so that one odd file does not decide."""
    if size is None or channels is None:
        shapes: Counter[tuple[int, int, int]] = Counter()
        for file in files:
            try:
                header, _ = _header(file.read_bytes())
            except (Unreadable, OSError):
                continue  # it is listed with its reason when it is decoded
            shapes[(*_seen(header), 1 if header.channels == 1 else 3)] += 1
        if not shapes:
            raise ConfigurationError(f"data: none of the {len(files)} files is a PNG or JPEG, such as '{files[0]}'.")
        height, width, depth = shapes.most_common(1)[0][0]
        size, resize, channels = size or (height, width), size is not None, channels or depth
    else:
        resize = True
    try:
        return ImageSpec(*size, channels, resize=resize)
    except ValueError as error:
        raise ConfigurationError(f"data: {error}; give height and width.") from error
