"""The report's pictures of images: which are worth showing, and each beside its reconstruction and its error map.

Rules: all pictures together stay below PICTURES_BYTES, large images are shrunk until they do; one scale for all error
maps, or a faithful reconstruction would look as bad as a failed one.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from training.data import Dataset
from worker.core.bundle import Calibration
from worker.core.images import encode_png

WORST = 6
TYPICAL = {"small": 3, "large": 2}
"""A row of them on a desk."""
PICTURES_BYTES = 2_000_000
SIDES = (256, 192, 128, 96)
"""Pixels of the longer side, the largest that the bytes allow."""
SMALL = 96
"""Up to so many pixels a picture is a PNG, whose pixels can be counted; larger ones are JPEGs."""
JPEG_QUALITY = 85
FAINT = 1e-12
"""A squared difference below which there is none to be shown."""

Reconstruct = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Example:
    """One image, its reconstruction and its error map as data addresses, what it scored, and what it is called."""

    original: str
    reconstruction: str
    error_map: str
    score: float
    name: str


@dataclass(frozen=True)
class Group:
    """Examples of one kind: `title` in the plural for the heading, `one` for each."""

    title: str
    one: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Gallery:
    """What is shown, the squared difference that is brightest in its error maps, and whether its images are small."""

    groups: tuple[Group, ...]
    brightest: float
    small: bool


@dataclass(frozen=True)
class _Choice:
    title: str
    one: str
    indices: NDArray[np.intp]


def gallery(dataset: Dataset, calibration: Calibration, threshold: float, reconstruct: Reconstruct) -> Gallery:
    """The worst mistakes and typical images of both kinds; without anomalies, calibration images.

    Args:
        dataset: whose images.
        calibration: their scores.
        threshold: the one in force.
        reconstruct: images uint8 (n, H, W, C) to their reconstructions, float32 (n, H, W, C) in [0, 1].
    """
    scores, labels = calibration.evaluation_scores, calibration.evaluation_labels
    called = scores > np.float32(threshold)
    small = max(dataset.shape[:2]) <= SMALL
    typical = TYPICAL["small" if small else "large"]
    if len(scores):
        images, names, kinds = dataset.evaluation, dataset.evaluation_names, dataset.evaluation_kinds
        choices = [
            _Choice("False alarms, the worst first", "false alarm", _worst(~labels & called, -scores)),
            _Choice("Missed anomalies, the worst first", "missed anomaly", _worst(labels & ~called, scores)),
            _Choice("Normal images that passed", "normal image", _spread(~labels & ~called, typical)),
            _Choice("Anomalies that were found", "anomaly", _spread(labels & called, typical)),
        ]
    else:
        images, names, kinds, scores = dataset.calibration, dataset.calibration_names, (), calibration.scores
        everything = np.ones(len(scores), np.bool_)
        strangest = _worst(everything, -scores)
        others = everything.copy()
        others[strangest] = False
        choices = [
            _Choice("Calibration images with the highest scores", "calibration image", strangest),
            _Choice("Other calibration images", "calibration image", _spread(others, typical)),
        ]
    choices = [choice for choice in choices if len(choice.indices)]
    shown = np.concatenate([choice.indices for choice in choices])
    originals = np.ascontiguousarray(images[shown])
    rebuilt = reconstruct(originals)
    squared = np.mean(np.square(originals / np.float32(255) - rebuilt), axis=3)
    brightest = max(float(np.quantile(squared, 0.995)), FAINT)
    addresses = _addresses(originals, np.round(rebuilt * 255).astype(np.uint8), squared, brightest)
    examples = {
        int(index): Example(
            *address, float(scores[index]), _named(names[index] if names else "", kinds[index] if kinds else "")
        )
        for index, address in zip(shown, addresses, strict=True)
    }
    groups = [
        Group(choice.title, choice.one, tuple(examples[int(index)] for index in choice.indices)) for choice in choices
    ]
    return Gallery(tuple(groups), brightest, small)


def error_map(error: NDArray[np.float32], brightest: float) -> NDArray[np.uint8]:
    """Squared errors (H, W) as colours uint8 (H, W, 3), from black at 0 to bright at `brightest` and above."""
    colours = mpl.colormaps["inferno"](np.clip(error / max(brightest, FAINT), 0, 1), bytes=True)
    return np.ascontiguousarray(np.asarray(colours)[..., :3])


def _named(name: str, kind: str) -> str:
    """Name and kind, where a path does not begin with it: "scratch/1.png", "x_test[7]: 3"."""
    return name if not kind or name.startswith(f"{kind}/") or kind == "." else f"{name}: {kind}"


def _worst(chosen: NDArray[np.bool_], badness: NDArray[np.float32]) -> NDArray[np.intp]:
    """At most WORST of the chosen ones, those with the lowest number first."""
    found = np.flatnonzero(chosen)
    return found[np.argsort(badness[found], kind="stable")[:WORST]]


def _spread(chosen: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """At most `count` of the chosen ones, evenly from the first to the last."""
    found = np.flatnonzero(chosen)
    if len(found) == 0:
        return found
    return found[np.unique(np.linspace(0, len(found) - 1, count).astype(np.intp))]


def _addresses(
    originals: NDArray[np.uint8], rebuilt: NDArray[np.uint8], squared: NDArray[np.float32], brightest: float
) -> Sequence[tuple[str, str, str]]:
    """The three pictures of each image, of the largest of SIDES that keeps them all below PICTURES_BYTES."""
    addresses: list[tuple[str, str, str]] = []
    for side in SIDES:
        addresses = [
            (
                _address(_shrunk(original, side)),
                _address(_shrunk(copy, side)),
                _address(error_map(_shrunk_error(error, side), brightest)),
            )
            for original, copy, error in zip(originals, rebuilt, squared, strict=True)
        ]
        if sum(len(address) for pictures in addresses for address in pictures) <= PICTURES_BYTES:
            break
    return addresses


def _shrunk(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image (H, W, C) whose longer side has at most `side` pixels."""
    if max(image.shape[:2]) <= side:
        return image
    small = cv2.resize(image, _size(image.shape, side), interpolation=cv2.INTER_AREA)
    return small.reshape(*small.shape[:2], image.shape[2]).astype(np.uint8)


def _shrunk_error(error: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Squared errors (H, W) likewise, by their maximum: their mean would hide what is small."""
    factor = math.ceil(max(error.shape) / side)
    if factor == 1:
        return error
    widened = cv2.dilate(error, np.ones((factor, factor), np.uint8))
    return cv2.resize(widened, _size(error.shape, side), interpolation=cv2.INTER_NEAREST).astype(np.float32)


def _size(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """(width, height) of a shape (H, W, ...) whose longer side is brought to `side` pixels."""
    factor = side / max(shape[:2])
    return max(1, round(shape[1] * factor)), max(1, round(shape[0] * factor))


def _address(picture: NDArray[np.uint8]) -> str:
    if max(picture.shape[:2]) <= SMALL:
        return data_address(encode_png(picture), "image/png")
    stored = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.shape[2] == 3 else picture
    _, encoded = cv2.imencode(".jpg", stored, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    return data_address(encoded.tobytes(), "image/jpeg")


def data_address(content: bytes, kind: str) -> str:
    """The content as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
