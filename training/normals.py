"""The normal images of a source, to calibrate a bundle anew."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.arrays import normal_label, read_npz
from training.folder import read_folder
from training.groups import group_files, number_groups, refuse_group_by
from training.images import Images, subset
from training.roles import Numbers, of_those
from worker.core.errors import ConfigurationError
from worker.core.images import ImageSpec


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
    data: str,
    spec: ImageSpec,
    *,
    normal: str | None = None,
    max_unreadable: int = 10,
    group_by: str | None = None,
    scratch: Path | None = None,
) -> Normals:
    """The normal images of a folder, or of an .npz with images, as a bundle wants them.

    Args:
        data: the source.
        spec: the bundle's; files are decoded by it, as its fit and the worker decode them.
        normal: a sub-folder or label, as for load().
        max_unreadable: how many files may be skipped.
        group_by: for folders, as training.groups has it.
        scratch: the folder for images that are more than the memory should hold; None: the system's.

    Raises:
        ConfigurationError: the source is not there, not what is expected, or of another size.
    """
    path = Path(data)
    images: Images
    if path.is_dir():
        pictures = read_folder(path, normal, None, None, max_unreadable, spec, scratch)
        kept = ~pictures.anomalous
        # Anomalies need no group: they are not used.
        files = [file for file, normal_one in zip(pictures.files, kept, strict=True) if normal_one]
        groups = number_groups(group_files(group_by, path, files)) if group_by else None
        skipped, images = pictures.skipped, pictures.images
    else:
        refuse_group_by(group_by, data)
        npz = read_npz(path, scratch)
        if not npz.has("images"):
            raise ConfigurationError(
                f"data (--data): '{data}' holds {list(npz.names)}; expected images that the model was not fitted on, "
                "as the array images, and perhaps labels and groups."
            )
        images, skipped = npz.images("images"), ()
        kept = np.ones(len(images), np.bool_)
        if npz.has("labels"):
            labels = npz.labels("images", "labels")
            kept = labels == normal_label(normal, labels, data)
        groups = of_those(npz.groups(), np.flatnonzero(kept))
        if images.shape[1:] != spec.shape:
            raise ConfigurationError(
                f"data (--data): images of {images.shape[1:]} were given, the bundle's are {spec.shape}."
            )
    return Normals(data, subset(images, kept), groups, skipped, int((~kept).sum()))
