"""A folder of PNG and JPEG files as arrays.

Rules: files are decoded by worker.core.images, as the worker will decode them; what cannot be decoded is
listed and skipped up to a limit, beyond it nothing is fitted. Which file is what, training.layouts says.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.images import Images, room_for, subset
from training.layouts import Entry, list_files
from worker.core.errors import ConfigurationError, Reason, Unreadable
from worker.core.image_headers import JPEG_SIGNATURE, PNG_SIGNATURE, Header, read_jpeg, read_png
from worker.core.images import ImageSpec, decode_into

NAMED_IN_ERRORS = 10


class Origin(NamedTuple):
    """What a picture was as a file: `png` or `jpeg`, and `HxWxC` as it is to be seen."""

    codec: str
    size: str


@dataclass(frozen=True)
class Pictures:
    """A folder's images.

    Attributes:
        normal: what is normal, in words.
        images: uint8 (n, H, W, C).
        entries: what each is.
        origins: what each was as a file.
        skipped: unreadable files, each with its reason.
    """

    normal: str
    images: Images
    entries: tuple[Entry, ...]
    origins: tuple[Origin, ...]
    skipped: tuple[str, ...]

    @property
    def anomalous(self) -> NDArray[np.bool_]:
        """Whether each is an anomaly, bool (n,)."""
        return np.array([entry.anomalous for entry in self.entries], np.bool_)

    @property
    def test(self) -> NDArray[np.bool_] | None:
        """Which of them the layout gives to evaluate alone, bool (n,); None: it gives none."""
        if all(entry.test is None for entry in self.entries):
            return None
        return np.array([bool(entry.test) for entry in self.entries])

    @property
    def files(self) -> tuple[Path, ...]:
        """The file of each."""
        return tuple(entry.file for entry in self.entries)


def read_folder(
    path: Path,
    normal: str | None,
    size: tuple[int, int] | None,
    channels: int | None,
    max_unreadable: int,
    spec: ImageSpec | None = None,
    scratch: Path | None = None,
) -> Pictures:
    """Read a folder.

    Args:
        path: the folder.
        normal: as list_files() takes it.
        size: (height, width) to bring all files to; None: the most common one, which all must have.
        channels: 1 or 3; None: as most files.
        max_unreadable: how many files may be skipped.
        spec: what every file must be or is brought to; None: as size and channels say.
        scratch: the folder for images that are more than the memory should hold; None: the system's.

    Raises:
        ConfigurationError: the folder has another layout, no images, or too many that cannot be decoded; or they are
            too many for the disk.
    """
    listing = list_files(path, normal)
    spec = spec or _spec([entry.file for entry in listing.entries], size, channels)
    images = room_for(len(listing.entries), spec.shape, scratch)
    image = np.empty(spec.shape, np.uint8)
    origins: list[Origin] = []
    read: list[Entry] = []
    skipped: list[str] = []
    for entry in listing.entries:
        try:
            value = entry.file.read_bytes()
            header, codec = _header(value)
            decode_into(value, f"image/{codec}", spec, image)
        except (Unreadable, OSError) as error:
            skipped.append(f"{entry.file.relative_to(path)}: {error}")
            continue
        images[len(read)] = image
        height, width = _seen(header)
        origins.append(Origin(codec, f"{height}x{width}x{header.channels}"))
        read.append(entry)
    if len(skipped) > max_unreadable or not read:
        named = "\n  ".join(skipped[:NAMED_IN_ERRORS])
        more = f"\n  and {len(skipped) - NAMED_IN_ERRORS} more" if len(skipped) > NAMED_IN_ERRORS else ""
        raise ConfigurationError(
            f"data: {len(skipped)} of {len(listing.entries)} files in '{path}' cannot be used as images of "
            f"{spec.height} x {spec.width} x {spec.channels}, max_unreadable allows {max_unreadable}. Where sizes "
            f"differ, height and width bring all files to one size.\n  {named}{more}"
        )
    used = subset(images, np.arange(len(read))) if skipped else images
    return Pictures(listing.normal, used, tuple(read), tuple(origins), tuple(skipped))


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
