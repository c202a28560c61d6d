"""Which files of a folder are normal, which are anomalies, and which are there to evaluate alone.

Layouts, the first that is found:
1. MVTec AD's (Bergmann et al., IJCV 129, 2021): `train/good` is fitted and calibrated on; `test/good` and the other
   folders of `test` evaluate; `ground_truth`, which holds masks, is not read.
2. VisA's (Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation", ECCV
   2022): `Data/Images/Normal` and `Data/Images/Anomaly`. Where the data set's `split_csv/1cls.csv` is beside the
   folder, it says what evaluates; where the folder has `image_anno.csv`, that names the kinds of anomalies.
3. `good/`, or the sub-folder that the setting `normal` names, whose siblings are anomalies.
4. Normal files in the folder itself; sub-folders, if any, are anomalies.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from worker.core.errors import ConfigurationError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
GOOD = "good"
VISA_IMAGES = Path("Data", "Images")
VISA_NORMAL = "Normal"


class Entry(NamedTuple):
    """A file.

    Attributes:
        file: its path.
        anomalous: whether it shows an anomaly.
        kind: of anomaly; the folder, where the layout has no other name for it.
        test: whether it is there to evaluate alone; None: the layout does not say.
    """

    file: Path
    anomalous: bool
    kind: str
    test: bool | None = None


@dataclass(frozen=True)
class Listing:
    """What is normal, in words, and all files."""

    normal: str
    entries: tuple[Entry, ...]


def list_files(path: Path, normal: str | None) -> Listing:
    """The image files of a folder, normal ones first, in the order of their paths.

    Args:
        path: the folder.
        normal: the sub-folder of normal images; None: `good`, or the folder itself where there is none.

    Raises:
        ConfigurationError: the folder has none of the layouts, or no normal images.
    """
    if (path / "train" / (normal or GOOD)).is_dir() and (path / "test").is_dir():
        return _mvtec(path, normal or GOOD)
    if normal in {None, VISA_NORMAL} and (path / VISA_IMAGES / VISA_NORMAL).is_dir():
        return _visa(path)
    own = _pictures(path.iterdir())
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    chosen = path / (normal or GOOD)
    if chosen in folders:
        if own:
            raise ConfigurationError(
                f"data: '{path}' has images both in itself and in '{chosen.name}'; leave them in one place."
            )
        words, good = f"folder {chosen.name}", _pictures(chosen.rglob("*"))
        folders.remove(chosen)
    elif normal is None and own:
        words, good = "the folder's own files", own
    else:
        raise ConfigurationError(
            f"data: '{path}' has no normal images; expected them in '{chosen}' or, where the setting normal names "
            f"no sub-folder, in '{path}' itself. Sub-folders found: {', '.join(f.name for f in folders) or 'none'}. "
            "Of a data set of many products, such as MVTec AD or VisA, give the folder of one."
        )
    bad = [file for folder in folders for file in _pictures(folder.rglob("*"))]
    entries = [_entry(path, file, anomalous=False) for file in good]
    return _listing(words, chosen, entries + [_entry(path, file, anomalous=True) for file in bad])


def _mvtec(path: Path, normal: str) -> Listing:
    fit, test = path / "train" / normal, path / "test"
    entries = [_entry(path, file, anomalous=False, test=False) for file in _pictures(fit.rglob("*"))]
    held_out = _pictures(test.rglob("*"))
    for anomalous in (False, True):
        entries += [
            _entry(path, file, anomalous=anomalous, test=True)
            for file in held_out
            if (test / normal not in file.parents) == anomalous
        ]
    return _listing(f"folder {normal}", fit, entries)


def _visa(path: Path) -> Listing:
    product = path.resolve().name
    folder = path / VISA_IMAGES
    splits = {
        row["image"]: row["split"]
        for row in _rows(path.resolve().parent / "split_csv" / "1cls.csv", "object", "split", "image")
        if row["object"] == product
    }
    kinds = {row["image"]: row["label"] for row in _rows(path / "image_anno.csv", "image", "label")}
    entries = []
    for name, anomalous in ((VISA_NORMAL, False), ("Anomaly", True)):
        for file in _pictures((folder / name).rglob("*")):
            # The tables name a file as seen from the data set's folder.
            image = f"{product}/{file.relative_to(path).as_posix()}"
            if splits and image not in splits:
                continue
            entry = _entry(path, file, anomalous=anomalous, test=splits[image] == "test" if splits else None)
            entries.append(entry._replace(kind=kinds.get(image, entry.kind)))
    return _listing(f"folder {VISA_NORMAL}", folder / VISA_NORMAL, entries)


def _listing(normal: str, folder: Path, entries: list[Entry]) -> Listing:
    if all(entry.anomalous or entry.test for entry in entries):
        raise ConfigurationError(f"data: there are no normal images ({', '.join(sorted(SUFFIXES))}) in '{folder}'.")
    return Listing(normal, tuple(entries))


def _entry(path: Path, file: Path, *, anomalous: bool, test: bool | None = None) -> Entry:
    return Entry(file, anomalous, file.parent.relative_to(path).as_posix(), test)


def _pictures(entries: Iterable[Path]) -> list[Path]:
    """The image files among them, sorted."""
    return sorted(
        entry
        for entry in entries
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a table that may be missing, with at least these columns."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if not set(columns) <= set(table.fieldnames or ()):
                raise ConfigurationError(
                    f"data: '{path}' has the columns {', '.join(table.fieldnames or ()) or 'none'}; expected "
                    f"{', '.join(columns)}, as VisA has them."
                )
            return list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"data: '{path}' cannot be read as a CSV table: {error}.") from error
