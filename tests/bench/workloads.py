"""What the contenders judge: three kinds of messages, and a bundle for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.bench.scoring import BatchScorer
from tests.faults.bundles import Shelf

KINDS = 256


@dataclass(frozen=True)
class Workload:
    """One kind of messages.

    Attributes:
        shape: (H, W, C) of the images.
        content_type: header of every message.
        encode: an image, uint8 (H, W, C), as a message's value.
        batch: images in a batch.
        share: of the benchmark's number of images; large ones take longer.
    """

    shape: tuple[int, int, int]
    content_type: str
    encode: Callable[[NDArray[np.uint8]], bytes]
    batch: int
    share: float


@dataclass(frozen=True)
class Material:
    """A workload made ready.

    Attributes:
        values: 256 different messages.
        errors: of each, as scored without Kafka.
        tolerance: within which two ways to the same error agree.
    """

    bundle: Path
    values: list[bytes]
    errors: list[float]
    tolerance: float


def _encoder(suffix: str) -> Callable[[NDArray[np.uint8]], bytes]:
    return lambda image: cv2.imencode(suffix, image)[1].tobytes()


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        "raw": Workload((28, 28, 1), "application/octet-stream", lambda image: image.tobytes(), 256, 1.0),
        "png": Workload((28, 28, 1), "image/png", _encoder(".png"), 256, 1.0),
        "jpeg": Workload((256, 256, 1), "image/jpeg", _encoder(".jpg"), 32, 0.02),
    }
)


def prepare(name: str, folder: Path, *, null: bool = False) -> Material:
    """Write a workload's bundle into `folder` and score its messages; null: with a model that costs nothing."""
    workload = WORKLOADS[name]
    bundle = Shelf(folder, workload.shape).add(null=null)
    values = messages(name)
    scorer = BatchScorer(str(bundle.folder), workload.batch, name)
    errors = [
        error
        for start in range(0, KINDS, workload.batch)
        for error in scorer.errors(values[start : start + workload.batch])
    ]
    return Material(bundle.folder, values, errors, scorer.tolerance)


def messages(name: str) -> list[bytes]:
    """A workload's 256 different values; the same in every process."""
    workload = WORKLOADS[name]
    return [workload.encode(image) for image in _smooth(workload.shape)]


def _smooth(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Images, uint8 (256, H, W, C), that compress like photographs of smooth surfaces rather than like noise."""
    noise = np.random.default_rng(11).normal(size=(KINDS, *shape)).astype(np.float32)
    sigma = shape[0] / 14
    for image in noise:
        image[..., 0] = cv2.GaussianBlur(image[..., 0], (0, 0), sigma)
    low, high = noise.min((1, 2, 3), keepdims=True), noise.max((1, 2, 3), keepdims=True)
    # No pixel is zero: a raw image never looks like an empty one.
    images: NDArray[np.uint8] = (1 + (noise - low) / (high - low) * 250).astype(np.uint8)
    return images
